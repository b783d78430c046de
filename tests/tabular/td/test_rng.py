import numpy as np
import pytest

from tabular.td.rng import draw, make_rng, uniform


def stream_of(seed=0):
    return make_rng(np.random.SeedSequence(seed))


def test_random_numbers_are_uniform():
    """Mean 1/2, variance 1/12, no correlation with the next; bounds at four standard errors."""
    stream = stream_of()
    numbers = np.array([uniform(stream) for _ in range(20_000)])
    assert 0 <= numbers.min() < 1e-3
    assert 1 - 1e-3 < numbers.max() < 1
    assert numbers.mean() == pytest.approx(0.5, abs=4 * (1 / 12 / 20_000) ** 0.5)
    assert numbers.var() == pytest.approx(1 / 12, abs=0.002)
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 4 / 20_000**0.5


def test_the_generator_equals_xoshiro256_plus():
    """The first numbers from the state 1, 2, 3, 4, worked by hand: 1 + 4, then the state is as in the paper."""
    state = np.array([1, 2, 3, 4], dtype=np.uint64)
    assert uniform(state) == (5 >> 11) * 2.0**-53
    assert state.tolist() == [1 ^ (4 ^ 2), 2 ^ (3 ^ 1), (3 ^ 1) ^ (2 << 17), (4 ^ 2) << 45]


def test_draws_follow_the_cumulative_probabilities():
    stream, cumulative = stream_of(), np.array([9.0, 0.2, 0.5, 1.0])
    drawn = [draw(cumulative, 1, 3, stream) for _ in range(20_000)]
    assert np.bincount(drawn) / 20_000 == pytest.approx([0, 0.2, 0.3, 0.5], abs=0.015)
    before = stream.copy()
    assert draw(cumulative, 0, 1, stream) == 0
    assert (stream == before).all()  # a single outcome draws no number
