"""Control with a table of action values: Q-learning, SARSA, expected SARSA and double Q-learning.

The four differ in the target of `tabular.td.kernels.update`; this file holds the loop that they share. In an
environment that is completely described by its table the whole loop is compiled (`kernels.learn`); in any other the
loop below steps the environment and calls the same compiled functions.
"""

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from tabular.core.schedules import make_schedule
from tabular.envs.arrays import compile_table, enumerate_space, reward_error, time_limit
from tabular.history import History
from tabular.td import kernels
from tabular.td.config import ControlConfig
from tabular.td.episode_replay import ReplayedEpisodes
from tabular.td.rng import make_rng

BLOCK = 100
"""Exploration changes every so many steps: often enough for a schedule, at no measurable cost."""

ALPHA_BLOCK = 1000
"""A scheduled step size changes every so many steps, between calls of the compiled loop."""

CHUNK = 100_000
"""Steps of one call of the compiled loop; bounds the memory for its records."""


class Control:
    """The loop that the methods share; `method` selects the update.

    A resumed run equals an uninterrupted one bit for bit on a table, and in every other environment that is a function
    of its random state (`np_random`) and the actions, whose current episode is replayed; in any other a resumed run
    starts a new episode.

    Args:
        make_env: makes the environment.
        config: an instance of the class's `Config`.
        seed: seed of the behaviour and the environment.

    Attributes:
        q: action values [K, S, A]; K = 2 for double Q-learning, else 1.
        visits: how often each state was acted in [S].
        table: the environment's table as arrays; None where it does not describe the environment completely.
        history: training episodes and metrics.

    Raises:
        ValueError: for spaces that are not discrete, masks that allow no action, and rewards that are not finite.
    """

    Config: type[ControlConfig] = ControlConfig
    method: int
    n_tables = 1
    on_policy = False
    memory_parts: tuple[str, ...] = ()
    "parts of `kernels.Memory` that the algorithm uses, and which are saved"

    def __init__(self, make_env: Callable[..., gym.Env], config: Any, seed: int) -> None:
        self.env = make_env()
        self.config = config
        self.seed = seed
        requirement = f"{type(self).__name__} needs discrete observations and actions"
        self.n_states, self.index = enumerate_space(self.env.observation_space, requirement, "observations")
        self.n_actions, _ = enumerate_space(self.env.action_space, requirement, "actions")
        self.first_action = int(getattr(self.env.action_space, "start", 0))
        self.table = compile_table(self.env)
        self.limit = time_limit(self.env)

        behaviour, table, env, space = np.random.SeedSequence(seed).spawn(4)
        self.rngs = np.stack([make_rng(behaviour), make_rng(table)])
        self.episodes = ReplayedEpisodes(self.env, int(env.generate_state(1)[0]))
        self.env.action_space.seed(int(space.generate_state(1)[0]))
        self.q = np.full((self.n_tables, self.n_states, self.n_actions), float(config.initial_q))
        self.visits = np.zeros(self.n_states, dtype=np.int64)
        self.cursor = np.array([0, -1, -1, 0])
        self.stats = np.zeros(4)
        self.masks = np.ones((self.n_states, self.n_actions), dtype=bool) if self.table is None else self.table.masks
        self.memory = self._make_memory()
        self.rule = self._make_rule()
        self.history = History()
        start = config.temperature if config.softmax else config.epsilon
        self.exploration = make_schedule(
            config.exploration_schedule, start, config.exploration_steps, end=config.exploration_end
        )
        self.alpha = make_schedule(config.alpha_schedule, config.alpha, config.alpha_steps, end=config.alpha_end)

    def _make_rule(self) -> kernels.Rule:
        config = self.config
        return kernels.Rule(self.method, config.softmax, float(config.gamma), float(config.alpha))

    def _make_memory(self) -> kernels.Memory:
        return kernels.make_memory(self.n_states, self.n_actions)

    @property
    def steps(self) -> int:
        """Environment steps so far."""
        return int(self.cursor[kernels.STEP])

    @property
    def action_values(self) -> np.ndarray:
        """The estimated action values [S, A]: the table, or the mean of both."""
        return self.q.mean(axis=0)

    def act(self, observation: Any, mask: Any = None) -> int:
        """The best legal action, the first of equals: evaluation is deterministic."""
        state = self.index(observation)
        values = self.q[0, state] if self.n_tables == 1 else self.q[:, state].mean(axis=0)
        if mask is not None:
            values = np.where(np.asarray(mask, dtype=bool), values, -np.inf)
        return int(values.argmax()) + self.first_action

    def advance(self, steps: int) -> None:
        """Learns for `steps` more environment steps.

        Raises:
            ValueError: if a mask allows no action, or a reward is not finite.
        """
        goal = self.steps + steps
        while self.steps < goal:
            chunk = min(goal - self.steps, CHUNK)
            if self.config.alpha_schedule != "constant":
                steps_into_block = self.steps % ALPHA_BLOCK
                chunk = min(chunk, ALPHA_BLOCK - steps_into_block)
                self.rule = self.rule._replace(alpha=float(self.alpha(self.steps - steps_into_block)))
            self._advance_on_table(chunk) if self.table is not None else self._advance_in_env(chunk)

    def _advance_on_table(self, steps: int) -> None:
        begin = self.steps
        log_every = self.config.log_every
        explorations = self._explorations(begin, steps)
        episodes = np.empty((3, steps))
        log = np.empty((2, steps // log_every + 1))
        n_episodes, n_logs = kernels.learn(
            self.table, self.limit, steps, self.q, self.rule, explorations, BLOCK, log_every,
            self.cursor, self.stats, self.visits, self.memory, self.rngs, episodes, log,
        )  # fmt: skip
        ends, returns, lengths = episodes[:, :n_episodes]
        self.history.ends += ends.astype(int).tolist()
        self.history.returns += returns.tolist()
        self.history.lengths += lengths.astype(int).tolist()
        for i in range(n_logs):
            step = (begin // log_every + i + 1) * log_every
            self._log(step, log[:, i], float(explorations[(step - 1) // BLOCK - begin // BLOCK]))

    def _advance_in_env(self, steps: int) -> None:
        # Attributes looked up once: this loop runs for every step.
        q = self.q
        masks = self.masks
        rng = self.rngs[0]
        softmax = self.config.softmax
        log_every = self.config.log_every
        first_action = self.first_action
        step_env = self.env.step
        index = self.index
        choose = kernels.choose
        update = self._update
        begin, state, action, t = self.cursor.tolist()
        total = float(self.stats[kernels.RETURN])
        visits = [0] * self.n_states
        log = np.empty((2, 1))
        record_action = self.episodes.actions.append
        exploration = self.exploration(begin - begin % BLOCK)
        for step in range(begin, begin + steps):
            if step % BLOCK == 0:
                exploration = self.exploration(step)
            if state < 0:
                state, action, t, total = self._reset(), -1, 0, 0.0
                record_action = self.episodes.actions.append
            if action < 0:
                action = choose(q, state, masks, softmax, exploration, rng)
            if action < 0:
                raise ValueError(f'info["action_mask"] allows no action in state {state}, but must allow at least one')
            visits[state] += 1
            record_action(action)
            observation, reward, terminated, truncated, info = step_env(action + first_action)
            next_state = index(observation)
            reward = float(reward)
            terminated = bool(terminated)
            if not math.isfinite(reward):
                raise reward_error(self.env, reward)
            if "action_mask" in info:
                masks[next_state] = info["action_mask"]
            next_action = -1
            if self.on_policy and not terminated:
                next_action = choose(q, next_state, masks, softmax, exploration, rng)
            update(t, state, action, reward, next_state, next_action, terminated, truncated, exploration, rng)
            state, action, t = next_state, next_action, t + 1
            total += reward
            if terminated or truncated:
                self.history.add_episode(step + 1, total, t)
                state, action, t, total = -1, -1, 0, 0.0
            if (step + 1) % log_every == 0:
                kernels.end_interval(self.stats, log, 0)
                self._log(step + 1, log[:, 0], exploration)
        self.cursor[:] = begin + steps, state, action, t
        self.stats[kernels.RETURN] = total
        self.visits += visits

    def _update(self, t, s, a, r, s2, a2, terminated, truncated, exploration, rng) -> None:
        kernels.update(self.q, s, a, r, s2, a2, self.masks, terminated, self.rule, exploration, rng, self.stats)

    def _reset(self) -> int:
        """Starts an episode and returns its first state."""
        observation, info = self.episodes.reset()
        state = self.index(observation)
        if "action_mask" in info:
            self.masks[state] = info["action_mask"]
        return state

    def _explorations(self, begin: int, steps: int) -> np.ndarray:
        """Epsilon or temperature of each block of steps."""
        blocks = range(begin // BLOCK, (begin + steps - 1) // BLOCK + 1)
        return np.array([self.exploration(block * BLOCK) for block in blocks])

    def _log(self, step: int, entry: np.ndarray, exploration: float) -> None:
        td_error, q_change = entry
        self.history.add(step, **{"temperature" if self.config.softmax else "epsilon": exploration}, q_change=q_change)
        if self.config.alpha_schedule != "constant":
            self.history.add(step, alpha=self.rule.alpha)
        if not math.isnan(td_error):  # Monte Carlo may have no update in an interval
            self.history.add(step, td_error=td_error)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as numbers, strings, lists and dicts."""
        state = {
            "q": self.q.ravel().tolist(),
            "shape": list(self.q.shape),
            "visits": self.visits.tolist(),
            "cursor": self.cursor.tolist(),
            "stats": self.stats.tolist(),
            "rngs": self.rngs.tolist(),
            "memory": {part: _arrays_to_lists(getattr(self.memory, part)) for part in self.memory_parts},
            "history": self.history.state_dict(),
        }
        if self.table is None:
            state["masks"] = self.masks.ravel().astype(int).tolist()
            state["episodes"] = self.episodes.state_dict(under_way=bool(self.cursor[kernels.STATE] >= 0))
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a saved state.

        Warns and starts a new episode where replaying the current one leads to another state.

        Raises:
            ValueError: if the state belongs to an environment of another size.
        """
        if state["shape"] != list(self.q.shape):
            raise ValueError(
                f"the saved values are [tables, S, A] = {state['shape']}, but this environment has {list(self.q.shape)}"
            )
        self.q = np.array(state["q"]).reshape(self.q.shape)
        self.visits = np.array(state["visits"], dtype=np.int64)
        self.cursor = np.array(state["cursor"])
        self.stats = np.array(state["stats"], dtype=float)
        self.rngs = np.array(state["rngs"], dtype=np.uint64)
        parts = {part: _arrays_from_lists(getattr(self.memory, part), lists) for part, lists in state["memory"].items()}
        self.memory = self.memory._replace(**parts)
        self.history.load_state_dict(state["history"])
        if self.table is None:
            self.masks = np.array(state["masks"], dtype=bool).reshape(self.masks.shape)
            state_index = int(self.cursor[kernels.STATE])
            if not self.episodes.load_state_dict(state["episodes"], lambda obs: self.index(obs) == state_index):
                self._abandon_episode()

    def _abandon_episode(self) -> None:
        """Forgets the current episode, so that the next step starts a new one."""
        self.cursor[kernels.STATE :] = -1, -1, 0
        self.stats[kernels.RETURN] = 0.0
        self.memory.episode.first_visits[:] = -1
        self.memory.traces.values[:] = 0.0
        self.memory.traces.n_active[:] = 0


def _arrays_to_lists(record: Any) -> dict[str, list[Any]]:
    return {name: array.ravel().tolist() for name, array in _arrays(record).items()}


def _arrays_from_lists(record: Any, lists: dict[str, list[Any]]) -> Any:
    """A record with the saved arrays; one-dimensional arrays may have another length than those of `record`."""
    arrays = {}
    for name, array in _arrays(record).items():
        saved = np.array(lists[name], dtype=array.dtype)
        arrays[name] = saved if array.ndim == 1 else saved.reshape(array.shape)
    return record._replace(**arrays)


def _arrays(record: Any) -> dict[str, np.ndarray]:
    return {name: value for name, value in record._asdict().items() if isinstance(value, np.ndarray)}


class QLearning(Control):
    """Learns the values of the greedy policy while following another. Watkins (1989)."""

    method = kernels.Q_LEARNING


class Sarsa(Control):
    """Learns the values of the policy that it follows, exploration included. Rummery & Niranjan (1994)."""

    method = kernels.SARSA
    on_policy = True


class ExpectedSarsa(Control):
    """SARSA with the expectation over the next action instead of a sample. van Seijen et al. (2009)."""

    method = kernels.EXPECTED_SARSA


class DoubleQLearning(Control):
    """Two tables, each evaluating the best action of the other, against the maximisation bias. van Hasselt (2010)."""

    method = kernels.DOUBLE_Q_LEARNING
    n_tables = 2
