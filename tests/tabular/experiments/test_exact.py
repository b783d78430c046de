import numpy as np
import pytest

from tabular.experiments import pictures, runs
from tabular.experiments.exact import exact_action_values
from tabular.experiments.runs import RunConfig
from tabular.experiments.summary import summarise


def test_exact_action_values_of_the_line():
    exact = exact_action_values(RunConfig("q_learning", "tabular/LineWorld-v0"), 0.9)
    assert exact is not None
    q_values, used = exact
    assert q_values[:, 1] == pytest.approx([7.29, 8.1, 9, 10])
    assert used.all()


@pytest.mark.parametrize(
    ("algorithm", "env", "options", "gamma"),
    [
        ("sarsa", "tabular/Maze-v0", {}, 0.9),  # its values are those of a policy that explores
        ("q_learning", "Blackjack-v1", {}, 0.9),  # no table
        ("q_learning", "tabular/MaskedMaze-v0", {}, 0.9),  # the table knows no masks
        ("q_learning", "tabular/LineWorld-v0", {"success": 0, "step_reward": -1}, 1),  # no solution
    ],
)
def test_no_exact_values(algorithm, env, options, gamma):
    assert exact_action_values(RunConfig(algorithm, env, options), gamma) is None


def test_the_summary_and_the_picture_show_the_error(tmp_path, drawn):
    config = RunConfig("q_learning", "tabular/Maze-v0", settings={"gamma": 0.9}, steps=1000, evaluate_every=1000)
    runs.create(tmp_path / "run", config)
    results = runs.train(tmp_path / "run", config)
    error = summarise(config, results)["largest error of an action value"].value
    exact = exact_action_values(config, 0.9)
    assert exact is not None
    q_values, used = exact
    assert error == np.abs(results[0].learner.action_values - q_values)[used].max()
    pictures.draw_policy(tmp_path, config, results[0].learner)
    assert (tmp_path / "exact.png").is_file()
    assert f"error of an action value {error:.2g}" in " ".join(drawn[-1][0].get_suptitle().split())
    assert [ax.get_title() for ax in drawn[-1][1].ravel()] == ["learned", "exact"]
