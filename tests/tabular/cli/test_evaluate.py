"""`tabular evaluate`."""

import json

import pytest

from tabular.cli import evaluate
from tabular.cli.main import main
from tabular.experiments import runs


def train(*argv, steps="20000"):
    assert main(["run", *argv, "--steps", steps, "--eval_episodes", "1", "--output", "run"]) == 0


def read(tmp_path, name="evaluation.json"):
    return json.loads((tmp_path / "run" / name).read_text())


def test_noise_and_changed_options(cli, tmp_path):
    train("q_learning", "--env", "CliffWalking-v1", "--alpha", "0.5", "--gamma", "1", "--seeds", "3")
    argv = (
        "evaluate", "run", "--noise", "0.1", "--episodes", "20", "--env.is_slippery", "true", "--threshold", "-1000"
    )  # fmt: skip
    status, out, _ = cli(*argv)
    assert status == 0
    assert "as trained" in out
    assert "noise 0.1" in out
    assert "is_slippery True" in out
    environments = read(tmp_path)["environments"]
    trained, noisy = environments["as trained"], environments["noise 0.1"]
    assert trained["greedy return"] == trained["greedy return, IQM"] == {"value": -13, "low": -13, "high": -13}
    assert trained["success rate"]["value"] == 1
    assert trained["state coverage in training"]["value"] == 1
    assert 0 < trained["training steps to -1000 (median)"]["value"] < 20000
    assert noisy["greedy return"]["value"] < -20
    assert noisy["return lost"]["value"] == pytest.approx(-13 - noisy["greedy return"]["value"])
    assert environments["is_slippery True"]["return lost"]["value"] > noisy["return lost"]["value"]
    assert trained["optimal return"]["value"] == -13
    # The best policy knows of the noise, and keeps away from the cliff.
    assert noisy["greedy return"]["value"] < noisy["optimal return"]["value"] < -13

    before = (tmp_path / "run" / "evaluation.json").read_bytes()
    assert main(argv) == 0  # again: the same, in a new file
    assert (tmp_path / "run" / "evaluation.json").read_bytes() == before
    assert (tmp_path / "run" / "evaluation-2.json").read_bytes() == before
    assert (tmp_path / "run" / "evaluation.png").is_file()
    assert main(["evaluate", "run", "--episodes", "1", "--threshold", "0"]) == 0
    never = read(tmp_path, "evaluation-3.json")["environments"]["as trained"]["training steps to 0 (median)"]
    assert never["value"] == "never"


def test_a_longer_way_costs_discounted_return(tmp_path):
    """In a maze every episode that ends has the return 1, so only discounting shows that slips make the way longer."""
    train("q_learning", "--env", "maze", "--gamma", "0.95", steps="30000")
    assert main(["evaluate", "run", "--episodes", "50", "--env.slip", "0.3"]) == 0
    environments = read(tmp_path)["environments"]
    trained, slippery = environments["as trained"], environments["slip 0.3"]
    assert trained["greedy return"]["value"] == slippery["greedy return"]["value"] == 1
    assert slippery["return lost"]["value"] == 0
    assert trained["discounted return, gamma 0.95"]["value"] == pytest.approx(0.95**13)
    assert trained["optimal discounted return"]["value"] == pytest.approx(0.95**13)
    discounted = slippery["discounted return, gamma 0.95"]["value"]
    assert slippery["discounted return lost"]["value"] == pytest.approx(0.95**13 - discounted)
    assert discounted < slippery["optimal discounted return"]["value"] + 0.02
    assert slippery["optimal discounted return"]["value"] < 0.95**13


def test_a_comparison_is_evaluated_run_by_run(cli, tmp_path):
    argv = ("--env", "CliffWalking-v1", "--steps", "5000", "--seeds", "2", "--eval_episodes", "1", "--output", "both")
    assert main(["compare", "q_learning", "sarsa", *argv]) == 0
    status, out, _ = cli("evaluate", "both", "--episodes", "2", "--noise", "0.1,0.3")
    assert status == 0
    assert out.index("q_learning on") < out.index("sarsa on")
    assert "noise 0.3" in out
    assert {"evaluation.json", "summary.json"} <= {file.name for file in (tmp_path / "both" / "sarsa").iterdir()}
    assert (tmp_path / "both" / "evaluation.png").is_file()
    assert not (tmp_path / "both" / "sarsa" / "evaluation.png").exists()


def test_held_out_mazes(tmp_path):
    train(
        "dqn", "--env", "MazePool", "--env.mazes", "3", "--env.maze_seed", "5", "--env.size", "5",
        "--env.max_episode_steps", "20", steps="20",
    )  # fmt: skip
    conditions = evaluate._conditions(runs.read_config(tmp_path / "run"), evaluate.EvaluationRequest())
    layouts = {
        name: {maze.grid.cells for maze in condition.make_env().unwrapped.mazes}  # pyright: ignore
        for name, condition in conditions.items()
    }
    others = runs.RunConfig("dqn", "tabular/MazePool-v0", {"mazes": 3, "maze_seed": 8, "size": 5}).make_env()
    assert set(layouts) == {"as trained", "held-out mazes"}
    assert layouts["held-out mazes"] == {maze.grid.cells for maze in others.unwrapped.mazes}  # pyright: ignore
    assert main(["evaluate", "run", "--episodes", "2"]) == 0
    assert "return lost" in read(tmp_path)["environments"]["held-out mazes"]


def test_environments_that_do_not_fit_and_unfinished_runs(cli, tmp_path):
    train("q_learning", "--env", "maze", steps="300")
    status, _, err = cli("evaluate", "run", "--env.size", "9")
    assert status == 2
    assert "size 9: the agents were trained with observations Discrete(47), and cannot use Discrete(" in err
    status, _, err = cli("evaluate", "run", "--env.slipp", "0.1")
    assert status == 2
    assert "has no option --env.slipp: did you mean slip?" in err
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("steps: 300", "steps: 900"))
    status, _, err = cli("evaluate", "run")
    assert status == 2
    assert "seed 0 has 300 of 900 steps: `tabular run --resume run` first" in err
    assert not list((tmp_path / "run").glob("evaluation*"))
