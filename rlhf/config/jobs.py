"""The jobs that a user runs, each a tree of frozen dataclasses with all its settings.

`rlhf.config.parsing.parse` makes them; their branches are in `shared.py`, `training.py` and `ppo.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from rlhf.config.checks import check, reject_unused
from rlhf.config.dpo import DPOConfig
from rlhf.config.environment import EnvironmentConfig
from rlhf.config.parsing import parse, read_yaml, to_options
from rlhf.config.ppo import CriticConfig, PPOConfig, PTXConfig
from rlhf.config.scores import JudgeConfig, MixConfig, RewardConfig, SourceConfig, SourceSettings, WeightedSource
from rlhf.config.shared import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    GenerationConfig,
    LoraConfig,
    ModelConfig,
    ScratchConfig,
)
from rlhf.config.training import TrainingConfig
from rlhf.errors import UserError

__all__ = [
    "BestOfNJob",
    "CheckpointConfig",
    "CriticConfig",
    "DPOConfig",
    "DPOJob",
    "DataConfig",
    "DemoJob",
    "EvalConfig",
    "EvaluateJob",
    "GenerateJob",
    "GenerationConfig",
    "JudgeConfig",
    "LoraConfig",
    "MixConfig",
    "ModelConfig",
    "PPOConfig",
    "PPOJob",
    "PTXConfig",
    "ReplayJob",
    "ReportJob",
    "RewardConfig",
    "RewardJob",
    "SFTJob",
    "ScratchConfig",
    "SourceConfig",
    "SourceSettings",
    "StatusJob",
    "TrainingConfig",
    "WeightedSource",
    "best_of_n_of_run",
    "comparison_of_policies",
    "evaluation_of_run",
    "is_ppo_run",
]

Tracker = Literal["tensorboard", "wandb"]


# --------------------------------------------------------------------------------------------------- training stages


@dataclass(frozen=True)
class TrainingJob:
    """The settings that every training stage begins with."""

    output: str
    """Run folder; must not exist unless resume is set."""
    seed: int = 0
    """Seed of all random numbers, from 0 to 2**32 - 1."""
    resume: str | None = None
    """`auto`: continue from the newest checkpoint in output, or start if there is none; or a checkpoint folder."""
    trackers: list[Tracker] = field(default_factory=lambda: ["tensorboard"])
    """Experiment trackers that log the metrics besides metrics.jsonl: tensorboard, wandb."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self):
        _check_seed(self.seed)


@dataclass(frozen=True)
class PPOJob(TrainingJob):
    """Train a policy with PPO."""

    output: str = "runs/ppo"
    """Run folder; must not exist unless resume is set."""
    export: Literal["adapter", "merged"] = "adapter"
    """With model.lora.rank, what model/ holds: the adapter, as PEFT saves it, which names the folder or hub id of its
    base; or merged weights, which load without PEFT and base (a critic of kind adapter is left out)."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    ptx: PTXConfig = field(default_factory=PTXConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self):
        super().__post_init__()
        _check_set(self, "model.path")
        _check_merged(self.export, self.model)
        self._check_critic()
        if self.model.shard and self.ppo.reference_update_steps is not None:
            raise UserError(
                "model.shard is true and ppo.reference_update_steps is set, but a sharded reference does not move; "
                "unset one of them"
            )
        if self.model.lora.rank > 0 and self.ppo.reference_update_rate != 1:
            raise UserError(
                f"ppo.reference_update_rate is {self.ppo.reference_update_rate}, but must be 1 with model.lora.rank, "
                "because an average of two adapters' factors is not the average of the weights that they stand for; "
                "raise ppo.reference_update_steps instead"
            )
        has_held_out = bool(self.data.eval_fraction or self.data.eval_path or self.data.eval_split)
        if self.eval.patience is not None and not has_held_out:
            raise UserError("eval.patience is set, but data.eval_fraction is 0, so that there is no held-out score")
        if self.environment.path is not None:
            self._check_environment()
        check(
            self.generation.temperature > 0,
            "generation.temperature",
            self.generation.temperature,
            "positive, because PPO learns from responses that vary",
        )
        limit = f"at most generation.max_new_tokens = {self.generation.max_new_tokens}"
        check(
            self.reward.truncated != "overlong" or self.reward.overlong_buffer <= self.generation.max_new_tokens,
            "reward.overlong_buffer",
            self.reward.overlong_buffer,
            limit,
        )
        check(
            self.reward.min_length <= self.generation.max_new_tokens,
            "reward.min_length",
            self.reward.min_length,
            f"{limit}, or every response is too short",
        )

    @property
    def max_response_tokens(self) -> int:
        """The longest response, or the longest episode after its prompt."""
        return self.generation.max_new_tokens if self.environment.path is None else self.environment.max_tokens

    def _check_environment(self) -> None:
        check_environment(self.environment, self.generation, self.reward)
        if self.ppo.old_logprobs == "sampler" or self.ppo.estimator == "remax":
            name = "ppo.old_logprobs sampler" if self.ppo.old_logprobs == "sampler" else "ppo.estimator remax"
            raise UserError(f"{name} works on one turn, but environment.path lets the policy take several; change one")

    def _check_critic(self) -> None:
        estimator = f"ppo.estimator {self.ppo.estimator}"
        if not self.ppo.has_critic:
            names = tuple(f.name for f in fields(self.critic) if (f.name, self.critic.kind) != ("kind", "shared"))
            reject_unused(self.critic, names, f"{estimator} has no critic")
            if self.reward.truncated == "bootstrap":
                raise UserError(
                    f"reward.truncated is bootstrap, but {estimator} has no critic to bootstrap from; use replace, "
                    "subtract, overlong or mask"
                )
        if self.critic.kind == "adapter" and self.model.lora.rank == 0:
            raise UserError(
                "critic.kind is adapter, but model.lora.rank is 0, and an adapter critic shares the frozen base of a "
                "policy with adapters; set --model.lora.rank 16, or critic.kind to shared or separate"
            )
        if self.ppo.vf_coef == 0 and (self.critic.warmup_steps or self.critic.pretraining_steps):
            raise UserError(
                "ppo.vf_coef is 0, but must be positive with critic.warmup_steps or critic.pretraining_steps, which "
                "train the critic alone"
            )
        if self.critic.init == "reward" and self.reward.model is None:
            raise UserError("critic.init is reward, but reward.model is not set; set it, or critic.init to a path")
        check(
            self.critic.warmup_steps < self.ppo.steps,
            "critic.warmup_steps",
            self.critic.warmup_steps,
            f"below the run's {self.ppo.steps} steps, or the policy is never trained",
        )


@dataclass(frozen=True)
class SFTJob(TrainingJob):
    """Fine-tune a language model on demonstrations, or train a new one."""

    output: str = "runs/sft"
    """Run folder; must not exist unless resume is set."""
    export: Literal["adapter", "merged"] = "adapter"
    """With model.lora.rank, what model/ holds: the adapter, as PEFT saves it, which names the folder or hub id of its
    base; or merged weights, which load without PEFT and base."""
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every=500))

    def __post_init__(self):
        super().__post_init__()
        reject_unused(self.data, ("more",), "rlhf sft trains on one dataset")
        _check_set(self, "data.path")
        _check_merged(self.export, self.model)
        if (self.model.path is None) == (self.scratch.model_type is None):
            raise UserError("set one of model.path (start from a model) and scratch.model_type (train a new one)")


@dataclass(frozen=True)
class RewardJob(TrainingJob):
    """Train a reward model on preference pairs (Bradley-Terry)."""

    output: str = "runs/reward"
    """Run folder; must not exist unless resume is set."""
    export: Literal["merged", "adapter"] = "merged"
    """With model.lora.rank, what to write: merged weights, which plain transformers loads; or only the adapter and its
    head, which PPO with adapters on the same base model attaches to that one base."""
    ties: Literal["drop", "half"] = "drop"
    """Ties in a file of `rlhf compare`: leave them out, or count each half as a preference for either side."""
    clear_margin: float = 0.0
    """Margin in the loss of pairs of which `rlhf compare` says that one is clearly better (Touvron et al., 2023)."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every=500))

    def __post_init__(self):
        super().__post_init__()
        reject_unused(self.data, ("more",), "rlhf reward trains on one dataset")
        _check_set(self, "model.path", "data.path")
        check(self.clear_margin >= 0, "clear_margin", self.clear_margin, "at least 0")
        if self.export == "adapter" and self.model.lora.rank == 0:
            raise UserError("export is adapter, but model.lora.rank is 0, so that there is no adapter; set the rank")


@dataclass(frozen=True)
class DPOJob(TrainingJob):
    """Train a policy on preference pairs by direct preference optimisation; `training.lr` is 1e-6 by default."""

    output: str = "runs/dpo"
    """Run folder; must not exist unless resume is set."""
    export: Literal["adapter", "merged"] = "adapter"
    """With model.lora.rank, what model/ holds: the adapter, as PEFT saves it, which names the folder or hub id of its
    base; or merged weights, which load without PEFT and base."""
    dpo: DPOConfig = field(default_factory=DPOConfig)
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(lr=1e-6))
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every=500))

    def __post_init__(self):
        super().__post_init__()
        reject_unused(self.data, ("more",), "rlhf dpo trains on one dataset")
        _check_set(self, "model.path", "data.path")
        _check_merged(self.export, self.model)


# ------------------------------------------------------------------------------------------------------ other commands


@dataclass(frozen=True)
class EvaluateJob:
    """Evaluate a policy on held-out prompts, beside the model it started from, or several policies side by side.

    `rlhf evaluate RUN` takes all settings from a PPO run, and options override them. `rlhf evaluate POLICY POLICY ...`
    compares policies, with the settings of the first PPO run among them.
    """

    output: str | None = None
    """Folder to write evaluation.json and samples.jsonl to, and with several policies comparison.html; null: only
    print."""
    seed: int = 0
    """Seed of sampling, and of the split if held-out examples are a fraction of the training examples."""
    baseline: str | None = None
    """Model to compare with, and the reference of the KL; null: none, and with several policies the first of them."""
    policies: list[str] = field(default_factory=list)
    """Further policies to compare on the same prompts with the same random numbers: run folders, models or hub ids."""
    best_of: list[int] = field(default_factory=list)
    """Compare also with the best of this many responses of the baseline, by the reward: 4, or [4, 16]."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self):
        _check_seed(self.seed)
        _check_set(self, "model.path", "data.path")
        _check_whole(self.model)
        if self.environment.path is not None:
            check_environment(self.environment, self.generation, self.reward)
        check(all(n > 1 for n in self.best_of), "best_of", self.best_of, "a list of numbers of at least 2")
        if self.best_of and not self.reward.is_set:
            raise UserError(
                "best_of needs a reward that decides which is the best: set reward.model or reward.function"
            )
        if self.best_of and self.generation.temperature == 0:
            raise UserError(
                "best_of is set, but generation.temperature is 0, so that all responses are equal; raise it"
            )

    @property
    def compares(self) -> bool:
        """Whether several policies are compared, beyond one and its start."""
        return bool(self.policies or self.best_of)


@dataclass(frozen=True)
class BestOfNJob:
    """Sample n responses to each prompt and take the best one: as a baseline, or as a data set for `rlhf sft`.

    `rlhf best-of-n RUN` takes all settings from a PPO run, and options override them.
    """

    output: str | None = None
    """Write the best responses to this jsonl file, which must not exist, with the columns prompt, completion and score;
    null: only print how good they are."""
    n: int = 16
    """Responses per prompt, of which the one with the best score after penalties is taken."""
    prompts: Literal["held_out", "train"] | None = None
    """The prompts that are answered: held-out ones, or those to train on; null: those to train on if output is set."""
    limit: int | None = None
    """Maximum number of prompts; null: eval.prompts held-out ones, or all to train on."""
    candidates: bool = False
    """Also write all n responses to each prompt with their scores, as the column candidates."""
    seed: int = 0
    """Seed of sampling, and of the split if held-out examples are a fraction of the training examples."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self):
        _check_seed(self.seed)
        _check_set(self, "model.path", "data.path")
        _check_whole(self.model)
        check(self.n > 0, "n", self.n, "positive")
        check(self.limit is None or self.limit > 0, "limit", self.limit, "null or positive")
        temperature = self.generation.temperature
        check(temperature > 0, "generation.temperature", temperature, "positive, because the n responses should differ")
        if self.candidates and self.output is None:
            raise UserError("candidates is true, but output is not set; name the file to write with --output")
        if not self.reward.is_set:
            raise UserError("nothing decides which response is the best: set reward.model or reward.function")


@dataclass(frozen=True)
class GenerateJob:
    """Generate responses with any model: to a prompt, to the prompts of a file, or in a chat."""

    model: str | None = None
    """The model: run folder, checkpoint folder, model folder or hub id."""
    prompt: str | None = None
    """A prompt to continue."""
    file: str | None = None
    """Dataset with a column `prompt`, in the formats of data.path."""
    chat: bool = False
    """Chat in the terminal: each line is a message, an empty line ends the chat."""
    output: str | None = None
    """Write prompts and responses to this jsonl file, which must not exist; null: print them."""
    count: int = 1
    """Responses per prompt."""
    max_new_tokens: int | None = None
    """Maximum length of a response, in tokens, including its end token; null: that of the model's PPO run, else 128, or
    what the context length leaves."""
    temperature: float | None = None
    """Divisor of the logits; 0: the most probable token each time; null: that of the model's PPO run, else 1."""
    min_new_tokens: int | None = None
    """Mask the end tokens until a response has this many tokens; null: as in the model's PPO run, else 0."""
    suppress_ids: list[int] | None = None
    """Token ids that are never sampled; null: those of the model's PPO run."""
    stop_ids: list[int] | None = None
    """Token ids that end a response; null: those of the model's PPO run, else the end tokens of tokenizer and model."""
    stop_strings: list[str] | None = None
    """Strings that end a response; null: those of the model's PPO run; []: none."""
    seed: int = 0
    """Seed of sampling."""

    def __post_init__(self):
        _check_seed(self.seed)
        _check_set(self, "model")
        if sum([self.prompt is not None, self.file is not None, self.chat]) != 1:
            raise UserError("set one of prompt (a text), file (a file of prompts) and chat")
        if self.prompt is not None and not self.prompt.strip():
            raise UserError("prompt is empty, but must be a text to continue")
        check(self.count > 0, "count", self.count, "positive")
        length, temperature, shortest = self.max_new_tokens, self.temperature, self.min_new_tokens
        check(length is None or length > 0, "max_new_tokens", length, "null or positive")
        check(temperature is None or temperature >= 0, "temperature", temperature, "null or at least 0")
        limit = "null or at least 0" if length is None else f"null, or at least 0 and below max_new_tokens = {length}"
        check(shortest is None or 0 <= shortest < (length or shortest + 1), "min_new_tokens", shortest, limit)
        check(self.stop_ids is None or len(self.stop_ids) > 0, "stop_ids", self.stop_ids, "null or not empty")
        check(all(self.stop_strings or ()), "stop_strings", self.stop_strings, "without empty strings")


@dataclass(frozen=True)
class ReportJob:
    """Write the report of a run as one self-contained HTML page."""

    run: str | None = None
    """Run folder."""
    output: str | None = None
    """HTML file to write; null: report.html in the run folder."""

    def __post_init__(self):
        _check_set(self, "run")


@dataclass(frozen=True)
class StatusJob:
    """Print all runs of a folder as a table: step, score, KL, loss, warnings, time left."""

    folder: str = "runs"
    """Folder in which runs are looked for, up to three folders deep."""


@dataclass(frozen=True)
class ReplayJob:
    """Compute the gradient of an optimizer step that a run skipped again, and show which responses break it."""

    dump: str | None = None
    """A folder in `dumps/` of a PPO run."""

    def __post_init__(self):
        _check_set(self, "dump")


@dataclass(frozen=True)
class DemoJob:
    """Run SFT, reward modelling, PPO and evaluation on film reviews, in minutes on a CPU."""

    output: str | None = None
    """New folder for all stages; null: the first free one of runs/demo-1, runs/demo-2, ..."""
    seed: int = 0
    """Seed of all stages."""
    kl_coef: float | None = None
    """Fixed coefficient of the KL to the reference; 0 shows over-optimisation of the reward model. null: adaptive."""

    def __post_init__(self):
        _check_seed(self.seed)
        check(self.kl_coef is None or self.kl_coef >= 0, "kl_coef", self.kl_coef, "null or at least 0")


def is_ppo_run(folder: Path) -> bool:
    """Whether a folder is that of a PPO run."""
    return (folder / "config.yaml").is_file() and "ppo" in read_yaml(folder / "config.yaml")


def evaluation_of_run(run: Path, argv: Sequence[str]) -> EvaluateJob:
    """The evaluation of a finished PPO run: its model against the model it started from, on its held-out prompts.

    Args:
        run: folder of a PPO run.
        argv: options that override the run's settings.

    Raises:
        UserError: the folder is not one of a PPO run, its config names a function whose file lies in it, or an option
            is wrong.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no run folder (it has no config.yaml); to evaluate a model use --model.path")
    if not is_ppo_run(run):
        raise UserError(f"{run} is no PPO run; name a model with --model.path, and the data and scores to use")
    return parse(
        EvaluateJob, [*_options_of_run(run, argv, EvaluateJob), *_baseline_of_run(run), *argv], "rlhf evaluate"
    )


def comparison_of_policies(policies: Sequence[str], argv: Sequence[str]) -> EvaluateJob:
    """The comparison of several policies, with the data, scores and baseline of the first PPO run among them.

    Args:
        policies: run folders, models or hub ids.
        argv: options that override the run's settings, or that set them where no policy is a PPO run.
    """
    run = next((Path(policy) for policy in policies if is_ppo_run(Path(policy))), None)
    settings = [] if run is None else [*_options_of_run(run, argv, EvaluateJob), *_baseline_of_run(run)]
    first, *others = policies
    named = to_options(EvaluateJob, {"model": {"path": first}, "policies": others})
    return parse(EvaluateJob, [*settings, *named, *argv], "rlhf evaluate")


def _baseline_of_run(run: Path) -> list[str]:
    return to_options(EvaluateJob, {"baseline": read_yaml(run / "config.yaml")["model"]["path"]})


def best_of_n_of_run(run: Path, argv: Sequence[str]) -> BestOfNJob:
    """The best of n responses of a PPO run's model to its prompts, by its reward; `argv` overrides its settings."""
    return parse(BestOfNJob, [*_options_of_run(run, argv, BestOfNJob), *argv], "rlhf best-of-n")


def _options_of_run(run: Path, argv: Sequence[str], kind: type) -> list[str]:
    """A PPO run's model, seed, data, sampling, reward and evaluation as options, to which `argv` will be added."""
    settings = read_yaml(run / "config.yaml")
    shared = {name: settings[name] for name in ("seed", "data", "generation", "reward", "eval")}
    _check_functions_outside(run, settings, argv)
    model = {**settings["model"], "path": str(run / "model"), "lora": asdict(LoraConfig()), "shard": False}
    if kind is EvaluateJob and "environment" in settings:
        shared["environment"] = settings["environment"]
    return to_options(kind, {**shared, "model": model})


def _check_functions_outside(run: Path, settings: Mapping[str, Any], argv: Sequence[str]) -> None:
    """Refuse what a run folder, which may come from somebody else, could do by its config unless an option names it.

    That is to run code that lies in the folder, and to send a secret of this machine to a server.
    """
    options = {word.split("=")[0] for word in argv}
    sources = _sources_of_run(settings)
    code = {f"--{prefix}.function": block.get("function") for prefix, block in sources}
    code["--environment.path"] = (settings.get("environment") or {}).get("path")
    for option, name in code.items():
        file = Path((name or "").rpartition(":")[0]).expanduser()
        is_inside = file.suffix == ".py" and file.resolve().is_relative_to(run.resolve())
        if name and is_inside and option not in options:
            raise UserError(
                f"{run / 'config.yaml'} names the function {name}, whose file lies in the run folder; read it, and "
                f"give it as {option} {name} to run it"
            )
    for prefix, block in sources:
        token, option = block.get("token_env"), f"--{prefix}.token_env"
        if token and option not in options:
            raise UserError(
                f"{run / 'config.yaml'} sends the environment variable {token} to {block.get('url')}; if that is "
                f"right, give it as {option} {token}"
            )


def _sources_of_run(settings: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(dotted name, settings) of every source in the settings of a run."""
    reward, evaluation = settings["reward"], settings["eval"]
    judge = evaluation.get("judge") or {}
    groups = {"reward.sources": reward.get("sources"), "eval.judge.sources": judge.get("sources")}
    named = [(f"{group}.{name}", block) for group, blocks in groups.items() for name, block in (blocks or {}).items()]
    return [("reward", reward), ("eval.judge", judge), *named]


def check_environment(environment: EnvironmentConfig, generation: GenerationConfig, reward: RewardConfig) -> None:
    """Raise UserError for settings of generation and reward that episodes cannot have."""
    if reward.is_set:
        raise UserError(
            "environment.path gives the scores, but a reward source is set too; unset one, as with "
            "--environment.path null"
        )
    check(
        environment.max_tokens >= generation.max_new_tokens,
        "environment.max_tokens",
        environment.max_tokens,
        f"at least generation.max_new_tokens = {generation.max_new_tokens}, the longest turn",
    )
    if generation.min_new_tokens > 0:
        raise UserError(
            f"generation.min_new_tokens is {generation.min_new_tokens}, but with environment.path it would apply to "
            "each turn when sampled and to the whole episode when trained on; set it to 0"
        )


def _check_seed(seed: int) -> None:
    check(0 <= seed < 2**32, "seed", seed, "at least 0 and below 2**32")


def _check_whole(model: ModelConfig) -> None:
    if model.shard:
        raise UserError("model.shard is true, but evaluations run on one process; remove it")


def _check_merged(export: str, model: ModelConfig) -> None:
    if export == "merged" and model.lora.rank == 0:
        raise UserError(
            "export is merged, but model.lora.rank is 0, so that there is no adapter to merge and model/ holds whole "
            "weights anyway; remove it, or set the rank"
        )


def _check_set(job: object, *keys: str) -> None:
    """Raise UserError if one of the dotted keys is null."""
    for key in keys:
        value = job
        for name in key.split("."):
            value = getattr(value, name)
        if value is None:
            raise UserError(f"{key} is not set; give it with --{key} or in a --config file")
