"""`tabular predict`."""

import csv
import sys
from dataclasses import fields

import gymnasium as gym
import numpy as np
import pytest
import yaml

from tabular.cli.main import PREDICTION_SETTINGS, main
from tabular.cli.predict import _label, _snapshots
from tabular.experiments import value_plots
from tabular.planning.dynamic_programming import policy_evaluation
from tabular.planning.mdp import MDP, reachable
from tabular.td import prediction
from tabular.td.prediction import PredictionConfig, predict

WALK = ("--env", "RandomWalk", "--initial_value", "0.5", "--seeds", "3", "--episodes", "20")
TRUE = np.arange(1, 6) / 6


@pytest.fixture
def predict_cli(cli):
    """Calls `tabular predict`."""
    return lambda *argv: cli("predict", *argv)


def rows(file):
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def column(table, name):
    return np.array([float(row[name]) for row in table])


def cells(out):
    """The rows of the printed tables."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.split("\n") if line.startswith("│")]


def test_the_random_walk(predict_cli, tmp_path):
    code, out, err = predict_cli("td", "n_step", "monte_carlo", *WALK, "--lam", "0.5", "--n", "2", "--gamma", "1")
    assert (code, err) == (0, "")
    assert "\nrandom policy on tabular/RandomWalk-v0, gamma 1, 20 episodes, 3 seeds\n" in out
    assert [row[:2] for row in cells(out)[:5]] == [
        ["0", "0.1667"], ["1", "0.3333"], ["2", "0.5000"], ["3", "0.6667"], ["4", "0.8333"]
    ]  # fmt: skip
    assert cells(out)[5] == ["at the start", "0.2357", "0.2357", "0.2357"]
    assert "td, lam 0.5" in out
    assert "n_step, n 2" in out
    folder = tmp_path / "runs" / "predict-RandomWalk-v0"
    assert "written: runs/predict-RandomWalk-v0" in out
    assert {f.name for f in folder.iterdir()} == {
        "config.yaml", "errors.csv", "values.csv", "errors.png", "values.png"
    }  # fmt: skip
    values = rows(folder / "values.csv")
    assert list(values[0]) == ["state", "exact", "td", "n_step", "monte_carlo"]
    assert column(values, "exact") == pytest.approx(TRUE)
    assert yaml.safe_load((folder / "config.yaml").read_text()) == {
        "methods": ["td", "n_step", "monte_carlo"],
        "env": "tabular/RandomWalk-v0",
        "env_options": {},
        "policy": "random",
        "episodes": 20,
        "seeds": [0, 1, 2],
        "settings": {"alpha": 0.1, "gamma": 1, "lam": 0.5, "initial_value": 0.5, "n": 2, "first_visit": False},
    }


def test_errors_begin_at_the_initial_values_and_follow_predict(predict_cli, tmp_path):
    code, out, _ = predict_cli("td", *WALK, "--seed", "7", "--output", "walk")
    assert code == 0
    errors = rows(tmp_path / "walk" / "errors.csv")
    assert [row["seed"] for row in errors] == ["7"] * 21 + ["8"] * 21 + ["9"] * 21
    curves = column(errors, "rms_error").reshape(3, 21)
    assert curves[:, 0] == pytest.approx((10 / 180) ** 0.5)
    # TD(0) learns nothing from the first episode but at its end: 0.5 becomes 0.45 on the left or 0.55 on the right.
    assert curves[:, 1] == pytest.approx(((10 / 36 - (1 / 3) ** 2 + (1 / 3 - 0.05) ** 2) / 5) ** 0.5)

    config = PredictionConfig(initial_value=0.5)
    estimates = np.array(
        [predict(lambda: gym.make("tabular/RandomWalk-v0"), np.full((5, 2), 0.5), config, 20, s) for s in (7, 8, 9)]
    )
    assert curves[:, 1:] == pytest.approx(np.sqrt(((estimates - TRUE) ** 2).mean(axis=2)))
    assert column(rows(tmp_path / "walk" / "values.csv"), "td") == pytest.approx(estimates[:, -1].mean(axis=0))
    figures = {name: float(text.split()[0]) for name, text in cells(out)[5:]}
    assert figures["at the end"] == pytest.approx(curves[:, -1].mean(), rel=1e-3)
    assert figures["mean of all"] == pytest.approx(curves[:, 1:].mean(), rel=1e-3)


def test_the_same_seed_is_the_same_and_nothing_is_overwritten(predict_cli, tmp_path):
    for seed in ("0", "0", "1"):
        assert predict_cli("td", *WALK, "--seed", seed)[0] == 0
    first, again, other = (tmp_path / "runs" / f"predict-RandomWalk-v0{number}" for number in ("", "-2", "-3"))
    for name in ("config.yaml", "errors.csv", "values.csv", "errors.png", "values.png"):
        assert (first / name).read_bytes() == (again / name).read_bytes()
        assert (first / name).read_bytes() != (other / name).read_bytes()
    code, _, err = predict_cli("td", *WALK, "--output", str(first))
    assert (code, err) == (2, f"error: {first} exists already: take another --output\n")


def test_methods_learn_from_the_same_episodes(predict_cli, tmp_path):
    """One-step TD is TD(0), to the last bit if it sees the same episodes."""
    assert predict_cli("td", "n_step", *WALK, "--n", "1", "--output", "walk")[0] == 0
    errors = rows(tmp_path / "walk" / "errors.csv")
    td, n_step = ([row["rms_error"] for row in errors if row["method"] == method] for method in ("td", "n_step"))
    assert len(td) == 3 * 21
    assert td == n_step


def test_the_optimal_policy(predict_cli, tmp_path):
    """Deterministic: averages are exact after one episode, and only the states on the way are compared."""
    argv = ("monte_carlo", "--alpha", "0", "--policy", "optimal", "--episodes", "1", "--seeds", "2")
    code, out, _ = predict_cli(*argv, "--env", "lineworld", "--gamma", "0.9")
    assert code == 0
    assert "monte_carlo, averages" in out
    values = rows(tmp_path / "runs" / "predict-LineWorld-v0" / "values.csv")
    assert column(values, "exact") == pytest.approx([7.29, 8.1, 9, 10])
    assert column(values, "monte_carlo") == pytest.approx([7.29, 8.1, 9, 10])
    assert predict_cli(*argv, "--env", "CliffWalking-v1")[0] == 0
    values = rows(tmp_path / "runs" / "predict-CliffWalking-v1" / "values.csv")
    assert [row["state"] for row in values] == [*map(str, range(24, 37))]
    assert column(values, "exact").tolist() == column(values, "monte_carlo").tolist() == [*range(-12, 0), -13]


def test_states_of_a_policy():
    mdp = MDP.from_gym(gym.make("CliffWalking-v1"), 1.0)
    assert reachable(mdp).sum() == 37
    up = np.tile(np.eye(4)[0], (48, 1))
    assert np.flatnonzero(reachable(mdp, up)).tolist() == [0, 12, 24, 36]


def test_a_masked_maze_is_walked_without_its_walls(predict_cli, tmp_path):
    argv = ("--gamma", "0.95", "--seeds", "1", "--episodes", "1")
    assert predict_cli("td", "--env", "maskedmaze", *argv)[0] == 0
    env = gym.make("tabular/MaskedMaze-v0")
    masks = env.unwrapped.masks.astype(float)
    exact = policy_evaluation(MDP.from_gym(env, 0.95), masks / masks.sum(axis=1, keepdims=True))
    values = rows(tmp_path / "runs" / "predict-MaskedMaze-v0" / "values.csv")
    assert column(values, "exact") == pytest.approx(exact[[int(row["state"]) for row in values]])


def test_many_states_are_summarised_only(predict_cli, tmp_path):
    code, out, _ = predict_cli("td", "--env", "RandomWalk", "--env.n_states", "31", "--seeds", "2", "--episodes", "2")
    assert code == 0
    assert [row[0] for row in cells(out)] == ["at the start", "at the end", "mean of all"]
    folder = tmp_path / "runs" / "predict-RandomWalk-v0"
    assert {f.name for f in folder.iterdir()} == {"config.yaml", "errors.csv", "values.csv", "errors.png"}
    assert len(rows(folder / "values.csv")) == 31


def test_the_time_limit_is_printed_and_the_maze_is_stored(predict_cli, tmp_path):
    (tmp_path / "my.txt").write_text("S..\n..G\n")
    code, out, _ = predict_cli(
        "td", "--env", "my.txt", "--env.max_episode_steps", "50", "--episodes", "3", "--output", "mine"
    )
    assert code == 0
    assert "exact: without the limit of 50 steps" in out
    config = yaml.safe_load((tmp_path / "mine" / "config.yaml").read_text())
    assert config["env_options"] == {"layout": "S..\n..G\n", "max_episode_steps": 50}
    assert config["settings"] == {"alpha": 0.1, "gamma": 1.0, "lam": 0.0, "initial_value": 0.0}


def test_pictures_show_errors_and_estimates(tmp_path, monkeypatch):
    drawn = []
    original = value_plots.new_figure
    monkeypatch.setattr(value_plots, "new_figure", lambda *args: drawn.append(original(*args)) or drawn[-1])
    errors = np.array([[0.5, 0.25, 0.0], [0.5, 0.75, 1.0]])
    value_plots.error_curves(tmp_path / "errors.png", {"one": errors, "two": errors[:1]})
    ax = drawn[0][1][0, 0]
    assert [line.get_ydata().tolist() for line in ax.get_lines()] == [[0.5, 0.5, 0.5], [0.5, 0.25, 0.0]]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]
    groups = {"one": (np.zeros((2, 3)), np.ones(3)), "two": (np.ones((2, 3)), 9 * np.ones(3))}
    value_plots.estimates(tmp_path / "values.png", np.array([3, 5, 8]), np.arange(3.0), groups, [0, 10])
    left, right = drawn[1][1][0]
    assert [line.get_label() for line in right.get_lines()] == ["0", "10", "exact"]
    assert right.get_lines()[-1].get_ydata().tolist() == [0, 1, 2]
    assert [text.get_text() for text in right.get_xticklabels()] == ["3", "5", "8"]
    assert left.get_ylim() == right.get_ylim()
    assert left.get_ylim()[1] > 10  # the widest band of all panels fits
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("errors.png", "values.png"))


def test_without_matplotlib_only_the_pictures_are_missing(predict_cli, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, _ = predict_cli("td", *WALK, "--output", "walk")
    assert code == 0
    assert out.count("no picture: pictures need matplotlib: pip install 'tabular-rlhf[demo]'") == 1
    assert {f.name for f in (tmp_path / "walk").iterdir()} == {"config.yaml", "errors.csv", "values.csv"}


def test_labels_and_snapshots():
    assert _label(PredictionConfig(lam=0.5)) == "td, lam 0.5"
    assert _label(PredictionConfig(method="monte_carlo", alpha=0, first_visit=True)) == (
        "monte_carlo, first visits, averages"
    )
    assert _snapshots(1) == [0, 1]
    assert _snapshots(250) == [0, 1, 10, 100, 250]
    assert _snapshots(1000) == [0, 1, 10, 100, 1000]


def test_the_help_names_every_setting(predict_cli):
    for field in fields(PredictionConfig):
        if field.name != "method":
            (line,) = [line for line in PREDICTION_SETTINGS.splitlines() if line.startswith(f"  {field.name} ")]
            assert f"(default: {field.default})" in line
    code, out, _ = predict_cli("--help")
    assert code == 0
    assert "trace decay of td" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "`tabular predict` needs a METHOD: one or more of td, n_step, monte_carlo"),
        (["td"], "--env is missing, for instance --env RandomWalk"),
        (["n_stp", *WALK], "unknown method 'n_stp': did you mean n_step?"),
        (["q_learning", *WALK], "unknown method 'q_learning': there are td, n_step, monte_carlo"),
        (["td", "n_step", "td", *WALK], "td is named twice: each method is compared once"),
        (["td", "--env", "RandomWlk"], "did you mean tabular/RandomWalk-v0?"),
        (["td", *WALK, "--env.n_stats", "7"], "has no option --env.n_stats: did you mean n_states?"),
        (["td", *WALK, "--alhpa", "1"], "unknown option --alhpa: did you mean --alpha?"),
        (["td", *WALK, "--method", "n_step"], "unknown option --method"),
        (
            ["td", "n_step", *WALK, "--first_visit", "true"],
            "--first_visit is a setting of monte_carlo only, which is not",
        ),
        (["monte_carlo", *WALK, "--lam", "0.5"], "--lam is a setting of td only, which is not among monte_carlo"),
        (["td", *WALK, "--n", "2"], "--n is a setting of n_step only"),
        (["td", *WALK, "--alpha", "2"], "td: alpha is 2, but must be between 0 and 1"),
        (["monte_carlo", "n_step", *WALK, "--alpha", "0"], "n_step: alpha is 0, but must be positive"),
        (["td", *WALK, "--alpha", "big"], "--alpha is 'big', but must be a number"),
        (["n_step", *WALK, "--n", "2.5"], "--n is '2.5', but must be an integer"),
        (["td", *WALK, "--policy", "best"], "--policy is 'best', but must be one of random, optimal"),
        (["td", *WALK, "--episodes", "0"], "--episodes is '0', but must be a whole number from 1"),
        (["td", *WALK, "--seeds", "0"], "--seeds is '0', but must be a whole number from 1"),
        (["td", "--env", "CartPole-v1"], "CartPole-v1: estimates are compared with exact values"),
        (["td", "--env", "ShortCorridor"], "From Python, tabular.td.prediction.predict"),
        (["td", "--env", "Taxi-v4", "--env.fickle_passenger", "true"], "transition table `P` describes it completely"),
        (
            ["td", "--env", "lineworld", "--env.success", "0", "--env.step_reward=-1"],
            "with gamma 1 the policy has no value: from state 0 it never ends",
        ),
        (
            ["td", "--env", "lineworld", "--env.success", "0", "--policy", "optimal", "--env.step_reward=-1"],
            "no policy surely ends the episode; take gamma < 1",
        ),
    ],
)
def test_mistakes_end_before_an_episode_is_played(predict_cli, tmp_path, argv, message):
    code, out, err = predict_cli(*argv)
    assert code == 2
    assert message in err
    assert out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--env", "lineworld", "--env.success", "0"], "does this policy ever end?"),
        (
            ["--env", "CliffWalking-v1", "--lam", "1", "--alpha", "0.5"],
            "td, lam 1: the estimates diverged in episode 1 of seed 0: take a smaller --alpha or --lam",
        ),
        (["--env", "RandomWalk", "--episodes", "1" + 17 * "0"], "000 episodes of 5 states do not fit into"),
    ],
)
def test_a_failure_while_learning_leaves_no_folder(predict_cli, tmp_path, argv, message):
    code, _, err = predict_cli("td", *argv)
    assert code == 2
    assert message in err
    assert not list(tmp_path.iterdir())


def test_interrupted(predict_cli, tmp_path, monkeypatch):
    """A Ctrl-C while numba hands arrays over comes as SystemError from SystemError from KeyboardInterrupt."""

    def stop(*_):
        try:
            raise SystemError("returned a result with an exception set") from KeyboardInterrupt()
        except SystemError as error:
            raise SystemError("returned a result with an exception set") from error

    monkeypatch.setattr(prediction, "sample", stop)
    code, _, err = predict_cli("td", *WALK)
    assert (code, err) == (130, "\ninterrupted\n")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(prediction, "sample", lambda *_: exec("raise SystemError('another')"))
    with pytest.raises(SystemError, match="another"):
        main(["predict", "td", *WALK])


def test_a_prediction_is_no_run(cli, tmp_path):
    argv = ("td", "--env", "RandomWalk", "--seeds", "1", "--episodes", "2", "--output", "walk")
    assert cli("predict", *argv)[0] == 0
    for command in (("watch", "walk"), ("run", "--resume", "walk"), ("evaluate", "walk")):
        status, _, err = cli(*command)
        assert (status, err) == (2, "error: walk is a folder of `tabular predict`: it holds no agent\n")
