"""Control with a table of action values: Q-learning, SARSA, expected SARSA and double Q-learning.

The four differ in one line, the target in `tabular.td.kernels.update`; this file is what they have in common. On an
environment that is nothing but a table the whole loop is compiled; on any other the loop below steps the environment
and calls the same `choose` and `update`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from tabular.core.schedules import SCHEDULES, make_schedule
from tabular.envs.arrays import compile_table, enumerate_space, reward_error, time_limit
from tabular.history import History
from tabular.td import kernels

Number = float | int

BLOCK = 100
"""Exploration changes every so many steps: often enough for a schedule, and it costs nothing."""

ALPHA_BLOCK = 1000
"""A scheduled step size changes every so many steps, between calls of the compiled loop."""

CHUNK = 100_000
"""Steps of one call of the compiled loop; bounds the memory for what it records."""


@dataclass(frozen=True)
class ControlConfig:
    """Settings of the one-step methods.

    Action values converge if every action is tried again and again in every state and the step sizes sum to infinity
    while their squares do not. Robbins & Monro (1951); for Q-learning Watkins & Dayan (1992). Where outcomes are
    certain a constant step size is enough: each update removes the share `alpha` of an error. Where they are random it
    leaves noise in proportion to alpha, and `alpha_schedule` must lower it. The default epsilon earns reward early but
    tries most actions rarely; for exact values begin with `epsilon` 1 and let `exploration_schedule` lower it.
    """

    alpha: Number = 0.1
    "step size, in (0, 1]"
    gamma: Number = 0.99
    "discount, in [0, 1]"
    initial_q: Number = 1.0
    "action values at the beginning; above the true ones is optimistic, and explores. Sutton & Barto (2018), 2.6"
    behaviour: str = "epsilon_greedy"
    "how it acts while it learns: epsilon_greedy or softmax"
    epsilon: Number = 0.1
    "probability of a random action, the greedy one included, at the beginning"
    temperature: Number = 0.1
    "of the softmax behaviour, at the beginning, in units of reward"
    exploration_schedule: str = "constant"
    "of epsilon or the temperature: constant, linear or cosine"
    exploration_end: Number = 0.01
    "epsilon, in [0, 1], or temperature at the end of the schedule"
    exploration_steps: int = 50_000
    "environment steps until the end of the schedule"
    alpha_schedule: str = "constant"
    "of the step size: constant, linear or cosine"
    alpha_end: Number = 0.01
    "step size at the end of its schedule, in (0, 1]"
    alpha_steps: int = 50_000
    "environment steps until the end of its schedule"
    log_every: int = 1000
    "environment steps between two entries of the history's td_error and q_change"

    def __post_init__(self) -> None:
        checks = {
            "alpha": (0 < self.alpha <= 1, "in (0, 1]"),
            "gamma": (0 <= self.gamma <= 1, "in [0, 1]"),
            "initial_q": (abs(self.initial_q) < float("inf"), "finite"),
            "behaviour": (self.behaviour in ("epsilon_greedy", "softmax"), "epsilon_greedy or softmax"),
            "epsilon": (0 <= self.epsilon <= 1, "in [0, 1]"),
            "temperature": (0 < self.temperature < float("inf"), "above 0 and finite"),
            "exploration_schedule": (self.exploration_schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            "exploration_end": self._checked_end(),
            "exploration_steps": (self.exploration_steps >= 1, "at least 1"),
            "alpha_schedule": (self.alpha_schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
            "alpha_end": (0 < self.alpha_end <= 1, "in (0, 1]"),
            "alpha_steps": (self.alpha_steps >= 1, "at least 1"),
            "log_every": (self.log_every >= 1, "at least 1"),
        }
        for name, (good, wanted) in checks.items():
            if not good:
                raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)!r}")
        if self.softmax and self.exploration_schedule != "constant" and self.exploration_end == 0:
            raise ValueError("exploration_end must be above 0 for softmax: the last temperature divides")

    def _checked_end(self) -> tuple[bool, str]:
        if self.softmax:
            return 0 <= self.exploration_end < float("inf"), "at least 0 and finite"
        return 0 <= self.exploration_end <= 1, "in [0, 1] for epsilon_greedy, where it is the last epsilon"

    @property
    def softmax(self) -> bool:
        return self.behaviour == "softmax"


class Control:
    """The loop that the one-step methods share; `method` tells them apart.

    `q` [K, S, A] are the action values (K = 2 for double Q-learning, else 1), `visits` [S] how often each state was
    acted in. A resumed run equals an uninterrupted one bit for bit on a table; in other environments, whose state
    cannot be saved, it begins a new episode.
    """

    Config: type[ControlConfig] = ControlConfig
    fits = "discrete observations and discrete actions"
    method: int
    n_tables = 1
    on_policy = False

    def __init__(self, make_env: Callable[..., gym.Env], config: Any, seed: int) -> None:
        self.env, self.config, self.seed = make_env(), config, seed
        name = type(self).__name__
        self.n_states, self.index = enumerate_space(
            self.env.observation_space, f"{name} fits {self.fits}", "observations"
        )
        self.n_actions, _ = enumerate_space(self.env.action_space, f"{name} fits {self.fits}", "actions")
        self.first_action = int(getattr(self.env.action_space, "start", 0))
        self.table = compile_table(self.env)
        self.limit = time_limit(self.env)

        behaviour, table, env, space = np.random.SeedSequence(seed).spawn(4)
        self.rngs = np.stack([kernels.make_rng(behaviour), kernels.make_rng(table)])
        self.env_seed = int(env.generate_state(1)[0])
        self.env.action_space.seed(int(space.generate_state(1)[0]))
        self.q = np.full((self.n_tables, self.n_states, self.n_actions), float(config.initial_q))
        self.visits = np.zeros(self.n_states, dtype=np.int64)
        self.clock = np.array([0, -1, -1, 0])
        self.sums = np.zeros(4)
        self.masks = np.ones((self.n_states, self.n_actions), dtype=bool) if self.table is None else self.table.masks
        self.history = History()
        self.memory = self._memory(1)
        self.rule = self._rule(config)
        start = config.temperature if config.softmax else config.epsilon
        self.exploration = make_schedule(
            config.exploration_schedule, start, config.exploration_steps, end=config.exploration_end
        )

        self.alpha = make_schedule(config.alpha_schedule, config.alpha, config.alpha_steps, end=config.alpha_end)

    def _rule(self, config: Any) -> kernels.Rule:
        return kernels.Rule(self.method, config.softmax, float(config.gamma), float(config.alpha))

    def _memory(self, capacity: int) -> kernels.Memory:
        table = (self.n_states, self.n_actions)
        states, actions = np.zeros((2, capacity), dtype=np.int64)
        counts = np.zeros(table, dtype=np.int64)
        return kernels.Memory(states, actions, np.zeros(capacity), np.full(table, -1), counts)

    @property
    def steps(self) -> int:
        """Environment steps so far."""
        return int(self.clock[kernels.STEP])

    @property
    def action_values(self) -> np.ndarray:
        """What the agent thinks of each action [S, A]: its table, or the mean of its two."""
        return self.q.mean(axis=0)

    def act(self, observation: Any, mask: Any = None) -> int:
        """The best of the allowed actions, the first of equals: evaluation is deterministic."""
        state = self.index(observation)
        values = self.q[0, state] if self.n_tables == 1 else self.q[:, state].mean(axis=0)
        if mask is not None:
            values = np.where(np.asarray(mask, dtype=bool), values, -np.inf)
        return int(values.argmax()) + self.first_action

    def advance(self, steps: int) -> None:
        """`steps` more environment steps. Raises ValueError where a mask allows no action or a reward is not finite."""
        goal = self.steps + steps
        while self.steps < goal:
            chunk = min(goal - self.steps, CHUNK)
            if self.config.alpha_schedule != "constant":
                late = self.steps % ALPHA_BLOCK
                chunk = min(chunk, ALPHA_BLOCK - late)
                self.rule = self.rule._replace(alpha=float(self.alpha(self.steps - late)))
            self._on_table(chunk) if self.table is not None else self._in_env(chunk)

    def _on_table(self, steps: int) -> None:
        begin, log_every = self.steps, self.config.log_every
        explorations = self._explorations(begin, steps)
        episodes, log = np.empty((3, steps)), np.empty((2, steps // log_every + 1))
        n_episodes, n_logs = kernels.learn(
            self.table, self.limit, steps, self.q, self.rule, explorations, BLOCK, log_every,
            self.clock, self.sums, self.visits, self.memory, self.rngs, episodes, log,
        )  # fmt: skip
        ends, returns, lengths = episodes[:, :n_episodes]
        self.history.ends += ends.astype(int).tolist()
        self.history.returns += returns.tolist()
        self.history.lengths += lengths.astype(int).tolist()
        for i in range(n_logs):
            step = (begin // log_every + i + 1) * log_every
            self._log(step, log[:, i], float(explorations[(step - 1) // BLOCK - begin // BLOCK]))

    def _in_env(self, steps: int) -> None:
        q, masks, rng, softmax = self.q, self.masks, self.rngs[0], self.config.softmax
        step_env, index, choose, update = self.env.step, self.index, kernels.choose, self._update
        begin, state, action, t = self.clock.tolist()
        total, visits, log = float(self.sums[kernels.RETURN]), [0] * self.n_states, np.empty((2, 1))
        exploration = self.exploration(begin - begin % BLOCK)
        for step in range(begin, begin + steps):
            if step % BLOCK == 0:
                exploration = self.exploration(step)
            if state < 0:
                state, action, t, total = self._reset(), -1, 0, 0.0
            if action < 0:
                action = choose(q, state, masks, softmax, exploration, rng)
            if action < 0:
                raise ValueError(f'info["action_mask"] allows no action in state {state}: one at least is needed')
            visits[state] += 1
            observation, reward, terminated, truncated, info = step_env(action + self.first_action)
            next_state, reward, terminated = index(observation), float(reward), bool(terminated)
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
            if (step + 1) % self.config.log_every == 0:
                kernels.end_interval(self.sums, log, 0)
                self._log(step + 1, log[:, 0], exploration)
        self.clock[:] = begin + steps, state, action, t
        self.sums[kernels.RETURN] = total
        self.visits += visits

    def _update(self, t, s, a, r, s2, a2, terminated, truncated, exploration, rng) -> None:
        kernels.update(self.q, s, a, r, s2, a2, self.masks, terminated, self.rule, exploration, rng, self.sums)

    def _reset(self) -> int:
        """Begins an episode; the very first one is seeded, and the first after a resume."""
        seed, self.env_seed = self.env_seed, None
        observation, info = self.env.reset(seed=seed)
        state = self.index(observation)
        if "action_mask" in info:
            self.masks[state] = info["action_mask"]
        return state

    def _explorations(self, begin: int, steps: int) -> np.ndarray:
        """Epsilon or temperature of each block of steps."""
        blocks = range(begin // BLOCK, (begin + steps - 1) // BLOCK + 1)
        return np.array([self.exploration(block * BLOCK) for block in blocks])

    def _log(self, step: int, figures: np.ndarray, exploration: float) -> None:
        td_error, q_change = figures
        self.history.add(step, **{"temperature" if self.config.softmax else "epsilon": exploration}, q_change=q_change)
        if self.config.alpha_schedule != "constant":
            self.history.add(step, alpha=self.rule.alpha)
        if td_error == td_error:  # Monte Carlo may go without an update for long
            self.history.add(step, td_error=td_error)

    def state_dict(self) -> dict[str, Any]:
        return {
            "q": self.q.ravel().tolist(),
            "shape": list(self.q.shape),
            "visits": self.visits.tolist(),
            "clock": self.clock.tolist(),
            "sums": self.sums.tolist(),
            "rngs": self.rngs.tolist(),
            "history": self.history.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Carries on from a saved state. Raises ValueError if it belongs to an environment of another size."""
        if state["shape"] != list(self.q.shape):
            raise ValueError(
                f"the saved values are [tables, S, A] = {state['shape']}, here {list(self.q.shape)} are needed"
            )
        self.q = np.array(state["q"]).reshape(self.q.shape)
        self.visits = np.array(state["visits"], dtype=np.int64)
        self.clock, self.sums = np.array(state["clock"]), np.array(state["sums"], dtype=float)
        self.rngs = np.array(state["rngs"], dtype=np.uint64)
        self.history.load_state_dict(state["history"])
        if self.table is None:
            self.clock[kernels.STATE :] = -1, -1, 0
            self.sums[kernels.RETURN] = 0.0
            self.env_seed = int(np.random.SeedSequence((self.seed, self.steps)).generate_state(1)[0])


class QLearning(Control):
    """Learns the greedy policy's values whatever it does meanwhile. Watkins (1989)."""

    method = kernels.Q_LEARNING


class Sarsa(Control):
    """Learns the values of the policy that it follows, exploration included. Rummery & Niranjan (1994)."""

    method = kernels.SARSA
    on_policy = True


class ExpectedSarsa(Control):
    """SARSA with the expectation over the next action instead of a sample. van Seijen et al. (2009)."""

    method = kernels.EXPECTED_SARSA


class DoubleQLearning(Control):
    """Two tables, each judging the other's best action, against the bias of a maximum. van Hasselt (2010)."""

    method = kernels.DOUBLE_Q_LEARNING
    n_tables = 2
