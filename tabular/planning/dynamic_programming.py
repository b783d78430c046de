"""Dynamic programming: values and optimal policies of a finite MDP whose table is known.

Sutton & Barto (2018), chapter 4. With `gamma < 1` every MDP has a solution. With `gamma = 1` a value is the expected
total reward, which exists only where an episode ends or stays in states without reward. `tabular.planning.termination`
checks this before and during the iterations, so that an MDP without a solution is a ValueError, not an endless loop.
"""

import math
import sys
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import eye_array
from scipy.sparse.linalg import spsolve

from tabular.core.checks import check_at_least, check_not_negative, check_positive
from tabular.planning.mdp import MDP
from tabular.planning.policies import Policy, greedy_actions, markov_chain
from tabular.planning.sweeps import Sweeps
from tabular.planning.termination import proper_policy, recurrent_states

ROUNDING = 1e-12
"""Relative: an action must be better by more than this to replace another."""


@dataclass(frozen=True, eq=False)
class Solution:
    """Values and a policy, with the number of iterations and a bound on the error."""

    values: Float[np.ndarray, "S"]
    "expected discounted return from each state"
    policy: Policy
    "the greedy policy, or the one that was evaluated"
    iterations: int
    "sweeps over all states, or policies evaluated"
    error_bound: float
    "largest possible error of a value; inf where no bound is known (gamma = 1)"
    converged: bool
    "whether the tolerance was reached"
    reason: str = ""
    "why not, if it was not"


def action_values(mdp: MDP, values: Float[np.ndarray, "S"]) -> Float[np.ndarray, "S A"]:
    """`Q(s, a) = r(s, a) + gamma sum_s' p(s' | s, a) V(s')`."""
    return mdp.rewards + mdp.gamma * (mdp.transitions @ values).reshape(mdp.rewards.shape)


def policy_evaluation(mdp: MDP, policy: Policy) -> Float[np.ndarray, "S"]:
    """The values of a policy, by solving `(I - gamma P_pi) V = r_pi`. Sutton & Barto (2018), eq. 4.4.

    With `gamma = 1`, states from which the policy never ends and collects no reward have the value 0.

    Raises:
        ValueError: with `gamma = 1` if the policy collects reward forever, so that the total reward does not exist; and
            for an invalid policy.
    """
    transitions, rewards = markov_chain(mdp, policy)
    unknown = np.ones(mdp.n_states, dtype=bool)
    if mdp.gamma == 1:
        unknown = ~recurrent_states(transitions, rewards)
    values = np.zeros(mdp.n_states)
    if unknown.any():
        system = eye_array(int(unknown.sum()), format="csc") - mdp.gamma * transitions[unknown][:, unknown]
        values[unknown] = np.asarray(spsolve(system.tocsc(), rewards[unknown]))
    return values


def iterative_policy_evaluation(mdp: MDP, policy: Policy, tol: float = 1e-10, max_sweeps: int = 100_000) -> Solution:
    """The values of a policy, by sweeps `V <- r_pi + gamma P_pi V` from 0. Sutton & Barto (2018), eq. 4.5.

    Stops as `value_iteration` does; with `gamma = 1` when the last change is at most `tol`, which bounds no error.

    Raises:
        ValueError: as `policy_evaluation` does, and for limits out of range.
    """
    check_positive(tol=tol)
    check_at_least(1, max_sweeps=max_sweeps)
    transitions, rewards = markov_chain(mdp, policy)
    if mdp.gamma == 1:
        recurrent_states(transitions, rewards)
    values, change = np.zeros(mdp.n_states), np.inf
    for sweep in range(1, max_sweeps + 1):
        new_values = rewards + mdp.gamma * (transitions @ values)
        change = float(np.abs(new_values - values).max())
        values = new_values
        if _sweeps_are_done(mdp, values, change, tol):
            return _solution(mdp, values, policy, sweep, change, tol)
    return _solution(mdp, values, policy, max_sweeps, change, tol)


def policy_improvement(
    mdp: MDP, values: Float[np.ndarray, "S"], policy: Int[np.ndarray, "S"] | None = None
) -> Int[np.ndarray, "S"]:
    """A policy that is greedy for `values`: the first of the best actions. Sutton & Barto (2018), eq. 4.9.

    With the `policy` that the values belong to, an action is replaced only by one that is truly better. With
    `gamma = 1` this matters: a loop without reward ties with the actions that lead to the end.
    """
    q_values = action_values(mdp, values)
    if policy is None:
        return greedy_actions(q_values).argmax(axis=1)
    better = q_values.max(axis=1) > q_values[np.arange(mdp.n_states), policy] + ROUNDING * _scale(q_values)
    return np.where(better, q_values.argmax(axis=1), policy)


def policy_iteration(mdp: MDP, max_iterations: int = 1000) -> Solution:
    """Evaluates and improves a policy until improvement leaves it unchanged. Sutton & Barto (2018), section 4.3.

    Raises:
        ValueError: with `gamma = 1` if from some state no policy surely ends, or if one collects reward forever; and
            for `max_iterations` below 1.
    """
    check_at_least(1, max_iterations=max_iterations)
    policy = proper_policy(mdp) if mdp.gamma == 1 else np.zeros(mdp.n_states, dtype=int)
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

    With `gamma < 1` it stops once `|V - V*| <= gamma / (1 - gamma) * (last change)` is at most `tol`: a small change
    alone does not mean a small error. `converged` is False, with the reason, if `max_sweeps` or the precision of floats
    ended it.

    With `gamma = 1` the last change bounds no error, and sweeps that begin at 0 can stop at a solution of the Bellman
    equation that no policy earns. So they begin at the values of a policy that ends, and values only rise. When a
    change is at most `tol`, the greedy policy is evaluated exactly: if no action improves on it, this is the solution;
    else the sweeps continue.

    Args:
        mdp: the process.
        tol: largest error of a value.
        max_sweeps: limit on the sweeps.
        order: synchronous, in_place or prioritised, see `tabular.planning.sweeps`; the error bound is the same for all.

    Raises:
        ValueError: with `gamma = 1` if from some state no policy surely ends, or if one collects reward forever (its
            graph is searched after 1, 2, 4, ... sweeps); and for limits out of range.
    """
    check_positive(tol=tol)
    check_at_least(1, max_sweeps=max_sweeps)
    if mdp.gamma == 1:
        return _undiscounted_value_iteration(mdp, tol, max_sweeps, order)
    threshold = max(tol * (1 - mdp.gamma), 4 * sys.float_info.epsilon * _scale(mdp.rewards) / (1 - mdp.gamma))
    sweeps = Sweeps(mdp, order, threshold)
    values = np.zeros(mdp.n_states)
    policy = np.zeros(mdp.n_states, dtype=int)
    change, done = np.inf, 0
    while done < max_sweeps:
        values, change, _, n = sweeps.apply(values, policy, 0.0, max_sweeps - done)
        done += n
        if _sweeps_are_done(mdp, values, change, tol):
            break
    return _solution(mdp, values, policy_improvement(mdp, values), done, change, tol)


def _undiscounted_value_iteration(mdp: MDP, tol: float, max_sweeps: int, order: str) -> Solution:
    sweeps = Sweeps(mdp, order, tol)
    policy = proper_policy(mdp)
    values = policy_evaluation(mdp, policy)
    change, done, next_search = np.inf, 0, 1
    while done < max_sweeps:
        # `policy` holds the actions that raised a value, which lead towards the end; one that only ties may loop.
        limit = min(next_search, max_sweeps) - done
        values, change, raised, n = sweeps.apply(values, policy, ROUNDING * _scale(values), limit)
        done += n
        if n == limit:
            # Values only rise, so V <= r + P V under this policy, and a loop that it never leaves gains reward. Values
            # above those of all policies that end come from one that does not: endless growth is always detected.
            recurrent_states(*markov_chain(mdp, policy))
            next_search = 2 * done
        if change <= tol or not raised:
            values = policy_evaluation(mdp, policy)
            change = _bellman_residual(mdp, values)
            if change <= ROUNDING * _scale(values):
                return Solution(values, policy, done, _error_bound(1, change), True)
    return _solution(mdp, values, policy, done, change, tol)


def finite_horizon_values(mdp: MDP, steps: int, policy: Policy | None = None) -> Float[np.ndarray, "S"]:
    """Expected return of the next `steps` steps alone, by backward induction: what remains under a time limit.

    Puterman (1994), section 4.5.

    Args:
        mdp: the process.
        steps: the horizon, from 0.
        policy: whose return; None is the best policy that may depend on the number of steps left.

    Raises:
        ValueError: for fewer than 0 steps.
    """
    check_not_negative(steps=steps)
    values = np.zeros(mdp.n_states)
    transitions, rewards = markov_chain(mdp, policy) if policy is not None else (mdp.transitions, mdp.rewards)
    for _ in range(steps):
        if policy is None:
            values = action_values(mdp, values).max(axis=1)
        else:
            values = rewards + mdp.gamma * (transitions @ values)
    return values


def _bellman_residual(mdp: MDP, values: np.ndarray) -> float:
    """`max_s |max_a Q(s, a) - V(s)|`."""
    return float(np.abs(action_values(mdp, values).max(axis=1) - values).max())


def _error_bound(gamma: float | int, change: float) -> float:
    """`gamma / (1 - gamma) * change`, for the last change of the values under a gamma-contraction."""
    if change == 0:
        return 0.0
    return gamma / (1 - gamma) * change if gamma < 1 else np.inf


def _stopping_error(mdp: MDP, change: float) -> float:
    """What is compared with the tolerance: the error bound, or the change alone where there is no bound."""
    return change if mdp.gamma == 1 else _error_bound(mdp.gamma, change)


def _sweeps_are_done(mdp: MDP, values: np.ndarray, change: float, tol: float) -> bool:
    """Whether the tolerance is reached, or only rounding changes the values."""
    return _stopping_error(mdp, change) <= tol or _is_rounding(values, change)


def _is_rounding(values: np.ndarray, change: float) -> bool:
    """Whether a change concerns only the last bits of the values."""
    return change <= 4 * sys.float_info.epsilon * float(np.abs(values).max())


def _solution(mdp: MDP, values: np.ndarray, policy: np.ndarray, sweeps: int, change: float, tol: float) -> Solution:
    error = _stopping_error(mdp, change)
    reason = ""
    if error > tol and _is_rounding(values, change):
        reason = (
            f"after {sweeps} sweeps only the last bits of the values change, by {change:.3g}: with floats the error "
            f"bound cannot fall below {error:.2g}; use a larger tol, such as 1e{math.ceil(math.log10(error))}"
        )
    elif error > tol:
        reason = f"after {sweeps} sweeps the values still changed by {change:.3g}"
    return Solution(values, policy, sweeps, _error_bound(mdp.gamma, change), error <= tol, reason)


def _scale(values: np.ndarray) -> float:
    return max(1.0, float(np.abs(values).max()))
