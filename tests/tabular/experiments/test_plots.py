import numpy as np
import pytest
from PIL import Image

from tabular.core.statistics import Interval
from tabular.experiments import plots
from tabular.history import History
from tabular.td.control import ControlConfig, QLearning


def has_content(file):
    pixels = np.asarray(Image.open(file).convert("RGB"))
    return len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_curves(tmp_path, cliff, learner):
    other = QLearning(cliff, ControlConfig(), 1)
    other.advance(20_000)
    histories = {"q_learning": [learner.history, other.history], "nothing": [History()]}
    plots.learning_curves(tmp_path / "curves.png", histories, 20_000, threshold=-20)
    plots.metric_curves(tmp_path / "metrics.png", histories)
    assert has_content(tmp_path / "curves.png")
    assert has_content(tmp_path / "metrics.png")
    with pytest.raises(ValueError, match="no metric was recorded"):
        plots.metric_curves(tmp_path / "none.png", {"x": [History()]})


def test_lengths_show_learning_where_every_return_is_the_same(tmp_path, drawn):
    made = History()
    for i in range(100):
        made.add_episode(sum(range(200, 200 - i - 1, -1)), 1.0, 200 - i)
    plots.learning_curves(tmp_path / "c.png", {"x": [made]}, made.ends[-1], window=1)
    returns, lengths = (panel.get_lines()[0].get_ydata() for panel in drawn[0][1].ravel())
    assert set(returns) == {1.0}
    assert lengths[0] > 150
    assert lengths[-1] < 110


def test_legends_of_many_curves_are_outside(tmp_path, drawn):
    made = History()
    for i in range(10):
        made.add_episode(i + 1, i, 1)
        made.add(i + 1, td_error=1.0)
    for count in (2, 3):
        plots.learning_curves(tmp_path / "c.png", {str(i): [made] for i in range(count)}, 10)
    plots.metric_curves(tmp_path / "m.png", {"a": [made], "b": [made]})
    inside = [panels[0, 0].get_legend() is not None for _, panels in drawn]
    assert inside == [True, False, False]
    assert [len(figure.legends) for figure, _ in drawn] == [0, 1, 1]


def test_noise_curves(tmp_path, drawn):
    returns = {"one": np.array([[-13.0, -13.0], [-60.0, -40.0]]), "two": np.array([[-17.0], [-20.0]])}
    plots.noise_curves(tmp_path / "noise.png", [0, 0.1], returns)
    ax = drawn[0][1][0, 0]
    assert [line.get_ydata().tolist() for line in ax.get_lines()] == [[-13, -50], [-17, -20]]
    assert ax.get_lines()[0].get_xdata().tolist() == [0, 0.1]


def test_interval_bars(tmp_path, drawn):
    groups = {"as trained": Interval(1.0, 1.0, 1.0), "held-out": Interval(0.8, 0.7, 0.85)}
    plots.interval_bars(tmp_path / "bars.png", groups, "success rate")
    ax = drawn[0][1][0, 0]
    assert [bar.get_width() for bar in ax.patches] == [1.0, 0.8]
    assert ax.get_xlabel() == "success rate"


def test_learning_curves_begin_at_step_0(tmp_path, drawn):
    """Also where no episode has ended for long."""
    history = History()
    for end in range(900, 1001, 10):
        history.add_episode(end, 1, 10)
    plots.learning_curves(tmp_path / "c.png", {"x": [history]}, 1000)
    assert drawn[0][1][0, 0].get_xlim() == pytest.approx((-30, 1030))
