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


@pytest.fixture
def error_of(cli):
    """The error message of a call that must fail with status 2 and one line."""

    def call(*argv):
        status, _, err = cli(*argv)
        assert status == 2
        assert err.startswith("error: ")
        return err.removeprefix("error: ").strip()

    return call


@pytest.fixture
def folder(tmp_path):
    assert main(["run", "q_learning", "--env", "maze", *QUICK, "--output", "run"]) == 0
    return tmp_path / "run"


def test_values_out_of_range(error_of):
    run = ("run", "q_learning", "--env", "maze")
    assert "--threshold is nan, but must be finite" in error_of(*run, "--threshold", "nan")
    assert "--delay is -1, but must be at least 0" in error_of("watch", "run", "--delay", "-1")
    lake = ("run", "q_learning", "--env", "FrozenLake-v1", "--env.success_rate", "x")
    assert "--env.success_rate of FrozenLake-v1 is 'x', but must be a finite number" in error_of(*lake)


def test_an_algorithm_named_twice(error_of):
    message = error_of("compare", "sarsa", "q_learning", "sarsa", "--env", "maze")
    assert message == "sarsa is named twice: each algorithm is compared once"


def test_folders_that_cannot_be_written(error_of, tmp_path):
    (tmp_path / "file").write_text("text")
    assert "Not a directory" in error_of("run", "q_learning", "--env", "maze", *QUICK, "--output", "file/run")
    assert "there is no folder nowhere" in error_of("solve", "maze", "--plot", "nowhere/maze.png")
    assert (tmp_path / "file").read_text() == "text"


def test_resume_takes_only_steps(error_of, folder):
    message = error_of("run", "--resume", "run", "--steps", "500", "--eval-episodes", "3")
    assert message == "--resume takes everything but --steps from the run's folder: leave --eval_episodes out"


def test_damaged_folders(error_of, folder):
    checkpoint, config = folder / "seed_0" / "checkpoint.pt", folder / "config.yaml"
    torch.save({"foo": 1}, checkpoint)
    message = error_of("watch", "run")
    assert "checkpoint.pt is damaged, or of another run (KeyError: 'learner')" in message
    assert "`tabular run --resume run` trains seed 0 again from the start" in message
    text = config.read_text()
    config.write_text(text.replace("tabular/Maze-v0", "CliffWlking-v1"))
    assert "Did you mean: `CliffWalking`" in error_of("watch", "run")
    for old, new, message in (
        ("settings: {}", "settings: {alpha: x}", "alpha is 'x', but must be a number"),
        ("settings: {}", "settings: {alpah: 1}", "unknown setting alpah: did you mean alpha?"),
        ("settings: {}", "settings: {alpha: 7}", "alpha is 7, but must be between 0 and 1"),
        ("env_options: {}", "env_options: 3", "env_options is 3, but must be names with values"),
        ("threshold: null", "threshold: abc", "threshold is 'abc', but must be a number"),
        ("algorithm: q_learning", "algorithm: q_lerning", "unknown algorithm 'q_lerning'"),
    ):
        assert old in text
        config.write_text(text.replace(old, new))
        assert f"config.yaml is damaged: {message}" in error_of("run", "--resume", "run")
    config.write_text("a: [1")
    assert "config.yaml is damaged: while parsing" in error_of("watch", "run")


def test_watching_a_comparison_names_its_runs(error_of, tmp_path):
    (tmp_path / "both" / "sarsa").mkdir(parents=True)
    (tmp_path / "both" / "sarsa" / "config.yaml").write_text("")
    assert "take one of the runs in it: both/sarsa" in error_of("watch", "both")


def test_a_run_stores_its_maze_in_the_config(tmp_path, monkeypatch):
    (tmp_path / "my.txt").write_text("S..\n..G\n")
    assert main(["run", "q_learning", "--env", "my.txt", *QUICK, "--output", "run"]) == 0
    (tmp_path / "my.txt").unlink()
    assert runs.read_config(tmp_path / "run").env_options == {"layout": "S..\n..G\n"}
    assert main(["watch", "run", "--delay", "0"]) == 0


def test_an_interruption_names_the_folder(cli, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "train", stop)
    status, _, err = cli("run", "q_learning", "--env", "maze", "--output", "stopped")
    assert status == 130
    assert err == "\ninterrupted; `tabular run --resume stopped` continues from the last checkpoint\n"


def test_options_stand_anywhere_and_take_dashes_or_underscores(cli, tmp_path):
    """argparse alone would take the value of a setting for an algorithm's name."""
    end = ("--env.size", "5", "--steps", "200", "--eval-episodes", "1")
    code, _, err = cli("run", "--alpha", "0.5", "--env", "maze", *end, "--output", "a", "q_learning")
    assert (code, err) == (0, "")
    spellings = ("--initial-q=0", "--evaluate_every", "100", "--threshold", "-1")
    code, _, err = cli("compare", *spellings, "--env", "maze", *end, "--output", "b", "q_learning", "sarsa")
    assert (code, err) == (0, "")
    config = runs.read_config(tmp_path / "b" / "sarsa")
    assert (config.settings, config.evaluate_every, config.threshold) == ({"initial_q": 0}, 100, -1.0)
    code, out, _ = cli("solve", "--env.size", "5", "--gamma=0.9", "maze")
    assert code == 0
    assert "gamma 0.9" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["judge", "runs/x"], "`tabular judge` is called `tabular evaluate` now"),
        (
            ["run", "q_learning", "--env", "maze", "--seeds", "1000000000000"],
            "--seeds is 1000000000000, but must be at",
        ),
        (["predict", "td", "--env", "RandomWalk", "--seeds", "1e12"], "--seeds is 1e12, but must be at most 10000"),
        (["solve", "maze", "--seed", "0"], "unknown option --seed"),
        (["solve", "maze", "--policy", "random", "--method", "in_place"], "--policy evaluates a policy and takes no"),
        (["run", "q_learning", "--config", "no.yaml"], "config file no.yaml does not exist"),
        (["solv", "maze"], "unknown command 'solv': did you mean solve?"),
        (["xyz"], "unknown command 'xyz': there are list, solve, predict, run, compare, offline, evaluate, watch"),
        (["--sede=3"], "unknown command '--sede=3'"),
        (["solve"], "`tabular solve` needs ENV"),
        (["solve", "maze", "--gamma"], "option --gamma needs a value"),
        (["run", "q_learning", "--steps", "0"], "--steps is '0', but must be a whole number from 1"),
        (
            ["run", "--resume", "r", "--alpha", "0.5"],
            "--resume takes everything but --steps from the run's folder: leave --alpha out",
        ),
        (["watch", "r", "--env.slip", "1"], "unknown option --env.slip"),
        (
            ["run", "ppo", "--env", "maze", "--seed", "99999999999"],
            "--seed is 99999999999, but must be below 2^32",
        ),
    ],
)
def test_a_mistake_in_the_call_is_one_line(cli, argv, message):
    code, out, err = cli(*argv)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_help_lists_settings_and_environment_options(cli):
    assert "--env.NAME" not in cli("watch", "--help")[1]
    for command in ("run", "compare"):
        out = " ".join(cli(command, "--help")[1].split())
        assert "--NAME VALUE gives the algorithm a setting" in out
        assert "--env.NAME VALUE gives the environment an option" in out


def test_the_options_of_an_environment_are_listed(cli):
    code, out, _ = cli("list", "maze")
    assert code == 0
    assert "--env.slip" in out
    assert "--env.max_episode_steps" in out
    assert "--env.is_slippery" in cli("list", "FrozenLake-v1")[1]
    assert "did you mean q_learning or" in cli("list", "q_lerning")[2]


def test_a_closed_pipe_does_not_stop_the_run(tmp_path):
    """`tabular run ... | head -1`: the folder is written before the table is printed."""
    argv = ["run", "q_learning", "--env", "maze", "--steps", "500", "--eval-episodes", "1", "--output", "early"]
    command = [sys.executable, "-m", "tabular.cli.main", *argv]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, cwd=tmp_path) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (0, b"")
    assert {"summary.json", "policy.png"} <= {file.name for file in (tmp_path / "early").iterdir()}


def test_render_mode_and_other_animation_formats_are_refused(error_of, folder):
    assert "--env.render_mode is not used here" in error_of("evaluate", "run", "--env.render_mode", "human")
    assert "--gif must be a file name that ends in .gif, got film" in error_of("watch", "run", "--gif", "film")
