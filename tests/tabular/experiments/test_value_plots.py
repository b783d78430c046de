import numpy as np
import pytest
from PIL import Image

from tabular.envs.maze import Maze
from tabular.experiments import plots, value_plots
from tabular.history import History


def has_content(file):
    pixels = np.asarray(Image.open(file).convert("RGB"))
    return len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_probabilities_are_written_below_the_arrows(tmp_path, drawn):
    values, right = np.zeros(47), np.eye(4, dtype=bool)[np.zeros(47, int)]
    value_plots.grid_values(
        tmp_path / "a.png", Maze().grid, values, right, values == 0, "ppo, seed 3", "worth", np.full(47, 0.53)
    )
    figure, panels = drawn[0]
    assert [text.get_text() for text in panels[0, 0].texts].count(".53") == 47
    assert figure.get_suptitle() == "ppo, seed 3"
    assert figure.axes[1].get_ylabel() == "worth"


def test_grid_pictures(tmp_path):
    grid = Maze().grid
    values = np.arange(47.0)
    value_plots.grid_values(
        tmp_path / "a.png", grid, values, np.eye(4, dtype=bool)[np.zeros(47, int)], values > 3, "title"
    )
    value_plots.grid_values(tmp_path / "b.png", grid, values, None, values > 3, "title")
    assert has_content(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_huge_numbers_are_refused_or_clipped_without_warnings(tmp_path, recwarn):
    values = np.full(47, 1e308)
    with pytest.raises(ValueError, match=r"a\.png: the values are too large to draw"):
        value_plots.grid_values(tmp_path / "a.png", Maze().grid, values, None, values > 0, "title")
    made = History()
    for i in range(10):
        made.add_episode(i + 1, 1, 1)
        made.add(i, td_error=1e308 * (-1) ** i)
    plots.learning_curves(tmp_path / "c.png", {"x": [made]}, 10)
    plots.metric_curves(tmp_path / "m.png", {"x": [made, made]})
    assert [str(warning.message) for warning in recwarn] == []


def test_step_size_curves_end_where_estimates_diverge(tmp_path, drawn):
    errors = {"lam 0": np.array([[0.3, 0.5], [0.2, 0.2]]), "lam 1": np.array([[0.4, 0.4], [np.inf, 0.9]])}
    value_plots.step_size_curves(tmp_path / "s.png", [0.1, 0.5], errors)
    ax = drawn[0][1][0, 0]
    assert [line.get_ydata().tolist() for line in ax.get_lines()] == [[0.4, 0.2], [0.4]]
    assert ax.get_ylim()[0] == 0
