"""The sweeps of value iteration, compiled: synchronous, in place, and prioritised."""

import heapq
from typing import Any, no_type_check

import numpy as np
from jaxtyping import Float, Int
from numba import njit

from tabular.kernels import compiled
from tabular.mdp import MDP

ORDERS = ("synchronous", "in_place", "prioritised")


compiled_with_lists: Any = njit(cache=True, error_model="numpy")


class Sweeps:
    """Applies `V <- max_a Q(., a)` to all states of an MDP, in one of three orders.

    - synchronous: every state from the old values. Sutton & Barto (2018), eq. 4.10.
    - in_place: one after the other, each from the newest values. Section 4.5; half the sweeps, as a rule.
    - prioritised: always the state whose value is off by most, until all are off by at most `threshold`; then one
      synchronous sweep, whose change bounds the error as it does in the other orders. Moore & Atkeson (1993); 8.4.

    Raises ValueError for an unknown order.
    """

    def __init__(self, mdp: MDP, order: str, threshold: float) -> None:
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
        self.order, self.threshold, self.n_states = order, threshold, mdp.n_states
        matrix = mdp.transitions
        self.model = (
            matrix.indptr.astype(np.int64),
            matrix.indices.astype(np.int64),
            matrix.data.astype(float),
            mdp.rewards,
            float(mdp.gamma),
        )
        if order == "prioritised":
            into = matrix.tocsc()
            self.into: Any = into.indptr.astype(np.int64), into.indices.astype(np.int64) // mdp.n_actions

    def apply(
        self, values: Float[np.ndarray, "S"], policy: Int[np.ndarray, "S"], least: float, most: int
    ) -> tuple[Float[np.ndarray, "S"], float, bool, int]:
        """The new values, the largest change of the last sweep, whether one rose, and the sweeps this amounts to.

        An action that raises a value by more than `least` is written into `policy`. No more than `most` sweeps.
        """
        new_values = values.copy()
        if self.order == "in_place":
            change, raised = sweep(*self.model, new_values, new_values, policy, least)
            return new_values, change, raised, 1
        backups, raised = 0, False
        if self.order == "prioritised":
            most_backups = (most - 1) * self.n_states
            backups, raised = prioritised(
                *self.model, *self.into, new_values, policy, least, self.threshold, most_backups
            )
        values = new_values.copy()
        change, more = sweep(*self.model, values, new_values, policy, least)
        return new_values, change, raised or more, 1 + -(-backups // self.n_states)


@compiled
@no_type_check
def backup(indptr, indices, chances, rewards, gamma, values, s):
    """The best action of a state and its value, `max_a r(s, a) + gamma sum_s' p(s' | s, a) V(s')`."""
    best, best_action = -np.inf, 0
    for a in range(rewards.shape[1]):
        row = s * rewards.shape[1] + a
        follows = 0.0
        for i in range(indptr[row], indptr[row + 1]):
            follows += chances[i] * values[indices[i]]
        if rewards[s, a] + gamma * follows > best:
            best, best_action = rewards[s, a] + gamma * follows, a
    return best, best_action


@compiled
@no_type_check
def sweep(indptr, indices, chances, rewards, gamma, values, new_values, policy, least):
    """All states once; in place if `new_values` is `values`. Returns the largest change, and whether one rose."""
    change, raised = 0.0, False
    for s in range(len(values)):
        best, action = backup(indptr, indices, chances, rewards, gamma, values, s)
        if best > values[s] + least:
            policy[s], raised = action, True
        change = max(change, abs(best - values[s]))
        new_values[s] = best
    return change, raised


@compiled_with_lists
@no_type_check
def prioritised(
    indptr, indices, chances, rewards, gamma, into_indptr, into, values, policy, least, threshold, most_backups
):
    """Backs up the state with the largest change, then looks at the states that lead to it. Changes `values`."""
    waiting = np.zeros(len(values))
    heap = [(0.0, 0)]
    for s in range(len(values)):
        change = abs(backup(indptr, indices, chances, rewards, gamma, values, s)[0] - values[s])
        if change > threshold:
            waiting[s] = change
            heapq.heappush(heap, (-change, s))
    backups, raised = 0, False
    while len(heap) > 1 and backups < most_backups:
        priority, s = heapq.heappop(heap)
        if -priority != waiting[s]:
            continue  # it has been backed up, or moved forward, since
        waiting[s] = 0.0
        best, action = backup(indptr, indices, chances, rewards, gamma, values, s)
        if best > values[s] + least:
            policy[s], raised = action, True
        values[s] = best
        backups += 1
        for i in range(into_indptr[s], into_indptr[s + 1]):
            before = into[i]
            change = abs(backup(indptr, indices, chances, rewards, gamma, values, before)[0] - values[before])
            if change > threshold and change > waiting[before]:
                waiting[before] = change
                heapq.heappush(heap, (-change, before))
    return backups, raised
