"""The sweeps of value iteration, compiled: synchronous, in place, and prioritised.

The compiled functions take the model as flat arrays: `indptr`, `indices` and `probabilities` are the sparse rows of the
transitions, row `s * A + a` for action `a` in state `s`; `rewards` [S, A]; `gamma`.
"""

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
    - in_place: one after the other, each from the newest values. Section 4.5; usually half the sweeps.
    - prioritised: always the state whose value may be off by most, until none can be off by more than `threshold`;
      then one synchronous sweep, whose change bounds the error as in the other orders. Moore & Atkeson (1993); 8.4.

    Raises:
        ValueError: for an unknown order.
    """

    def __init__(self, mdp: MDP, order: str, threshold: float) -> None:
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
        self.order = order
        self.threshold = threshold
        self.n_states = mdp.n_states
        matrix = mdp.transitions
        self.model = (
            matrix.indptr.astype(np.int64),
            matrix.indices.astype(np.int64),
            matrix.data.astype(float),
            mdp.rewards,
            float(mdp.gamma),
        )
        if order == "prioritised":
            self.predecessors = _predecessors(mdp)

    def apply(
        self, values: Float[np.ndarray, "S"], policy: Int[np.ndarray, "S"], min_gain: float, max_sweeps: int
    ) -> tuple[Float[np.ndarray, "S"], float, bool, int]:
        """One sweep; in the prioritised order backups worth up to `max_sweeps`, ended by one sweep.

        Args:
            values: values of all states; not changed.
            policy: an action that raises a value by more than `min_gain` is written here.
            min_gain: see `policy`.
            max_sweeps: limit on the work, at least 1.

        Returns:
            The new values, the largest change of the last sweep, whether any value rose, and the number of sweeps that
            the work amounts to.
        """
        new_values = values.copy()
        if self.order == "in_place":
            change, raised = sweep(*self.model, new_values, new_values, policy, min_gain)
            return new_values, change, raised, 1
        backups, raised = 0, False
        if self.order == "prioritised":
            max_backups = (max_sweeps - 1) * self.n_states
            backups, raised = prioritised_backups(
                *self.model, *self.predecessors, new_values, policy, min_gain, self.threshold, max_backups
            )
        values = new_values.copy()
        change, raised_last = sweep(*self.model, values, new_values, policy, min_gain)
        return new_values, change, raised or raised_last, 1 + -(-backups // self.n_states)


@compiled
@no_type_check
def backup(indptr, indices, probabilities, rewards, gamma, values, s):
    """The best action of a state and its value, `max_a r(s, a) + gamma sum_s' p(s' | s, a) V(s')`."""
    best, best_action = -np.inf, 0
    for a in range(rewards.shape[1]):
        row = s * rewards.shape[1] + a
        next_value = 0.0
        for i in range(indptr[row], indptr[row + 1]):
            next_value += probabilities[i] * values[indices[i]]
        if rewards[s, a] + gamma * next_value > best:
            best, best_action = rewards[s, a] + gamma * next_value, a
    return best, best_action


@compiled
@no_type_check
def sweep(indptr, indices, probabilities, rewards, gamma, values, new_values, policy, min_gain):
    """Backs up all states once; in place if `new_values` is `values`. Returns the largest change, and if one rose."""
    change, raised = 0.0, False
    for s in range(len(values)):
        best, action = backup(indptr, indices, probabilities, rewards, gamma, values, s)
        if best > values[s] + min_gain:
            policy[s], raised = action, True
        change = max(change, abs(best - values[s]))
        new_values[s] = best
    return change, raised


@compiled_with_allocation
@no_type_check
def prioritised_backups(
    indptr, indices, probabilities, rewards, gamma,
    starts, predecessors, weights,
    values, policy, min_gain, threshold, max_backups,
):  # fmt: skip
    """Backs up the state with the highest priority, then raises the priorities of its predecessors.

    A priority is a bound on how much a backup would change the value: when V(s) changes by d, the value of a
    predecessor changes by at most `gamma p d`, with p the largest probability of one of its actions to lead to s.
    Changes `values` and `policy`. Returns the number of backups, and whether a value rose.
    """
    priorities, queued = np.zeros(len(values)), np.zeros(len(values))
    heap = [(0.0, 0)]
    for s in range(len(values)):
        priorities[s] = abs(backup(indptr, indices, probabilities, rewards, gamma, values, s)[0] - values[s])
        if priorities[s] > threshold:
            queued[s] = priorities[s]
            heapq.heappush(heap, (-queued[s], s))
    backups, raised = 0, False
    while len(heap) > 1 and backups < max_backups:
        negative_priority, s = heapq.heappop(heap)
        if -negative_priority != queued[s]:
            continue  # an outdated entry: the state has been backed up, or queued with a higher priority, since
        priorities[s] = queued[s] = 0.0
        best, action = backup(indptr, indices, probabilities, rewards, gamma, values, s)
        if best > values[s] + min_gain:
            policy[s], raised = action, True
        change = abs(best - values[s])
        values[s] = best
        backups += 1
        for i in range(starts[s], starts[s + 1]):
            before = predecessors[i]
            priorities[before] += gamma * weights[i] * change
            # Queued again only when its priority has doubled: exact order is not worth a push for every small rise.
            if priorities[before] > threshold and priorities[before] > 2 * queued[before]:
                queued[before] = priorities[before]
                heapq.heappush(heap, (-queued[before], before))
    return backups, raised


def _predecessors(mdp: MDP) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The states that lead to each state, concatenated.

    Returns:
        Where the predecessors of each state start [S + 1], the predecessors, and the largest probability with which one
        of their actions leads to the state.
    """
    edges = mdp.transitions.tocoo()
    row, column = edges.coords
    keys = column.astype(np.int64) * mdp.n_states + row // mdp.n_actions
    order = np.argsort(keys, kind="stable")
    pairs, first = np.unique(keys[order], return_index=True)
    weights = np.maximum.reduceat(edges.data[order], first) if len(pairs) else np.zeros(0)
    starts = np.searchsorted(pairs, np.arange(mdp.n_states + 1) * mdp.n_states)
    return starts, pairs % mdp.n_states, weights
