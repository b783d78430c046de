"""Finite Markov decision processes as tables: S states, A actions, transitions as one sparse matrix."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse import csr_array, eye_array, kron

from tabular.core.checks import check_at_least, check_fraction

Number = float | int | np.number
Outcome = tuple[Number, int | np.integer, Number, bool | np.bool_]
"""`(probability, next state, reward, terminated)`, as in the `P` table of gymnasium's toy-text environments."""

PROBABILITY_ERROR = 1e-8
"""Rounding error allowed in a sum of probabilities: tables hold thirds and tenths."""


@dataclass(frozen=True, eq=False)
class MDP:
    """A finite MDP. Row `s * A + a` of `transitions` is the state after action `a` in state `s`, *if there is one*.

    Transitions that terminate are not in the table: such a row sums to less than 1, and the rest is the probability
    that the episode ends. So `rewards + gamma * transitions @ V` is right everywhere without a notion of terminal
    states. Time limits are not part of an MDP.

    Raises:
        ValueError: for shapes that do not match, invalid probabilities, rewards that are not finite, or `gamma` outside
            [0, 1].
    """

    transitions: csr_array
    "[S * A, S] probability of each next state"
    rewards: Float[np.ndarray, "S A"]
    "expected reward of an action"
    gamma: float | int
    "discount in [0, 1]"
    start: Float[np.ndarray, "S"]
    "probability of beginning in each state"

    def __post_init__(self) -> None:
        n_states, n_actions = self.rewards.shape
        if self.transitions.shape != (n_states * n_actions, n_states):
            raise ValueError(
                f"transitions must be [{n_states * n_actions}, {n_states}] to fit the rewards [{n_states}, "
                f"{n_actions}], got {self.transitions.shape}"
            )
        check_fraction(gamma=self.gamma)
        if not np.isfinite(self.rewards).all():
            raise ValueError("rewards must be finite")
        if not (self.transitions.data >= 0).all() or (self.transitions.sum(axis=1) > 1 + PROBABILITY_ERROR).any():
            raise ValueError("each row of transitions must be probabilities that sum to at most 1")
        if not (self.start >= 0).all() or abs(self.start.sum() - 1) > PROBABILITY_ERROR:
            raise ValueError(f"start must be probabilities that sum to 1, got the sum {self.start.sum()}")

    @property
    def n_states(self) -> int:
        return self.rewards.shape[0]

    @property
    def n_actions(self) -> int:
        return self.rewards.shape[1]

    @property
    def end_probability(self) -> Float[np.ndarray, "S A"]:
        """Probability that the episode ends with an action."""
        missing = 1 - self.transitions.sum(axis=1).reshape(self.rewards.shape)
        return np.where(missing > PROBABILITY_ERROR, missing, 0.0)

    @classmethod
    def from_table(
        cls,
        table: Mapping[int, Mapping[int, Sequence[Outcome]]],
        gamma: float | int,
        start: Float[np.ndarray, "S"],
    ) -> "MDP":
        """From `table[state][action]`, a list of outcomes.

        An outcome that terminates has no continuation, even if the table has actions for the state it names, as
        gymnasium's CliffWalking has for the goal.

        Raises:
            ValueError: if the probabilities of an action do not sum to 1, or a state does not have as many actions as
                state 0.
        """
        n_states, n_actions = len(table), len(table[0])
        rewards = np.zeros((n_states, n_actions))
        rows, columns, probabilities = [], [], []
        for state in range(n_states):
            if len(table[state]) != n_actions:
                raise ValueError(f"state {state} has {len(table[state])} actions, state 0 has {n_actions}")
            for action in range(n_actions):
                total = 0.0
                for probability, next_state, reward, terminated in table[state][action]:
                    total += probability
                    rewards[state, action] += probability * reward
                    if probability > 0 and not terminated:
                        rows.append(state * n_actions + action)
                        columns.append(next_state)
                        probabilities.append(probability)
                if abs(total - 1) > PROBABILITY_ERROR:
                    raise ValueError(f"the outcomes of action {action} in state {state} have probability {total}")
        shape = (n_states * n_actions, n_states)
        return cls(csr_array((probabilities, (rows, columns)), shape=shape), rewards, gamma, np.asarray(start, float))

    @classmethod
    def from_gym(cls, env: Any, gamma: float | int) -> "MDP":
        """From a gymnasium environment with a table `P` and a start distribution, wrapped or not.

        Raises:
            ValueError: for an environment without them.
        """
        table = getattr(env.unwrapped, "P", None)
        start = getattr(env.unwrapped, "initial_state_distrib", None)
        if table is None or start is None:
            name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
            missing = "transition table `P`" if table is None else "start distribution `initial_state_distrib`"
            raise ValueError(f"{name} has no {missing}, so it cannot be solved by planning")
        return cls.from_table(table, gamma, start)


def with_random_actions(mdp: MDP, probability: float | int) -> MDP:
    """The same process where each action is replaced by a uniformly random one with `probability`.

    Its optimal policy is the best of the policies that explore that much: the limit of SARSA and expected SARSA with a
    constant epsilon.

    Raises:
        ValueError: for a probability outside [0, 1].
    """
    check_fraction(probability=probability)
    uniform = np.full((mdp.n_actions, mdp.n_actions), probability / mdp.n_actions)
    mixture = kron(eye_array(mdp.n_states), uniform + (1 - probability) * np.eye(mdp.n_actions), format="csr")
    rewards = (mixture @ mdp.rewards.ravel()).reshape(mdp.rewards.shape)
    return MDP(csr_array(mixture @ mdp.transitions), rewards, mdp.gamma, mdp.start)


def reachable(mdp: MDP, policy: Float[np.ndarray, "S A"] | None = None) -> Bool[np.ndarray, "S"]:
    """States in which an episode of a policy (None: of any policy) can take an action.

    Terminal states, such as the goal and the cells of a cliff, are not among them.
    """
    probabilities = np.ones(mdp.rewards.shape) if policy is None else policy
    states = mdp.start > 0
    while True:
        state_actions = (states[:, None] * probabilities).ravel()
        extended = states | (mdp.transitions.T @ state_actions > 0)
        if (extended == states).all():
            return states
        states = extended


def line_world(
    n_states: int = 4,
    success: float | int = 1.0,
    goal_value: float | int = 10.0,
    step_reward: float | int = 0.0,
    gamma: float | int = 0.9,
) -> MDP:
    """States `0 - 1 - ... - n-1` in a line, actions left (0) and right (1), a goal at the right end, start at 0.

    A move succeeds with probability `success`, else the state stays the same; each pays `step_reward`. Any action in
    the goal pays `goal_value` and ends the episode, so that the goal's value is `goal_value` and its neighbour's
    `step_reward + gamma * goal_value`. Steps to the goal are `goal_value=0, step_reward=-1, gamma=1`.

    Raises:
        ValueError: for fewer than 2 states or a `success` outside [0, 1].
    """
    return MDP.from_table(line_table(n_states, success, goal_value, step_reward), gamma, np.eye(n_states)[0])


def line_table(
    n_states: int, success: float | int, goal_value: float | int, step_reward: float | int
) -> dict[int, dict[int, list[Outcome]]]:
    """The table of `line_world`."""
    check_at_least(2, n_states=n_states)
    check_fraction(success=success)
    goal = n_states - 1
    table: dict[int, dict[int, list[Outcome]]] = {
        state: {
            action: [(success, neighbour, step_reward, False), (1 - success, state, step_reward, False)]
            for action, neighbour in enumerate((max(state - 1, 0), state + 1))
        }
        for state in range(goal)
    }
    table[goal] = {action: [(1.0, goal, goal_value, True)] for action in (0, 1)}
    return table
