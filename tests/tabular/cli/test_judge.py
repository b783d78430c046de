"""`tabular judge`."""

import json

import pytest

from tabular.cli.main import main


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")


def train(*argv, steps="20000"):
    assert main(["run", *argv, "--steps", steps, "--eval-episodes", "1", "--output", "run"]) == 0


def judgement(tmp_path, name="judgement.json"):
    return json.loads((tmp_path / "run" / name).read_text())


def test_worlds(capsys, tmp_path):
    train("q_learning", "--env", "CliffWalking-v1", "--alpha", "0.5", "--gamma", "1", "--seeds", "3")
    argv = ["judge", "run", "--noise", "0.1", "--episodes", "20", "--env.is_slippery", "true", "--threshold", "-1000"]
    capsys.readouterr()
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "as trained" in out
    assert "noise 0.1" in out
    assert "is_slippery True" in out
    found = judgement(tmp_path)["worlds"]
    trained, noisy = found["as trained"], found["noise 0.1"]
    assert trained["greedy return"] == trained["greedy return, IQM"] == {"value": -13, "low": -13, "high": -13}
    assert trained["success rate"]["value"] == 1
    assert trained["state coverage in training"]["value"] == 1
    assert 0 < trained["training steps to -1000 (median)"]["value"] < 20000
    assert noisy["greedy return"]["value"] < -20
    assert noisy["return lost"]["value"] == pytest.approx(-13 - noisy["greedy return"]["value"])
    assert found["is_slippery True"]["return lost"]["value"] > noisy["return lost"]["value"]

    before = (tmp_path / "run" / "judgement.json").read_bytes()
    assert main(argv) == 0  # again: the same, in a new file
    assert (tmp_path / "run" / "judgement.json").read_bytes() == before
    assert (tmp_path / "run" / "judgement-2.json").read_bytes() == before
    assert main(["judge", "run", "--episodes", "1", "--threshold", "0"]) == 0
    never = judgement(tmp_path, "judgement-3.json")["worlds"]["as trained"]["training steps to 0 (median)"]
    assert never["value"] == "never"


def test_held_out_mazes(tmp_path, monkeypatch):
    from tabular.cli import evaluate as judge
    from tabular.experiments import runs

    train(
        "dqn",
        "--env",
        "MazePool",
        "--env.mazes",
        "3",
        "--env.maze_seed",
        "5",
        "--env.size",
        "5",
        "--env.max_episode_steps",
        "20",
        steps="20",
    )
    worlds = judge._worlds(runs.read_config(tmp_path / "run"), judge.Judgement())
    layouts = {
        name: {maze.grid.cells for maze in make().unwrapped.mazes}  # pyright: ignore[reportAttributeAccessIssue]
        for name, make in worlds.items()
    }
    seen = runs.RunConfig("dqn", "tabular/MazePool-v0", {"mazes": 3, "maze_seed": 8, "size": 5}).make_env()
    assert set(layouts) == {"as trained", "held-out mazes"}
    assert layouts["held-out mazes"] == {maze.grid.cells for maze in seen.unwrapped.mazes}  # pyright: ignore
    assert main(["judge", "run", "--episodes", "2"]) == 0
    assert "return lost" in judgement(tmp_path)["worlds"]["held-out mazes"]


def test_mistakes(capsys, tmp_path):
    train("q_learning", "--env", "maze", steps="300")
    capsys.readouterr()
    assert main(["judge", "run", "--env.size", "9"]) == 2
    assert "size 9: the agents learnt with observations Discrete(47) and cannot act with" in capsys.readouterr().err
    assert main(["judge", "run", "--env.slipp", "0.1"]) == 2
    assert "has no option --env.slipp: did you mean slip?" in capsys.readouterr().err
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("steps: 300", "steps: 900"))
    assert main(["judge", "run"]) == 2
    assert "seed 0 stands at 300 of 900 steps: `tabular run --resume run` first" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("judgement*"))
