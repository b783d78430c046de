"""Policies as arrays: validation, greedy and epsilon-greedy policies, and the Markov chain that a policy induces."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from tabular.core.checks import check_fraction
from tabular.planning.mdp import MDP, PROBABILITY_ERROR

Policy = Int[np.ndarray, "S"] | Float[np.ndarray, "S A"]
"""An action for each state, or the probability of each action in each state."""


def checked_policy(policy: Any, n_states: int, n_actions: int) -> Policy:
    """The policy as an array.

    Raises:
        ValueError: for an array that is neither an action nor probabilities for each state; it names the first state
            that is wrong.
    """
    policy = np.asarray(policy)
    if policy.shape == (n_states,) and policy.dtype.kind in "iu":
        outside = (policy < 0) | (policy >= n_actions)
        if outside.any():
            state = outside.argmax()
            raise ValueError(f"the policy takes action {policy[state]} in state {state}: outside 0 to {n_actions - 1}")
    elif policy.shape != (n_states, n_actions) or policy.dtype.kind not in "iuf":
        raise ValueError(
            f"a policy must be whole numbers [S] or probabilities [S, A] = [{n_states}, {n_actions}], got "
            f"{list(policy.shape)} of {policy.dtype}"
        )
    else:
        valid = (policy >= 0).all(axis=1) & (np.abs(policy.sum(axis=1) - 1) <= PROBABILITY_ERROR)
        if not valid.all():
            state = valid.argmin()
            row = np.array2string(policy[state], separator=", ", threshold=8)
            raise ValueError(f"the policy in state {state}, {row}, must be probabilities: 0 or more each, and sum to 1")
    return policy


def markov_chain(mdp: MDP, policy: Policy) -> tuple[csr_array, Float[np.ndarray, "S"]]:
    """The transitions [S, S] and expected rewards [S] of an MDP under a policy.

    Raises:
        ValueError: if the policy does not fit the MDP.
    """
    policy = checked_policy(policy, mdp.n_states, mdp.n_actions)
    states = np.arange(mdp.n_states)
    if policy.ndim == 1:
        return mdp.transitions[states * mdp.n_actions + policy], mdp.rewards[states, policy]
    rows = np.repeat(states, mdp.n_actions)
    weights = csr_array((policy.ravel(), (rows, np.arange(policy.size))), shape=(mdp.n_states, policy.size))
    return csr_array(weights @ mdp.transitions), (policy * mdp.rewards).sum(axis=1)


def greedy_actions(q_values: Float[np.ndarray, "S A"], tolerance: float = 1e-10) -> Bool[np.ndarray, "S A"]:
    """True on every action as good as the best of its state, to within `tolerance` relative to the largest value.

    Optimal policies need not be unique: compare values, or check whether an action is in this set.
    """
    scale = max(1.0, float(np.abs(q_values).max()))
    return q_values >= q_values.max(axis=1, keepdims=True) - tolerance * scale


def epsilon_greedy(q_values: Float[np.ndarray, "S A"], epsilon: float | int) -> Float[np.ndarray, "S A"]:
    """Probabilities of the policy that takes a uniformly random action with probability epsilon, else a greedy one.

    Greedy actions of equal value share their probability.

    Raises:
        ValueError: for an epsilon outside [0, 1].
    """
    check_fraction(epsilon=epsilon)
    best = greedy_actions(q_values)
    return (1 - epsilon) * best / best.sum(axis=1, keepdims=True) + epsilon / q_values.shape[1]
