"""Episodes of an environment that can be saved: the random state before the reset, and the actions since.

The state of an arbitrary environment cannot be saved. But most environments are a function of their `np_random` and the
actions, so that the current episode can be replayed: reset from the same random state, then take the same actions.
"""

import json
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym


class ReplayedEpisodes:
    """Resets an environment, seeding the first episode only, and remembers what a replay needs.

    Attributes:
        actions: actions of the current episode, from 0; the caller appends to them.
    """

    def __init__(self, env: gym.Env, seed: int) -> None:
        self.env = env
        self.seed: int | None = seed
        "of the next reset; None after the first"
        self.reset_seed: int | None = seed
        self.random_state: dict[str, Any] | None = None
        "with `reset_seed`, how the current episode was reset"
        self.actions: list[int] = []

    def reset(self) -> tuple[Any, dict[str, Any]]:
        """Starts an episode: its first observation and info."""
        self.random_state = None if self.seed is not None else self._random_state()
        self.reset_seed, self.seed = self.seed, None
        self.actions = []
        return self.env.reset(seed=self.reset_seed)

    def _random_state(self) -> dict[str, Any]:
        return dict(self.env.unwrapped.np_random.bit_generator.state)

    def state_dict(self, under_way: bool) -> dict[str, Any]:
        """What a replay of the current episode needs, or, between two episodes, how the next is reset."""
        if under_way:
            seed = self.reset_seed
            random_state = self.random_state
        else:
            seed = self.seed
            random_state = None if seed is not None else self._random_state()
        actions = self.actions if under_way else []
        # As text, because a bit generator's state has integers of 128 bits.
        return {
            "seed": seed,
            "random_state": json.dumps(random_state),
            "actions": list(actions),
            "under_way": under_way,
        }

    def load_state_dict(self, state: dict[str, Any], is_current: Callable[[Any], bool]) -> bool:
        """Replays the saved episode.

        Args:
            state: from `state_dict`.
            is_current: whether an observation is that of the state in which the episode was saved.

        Returns:
            False, with a warning, if the replay leads to another state.
        """
        self.seed = state["seed"]
        random_state = json.loads(state["random_state"])
        if random_state is not None:
            self.env.unwrapped.np_random.bit_generator.state = random_state
        if not state["under_way"]:
            return True
        first_action = int(getattr(self.env.action_space, "start", 0))
        observation, _ = self.reset()
        ended = False
        for action in state["actions"]:
            observation, _, terminated, truncated, _ = self.env.step(action + first_action)
            ended = terminated or truncated
        self.actions = list(state["actions"])
        if ended or not is_current(observation):
            warnings.warn("the environment did not repeat its episode, so a new one starts", stacklevel=3)
            return False
        return True
