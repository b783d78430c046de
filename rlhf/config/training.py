"""Settings of the optimizer, shared by all training, and of the supervised loop of SFT, reward modelling and DPO."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlhf.config.checks import AT_LEAST_0, FRACTIONS_BELOW_1, POSITIVE, check_ranges, reject_unused


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW (Loshchilov & Hutter, 2019) with a learning-rate schedule and clipped gradients."""

    section: ClassVar[str]
    """Dotted name of the settings in a job."""

    lr: float
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"]
    """How the learning rate decays to 0 over the optimizer's schedule; constant keeps it."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises linearly from 0 to its peak."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's first and second moment."""
    adam_eps: float = 1e-8
    """Epsilon in AdamW's denominator."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    adam_fused: bool = True
    """Update all weights in torch's fused kernel; false: in several passes, the same formula with other rounding."""
    adam_8bit: bool = False
    """Store AdamW's moments as 8-bit numbers in blocks of 256 (Dettmers et al., 2022), a quarter of their memory. Needs
    bitsandbytes."""
    max_grad_norm: float = 1.0
    """Gradients with a larger L2 norm are scaled down to this one."""

    def __post_init__(self):
        if self.adam_8bit:
            reject_unused(self, ("adam_fused",), f"{self.section}.adam_8bit has a kernel of its own")
        ranges = {
            POSITIVE: ("lr", "adam_eps", "max_grad_norm"),
            AT_LEAST_0: ("warmup_steps", "weight_decay"),
            FRACTIONS_BELOW_1: ("adam_betas",),
        }
        check_ranges(self, ranges)


@dataclass(frozen=True)
class TrainingConfig(AdamWConfig):
    """The supervised training loop of SFT, reward modelling and DPO, whose default `lr` is 1e-6."""

    section: ClassVar[str] = "training"

    lr: float = 2e-5
    """Peak learning rate of AdamW."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate decays to 0 over all optimizer steps; constant keeps it."""
    epochs: float = 1.0
    """Passes over the training data; fractions are allowed."""
    batch_size: int = 32
    """Examples, or preference pairs, per optimizer step, over all processes."""
    microbatch_size: int = 8
    """Examples per forward pass on one device; changes memory and speed, not the result."""
    max_length: int = 512
    """Maximum length of an example, in tokens; longer ones are truncated at the end."""
    eval_every: int = 0
    """Optimizer steps between evaluations; 0 evaluates only at the end."""

    def __post_init__(self):
        super().__post_init__()
        ranges = {POSITIVE: ("epochs", "batch_size", "microbatch_size", "max_length"), AT_LEAST_0: ("eval_every",)}
        check_ranges(self, ranges)
