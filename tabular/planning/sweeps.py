"""The sweeps of value iteration, compiled: synchronous, in place, and prioritised."""

import heapq
from typing import no_type_check

import numpy as np
from jaxtyping import Float, Int

from tabular.compiled import compiled, compiled_with_allocation
from tabular.planning.mdp import MDP

ORDERS = ("synchronous", "in_place", "prioritised")


class Sweeps:
    """Applies `V <- max_a Q(., a)` to all states of an MDP, in one of three orders.

    - synchronous: every state from the old values. Sutton & Barto (2018), eq. 4.10.
    - in_place: one after the other, each from the newest values. Section 4.5; half the sweeps, as a rule.
    - prioritised: always the state whose value may be off by most, until none can be off by more than `threshold`;
      then one synchronous sweep, whose change bounds the error as in the other orders. Moore & Atkeson (1993); 8.4.

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
            self.into = _predecessors(mdp)

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


@compiled_with_allocation
@no_type_check
def prioritised(
    indptr, indices, chances, rewards, gamma, into_indptr, into, weights, values, policy, least, threshold, most_backups
):
    """Backs up the state with the highest priority, then raises those of the states that lead to it.

    A priority is a bound on how much a backup would change: when V(s) changes by d, that of a predecessor changes by
    at most `gamma p d`, with p the largest probability of one of its actions to lead here. Changes `values`.
    """
    bounds, queued = np.zeros(len(values)), np.zeros(len(values))
    heap = [(0.0, 0)]
    for s in range(len(values)):
        bounds[s] = abs(backup(indptr, indices, chances, rewards, gamma, values, s)[0] - values[s])
        if bounds[s] > threshold:
            queued[s] = bounds[s]
            heapq.heappush(heap, (-queued[s], s))
    backups, raised = 0, False
    while len(heap) > 1 and backups < most_backups:
        priority, s = heapq.heappop(heap)
        if -priority != queued[s]:
            continue  # it has been backed up, or moved forward, since
        bounds[s] = queued[s] = 0.0
        best, action = backup(indptr, indices, chances, rewards, gamma, values, s)
        if best > values[s] + least:
            policy[s], raised = action, True
        change = abs(best - values[s])
        values[s] = best
        backups += 1
        for i in range(into_indptr[s], into_indptr[s + 1]):
            before = into[i]
            bounds[before] += gamma * weights[i] * change
            # Moved forward when its priority has doubled: exact order is not worth a push for every little rise.
            if bounds[before] > threshold and bounds[before] > 2 * queued[before]:
                queued[before] = bounds[before]
                heapq.heappush(heap, (-queued[before], before))
    return backups, raised


def _predecessors(mdp: MDP) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The states that lead to each state, one after the other: where those of state s begin [S + 1], the states, and
    the largest probability with which one of their actions leads here."""
    row, column = mdp.transitions.tocoo().coords
    keys = column.astype(np.int64) * mdp.n_states + row // mdp.n_actions
    order = np.argsort(keys, kind="stable")
    pairs, first = np.unique(keys[order], return_index=True)
    weights = np.maximum.reduceat(mdp.transitions.tocoo().data[order], first) if len(pairs) else np.zeros(0)
    begins = np.searchsorted(pairs, np.arange(mdp.n_states + 1) * mdp.n_states)
    return begins, pairs % mdp.n_states, weights
