"""Win rates and the Bradley-Terry fit: constants worked by hand, and strengths that are recovered."""

import math

import numpy as np
import pytest

from rlhf.people.win_rates import Outcome, bradley_terry, compare_origins


def test_two_origins_differ_by_the_log_odds_of_their_wins():
    strengths = bradley_terry([[0, 3], [1, 0]])
    assert strengths == pytest.approx([math.log(3) / 2, -math.log(3) / 2], abs=1e-8)


def test_the_fit_satisfies_the_likelihood_equations():
    """At the maximum, the expected wins of each origin are those observed."""
    wins = np.array([[0, 7, 2.5], [3, 0, 6], [1.5, 4, 0]])
    s = bradley_terry(wins)
    probability = 1 / (1 + np.exp(s[None, :] - s[:, None]))
    expected = ((wins + wins.T) * probability).sum(1)
    assert expected == pytest.approx(wins.sum(1), abs=1e-6)
    assert s.mean() == pytest.approx(0, abs=1e-12)


def test_an_origin_that_never_loses_needs_a_prior():
    with pytest.raises(ValueError, match="no finite strength"):
        bradley_terry([[0, 5], [0, 0]])
    assert bradley_terry([[0, 5], [0, 0]], prior=0.5) == pytest.approx([math.log(11) / 2, -math.log(11) / 2])


def test_win_rates_count_ties_half():
    outcomes = [Outcome("start", "trained", wins) for wins in [0.0] * 6 + [0.5] * 2 + [1.0] * 2]
    best, other = compare_origins(outcomes)
    assert (best.origin, best.pairs, best.win_rate.value) == ("trained", 10, 0.7)
    assert (other.origin, other.pairs, other.win_rate.value) == ("start", 10, pytest.approx(0.3))
    assert best.win_rate.low < 0.7 < best.win_rate.high
    assert best.win_rate.low == pytest.approx(1 - other.win_rate.high)
    assert best.strength.value == pytest.approx(math.log(7.1 / 3.1) / 2, abs=1e-6)  # with the prior's 0.1 wins each
    assert other.strength.value == pytest.approx(-best.strength.value)


def test_pairs_of_one_origin_do_not_count():
    assert compare_origins([Outcome("x", "x", 1.0)]) == []
    assert [r.pairs for r in compare_origins([Outcome("x", "x", 1.0), Outcome("x", "y", 1.0)])] == [1, 1]


def test_intervals_hold_the_true_strengths():
    """Three origins with known strengths: 95% intervals hold each of them in most of 40 draws."""
    truth = np.array([0.8, 0.0, -0.8])
    names = ["x", "y", "z"]
    hits = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        outcomes = []
        for _ in range(150):
            i, j = random.choice(3, size=2, replace=False)
            wins = random.random() < 1 / (1 + math.exp(truth[j] - truth[i]))
            outcomes.append(Outcome(names[i], names[j], float(wins)))
        for result in compare_origins(outcomes, resamples=200, seed=seed):
            value = truth[names.index(result.origin)]
            hits.append(result.strength.low <= value <= result.strength.high)
    assert 0.88 <= np.mean(hits) <= 0.99
