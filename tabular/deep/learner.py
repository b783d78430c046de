"""What the deep learners share besides their mathematics: checked settings, their schedule, and saved state."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tabular.core.schedules import constant, linear


def check_positive(**numbers: float | int) -> None:
    """Raises ValueError, naming it, for a setting that is not above 0 and finite."""
    for name, number in numbers.items():
        if not 0 < number < float("inf"):
            raise ValueError(f"{name} must be positive, got {number}")


def check_not_negative(**numbers: float | int) -> None:
    """Raises ValueError, naming it, for a setting that is below 0 or not finite."""
    for name, number in numbers.items():
        if not 0 <= number < float("inf"):
            raise ValueError(f"{name} must not be negative, got {number}")


def check_fraction(**numbers: float | int) -> None:
    """Raises ValueError, naming it, for a setting outside [0, 1]."""
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {number}")


def check_choice(name: str, choice: str, choices: Sequence[str]) -> None:
    """Raises ValueError for a setting that is none of its choices."""
    if choice not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {choice!r}")


def annealed(number: float | int, steps: int, anneal_steps: int) -> float:
    """`number` at step 0, falling linearly to 0 at `anneal_steps`; with `anneal_steps = 0` it stays."""
    return (linear(number, 0.0, anneal_steps) if anneal_steps else constant(number))(steps)


def gather_state(learner: Any, parts: Sequence[str]) -> dict[str, Any]:
    """The state of a learner: its `steps`, its `generator` and the `state_dict()` of each named part, all copied."""
    state = {name: _copied(getattr(learner, name).state_dict()) for name in parts}
    return state | {"steps": learner.steps, "generator": learner.generator.get_state()}


def restore_state(learner: Any, parts: Sequence[str], state: Mapping[str, Any]) -> None:
    """Puts back what `gather_state` took. Raises ValueError if a part is missing: the state is another algorithm's."""
    if missing := [name for name in (*parts, "steps", "generator") if name not in state]:
        raise ValueError(
            f"the state has no {', '.join(missing)}: it was saved by another algorithm or with other settings"
        )
    for name in parts:
        getattr(learner, name).load_state_dict(state[name])
    learner.steps = state["steps"]
    learner.generator.set_state(state["generator"])


def _copied(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: _copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_copied(value) for value in state]
    return state
