"""Settings of the commands that train nothing: evaluation, best-of-n, generation, reports, the demo."""

import re
from dataclasses import dataclass, field
from typing import Literal

from rlhf.config.checks import check, check_seed, check_set
from rlhf.config.environment import EnvironmentConfig, check_environment
from rlhf.config.scores import RewardConfig
from rlhf.config.shared import DataConfig, EvalConfig, GenerationConfig, ModelConfig
from rlhf.errors import UserError


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
        check_seed(self.seed)
        check_set(self, "model.path", "data.path")
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
        check_seed(self.seed)
        check_set(self, "model.path", "data.path")
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
class SamplingOptions:
    """How a model answers: as set, else as in the PPO run that it comes from, else by the defaults."""

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
        check_seed(self.seed)
        length, temperature, shortest = self.max_new_tokens, self.temperature, self.min_new_tokens
        check(length is None or length > 0, "max_new_tokens", length, "null or positive")
        check(temperature is None or temperature >= 0, "temperature", temperature, "null or at least 0")
        limit = "null or at least 0" if length is None else f"null, or at least 0 and below max_new_tokens = {length}"
        check(shortest is None or 0 <= shortest < (length or shortest + 1), "min_new_tokens", shortest, limit)
        check(self.stop_ids is None or len(self.stop_ids) > 0, "stop_ids", self.stop_ids, "null or not empty")
        check(all(self.stop_strings or ()), "stop_strings", self.stop_strings, "without empty strings")


@dataclass(frozen=True)
class GenerateJob(SamplingOptions):
    """Generate responses with any model: to a prompt or to the prompts of a file."""

    model: str | None = None
    """The model: run folder, checkpoint folder, model folder or hub id."""
    prompt: str | None = None
    """A prompt to continue."""
    file: str | None = None
    """Dataset with a column `prompt`, in the formats of data.path."""
    output: str | None = None
    """Write prompts and responses to this jsonl file, which must not exist; null: print them."""
    count: int = 1
    """Responses per prompt."""

    def __post_init__(self):
        check_set(self, "model")
        if (self.prompt is None) == (self.file is None):
            raise UserError("set one of prompt (a text) and file (a file of prompts); rlhf chat talks with a model")
        if self.prompt is not None and not self.prompt.strip():
            raise UserError("prompt is empty, but must be a text to continue")
        check(self.count > 0, "count", self.count, "positive")
        super().__post_init__()


@dataclass(frozen=True)
class ChatJob(SamplingOptions):
    """Talk with a model in the terminal, by its tokenizer's chat template; without one, it continues each line."""

    model: str | None = None
    """The model: run folder, checkpoint folder, model folder or hub id."""
    beside: bool = False
    """Have the model that the run started from, or `other`, answer too."""
    other: str | None = None
    """A second model that answers beside the first; null: with beside, the one that the run started from."""
    system: str | None = None
    """System message of the conversation; null: that of the template, if it has one."""

    def __post_init__(self):
        check_set(self, "model")
        super().__post_init__()


@dataclass(frozen=True)
class ReportJob:
    """Write the report of a run as one self-contained HTML page, or one of several runs over common axes."""

    run: str | None = None
    """Run folder."""
    others: list[str] = field(default_factory=list)
    """Further run folders, to compare with; `rlhf report A B` sets them."""
    output: str | None = None
    """HTML file to write; null: report.html in the run folder, and runs.html here for several."""

    def __post_init__(self):
        check_set(self, "run")


@dataclass(frozen=True)
class StatusJob:
    """Print all runs of a folder as a table: step, score, KL, loss, warnings, time left."""

    folder: str = "runs"
    """Folder in which runs are looked for, up to three folders deep."""


@dataclass(frozen=True)
class WatchJob:
    """Show all runs of a folder in a local page while they go: curves, warnings, settings, samples."""

    folder: str = "runs"
    """Folder in which runs are looked for, up to three folders deep."""
    host: str = "127.0.0.1"
    """Address to listen on. The default is reached from this machine alone; the page has no encryption."""
    port: int | None = None
    """Port to listen on; null: the first free one from 8765 on."""

    def __post_init__(self):
        check(self.port is None or 0 <= self.port < 65536, "port", self.port, "null or from 0 to 65535")


@dataclass(frozen=True)
class ReplayJob:
    """Compute the gradient of an optimizer step that a run skipped again, and show which responses break it."""

    dump: str | None = None
    """A folder in `dumps/` of a PPO run."""

    def __post_init__(self):
        check_set(self, "dump")


@dataclass(frozen=True)
class PushJob:
    """Upload a run's model with its card to the Hugging Face hub. Nothing else of the run folder is sent."""

    run: str | None = None
    """Run folder, or a folder that holds a model."""
    repo: str | None = None
    """Repository: ORGANISATION/NAME."""
    public: bool = False
    """Create a public repository; false: a private one. Has no effect on one that exists."""
    overwrite: bool = False
    """Replace files of the same names in a repository that has a model already."""
    critic: bool = False
    """Upload the critic too, from which PPO can continue."""
    base: str | None = None
    """For an adapter: the hub id of its base model, where the run names a local folder."""
    dry_run: bool = False
    """Only print what would be uploaded."""

    def __post_init__(self):
        check_set(self, "run", "repo")
        for name in ("repo", "base"):
            value = getattr(self, name)
            is_id = value is None or re.fullmatch(r"[\w.-]+/[\w.-]+", value) is not None
            check(is_id, name, value, "of the form ORGANISATION/NAME")


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
        check_seed(self.seed)
        check(self.kl_coef is None or self.kl_coef >= 0, "kl_coef", self.kl_coef, "null or at least 0")


def _check_whole(model: ModelConfig) -> None:
    if model.shard:
        raise UserError("model.shard is true, but evaluations run on one process; remove it")
