"""Agreement: constants worked by hand."""

import pytest

from rlhf.data.agreement import Share, agreement, krippendorff_alpha


def test_agreement_counts_pairs_of_labels():
    """The units have 1, 3 and 0 pairs of labels; equal are 1 and 1 of them."""
    assert agreement([["a", "a"], ["a", "b", "a"], ["b"], []]) == Share(2, 4)
    assert agreement([]) == Share(0, 0)


def test_intervals_are_wilsons():
    """Of 8 in 10: centre (.8 + z²/20) / (1 + z²/10), half width z sqrt(.8 * .2 / 10 + z²/400) / (1 + z²/10)."""
    interval = Share(8, 10).interval
    z = 1.959963985
    centre, scale = 0.8 + z * z / 20, 1 + z * z / 10
    half = z * (0.016 + z * z / 400) ** 0.5
    assert interval.value == 0.8
    assert (interval.low, interval.high) == pytest.approx(((centre - half) / scale, (centre + half) / scale), abs=1e-9)
    assert Share(0, 0).interval is None
    assert Share(0, 5).interval.low == 0.0


def test_alpha_of_a_table_worked_by_hand():
    """Units aa, ab, bb, bb: coincidences o[a,b] + o[b,a] = 2, n = 8, n[a] = 3, n[b] = 5: 1 - 7 · 2 / (2 · 3 · 5)."""
    assert krippendorff_alpha(["aa", "ab", "bb", "bb"]) == pytest.approx(1 - 14 / 30, abs=1e-12)
    # A third label in a unit halves its pairs' weight, and a unit with one label does not count.
    assert krippendorff_alpha(["aab", "bb", "a"]) == pytest.approx(1 - 4 * 2 / (2 * 2 * 3), abs=1e-12)


def test_alpha_at_its_ends():
    assert krippendorff_alpha(["aa", "bb", "cc"]) == 1.0
    assert krippendorff_alpha(["ab", "ba"]) == pytest.approx(1 - 3 * 4 / (2 * 2 * 2))  # below 0
    assert krippendorff_alpha(["aa", "aa"]) is None  # there is nothing to disagree on
    assert krippendorff_alpha(["a", "b"]) is None
    assert krippendorff_alpha([]) is None


def test_alpha_does_not_depend_on_order_and_names():
    units = ["aab", "bb", "abc", "cc", "ac"]
    renamed = [unit.translate(str.maketrans("abc", "xyz"))[::-1] for unit in reversed(units)]
    assert krippendorff_alpha(renamed) == pytest.approx(krippendorff_alpha(units), abs=1e-12)
