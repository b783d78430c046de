import sys

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

import tabular.envs  # noqa: F401
from tabular.envs.maze import Maze
from tabular.experiments import frames, plots
from tabular.history import History
from tabular.td.control import ControlConfig, QLearning


def cliff(**options):
    return gym.make("CliffWalking-v1", **options)


@pytest.fixture(scope="module")
def learner():
    made = QLearning(cliff, ControlConfig(), 0)
    made.advance(20_000)
    return made


def differs(file):
    pixels = np.asarray(Image.open(file).convert("RGB"))
    return len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_curves(tmp_path, learner):
    other = QLearning(cliff, ControlConfig(), 1)
    other.advance(20_000)
    histories = {"q_learning": [learner.history, other.history], "nothing": [History()]}
    plots.learning_curves(tmp_path / "curves.png", histories, 20_000, threshold=-20)
    plots.metric_curves(tmp_path / "metrics.png", histories)
    assert differs(tmp_path / "curves.png")
    assert differs(tmp_path / "metrics.png")
    with pytest.raises(ValueError, match="nothing was noted"):
        plots.metric_curves(tmp_path / "none.png", {"x": [History()]})


def test_a_beginners_returns_do_not_hide_the_rest(tmp_path, monkeypatch):
    made = History()
    for i in range(200):
        made.add_episode(10 * (i + 1), -1e6 if i < 5 else -13.0, 10)
    figures = []
    original = plots._figure
    monkeypatch.setattr(plots, "_figure", lambda *args: figures.append(original(*args)) or figures[-1])
    plots.learning_curves(tmp_path / "c.png", {"x": [made]}, 2000, window=1)
    assert figures[0][1][0, 0].get_ylim()[0] > -100


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, and their panels."""
    drawn, original = [], plots._figure
    monkeypatch.setattr(plots, "_figure", lambda *args, **size: drawn.append(original(*args, **size)) or drawn[-1])
    return drawn


def test_lengths_tell_of_learning_where_every_return_is_the_same(tmp_path, figures):
    made = History()
    for i in range(100):
        made.add_episode(sum(range(200, 200 - i - 1, -1)), 1.0, 200 - i)
    plots.learning_curves(tmp_path / "c.png", {"x": [made]}, made.ends[-1], window=1)
    returns, lengths = (panel.get_lines()[0].get_ydata() for panel in figures[0][1].ravel())
    assert set(returns) == {1.0}
    assert lengths[0] > 150
    assert lengths[-1] < 110


def test_ticks_over_steps_are_few_and_short(tmp_path, figures):
    made = History()
    for i in range(300):
        made.add_episode(1000 * (i + 1), 1, 1000)
        made.add(1000 * (i + 1), td_error=1.0)
    plots.learning_curves(tmp_path / "c.png", {"x": [made]}, 300_000)
    plots.metric_curves(tmp_path / "m.png", {"x": [made]})
    for ax in (figures[0][1][1, 0], figures[1][1][0, 0]):
        assert "100k" in [label.get_text() for label in ax.get_xticklabels()]
    assert [plots.thousands(n) for n in (0, 500, 2500, 100_000, 1_250_000)] == ["0", "500", "2.5k", "100k", "1.25M"]


def test_legends_of_many_curves_are_outside(tmp_path, figures):
    made = History()
    for i in range(10):
        made.add_episode(i + 1, i, 1)
        made.add(i + 1, td_error=1.0)
    for count in (2, 3):
        plots.learning_curves(tmp_path / "c.png", {str(i): [made] for i in range(count)}, 10)
    plots.metric_curves(tmp_path / "m.png", {"a": [made], "b": [made]})
    inside = [panels[0, 0].get_legend() is not None for _, panels in figures]
    assert inside == [True, False, False]
    assert [len(figure.legends) for figure, _ in figures] == [0, 1, 1]


def test_an_outlier_does_not_flatten_the_rest(tmp_path, figures):
    made = History()
    for i in range(1000):
        made.add(i, td_error=100.0 if i in (0, 500) else 0.1 + 0.0001 * i)
    plots.metric_curves(tmp_path / "m.png", {"x": [made]})
    low, high = figures[0][1][0, 0].get_ylim()
    assert low > 0
    assert 0.19 < high < 0.3


def test_huge_numbers_are_refused_or_clipped_without_warnings(tmp_path, recwarn):
    values = np.full(47, 1e308)
    with pytest.raises(ValueError, match=r"a\.png: the values are too large to draw"):
        plots.grid_values(tmp_path / "a.png", Maze().grid, values, None, values > 0, "title")
    made = History()
    for i in range(10):
        made.add_episode(i + 1, 1, 1)
        made.add(i, td_error=1e308 * (-1) ** i)
    plots.learning_curves(tmp_path / "c.png", {"x": [made]}, 10)
    plots.metric_curves(tmp_path / "m.png", {"x": [made, made]})
    assert [str(warning.message) for warning in recwarn] == []


def test_chances_stand_below_the_arrows(tmp_path, figures):
    values, right = np.zeros(47), np.eye(4, dtype=bool)[np.zeros(47, int)]
    plots.grid_values(
        tmp_path / "a.png", Maze().grid, values, right, values == 0, "ppo, seed 3", "worth", np.full(47, 0.53)
    )
    figure, panels = figures[0]
    assert [text.get_text() for text in panels[0, 0].texts].count(".53") == 47
    assert figure.get_suptitle() == "ppo, seed 3"
    assert figure.axes[1].get_ylabel() == "worth"


def test_a_reason_is_given_once(capsys):
    def fails(text):
        raise ValueError(text)

    plots.draw(lambda: fails("a"), lambda: fails("b"), lambda: fails("a"))
    assert capsys.readouterr().out == "no picture: a\nno picture: b\n"


def test_grid_pictures(tmp_path, learner):
    grid = Maze().grid
    values = np.arange(47.0)
    plots.grid_values(tmp_path / "a.png", grid, values, np.eye(4, dtype=bool)[np.zeros(47, int)], values > 3, "title")
    plots.grid_values(tmp_path / "b.png", grid, values, None, values > 3, "title")
    assert differs(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_an_episode_in_motion(tmp_path, learner):
    episode = frames.episode_frames(learner, cliff, seed=0)
    assert len(episode) == 14  # 13 steps
    frames.save_gif(tmp_path / "e.gif", episode)
    frames.save_strip(tmp_path / "e.png", episode, count=4)
    with Image.open(tmp_path / "e.gif") as film:
        assert film.n_frames == 14
    height, width, _ = episode[0].shape
    with Image.open(tmp_path / "e.png") as strip:
        assert strip.size == (4 * width + 3 * 4, height)


def test_it_says_whether_the_policy_came_to_an_end(tmp_path, learner):
    assert frames.film_episode(learner, cliff, seed=0)[1]
    episode, ended = frames.film_episode(learner, cliff, seed=0, most=5)
    assert (len(episode), ended) == (6, False)


def test_a_strip_of_wide_pictures_is_scaled_down(tmp_path):
    frames.save_strip(tmp_path / "e.png", [np.zeros((600, 980, 3), dtype=np.uint8)] * 8)
    with Image.open(tmp_path / "e.png") as strip:
        assert strip.width == frames.WIDEST


@pytest.mark.filterwarnings("error")
def test_no_warning_where_nothing_can_be_drawn(learner):
    class Silent(gym.Env):
        metadata = {"render_modes": []}  # noqa: RUF012
        asked: list = []  # noqa: RUF012

    def make(**options):
        Silent.asked.append(options)
        return Silent()

    with pytest.raises(ValueError, match="draws no pictures"):
        frames.episode_frames(learner, make, seed=0)
    assert Silent.asked == [{}]


def test_environments_without_pictures(learner):
    with pytest.raises(ValueError, match="draws no pictures"):
        frames.episode_frames(learner, lambda **options: gym.make("Blackjack-v1", **options), seed=0)


def test_nothing_is_overwritten(tmp_path):
    assert plots.new_file(tmp_path / "new.png") == tmp_path / "new.png"
    (tmp_path / "old.png").write_text("mine")
    with pytest.raises(ValueError, match=r"old\.png exists already"):
        plots.new_file(tmp_path / "old.png")


@pytest.mark.parametrize(
    ("module", "draw"),
    [
        ("matplotlib", lambda file: plots.learning_curves(file, {"x": [History()]}, 10)),
        ("PIL", lambda file: frames.save_gif(file, [np.zeros((2, 2, 3), dtype=np.uint8)])),
    ],
)
def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch, module, draw):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"pip install 'tabular-rlhf\[demo\]'"):
        draw(tmp_path / "x.png")
