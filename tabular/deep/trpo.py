"""Trust region policy optimisation: the natural policy gradient with a line search on the exact KL divergence.

Schulman et al. (2015), arXiv 1502.05477. The natural gradient's full step is shortened until the exact KL is at most
`target_kl` and the surrogate has risen; if no length satisfies both, no step is taken.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from tabular.core.checks import check_positive
from tabular.deep.natural_gradient import NaturalGradient, NaturalGradientConfig
from tabular.deep.trajectories import Trajectory


@dataclass(frozen=True)
class TRPOConfig(NaturalGradientConfig):
    """Settings of TRPO. Raises ValueError for a setting that is out of range."""

    line_search_steps: int = 10
    "step lengths tried, the full one first"
    line_search_shrink: float | int = 0.8
    "each length is this fraction of the one before"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(line_search_steps=self.line_search_steps)
        if not 0 < self.line_search_shrink < 1:
            raise ValueError(f"line_search_shrink is {self.line_search_shrink}, but must be above 0 and below 1")


class TRPO(NaturalGradient):
    """Learns a policy and its values. `advance` is exact across `state_dict` and `load_state_dict`."""

    Config = TRPOConfig

    @torch.no_grad()
    def _take_step(
        self,
        step: Float[Tensor, "P"],
        surrogate: Callable[[Tensor], Tensor],
        trajectory: Trajectory,
        old_params: Float[Tensor, "N T D"],
    ) -> dict[str, float]:
        """Take the longest step tried that raises the surrogate and has an exact KL of at most `target_kl`.

        If there is none the weights are restored, to the last bit.
        """
        config = self.config
        actor = self.network.actor
        old_weights = parameters_to_vector(actor.parameters())
        old_surrogate = surrogate(old_params)
        for i in range(config.line_search_steps):
            vector_to_parameters(old_weights + config.line_search_shrink**i * step, actor.parameters())
            params = actor(trajectory.obs)
            kl = self.policy.kl(old_params, params, trajectory.masks).mean()
            improvement = surrogate(params) - old_surrogate
            # Both comparisons are False for nan.
            if kl <= config.target_kl and improvement > 0:
                return {"accepted": 1.0, "kl": float(kl), "improvement": float(improvement)}
        vector_to_parameters(old_weights, actor.parameters())
        return {"accepted": 0.0, "kl": 0.0, "improvement": 0.0}
