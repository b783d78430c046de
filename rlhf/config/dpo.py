"""DPO's own settings: the loss of a preference pair."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from rlhf.config.checks import POSITIVE, check, check_ranges, reject_unused


@dataclass(frozen=True)
class DPOConfig:
    """Direct preference optimisation (Rafailov et al., 2023)."""

    section: ClassVar[str] = "dpo"

    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """Negative log-likelihood of the preferences (sigmoid; Rafailov et al., 2023), or squared distance of the margin to
    1 / (2 beta), with log-ratios as means over tokens (ipo; Azar et al., 2024)."""
    beta: float = 0.1
    """Coefficient of the KL to the reference: a small one lets the policy go far."""
    label_smoothing: float = 0.0
    """Probability that a preference is wrong (Mitchell, 2023); with loss sigmoid alone."""

    def __post_init__(self):
        check_ranges(self, {POSITIVE: ("beta",)})
        smoothing = self.label_smoothing
        check(0 <= smoothing < 0.5, "dpo.label_smoothing", smoothing, "at least 0 and below 0.5")
        if self.loss == "ipo":
            reject_unused(self, ("label_smoothing",), "dpo.loss is ipo")
