import gymnasium as gym
import numpy as np
import pytest

import tabular.envs  # noqa: F401
from tabular.envs.blackjack import CARDS, HIT, STATES, STICK, Blackjack, add_card, dealer_totals
from tabular.planning.dynamic_programming import policy_evaluation, value_iteration
from tabular.planning.mdp import MDP

WITHOUT_ACE = {1: 17, 2: 13, 3: 13, 4: 12, 5: 12, 6: 12, 7: 17, 8: 17, 9: 17, 10: 17}
WITH_ACE = {1: 19, 2: 18, 3: 18, 4: 18, 5: 18, 6: 18, 7: 18, 8: 18, 9: 19, 10: 19}
"""The dealer's card -> the sum from which on to stick: the optimal policy of figure 5.2 in Sutton & Barto (2018)."""

BUST = (0.1153, 0.3536, 0.3739, 0.3945, 0.4164, 0.4232, 0.2623, 0.2447, 0.2284, 0.2121)
"""Published probabilities that the dealer exceeds 21 with an ace, 2, ..., 10, infinite deck, sticking on soft 17."""


def figure_5_2():
    return np.array(
        [STICK if total >= (WITH_ACE if ace else WITHOUT_ACE)[dealer] else HIT for total, dealer, ace in STATES]
    )


@pytest.fixture(scope="module")
def mdp():
    return MDP.from_gym(gym.make("tabular/BlackjackTable-v0"), 1)


def test_the_optimal_policy_is_that_of_figure_5_2(mdp):
    assert (value_iteration(mdp).policy == figure_5_2()).all()


def test_the_dealer_busts_with_the_published_probabilities():
    for card in CARDS:
        assert dealer_totals(add_card((0, False), card))[0] == pytest.approx(BUST[card - 1], abs=6e-5)


def test_values_equal_a_recursion_over_hands(mdp):
    """A hand is the tuple of its cards here, its ace counted at the end; for sums from 15 on, where trees are small."""
    values = value_iteration(mdp).values

    def score(cards):
        total = sum(cards)
        return total + 10 if 1 in cards and total + 10 <= 21 else total

    def stick(cards, dealer):
        if score(dealer) >= 17:
            final = score(dealer) if score(dealer) <= 21 else 0
            return float(np.sign(score(cards) - final))
        return sum(p * stick(cards, (*dealer, card)) for card, p in CARDS.items())

    sticking = {}

    def best(cards, dealer):
        if score(cards) > 21:
            return -1.0
        key = score(cards), dealer
        if key not in sticking:
            sticking[key] = stick(cards, (dealer,))
        hit = sum(p * best((*cards, card), dealer) for card, p in CARDS.items()) if score(cards) < 21 else -1.0
        return max(sticking[key], hit)

    for dealer in (1, 6, 10):
        for cards in ((10, 5), (10, 8), (10, 10), (1, 8), (1, 9)):
            state = STATES.index((score(cards), dealer, 1 in cards))
            assert values[state] == pytest.approx(best(cards, dealer), abs=1e-12)


@pytest.mark.parametrize("act", [figure_5_2, lambda: np.array([STICK if s[0] >= 20 else HIT for s in STATES])])
def test_values_equal_the_mean_return_in_gymnasiums_blackjack(mdp, act):
    """15,000 episodes of a policy, within three standard errors."""
    policy = act()
    env = gym.make("Blackjack-v1", disable_env_checker=True).unwrapped
    returns = []
    observation, _ = env.reset(seed=0)
    while len(returns) < 15_000:
        total, dealer, ace = observation
        observation, reward, terminated, _, _ = env.step(int(policy[STATES.index((total, dealer, bool(ace)))]))
        if terminated:
            returns.append(float(reward))
            observation, _ = env.reset()
    exact = mdp.start @ policy_evaluation(mdp, policy)
    assert np.mean(returns) == pytest.approx(exact, abs=3 * np.std(returns) / len(returns) ** 0.5)


def test_the_start_and_the_actions_are_probabilities(mdp):
    assert mdp.start.sum() == pytest.approx(1)
    assert mdp.start @ value_iteration(mdp).values == pytest.approx(-0.046556, abs=1e-6)
    assert Blackjack().grid.text(0).count("@") == 1


@pytest.mark.parametrize(
    ("hand", "card", "new_hand"),
    [
        ((10, False), 1, (21, True)),
        ((11, False), 1, (12, False)),
        ((17, True), 10, (17, False)),
        ((12, True), 1, (13, True)),
    ],
)
def test_an_ace_counts_11_where_that_does_not_exceed_21(hand, card, new_hand):
    assert add_card(hand, card) == new_hand
