"""The record of a learner: its training episodes, and named metrics with the step they belong to."""

from typing import Any

Number = float | int


class History:
    """Training episodes and metrics; every learner of this package has one as `history`.

    Steps are environment steps since the start, summed over all copies of the environment. Metrics that would be an
    array at every step, such as the change of each action value, are summarised before they are added.
    """

    def __init__(self) -> None:
        self.ends: list[int] = []
        "environment steps at which a training episode ended"
        self.returns: list[float] = []
        "undiscounted return of each of these episodes"
        self.lengths: list[int] = []
        "steps of each of these episodes"
        self.metrics: dict[str, list[tuple[int, float]]] = {}
        "name -> [(step, value), ...]: approx_kl, clip_fraction, entropy, td_error, loss, epsilon, q_change, ..."

    def add_episode(self, end: int, total: Number, length: int) -> None:
        """Adds a training episode that ended at environment step `end` with the return `total` after `length` steps."""
        self.ends.append(int(end))
        self.returns.append(float(total))
        self.lengths.append(int(length))

    def add(self, step: int, **values: Number) -> None:
        """Adds metrics of environment step `step`."""
        for name, value in values.items():
            self.metrics.setdefault(name, []).append((int(step), float(value)))

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only, so that `torch.load(weights_only=True)` reads it back."""
        metrics = {name: [list(point) for point in points] for name, points in self.metrics.items()}
        return {
            "ends": list(self.ends),
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "metrics": metrics,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ends = [int(end) for end in state["ends"]]
        self.returns = [float(total) for total in state["returns"]]
        self.lengths = [int(length) for length in state["lengths"]]
        self.metrics = {
            name: [(int(step), float(value)) for step, value in points] for name, points in state["metrics"].items()
        }
