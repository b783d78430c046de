"""Termination of undiscounted processes: which policies surely end, and which chains collect reward forever.

With `gamma = 1` a value is the expected total reward. It exists only where a policy reaches an end with probability 1,
or stays in states without reward. Both are properties of the graph of the table and are decided here by graph search.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from tabular.planning.mdp import MDP, PROBABILITY_ERROR


def recurrent_states(transitions: csr_array, rewards: Float[np.ndarray, "S"]) -> Bool[np.ndarray, "S"]:
    """States of a chain [S, S] that are visited forever: in a class that no transition leaves and that never ends.

    Raises:
        ValueError: if such a state pays a reward, so that the total reward does not exist.
    """
    edges = transitions.tocoo()
    rows, columns = (axis[edges.data > 0] for axis in edges.coords)
    n_classes, classes = connected_components(transitions, directed=True, connection="strong")
    is_left = np.zeros(n_classes, dtype=bool)
    is_left[classes[rows[classes[rows] != classes[columns]]]] = True
    is_left[classes[transitions.sum(axis=1) < 1 - PROBABILITY_ERROR]] = True
    recurrent = ~is_left[classes]
    paid = recurrent & (rewards != 0)
    if paid.any():
        raise ValueError(
            f"with gamma 1 the policy has no value: from state {paid.argmax()} it never ends and collects reward "
            "forever; take gamma < 1"
        )
    return recurrent


def proper_policy(mdp: MDP) -> Int[np.ndarray, "S"]:
    """A policy under which every episode ends with probability 1, or stays in states without reward.

    First the states from which an end can be reached at all, then again among the actions that stay within these, until
    none drops out. "Proper" after Bertsekas & Tsitsiklis (1991).

    Raises:
        ValueError: if there is no such policy from some state.
    """
    ends = mdp.end_probability > 0
    resting_actions = _resting_actions(mdp)
    resting_states = np.asarray(resting_actions.any(axis=1))
    candidates = np.ones(mdp.n_states, dtype=bool)
    while True:
        safe = ~_can_enter(mdp, ~candidates)
        policy = resting_actions.argmax(axis=1)
        finished = resting_states.copy()
        while True:
            approaches = safe & (ends | _can_enter(mdp, finished))
            newly_finished = approaches.any(axis=1) & ~finished
            if not newly_finished.any():
                break
            policy[newly_finished] = approaches[newly_finished].argmax(axis=1)
            finished |= newly_finished
        if (finished == candidates).all():
            break
        candidates = finished
    if not finished.all():
        raise ValueError(
            f"with gamma 1 there is no solution: from state {(~finished).argmax()} (one of {(~finished).sum()}) no "
            "policy surely ends the episode; take gamma < 1"
        )
    return policy


def _can_enter(mdp: MDP, states: Bool[np.ndarray, "S"]) -> Bool[np.ndarray, "S A"]:
    """True for the actions that lead into one of the states with positive probability."""
    return (mdp.transitions @ states.astype(float)).reshape(mdp.rewards.shape) > 0


def _resting_actions(mdp: MDP) -> Bool[np.ndarray, "S A"]:
    """Actions with which a policy can stay forever in states that pay nothing (or end there)."""
    resting_states = np.ones(mdp.n_states, dtype=bool)
    while True:
        resting_actions = (mdp.rewards == 0) & ~_can_enter(mdp, ~resting_states)
        if (resting_actions.any(axis=1) == resting_states).all():
            return resting_actions
        resting_states = np.asarray(resting_actions.any(axis=1))
