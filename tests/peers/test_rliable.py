"""rliable 1.2.0: interquartile means and their bootstrap intervals over seeds (Agarwal et al., 2021)."""

import numpy as np
import pytest

from tabular.core.statistics import bootstrap_interval, iqm, mean, median

pytest.importorskip("rliable")
from arch.bootstrap import IIDBootstrap
from rliable import library, metrics

pytestmark = pytest.mark.slow
RESAMPLES = 4000


@pytest.fixture(params=range(3), ids="seed{}".format)
def scores(request):
    """[20 runs, 1 task], of a skewed distribution."""
    return np.random.default_rng(request.param).gamma(2.0, size=(20, 1))


@pytest.mark.parametrize("runs", [4, 5, 8, 20])
def test_interquartile_means_agree_where_the_quartiles_fall_between_runs(scores, runs):
    theirs = metrics.aggregate_iqm(scores[:runs])
    ours = iqm(scores[:runs, 0])
    if runs % 4 == 0:
        assert ours == pytest.approx(theirs, abs=1e-12)
    else:  # scipy's trimmed mean drops whole runs, ours weights those on the edges by their share inside
        ordered = np.sort(scores[:runs, 0])
        assert theirs == pytest.approx(ordered[1:4].mean(), abs=1e-12)
        assert ours == pytest.approx((0.75 * ordered[1] + ordered[2] + 0.75 * ordered[3]) / 2.5, abs=1e-12)


@pytest.fixture
def arch_8(monkeypatch):
    """rliable passes `random_state=None` on to arch, whose version 8 takes it for data."""
    init = IIDBootstrap.__init__

    def without_random_state(self, *args, random_state=None, **kwargs):
        init(self, *args, **kwargs)

    monkeypatch.setattr(IIDBootstrap, "__init__", without_random_state)


@pytest.mark.parametrize("name", ["iqm", "median", "mean"])
@pytest.mark.usefixtures("arch_8")
def test_intervals_agree_up_to_the_error_of_resampling(scores, name):
    """Both are percentile intervals over resampled runs; their ends differ by less than a tenth of the width."""
    statistic = {"iqm": iqm, "median": median, "mean": mean}[name]
    theirs = {"iqm": metrics.aggregate_iqm, "median": np.median, "mean": np.mean}[name]
    np.random.seed(0)  # noqa: NPY002 - theirs draws from the global generator
    points, intervals = library.get_interval_estimates({"": scores}, lambda x: np.array([theirs(x)]), reps=RESAMPLES)
    low, high = intervals[""][:, 0]
    interval = bootstrap_interval(scores[:, 0], statistic, resamples=RESAMPLES)
    assert interval.value == pytest.approx(float(points[""][0]), abs=1e-12)
    assert interval.low == pytest.approx(low, abs=0.1 * (high - low))
    assert interval.high == pytest.approx(high, abs=0.1 * (high - low))
