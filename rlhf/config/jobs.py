"""Every setting of every stage, as a tree of frozen dataclasses; `parse()` fills it from YAML files and options.

The branches are in `settings.py` and, for PPO alone, `ppo_settings.py`; here they become the jobs that a user runs.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from rlhf.config.parsing import as_text, flatten, parse, read_yaml
from rlhf.config.ppo import CriticConfig, PPOConfig, PTXConfig
from rlhf.config.shared import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    GenerationConfig,
    JudgeConfig,
    LoraConfig,
    ModelConfig,
    RewardConfig,
    ScratchConfig,
    SourceConfig,
    TrainingConfig,
    check,
    reject_unused,
)
from rlhf.errors import UserError

__all__ = [
    "CheckpointConfig",
    "CriticConfig",
    "DataConfig",
    "EvalConfig",
    "EvaluateJob",
    "GenerationConfig",
    "JudgeConfig",
    "LoraConfig",
    "ModelConfig",
    "PPOConfig",
    "PPOJob",
    "PTXConfig",
    "RewardConfig",
    "RewardJob",
    "SFTJob",
    "ScratchConfig",
    "SourceConfig",
    "TrainingConfig",
    "evaluation_of",
]

Tracker = Literal["tensorboard", "wandb"]


@dataclass(frozen=True)
class PPOJob:
    """Train a policy with PPO."""

    output: str = "runs/ppo"
    """The run folder; it must not exist unless resume is set."""
    seed: int = 0
    resume: str | None = None
    """`auto` continues the newest checkpoint of `output`, or starts where there is none; or a checkpoint's folder."""
    trackers: list[Tracker] = field(default_factory=lambda: ["tensorboard"])
    """Where metrics go besides metrics.jsonl."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    ptx: PTXConfig = field(default_factory=PTXConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self):
        _check_seed(self.seed)
        _require(self, "model.path")
        self._check_critic()
        check(
            self.reward.truncated != "overlong" or self.reward.overlong_buffer <= self.generation.max_new_tokens,
            "reward.overlong_buffer",
            self.reward.overlong_buffer,
            f"at most generation.max_new_tokens = {self.generation.max_new_tokens}",
        )
        check(
            self.reward.min_length <= self.generation.max_new_tokens,
            "reward.min_length",
            self.reward.min_length,
            f"at most generation.max_new_tokens = {self.generation.max_new_tokens}, or every response is too short",
        )

    def _check_critic(self) -> None:
        ppo, critic = self.ppo, self.critic
        if not ppo.has_critic:
            names = tuple(f.name for f in fields(critic))
            reject_unused(critic, "critic", names, f"ppo.estimator {ppo.estimator} has no critic")
            if self.reward.truncated == "bootstrap":
                raise UserError(
                    f"reward.truncated is bootstrap, but ppo.estimator {ppo.estimator} has no critic to say what a "
                    "cut response was worth; use replace, overlong or mask"
                )
        if critic.kind == "adapter" and self.model.lora.rank == 0:
            raise UserError(
                "critic.kind is adapter, but model.lora.rank is 0: an adapter critic shares the frozen base of an "
                "adapted policy; set --model.lora.rank 16, or critic.kind to shared or separate"
            )
        if ppo.vf_coef == 0 and (critic.warmup_steps or critic.pretraining_steps):
            raise UserError("ppo.vf_coef is 0, so a critic that learns first would learn nothing; raise it")
        if critic.init == "reward" and self.reward.model is None:
            raise UserError("critic.init is reward, but there is no reward.model to take the critic from")
        check(
            critic.warmup_steps < ppo.steps,
            "critic.warmup_steps",
            critic.warmup_steps,
            f"below the run's {ppo.steps} steps, or the policy would never learn",
        )


@dataclass(frozen=True)
class SFTJob:
    """Fine-tune a language model on demonstrations, or train a new one."""

    output: str = "runs/sft"
    """The run folder; it must not exist unless resume is set."""
    seed: int = 0
    resume: str | None = None
    """`auto` continues the newest checkpoint of `output`, or starts where there is none; or a checkpoint's folder."""
    trackers: list[Tracker] = field(default_factory=lambda: ["tensorboard"])
    model: ModelConfig = field(default_factory=ModelConfig)
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every=500))

    def __post_init__(self):
        _check_seed(self.seed)
        _require(self, "data.path")
        if (self.model.path is None) == (self.scratch.model_type is None):
            raise UserError("set one of model.path (start from a model) and scratch.model_type (train a new one)")


@dataclass(frozen=True)
class RewardJob:
    """Train a reward model on preference pairs (Bradley-Terry)."""

    export: Literal["merged", "adapter"] = "merged"
    """With model.lora.rank: whole weights, which plain transformers loads, or the adapter and its head alone, which PPO
    with adapters on the same model lays over the one base that it holds."""

    output: str = "runs/reward"
    """The run folder; it must not exist unless resume is set."""
    seed: int = 0
    resume: str | None = None
    """`auto` continues the newest checkpoint of `output`, or starts where there is none; or a checkpoint's folder."""
    trackers: list[Tracker] = field(default_factory=lambda: ["tensorboard"])
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every=500))

    def __post_init__(self):
        _check_seed(self.seed)
        _require(self, "model.path", "data.path")
        if self.export == "adapter" and self.model.lora.rank == 0:
            raise UserError("export is adapter, but model.lora.rank is 0: there is no adapter to write")


@dataclass(frozen=True)
class EvaluateJob:
    """Compare a policy with the model it started from, on held-out prompts."""

    output: str | None = None
    """Folder for evaluation.json and samples.jsonl; null only prints."""
    seed: int = 0
    baseline: str | None = None
    """The model to compare with, and the reference of the KL; null compares with nothing."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def __post_init__(self):
        _check_seed(self.seed)
        _require(self, "model.path", "data.path")


def _check_seed(seed: int) -> None:
    check(0 <= seed < 2**32, "seed", seed, "at least 0 and below 2**32")


def _require(job: object, *keys: str) -> None:
    for key in keys:
        group, name = key.split(".")
        if getattr(getattr(job, group), name) is None:
            raise UserError(f"{key} is not set; give it with --{key} or in a --config file")


def evaluation_of(run: Path, argv: Sequence[str]) -> EvaluateJob:
    """The evaluation of a finished PPO run: its model against the model it started from, on its held-out prompts."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no run folder (it has no config.yaml); to evaluate a model use --model.path")
    settings = read_yaml(run / "config.yaml")
    if "ppo" not in settings:
        raise UserError(f"{run} is no PPO run; name a model with --model.path, and the data and scores to use")
    shared = {name: settings[name] for name in ("seed", "data", "generation", "reward", "eval")}
    model = {**settings["model"], "path": str(run / "model"), "lora": asdict(LoraConfig())}
    known = flatten({**shared, "baseline": settings["model"]["path"], "model": model})
    given = [f"--{key}={as_text(value)}" for key, value in known.items()]
    return parse(EvaluateJob, [*given, *argv], "rlhf evaluate")
