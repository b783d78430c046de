"""Range checks accept the ends of their ranges and name the value and the range in one style."""

import math

import pytest

from tabular.core.checks import (
    check_at_least,
    check_below,
    check_choice,
    check_finite,
    check_fraction,
    check_not_negative,
    check_positive,
)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_finite(x=math.inf), "x is inf, but must be finite"),
        (lambda: check_positive(lr=0), "lr is 0, but must be positive"),
        (lambda: check_positive(lr=math.nan), "lr is nan, but must be finite"),
        (lambda: check_positive(lr=math.inf), "lr is inf, but must be finite"),
        (lambda: check_positive(lr=1, n_envs=-2), "n_envs is -2, but must be positive"),
        (lambda: check_not_negative(beta=-0.5), "beta is -0.5, but must be at least 0"),
        (lambda: check_not_negative(beta=math.inf), "beta is inf, but must be finite"),
        (lambda: check_fraction(gamma=1.5), "gamma is 1.5, but must be between 0 and 1"),
        (lambda: check_fraction(gamma=math.nan), "gamma is nan, but must be between 0 and 1"),
        (lambda: check_at_least(2, n=1), "n is 1, but must be at least 2"),
        (lambda: check_at_least(2, n=math.nan), "n is nan, but must be at least 2"),
        (lambda: check_below(5, n=5), "n is 5, but must be below 5"),
        (lambda: check_choice(("a", "b"), kind="c"), "kind is 'c', but must be one of a, b"),
    ],
)
def test_out_of_range_values_are_named_with_their_range(check, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        check()


def test_ends_of_the_ranges_are_accepted():
    check_finite(x=-1e300)
    check_positive(x=1e-300)
    check_not_negative(x=0)
    check_fraction(low=0, high=1)
    check_at_least(0, x=0, y=math.inf)
    check_below(5, x=4)
    check_choice(("a", "b"), kind="b")
