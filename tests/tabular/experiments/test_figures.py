import sys

import numpy as np
import pytest

from tabular.experiments import figures, frames, plots
from tabular.history import History


def test_ticks_over_steps_are_few_and_short(tmp_path, drawn):
    made = History()
    for i in range(300):
        made.add_episode(1000 * (i + 1), 1, 1000)
        made.add(1000 * (i + 1), td_error=1.0)
    plots.learning_curves(tmp_path / "c.png", {"x": [made]}, 300_000)
    plots.metric_curves(tmp_path / "m.png", {"x": [made]})
    for ax in (drawn[0][1][1, 0], drawn[1][1][0, 0]):
        assert "100k" in [label.get_text() for label in ax.get_xticklabels()]
    assert [figures.thousands(n) for n in (0, 500, 2500, 100_000, 1_250_000)] == ["0", "500", "2.5k", "100k", "1.25M"]


def test_a_start_far_away_is_left_out_with_a_note(tmp_path, drawn):
    made = History()
    for i in range(200):
        made.add_episode(10 * (i + 1), -1e6 if i < 5 else -13.0, 10)
    plots.learning_curves(tmp_path / "c.png", {"x": [made]}, 2000, window=1)
    ax = drawn[0][1][0, 0]
    assert ax.get_ylim()[0] > -100
    assert [text.get_text() for text in ax.texts] == ["start, at -1e+06, not shown"]


def test_an_outlier_does_not_flatten_the_rest(tmp_path, drawn):
    made = History()
    for i in range(1000):
        made.add(i, td_error=100.0 if i in (0, 500) else 0.1 + 0.0001 * i)
    plots.metric_curves(tmp_path / "m.png", {"x": [made]})
    low, high = drawn[0][1][0, 0].get_ylim()
    assert low > 0
    assert 0.19 < high < 0.3


def test_a_reason_is_printed_once(capsys):
    def fails(text):
        raise ValueError(text)

    figures.draw_all(lambda: fails("a"), lambda: fails("b"), lambda: fails("a"))
    assert capsys.readouterr().out == "no picture: a\nno picture: b\n"


def test_nothing_is_overwritten(tmp_path):
    assert figures.new_file(tmp_path / "new.png") == tmp_path / "new.png"
    (tmp_path / "old.png").write_text("text")
    with pytest.raises(ValueError, match=r"old\.png exists already"):
        figures.new_file(tmp_path / "old.png")


@pytest.mark.parametrize(
    ("module", "draw"),
    [
        ("matplotlib", lambda file: plots.learning_curves(file, {"x": [History()]}, 10)),
        ("PIL", lambda file: frames.save_gif(file, [np.zeros((2, 2, 3), dtype=np.uint8)])),
    ],
)
def test_without_the_demo_extra_the_message_names_it(tmp_path, monkeypatch, module, draw):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"pip install 'tabular-rlhf\[demo\]'"):
        draw(tmp_path / "x.png")


def axis_of(*curves, outliers=0):
    """The y axis after its range was set."""
    _, axes = figures.new_figure()
    for curve in curves:
        axes[0, 0].plot(curve)
    figures.set_range(axes[0, 0], [np.asarray(curve, dtype=float) for curve in curves], outliers)
    return axes[0, 0]


@pytest.mark.parametrize(("value", "limits"), [(0.001, (0.0009, 0.0011)), (-5, (-5.5, -4.5)), (0, (-1, 1))])
def test_a_constant_is_drawn_at_its_own_scale(value, limits):
    assert axis_of([value] * 50).get_ylim() == pytest.approx(limits)


def test_the_start_of_learning_is_inside_the_limits():
    curve = np.concatenate([np.linspace(-40, -15, 5), np.linspace(-15, -5, 95)])
    assert axis_of(curve, outliers=1).get_ylim()[0] < -35


def test_a_quantity_that_falls_by_orders_of_magnitude_is_drawn_logarithmically():
    ax = axis_of(10.0 ** -np.linspace(0, 6, 100))
    assert ax.get_yscale() == "log"
    assert ax.get_ylim()[0] < 1e-6
    assert ax.get_ylim()[1] > 1
    assert axis_of(np.concatenate([10.0 ** -np.linspace(0, 6, 60), np.zeros(40)])).get_yscale() == "log"
    assert axis_of(np.linspace(1, 0.1, 100)).get_yscale() == "linear"
    assert axis_of(-(10.0 ** -np.linspace(0, 6, 100))).get_yscale() == "linear"


def test_curves_without_a_finite_point():
    assert axis_of([], [np.nan] * 3).get_yscale() == "linear"


def test_long_titles_are_wrapped_inside_the_figure():
    figure, _ = figures.new_figure(size=(4.0, 2.8))
    figures.set_title(figure, "double_q_learning on FrozenLake-v1, seed 0: values and greedy policy")
    figure.draw_without_rendering()
    box = figure._suptitle.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
