"""Options of an environment that it cannot take end in one line that names them, before a folder is made."""

import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest

from tabular.envs.registry import find_env, make_env


class Picky(gym.Env):
    """Its constructor fails in whatever way is asked for; options may also pass through to something else."""

    observation_space = action_space = gym.spaces.Discrete(2)

    def __init__(self, fails=None, gentle=True, **others):
        if others:
            raise TypeError(f"something got an unexpected keyword argument {next(iter(others))!r}")
        if fails:
            raise {"assertion": AssertionError(), "key": KeyError("x"), "os": OSError(2, "no such file")}[fails]


@pytest.fixture(autouse=True)
def _picky():
    gym.register("Picky-v0", Picky)
    yield
    del gym.registry["Picky-v0"]


@pytest.fixture
def error_of(cli, tmp_path):
    """The error message of a call that must fail in one line, and write nothing."""

    def call(*argv):
        status, _, err = cli(*argv)
        assert status == 2
        assert list(tmp_path.iterdir()) == []
        (line,) = err.splitlines()
        return line.removeprefix("error: ")

    return call


def test_an_unknown_map(error_of):
    expected = "--env.map_name of FrozenLake-v1 is '9x9', which it does not offer: there are 4x4, 8x8"
    assert error_of("solve", "FrozenLake-v1", "--env.map_name", "9x9") == expected


@pytest.mark.parametrize("env", ["maze", "CliffWalking-v1"])
@pytest.mark.parametrize("command", [("solve",), ("run", "q_learning", "--env"), ("predict", "td", "--env")])
def test_nothing_is_rendered(error_of, command, env):
    message = error_of(*command, env, "--env.render_mode", "human")
    assert message == "--env.render_mode is not used here, leave it out; `tabular watch RUN` shows a policy"


@pytest.mark.parametrize(
    ("algorithm", "option", "message"),
    [
        ("dqn", "buffer_size", r"buffer_size is 1000000000000, which needs"),
        ("n_step_sarsa", "n", "n is 1000000000000, which needs "),
    ],
)
def test_more_memory_than_there_is(error_of, algorithm, option, message):
    call = "run", algorithm, "--env", "CliffWalking-v1", f"--{option}", "1000000000000"
    assert message in error_of(*call)


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("assertion", "Picky-v0 cannot be made with --env.fails assertion: AssertionError"),
        ("key", "Picky-v0 cannot be made with --env.fails key: KeyError: 'x'"),
        ("os", "Picky-v0 cannot be made with --env.fails os: FileNotFoundError: [Errno 2] no such file"),
    ],
)
def test_constructors_that_fail(fails, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the whole message is looked at)
        make_env("Picky-v0", {"fails": fails})
    assert str(error.value) == message


def test_options_that_are_passed_on():
    """Only the error tells which one nobody wanted."""
    with pytest.raises(ValueError, match=r"has no option --env.gentel: did you mean gentle\?"):
        make_env("Picky-v0", {"gentle": False, "gentel": 1})
    with pytest.raises(ValueError, match=r"MazePool-v0 has no option --env.sise: did you mean size"):
        make_env("tabular/MazePool-v0", {"slip": 0.1, "sise": 5})


@pytest.mark.parametrize(
    ("env", "option", "value", "message"),
    [
        ("maze", "step_reward", "nan", "--env.step_reward of tabular/Maze-v0 is 'nan', but must be a finite number"),
        ("maze", "step_reward", "1e999", "is inf, but must be a finite number"),
        ("maze", "slip", "nan", "--env.slip of tabular/Maze-v0 is 'nan', but must be a finite number"),
        ("maze", "masked", "1", "--env.masked of tabular/Maze-v0 is 1, but must be true or false"),
        (
            "maze",
            "max_episode_steps",
            "0",
            "--env.max_episode_steps of tabular/Maze-v0 is 0, but must be a whole number from 1",
        ),
        (
            "maze",
            "max_episode_steps",
            "x",
            "--env.max_episode_steps of tabular/Maze-v0 is 'x', but must be a whole number from 1",
        ),
        (
            "FrozenLake-v1",
            "is_slippery",
            "maybe",
            "is_slippery of FrozenLake-v1 is 'maybe', but must be true or false",
        ),
        (
            "RandomWalk",
            "n_states",
            "true",
            "--env.n_states of tabular/RandomWalk-v0 is True, but must be a finite number",
        ),
    ],
)
def test_options_of_the_wrong_kind(error_of, env, option, value, message):
    assert message in error_of("solve", env, f"--env.{option}", value)


def test_kinds_that_only_the_constructor_knows():
    """In a process of its own, without the tests' type checker."""
    calls = [
        ("maze", {"size": "abc"}, "size is 'abc', but must be a whole number from 5"),
        ("maze", {"layout": "5"}, "layout is 5, but must be a name, a file or the rows of a maze"),
        ("maze", {"size": "9", "maze_seed": "-1"}, "maze_seed is -1, but must be a whole number from 0"),
        ("mazepool", {"slip": "nan"}, "slip is 'nan', but must be a finite number in [0, 1]"),
        ("lineworld", {"n_states": "2.5"}, "n_states is 2.5, but must be a whole number from 2"),
    ]
    program = (
        "import sys\nfrom tabular.envs.registry import find_env, make_env\n"
        "for env, options, _ in eval(sys.argv[1]):\n"
        "    try:\n        make_env(*find_env(env, options))\n"
        "    except ValueError as error:\n        print(error)\n"
    )
    command = [sys.executable, "-c", program, repr(calls)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    assert done.stdout.splitlines() == [message for *_, message in calls]


def test_options_of_the_right_kind():
    lake = make_env(*find_env("FrozenLake-v1", {"is_slippery": "False", "success_rate": "1", "max_episode_steps": "7"}))
    assert lake.unwrapped.P[0][1] == [(1.0, 4, 0, False)]  # pyright: ignore
    assert lake.spec is not None
    assert lake.spec.max_episode_steps == 7
