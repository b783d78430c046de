import sys

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

import tabular.envs  # noqa: F401
from tabular import plots
from tabular.control import ControlConfig, QLearning
from tabular.envs.maze import Maze
from tabular.history import History


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


def test_grid_pictures(tmp_path, learner):
    grid = Maze().grid
    values = np.arange(47.0)
    plots.grid_values(tmp_path / "a.png", grid, values, np.eye(4, dtype=bool)[np.zeros(47, int)], values > 3, "title")
    plots.grid_values(tmp_path / "b.png", grid, values, None, values > 3, "title")
    assert differs(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_an_episode_in_motion(tmp_path, learner):
    frames = plots.episode_frames(learner, cliff, seed=0)
    assert len(frames) == 14  # 13 steps
    plots.save_gif(tmp_path / "e.gif", frames)
    plots.save_strip(tmp_path / "e.png", frames, count=4)
    with Image.open(tmp_path / "e.gif") as film:
        assert film.n_frames == 14
    height, width, _ = frames[0].shape
    with Image.open(tmp_path / "e.png") as strip:
        assert strip.size == (4 * width + 3 * 4, height)


def test_environments_without_pictures(learner):
    with pytest.raises(ValueError, match="draws no pictures"):
        plots.episode_frames(learner, lambda **options: gym.make("Blackjack-v1", **options), seed=0)


def test_nothing_is_overwritten(tmp_path):
    assert plots.new_file(tmp_path / "new.png") == tmp_path / "new.png"
    (tmp_path / "old.png").write_text("mine")
    with pytest.raises(ValueError, match=r"old\.png exists already"):
        plots.new_file(tmp_path / "old.png")


@pytest.mark.parametrize(
    ("module", "draw"),
    [
        ("matplotlib", lambda file: plots.learning_curves(file, {"x": [History()]}, 10)),
        ("PIL", lambda file: plots.save_gif(file, [np.zeros((2, 2, 3), dtype=np.uint8)])),
    ],
)
def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch, module, draw):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"pip install 'tabular-rlhf\[demo\]'"):
        draw(tmp_path / "x.png")
