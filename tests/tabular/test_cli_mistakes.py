"""A mistake ends in one line that names the value and what to do, and nothing is overwritten."""

import pytest
import torch

from tabular import runs
from tabular.cli import main

QUICK = ("--steps", "200", "--evaluate-every", "200", "--eval-episodes", "1")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fails(capsys, *argv):
    try:
        code = main(argv)
    except SystemExit as stop:  # argparse
        code = stop.code
    assert code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture
def folder(tmp_path):
    assert main(["run", "q_learning", "--env", "maze", *QUICK, "--output", "run"]) == 0
    return tmp_path / "run"


def test_numbers_that_are_none(capsys):
    run = ("run", "q_learning", "--env", "maze")
    assert "must be finite, got nan" in fails(capsys, *run, "--threshold", "nan")
    assert "must be at least 0, got -1" in fails(capsys, "watch", "run", "--delay", "-1")
    lake = ("run", "q_learning", "--env", "FrozenLake-v1", "--env.success_rate", "x")
    assert "--env.success_rate of FrozenLake-v1 must be a finite number, got 'x'" in fails(capsys, *lake)


def test_an_algorithm_twice(capsys):
    message = fails(capsys, "compare", "sarsa", "q_learning", "sarsa", "--env", "maze")
    assert message == "tabular: sarsa is named twice: each algorithm is compared once"


def test_places_that_are_no_folders(capsys, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "Not a directory" in fails(capsys, "run", "q_learning", "--env", "maze", *QUICK, "--output", "file/run")
    assert "there is no folder nowhere" in fails(capsys, "solve", "maze", "--plot", "nowhere/maze.png")
    assert (tmp_path / "file").read_text() == "mine"


def test_resume_takes_everything_from_the_folder(capsys, folder):
    message = fails(capsys, "run", "--resume", "run", "--steps", "500", "--eval-episodes", "3")
    assert message.endswith("leave --steps, --eval-episodes out")


def test_damaged_folders(capsys, folder):
    checkpoint, config = folder / "seed_0" / "checkpoint.pt", folder / "config.yaml"
    torch.save({"foo": 1}, checkpoint)
    message = fails(capsys, "watch", "run")
    assert "checkpoint.pt is damaged, or of another run (KeyError: 'learner')" in message
    assert "`tabular run --resume run` learns seed 0 anew" in message
    text = config.read_text()
    config.write_text(text.replace("tabular/Maze-v0", "CliffWlking-v1"))
    assert "Did you mean: `CliffWalking`" in fails(capsys, "watch", "run")
    config.write_text("a: [1")
    assert "config.yaml is damaged: while parsing" in fails(capsys, "watch", "run")


def test_a_comparison_is_no_run_but_holds_some(capsys, tmp_path):
    (tmp_path / "both" / "sarsa").mkdir(parents=True)
    (tmp_path / "both" / "sarsa" / "config.yaml").write_text("")
    assert "take one of the runs in it: both/sarsa" in fails(capsys, "watch", "both")


def test_a_run_keeps_its_maze(tmp_path, monkeypatch):
    (tmp_path / "my.txt").write_text("S..\n..G\n")
    assert main(["run", "q_learning", "--env", "my.txt", *QUICK, "--output", "run"]) == 0
    (tmp_path / "my.txt").unlink()
    assert runs.read_config(tmp_path / "run").env_options == {"layout": "S..\n..G\n"}
    assert main(["watch", "run", "--delay", "0"]) == 0


def test_interrupted_names_the_folder(capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train", stop)
    assert main(["run", "q_learning", "--env", "maze", "--output", "mine"]) == 130
    assert capsys.readouterr().err.endswith("`tabular run --resume mine`\n")
