"""The training stages that a user runs, each a tree of frozen dataclasses with all its settings.

`rlhf.config.parsing.parse` makes them; their branches are in `shared.py`, `training.py` and `ppo.py`. The settings of
the other commands are in `commands.py`.
"""

from dataclasses import dataclass, field, fields
from typing import Literal

from rlhf.config.checks import check, check_seed, check_set, reject_unused
from rlhf.config.dpo import DPOConfig
from rlhf.config.environment import EnvironmentConfig, check_environment
from rlhf.config.ppo import CriticConfig, PPOConfig, PTXConfig
from rlhf.config.scores import RewardConfig
from rlhf.config.shared import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    GenerationConfig,
    ModelConfig,
    ScratchConfig,
)
from rlhf.config.training import TrainingConfig
from rlhf.errors import UserError

Tracker = Literal["tensorboard", "wandb", "trackio", "mlflow", "swanlab"]


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
    """Experiment trackers that get the metrics besides metrics.jsonl, and samples where they have tables: tensorboard,
    wandb, trackio, mlflow, swanlab."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self):
        check_seed(self.seed)


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
        check_set(self, "model.path")
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
        if self.model.lora.rank > 0:
            reason = "model.lora.rank is set, and the reference is the policy's own frozen base"
            reject_unused(self.ppo, ("offload_reference",), reason)
        if self.model.shard:
            reason = "model.shard is true, and each process holds only a share of it"
            reject_unused(self.ppo, ("offload_reference", "offload_optimizer"), reason)
        judge = self.eval.judge
        sources = [self.reward, *self.reward.sources.values(), judge, *judge.sources.values()]
        placed = {name for name in ("offload", "device") if any(getattr(source, name) for source in sources)}
        if self.model.shard and placed:
            raise UserError(
                f"model.shard is true and a source has {min(placed)}, but sharded reward models hold a share on each "
                "process's own device; unset one of them"
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
        check_set(self, "data.path")
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
        check_set(self, "model.path", "data.path")
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
        check_set(self, "model.path", "data.path")
        _check_merged(self.export, self.model)


def _check_merged(export: str, model: ModelConfig) -> None:
    if export == "merged" and model.lora.rank == 0:
        raise UserError(
            "export is merged, but model.lora.rank is 0, so that there is no adapter to merge and model/ holds whole "
            "weights anyway; remove it, or set the rank"
        )
