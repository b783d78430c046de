"""A mistake ends in one line that names the value and what to do, and nothing is overwritten."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tabular.cli.main import main
from tabular.experiments import runs

ROOT = Path(__file__).parents[3]
QUICK = ("--steps", "200", "--evaluate-every", "200", "--eval-episodes", "1")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(capsys, *argv):
    try:
        code = main(argv)
    except SystemExit as stop:  # --help
        code = stop.code
    return code, *capsys.readouterr()


def fails(capsys, *argv):
    code, _, err = run(capsys, *argv)
    assert code == 2
    return err.strip().splitlines()[-1]


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
    for old, new, message in (
        ("settings: {}", "settings: {alpha: x}", "alpha must be a number, got 'x'"),
        ("settings: {}", "settings: {alpah: 1}", "unknown setting alpah: did you mean alpha?"),
        ("settings: {}", "settings: {alpha: 7}", "alpha must be in (0, 1], got 7"),
        ("env_options: {}", "env_options: 3", "env_options must be names with values, got 3"),
        ("threshold: null", "threshold: abc", "threshold must be a number, got 'abc'"),
        ("algorithm: q_learning", "algorithm: q_lerning", "unknown algorithm 'q_lerning'"),
    ):
        assert old in text
        config.write_text(text.replace(old, new))
        assert f"config.yaml is damaged: {message}" in fails(capsys, "run", "--resume", "run")
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


def test_options_may_stand_before_names_and_be_spelt_either_way(capsys, tmp_path):
    """Argparse alone takes the value of an option that it does not know for a name."""
    end = ("--env.size", "5", "--steps", "200", "--eval-episodes", "1")
    code, _, err = run(capsys, "run", "--alpha", "0.5", "--env", "maze", *end, "--output", "a", "q_learning")
    assert (code, err) == (0, "")
    spelt = ("--initial-q=0", "--evaluate_every", "100", "--threshold", "-1")
    code, _, err = run(capsys, "compare", *spelt, "--env", "maze", *end, "--output", "b", "q_learning", "sarsa")
    assert (code, err) == (0, "")
    config = runs.read_config(tmp_path / "b" / "sarsa")
    assert (config.settings, config.evaluate_every, config.threshold) == ({"initial_q": 0}, 100, -1.0)
    code, out, _ = run(capsys, "solve", "--env.size", "5", "--gamma=0.9", "maze")
    assert code == 0
    assert "gamma 0.9" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["solv", "maze"], "unknown command 'solv': did you mean solve?"),
        (["xyz"], "unknown command 'xyz': there are solve, predict, run, compare, judge, watch, list"),
        (["--sede=3"], "unrecognized arguments: --sede=3"),
        (["solve"], "the following arguments are required: ENV"),
        (["solve", "maze", "--gamma"], "option --gamma misses its value"),
        (["run", "q_learning", "--steps", "0"], "argument --steps: must be a whole number from 1, got '0'"),
        (
            ["run", "--resume", "r", "--alpha", "0.5"],
            "--resume takes everything from the run's folder: leave --alpha out",
        ),
        (["watch", "r", "--env.slip", "1"], "unknown option --env.slip"),
        (
            ["run", "ppo", "--env", "maze", "--seed", "99999999999"],
            "argument --seed: must be below 2^32, got 99999999999",
        ),
    ],
)
def test_a_mistake_in_the_call_is_one_line(capsys, argv, message):
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("tabular: ")
    assert err.count("\n") == 1


def test_help_says_what_a_command_takes(capsys):
    assert "--env.NAME" not in run(capsys, "watch", "--help")[1]
    for command in ("run", "compare"):
        out = " ".join(run(capsys, command, "--help")[1].split())
        assert "--NAME VALUE gives the algorithm a setting" in out
        assert "--env.NAME VALUE gives the environment an option" in out


def test_the_options_of_an_environment_are_listed(capsys):
    code, out, _ = run(capsys, "list", "maze")
    assert code == 0
    assert "--env.slip" in out
    assert "--env.max_episode_steps" in out
    assert "--env.is_slippery" in run(capsys, "list", "FrozenLake-v1")[1]
    assert "did you mean q_learning or" in run(capsys, "list", "q_lerning")[2]


def test_a_reader_who_leaves_early_costs_nothing(tmp_path):
    """`tabular run ... | head -1`: what belongs into the folder is there before the table is printed."""
    argv = ["run", "q_learning", "--env", "maze", "--steps", "500", "--eval-episodes", "1", "--output", "early"]
    command = [sys.executable, "-m", "tabular.cli.main", *argv]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=tmp_path) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (0, b"")
    assert {"summary.json", "policy.png"} <= {file.name for file in (tmp_path / "early").iterdir()}


def test_who_looks_on_is_no_option_and_an_animation_is_a_gif(capsys, folder):
    assert "--env.render_mode: nothing is drawn here" in fails(capsys, "judge", "run", "--env.render_mode", "human")
    assert "--gif film: give it a name that ends in .gif" in fails(capsys, "watch", "run", "--gif", "film")
