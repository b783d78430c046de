"""`tabular predict` with several step sizes."""

import csv

import numpy as np
import pytest

WALK = ("predict", "td", "--env", "RandomWalk", "--initial_value", "0.5", "--episodes", "10", "--seeds", "3")


def test_the_mean_errors_are_those_of_single_predictions(cli, tmp_path):
    status, out, err = cli(*WALK, "--alpha", "0.1,0.3", "--lam", "0,0.8", "--output", "grid")
    assert (status, err) == (0, "")
    assert {file.name for file in (tmp_path / "grid").iterdir()} == {
        "config.yaml", "step_sizes.csv", "step_sizes.png"
    }  # fmt: skip
    with (tmp_path / "grid" / "step_sizes.csv").open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert len(rows) == 2 * 2 * 3
    assert cli(*WALK, "--alpha", "0.3", "--lam", "0.8", "--output", "single")[0] == 0
    with (tmp_path / "single" / "errors.csv").open(newline="") as text:
        errors = np.array([float(row["rms_error"]) for row in csv.DictReader(text)]).reshape(3, 11)
    means = [float(r["rms_error"]) for r in rows if (r["method"], r["alpha"]) == ("lam 0.8", "0.3")]
    assert means == pytest.approx(errors[:, 1:].mean(axis=1))
    assert f"{np.mean(means):.3g}" in out


def test_divergence_is_a_dash_and_configs_repeat(cli, tmp_path):
    argv = ("predict", "td", "--env", "RandomWalk", "--env.n_states", "19", "--env.left_reward", "-1", "--seeds", "2")
    status, out, _ = cli(*argv, "--alpha", "0.05,1", "--lam", "0,1", "--episodes", "10", "--output", "first")
    assert status == 0
    (row,) = [line for line in out.splitlines() if line.startswith("│ 1 ")]
    assert row.split("│")[3].strip() == "–"
    assert cli("predict", "--config", "first/config.yaml", "--output", "second")[0] == 0
    first, second = ((tmp_path / name / "step_sizes.csv").read_bytes() for name in ("first", "second"))
    assert first == second


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["td", "n_step", "--alpha", "0.1,0.2"], "several values of a setting need one method, got td, n_step"),
        (["td", "--gamma", "0.9,1"], "--gamma is 0.9,1, but only alpha and lam of td may have several values"),
        (["monte_carlo", "--initial_value", "0,1"], "but only alpha of monte_carlo may have several values"),
        (["td", "--alpha", "0.1,x"], "--alpha is 'x', but must be a number"),
        (["td", "--alpha", "0.1,2"], "alpha"),
    ],
)
def test_mistakes(cli, tmp_path, argv, message):
    status, _, err = cli("predict", *argv, "--env", "RandomWalk")
    assert status == 2
    assert message in err
    assert not list(tmp_path.iterdir())
