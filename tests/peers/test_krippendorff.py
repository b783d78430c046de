"""Krippendorff's alpha beside the package of that name."""

import numpy as np
import pytest

from rlhf.data.agreement import krippendorff_alpha

krippendorff = pytest.importorskip("krippendorff")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("seed", range(20))
def test_alpha(seed):
    """Random labels of 2 to 6 people, some of whom agree with the first one, with gaps."""
    random = np.random.default_rng(seed)
    people, units, labels = random.integers(2, 7), random.integers(2, 60), random.integers(2, 5)
    table = random.integers(0, labels, size=(people, units)).astype(float)
    table = np.where(random.random(table.shape) < 0.5, table[:1], table)
    table[random.random(table.shape) < 0.3] = np.nan
    table[:2, 0] = (0, 1)  # something to disagree on
    expected = krippendorff.alpha(reliability_data=table, level_of_measurement="nominal")
    columns = [[value for value in column if not np.isnan(value)] for column in table.T]
    assert krippendorff_alpha(columns) == pytest.approx(expected, abs=1e-12)
