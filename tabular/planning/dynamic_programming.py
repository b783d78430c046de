"""Dynamic programming: values and optimal policies of a finite MDP whose table is known.

Sutton & Barto (2018), chapter 4. With `gamma < 1` everything has an answer. With `gamma = 1` a value is the expected
total reward, which exists only where an episode ends or comes to rest where nothing is paid. A search in the graph of
the table decides before anything else whether some policy does so from every state, and while policies improve whether
one is paid for ever: so that a process without an answer is a ValueError and not an endless loop.
"""

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array, eye_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import spsolve

from tabular.planning.mdp import MDP, PROBABILITY_ERROR
from tabular.planning.sweeps import Sweeps

Policy = Int[np.ndarray, "S"] | Float[np.ndarray, "S A"]
"""An action for each state, or the probability of each action in each state."""

ROUNDING = 1e-12
"""Relative: an action has to be better by more than this to replace another."""


@dataclass(frozen=True, eq=False)
class Solution:
    """What planning found."""

    values: Float[np.ndarray, "S"]
    "expected discounted return from each state"
    policy: Policy
    "the greedy policy, or the one that was evaluated"
    iterations: int
    "sweeps over all states, or policies evaluated"
    error_bound: float
    "no value is further than this from the true one; inf where no bound is known (gamma = 1)"
    converged: bool
    "whether the tolerance was reached"
    reason: str = ""
    "why not, if it was not"


def action_values(mdp: MDP, values: Float[np.ndarray, "S"]) -> Float[np.ndarray, "S A"]:
    """`Q(s, a) = r(s, a) + gamma sum_s' p(s' | s, a) V(s')`."""
    return mdp.rewards + mdp.gamma * (mdp.transitions @ values).reshape(mdp.rewards.shape)


def greedy_actions(q_values: Float[np.ndarray, "S A"], tolerance: float = 1e-10) -> Bool[np.ndarray, "S A"]:
    """True on every action as good as the best of its state, to within `tolerance` relative to the largest value.

    Optimal policies need not be unique: compare values, or ask whether an action is in this set.
    """
    return q_values >= q_values.max(axis=1, keepdims=True) - tolerance * _scale(q_values)


def checked_policy(policy: Any, n_states: int, n_actions: int) -> Policy:
    """The policy as an array. Raises ValueError, with the first state it concerns, for what is no policy."""
    policy = np.asarray(policy)
    if policy.shape == (n_states,) and policy.dtype.kind in "iu":
        if (bad := (policy < 0) | (policy >= n_actions)).any():
            state = bad.argmax()
            raise ValueError(f"the policy takes action {policy[state]} in state {state}: outside 0 to {n_actions - 1}")
    elif policy.shape != (n_states, n_actions) or policy.dtype.kind not in "iuf":
        raise ValueError(
            f"a policy must be whole numbers [S] or probabilities [S, A] = [{n_states}, {n_actions}], got "
            f"{list(policy.shape)} of {policy.dtype}"
        )
    elif not (good := (policy >= 0).all(axis=1) & (np.abs(policy.sum(axis=1) - 1) <= PROBABILITY_ERROR)).all():
        state = good.argmin()
        row = np.array2string(policy[state], separator=", ", threshold=8)
        raise ValueError(f"the policy in state {state}, {row}, must be probabilities: 0 or more each, and sum to 1")
    return policy


def policy_evaluation(mdp: MDP, policy: Policy) -> Float[np.ndarray, "S"]:
    """The values of a policy, by solving `(I - gamma P_pi) V = r_pi`. Sutton & Barto (2018), eq. 4.4.

    With `gamma = 1`, states from which the policy runs on for ever without being paid have the value 0. Raises
    ValueError if it is paid there: then the total reward does not exist; and for what is no policy.
    """
    transitions, rewards = _under_policy(mdp, policy)
    solve = np.ones(mdp.n_states, dtype=bool)
    if mdp.gamma == 1:
        solve = ~_resting_states(transitions, rewards)
    values = np.zeros(mdp.n_states)
    if solve.any():
        system = eye_array(int(solve.sum()), format="csc") - mdp.gamma * transitions[solve][:, solve]
        values[solve] = np.asarray(spsolve(system.tocsc(), rewards[solve]))
    return values


def iterative_policy_evaluation(mdp: MDP, policy: Policy, tol: float = 1e-10, max_sweeps: int = 100_000) -> Solution:
    """The values of a policy, by sweeps `V <- r_pi + gamma P_pi V` from 0. Sutton & Barto (2018), eq. 4.5.

    Stops as `value_iteration` does, but has only the last change to go by where `gamma = 1`. Raises ValueError as
    `policy_evaluation` does, and for limits out of range.
    """
    _check_limits(tol, max_sweeps)
    transitions, rewards = _under_policy(mdp, policy)
    if mdp.gamma == 1:
        _resting_states(transitions, rewards)
    values, change = np.zeros(mdp.n_states), np.inf
    for sweep in range(1, max_sweeps + 1):
        new_values = rewards + mdp.gamma * (transitions @ values)
        change = float(np.abs(new_values - values).max())
        values = new_values
        if _at_rest(mdp, values, change, tol):
            return _solution(mdp, values, policy, sweep, change, tol)
    return _solution(mdp, values, policy, max_sweeps, change, tol)


def policy_improvement(
    mdp: MDP, values: Float[np.ndarray, "S"], policy: Int[np.ndarray, "S"] | None = None
) -> Int[np.ndarray, "S"]:
    """A policy that is greedy for `values`: the first of the best actions. Sutton & Barto (2018), eq. 4.9.

    Given the `policy` that the values belong to, an action changes only for one that is truly better. With
    `gamma = 1` this matters: a loop that pays nothing ties with the way out.
    """
    q_values = action_values(mdp, values)
    if policy is None:
        return greedy_actions(q_values).argmax(axis=1)
    better = q_values.max(axis=1) > q_values[np.arange(mdp.n_states), policy] + ROUNDING * _scale(q_values)
    return np.where(better, q_values.argmax(axis=1), policy)


def policy_iteration(mdp: MDP, max_iterations: int = 1000) -> Solution:
    """Evaluates and improves a policy until it is its own improvement. Sutton & Barto (2018), section 4.3.

    Raises ValueError with `gamma = 1` if from some state no policy surely ends, or if one is paid for ever, and for
    fewer than one iteration.
    """
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, got {max_iterations}")
    policy = _ending_policy(mdp) if mdp.gamma == 1 else np.zeros(mdp.n_states, dtype=int)
    iteration = 0
    while True:
        iteration += 1
        values = policy_evaluation(mdp, policy)
        improved = policy_improvement(mdp, values, policy)
        converged = bool((improved == policy).all())
        if converged or iteration == max_iterations:
            residual = _bellman_residual(mdp, values)
            bound = residual / (1 - mdp.gamma) if mdp.gamma < 1 else _error_bound(1, residual)
            reason = "" if converged else f"the policy still changed after {iteration} iterations"
            return Solution(values, policy, iteration, bound, converged, reason)
        policy = improved


def value_iteration(mdp: MDP, tol: float = 1e-10, max_sweeps: int = 100_000, order: str = "synchronous") -> Solution:
    """Sweeps `V <- max_a Q(., a)` over all states. Sutton & Barto (2018), eq. 4.10.

    `order` is synchronous, in_place or prioritised, see `tabular.planning.sweeps`; the error bound is the same for all.

    With `gamma < 1` it stops once `|V - V*| <= gamma / (1 - gamma) * (last change)` is at most `tol`: a small change
    alone is no small error. `converged` is False, with the reason, if `max_sweeps` or the precision of floats ended it.

    With `gamma = 1` the last change bounds nothing, and from 0 the sweeps can stop at a solution of the equation that
    no policy earns. So they start from the value of a policy that ends and rise from there. When a change is at most
    `tol`, the policy found is evaluated exactly: if no action improves on it this is the solution, else they go on.
    Raises ValueError if from some state no policy surely ends, if one can be paid for ever (which its graph is
    searched for after 1, 2, 4, ... sweeps), and for limits out of range.
    """
    _check_limits(tol, max_sweeps)
    if mdp.gamma == 1:
        return _undiscounted_value_iteration(mdp, tol, max_sweeps, order)
    threshold = max(tol * (1 - mdp.gamma), 4 * sys.float_info.epsilon * _scale(mdp.rewards) / (1 - mdp.gamma))
    sweeps = Sweeps(mdp, order, threshold)
    values, policy, change, done = np.zeros(mdp.n_states), np.zeros(mdp.n_states, dtype=int), np.inf, 0
    while done < max_sweeps:
        values, change, _, n = sweeps.apply(values, policy, 0.0, max_sweeps - done)
        done += n
        if _at_rest(mdp, values, change, tol):
            break
    return _solution(mdp, values, policy_improvement(mdp, values), done, change, tol)


def _undiscounted_value_iteration(mdp: MDP, tol: float, max_sweeps: int, order: str) -> Solution:
    sweeps = Sweeps(mdp, order, tol)
    policy = _ending_policy(mdp)
    values, change, done, look = policy_evaluation(mdp, policy), np.inf, 0, 1
    while done < max_sweeps:
        # Greedy is not enough: an action that raised the value leads towards the end, one that ties may go in circles.
        most = min(look, max_sweeps) - done
        values, change, raised, n = sweeps.apply(values, policy, ROUNDING * _scale(values), most)
        done += n
        if n == most:
            # Values only rise, so V <= r + P V under this policy: where it goes round for ever it gains by it. Values
            # above those of every policy that ends come from one that does not, so growth without end is found.
            _resting_states(*_under_policy(mdp, policy))
            look = 2 * done
        if change <= tol or not raised:
            values = policy_evaluation(mdp, policy)
            change = _bellman_residual(mdp, values)
            if change <= ROUNDING * _scale(values):
                return Solution(values, policy, done, _error_bound(1, change), True)
    return _solution(mdp, values, policy, done, change, tol)


def finite_horizon_values(mdp: MDP, steps: int, policy: Policy | None = None) -> Float[np.ndarray, "S"]:
    """Expected return of the next `steps` steps alone: of a policy, or (None) of the best one that may look at the
    clock. What a time limit really leaves. Backward induction; Puterman (1994), section 4.5. Raises ValueError for
    fewer than 0 steps.
    """
    if steps < 0:
        raise ValueError(f"steps must be at least 0, got {steps}")
    values = np.zeros(mdp.n_states)
    transitions, rewards = _under_policy(mdp, policy) if policy is not None else (mdp.transitions, mdp.rewards)
    for _ in range(steps):
        if policy is None:
            values = action_values(mdp, values).max(axis=1)
        else:
            values = rewards + mdp.gamma * (transitions @ values)
    return values


def epsilon_greedy(q_values: Float[np.ndarray, "S A"], epsilon: float | int) -> Float[np.ndarray, "S A"]:
    """The policy that is greedy, ties split, but takes any action (the greedy ones too) with probability epsilon.

    Raises ValueError for an epsilon outside [0, 1].
    """
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must be in [0, 1], got {epsilon}")
    best = greedy_actions(q_values)
    return (1 - epsilon) * best / best.sum(axis=1, keepdims=True) + epsilon / q_values.shape[1]


def _bellman_residual(mdp: MDP, values: np.ndarray) -> float:
    """`max_s |max_a Q(s, a) - V(s)|`."""
    return float(np.abs(action_values(mdp, values).max(axis=1) - values).max())


def _error_bound(gamma: float | int, change: float) -> float:
    """`gamma / (1 - gamma) * change`, for the last change of the values under a gamma-contraction."""
    if change == 0:
        return 0.0
    return gamma / (1 - gamma) * change if gamma < 1 else np.inf


def _error(mdp: MDP, change: float) -> float:
    return change if mdp.gamma == 1 else _error_bound(mdp.gamma, change)


def _at_rest(mdp: MDP, values: np.ndarray, change: float, tol: float) -> bool:
    """Whether sweeps reached the tolerance, or can change only the last bits any more."""
    return _error(mdp, change) <= tol or _in_last_bits(values, change)


def _in_last_bits(values: np.ndarray, change: float) -> bool:
    return change <= 4 * sys.float_info.epsilon * float(np.abs(values).max())


def _solution(mdp: MDP, values: np.ndarray, policy: np.ndarray, sweeps: int, change: float, tol: float) -> Solution:
    error = _error(mdp, change)
    reason = ""
    if error > tol and _in_last_bits(values, change):
        reason = (
            f"after {sweeps} sweeps only the last bits of the values change, by {change:.3g}: floats allow no smaller "
            f"error to be shown than {error:.2g}; a larger tol, 1e{math.ceil(math.log10(error))}, is met"
        )
    elif error > tol:
        reason = f"after {sweeps} sweeps the values still changed by {change:.3g}"
    return Solution(values, policy, sweeps, _error_bound(mdp.gamma, change), error <= tol, reason)


def _check_limits(tol: float, max_sweeps: int) -> None:
    if not 0 < tol < np.inf:
        raise ValueError(f"tol must be positive and finite, got {tol}")
    if max_sweeps < 1:
        raise ValueError(f"max_sweeps must be at least 1, got {max_sweeps}")


def _scale(values: np.ndarray) -> float:
    return max(1.0, float(np.abs(values).max()))


def _under_policy(mdp: MDP, policy: np.ndarray) -> tuple[csr_array, Float[np.ndarray, "S"]]:
    """The Markov chain [S, S] and the expected rewards [S] of a policy. Raises ValueError if it does not fit."""
    states, policy = np.arange(mdp.n_states), checked_policy(policy, mdp.n_states, mdp.n_actions)
    if policy.ndim == 1:
        return mdp.transitions[states * mdp.n_actions + policy], mdp.rewards[states, policy]
    rows = np.repeat(states, mdp.n_actions)
    weights = csr_array((policy.ravel(), (rows, np.arange(policy.size))), shape=(mdp.n_states, policy.size))
    return csr_array(weights @ mdp.transitions), (policy * mdp.rewards).sum(axis=1)


def _resting_states(transitions: csr_array, rewards: np.ndarray) -> Bool[np.ndarray, "S"]:
    """States of a chain [S, S] that are visited for ever: in a class that no transition leaves and that never ends.

    Raises ValueError if one of them is paid.
    """
    edges = transitions.tocoo()
    row, column = (axis[edges.data > 0] for axis in edges.coords)
    n_classes, classes = connected_components(transitions, directed=True, connection="strong")
    is_left = np.zeros(n_classes, dtype=bool)
    is_left[classes[row[classes[row] != classes[column]]]] = True
    is_left[classes[transitions.sum(axis=1) < 1 - PROBABILITY_ERROR]] = True
    resting = ~is_left[classes]
    if (paid := resting & (rewards != 0)).any():
        raise ValueError(
            f"with gamma 1 the policy has no value: from state {paid.argmax()} it never ends and is paid for ever; "
            "take gamma < 1"
        )
    return resting


def _ending_policy(mdp: MDP) -> Int[np.ndarray, "S"]:
    """A policy under which every episode surely ends, or comes to rest where nothing is paid.

    Raises ValueError if from some state there is none. Graph search: the states from which an end can be reached at
    all, then again among the actions that stay within these, until none drops out.
    """
    ends = mdp.end_probability > 0

    def can_enter(states: np.ndarray) -> Bool[np.ndarray, "S A"]:
        return (mdp.transitions @ states.astype(float)).reshape(ends.shape) > 0

    rests = np.ones(mdp.n_states, dtype=bool)
    while True:
        idle = (mdp.rewards == 0) & ~can_enter(~rests)
        if (idle.any(axis=1) == rests).all():
            break
        rests = idle.any(axis=1)

    candidates = np.ones(mdp.n_states, dtype=bool)
    while True:
        safe = ~can_enter(~candidates)
        policy, finished = idle.argmax(axis=1), rests.copy()
        while True:
            approaches = safe & (ends | can_enter(finished))
            found = approaches.any(axis=1) & ~finished
            if not found.any():
                break
            policy[found] = approaches[found].argmax(axis=1)
            finished |= found
        if (finished == candidates).all():
            break
        candidates = finished
    if not finished.all():
        raise ValueError(
            f"with gamma 1 there is no solution: from state {(~finished).argmax()} (one of {(~finished).sum()}) no "
            "policy surely ends the episode; take gamma < 1"
        )
    return policy
