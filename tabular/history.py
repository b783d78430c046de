"""What a learner records while it learns: the training episodes, and named figures with the step they belong to."""

from typing import Any

Number = float | int


class History:
    """Grows as a learner learns; every learner of this package has one as `history`.

    Steps are environment steps since the beginning, counted over all copies of the environment together. Figures that
    would make one array a step (the change of every action value) are summarised before they are added.
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
        """A training episode ended at environment step `end` with the return `total` after `length` steps."""
        self.ends.append(int(end))
        self.returns.append(float(total))
        self.lengths.append(int(length))

    def add(self, step: int, **values: Number) -> None:
        """Figures that belong to environment step `step`."""
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
