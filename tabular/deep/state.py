"""Saving and restoring a learner: its step count, its random generator, and the state of each of its parts."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def gather_state(learner: Any, parts: Sequence[str]) -> dict[str, Any]:
    """A learner's `steps`, the state of its `generator` and the `state_dict()` of each named attribute, all copied."""
    state = {name: _copy(getattr(learner, name).state_dict()) for name in parts}
    return state | {"steps": learner.steps, "generator": learner.generator.get_state()}


def restore_state(learner: Any, parts: Sequence[str], state: Mapping[str, Any]) -> None:
    """Restore what `gather_state` returned.

    Raises:
        ValueError: if a part is missing: the state is of another algorithm or of other settings.
    """
    if missing := [name for name in (*parts, "steps", "generator") if name not in state]:
        raise ValueError(
            f"the state has no {', '.join(missing)}: it was saved by another algorithm or with other settings"
        )
    for name in parts:
        getattr(learner, name).load_state_dict(state[name])
    learner.steps = state["steps"]
    learner.generator.set_state(state["generator"])


def _copy(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: _copy(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [_copy(value) for value in state]
    return state
