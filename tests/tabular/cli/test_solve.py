import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest


def grid(out, title):
    """The rows of cells printed under a title."""
    lines = out.split(f"\n{title}\n")[1].split("\n\n")[0].strip("\n").split("\n")
    return [line.split() for line in lines]


def field(out, name):
    (line,) = [line for line in out.split("\n") if name in line]
    return line.split("│")[2].strip()


@pytest.mark.parametrize(
    ("method", "unit", "least", "most"),
    [
        ("value_iteration", "sweeps", 500, 1000),
        ("in_place", "sweeps", 300, 600),
        ("prioritised", "sweeps", 50, 600),
        ("policy_iteration", "policies evaluated", 2, 20),
    ],
)
def test_frozen_lake(cli, method, unit, least, most):
    code, out, err = cli("solve", "FrozenLake-v1", "--method", method)
    assert code == 0
    assert err == ""
    assert float(field(out, "value at the start")) == pytest.approx(0.542025932000, abs=1e-10)
    assert float(field(out, "error bound")) <= 1e-10
    assert least <= int(field(out, unit)) <= most
    policy = grid(out, "policy")
    assert policy[0] == ["←", "↑", "↑", "↑"]
    assert policy[1][0] + policy[1][1] + policy[1][3] == "←HH"
    assert policy[1][2] in "←→"  # two optimal actions
    assert policy[2:] == [["↑", "↓", "←", "H"], ["H", "→", "↓", "G"]]
    assert grid(out, "values")[3] == ["H", "0.7417", "0.8628", "G"]


def test_cliff_walking_undiscounted(cli):
    code, out, _ = cli("solve", "CliffWalking-v1", "--gamma", "1")
    assert code == 0
    assert float(field(out, "value at the start")) == -13
    assert grid(out, "policy")[2:] == [["→"] * 11 + ["↓"], ["↑"] + ["C"] * 10 + ["G"]]
    assert grid(out, "values")[2:] == [[str(v) for v in range(-12, 0)], ["-13"] + ["C"] * 10 + ["G"]]


def test_an_environment_without_a_grid(cli):
    code, out, _ = cli("solve", "Taxi-v4", "--gamma", "0.9")
    assert code == 0
    assert field(out, "states x actions") == "500 x 6"
    assert "policy" not in out


def test_tolerance_is_used(cli):
    bounds = [float(field(cli("solve", "FrozenLake-v1", "--tol", tol)[1], "error bound")) for tol in ("0.1", "1e-6")]
    assert 1e-6 < bounds[0] <= 0.1
    assert bounds[1] <= 1e-6


def test_list(cli):
    code, out, _ = cli("list")
    assert code == 0
    for env_id, size in [("FrozenLake-v1", "16"), ("CliffWalking-v1", "48"), ("Taxi-v4", "500")]:
        assert field(out, env_id) == size
    assert field(out, "tabular/Maze-v0") == "47"
    assert field(out, "CartPole-v1") == "4 numbers"
    assert "double_q_learning" in out
    assert "Watkins" in out


def test_list_of_settings(cli):
    code, out, _ = cli("list", "sarsa")
    assert code == 0
    assert "--epsilon" in out
    assert "0.1" in out
    _, _, err = cli("list", "sarsaa")
    assert err == "error: unknown algorithm or environment 'sarsaa': did you mean sarsa or sarsa_lambda?\n"


def test_the_maze_by_short_name_file_and_size(cli, tmp_path):
    code, out, _ = cli("solve", "maze", "--gamma", "0.95", "--plot", str(tmp_path / "maze.png"))
    assert code == 0
    assert float(field(out, "value at the start")) == pytest.approx(0.95**13)
    assert grid(out, "policy")[0][6:] == ["↓", "#", "G"]
    assert (tmp_path / "maze.png").stat().st_size > 5000
    code, _, err = cli("solve", "maze", "--plot", str(tmp_path / "maze.png"))
    assert (code, err) == (2, f"error: {tmp_path / 'maze.png'} exists already: take another name\n")

    (tmp_path / "mine.txt").write_text("S.\n#G\n")
    code, out, _ = cli("solve", str(tmp_path / "mine.txt"))
    assert grid(out, "policy") == [["→", "↓"], ["#", "G"]]
    code, out, _ = cli("solve", "maze", "--env.size", "9", "--env.step_reward=-1", "--gamma", "1")
    assert code == 0
    assert len(grid(out, "values")) == 9


def test_a_layout_that_is_no_maze(cli, tmp_path):
    (tmp_path / "bad.txt").write_text("S#G\n")
    code, _, err = cli("solve", str(tmp_path / "bad.txt"))
    assert code == 2
    assert "there is no path from S to G" in err


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("frozenlake-v1", "unknown environment 'frozenlake-v1': did you mean FrozenLake-v1"),
        ("FrozenLak", "did you mean FrozenLake-v1"),
        ("TAXI", "did you mean Taxi-v4?"),
        ("Taxi-v3", "did you mean Taxi-v4?"),
        ("CliffWalking-v0", "did you mean CliffWalking-v1"),
        ("xyzzy", "unknown environment 'xyzzy': see `tabular list`"),
        ("CartPole-v1", "CartPole-v1 has no transition table `P`"),
        ("no_such_module:Env-v0", "no_such_module"),
    ],
)
def test_environments_that_cannot_be_solved(cli, env_id, message):
    code, out, err = cli("solve", env_id)
    assert code == 2
    assert message in err
    assert out == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--gamma", "1.5"], "--gamma is 1.5, but must be between 0 and 1"),
        (["--gamma", "nan"], "--gamma is nan, but must be between 0 and 1"),
        (["--gamma", "high"], "--gamma is 'high', but must be a number"),
        (["--tol", "0"], "--tol is 0, but must be positive and finite"),
        (
            ["--method", "magic"],
            "--method is 'magic', but must be one of value_iteration, in_place, prioritised, policy_iteration",
        ),
        (["--speed", "9"], "unknown option --speed"),
        (["--gama", "9"], "unknown option --gama: did you mean --gamma?"),
        (["--gama"], "option --gama is unknown, or needs a value"),
        (["now"], "`tabular solve` takes no argument 'now'"),
        (["--env.is_slipery", "0"], "FrozenLake-v1 has no option --env.is_slipery: did you mean is_slippery?"),
    ],
)
def test_bad_options(cli, argv, message):
    code, out, err = cli("solve", "FrozenLake-v1", *argv)
    assert code == 2
    assert message in err
    assert out == ""


def test_no_command_shows_the_help(cli):
    code, out, _ = cli()
    assert code == 2
    assert "solve" in out
    assert "list" in out


class Loop(gym.Env):
    """One state, two actions; `P` is set by each test."""

    observation_space, action_space = gym.spaces.Discrete(1), gym.spaces.Discrete(2)
    initial_state_distrib = np.ones(1)

    def __init__(self, outcome):
        self.P = {0: {0: [outcome], 1: [outcome]}}


@pytest.fixture
def register_loop():
    def register(outcome):
        gym.register("Loop-v0", entry_point=lambda: Loop(outcome), disable_env_checker=True)

    yield register
    gym.registry.pop("Loop-v0")


def test_a_process_without_a_solution_exits_with_1(cli, register_loop):
    register_loop((1.0, 0, -1.0, False))
    code, out, err = cli("solve", "Loop-v0", "--gamma", "1")
    assert code == 1
    assert "Loop-v0: with gamma 1 there is no solution" in err
    assert out == ""


def test_a_tolerance_out_of_reach_exits_with_1_and_still_reports(cli):
    code, out, err = cli("solve", "FrozenLake-v1", "--tol", "1e-17")
    assert code == 1
    assert "FrozenLake-v1: not solved to 1e-17: after" in err
    assert 1e-17 < float(field(out, "error bound")) < 1e-12


def loaded_by(code):
    script = f"import sys\n{code}\nprint(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


def test_help_loads_nothing_heavy():
    loaded = loaded_by("from tabular.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n")
    assert "tabular.cli.main" in loaded
    assert not loaded & {"numpy", "scipy", "torch", "gymnasium", "rich"}


def test_solving_needs_no_torch():
    assert "torch" not in loaded_by("import tabular.planning.dynamic_programming")


def test_core_needs_torch_only():
    modules = ["checks", "masked", "returns", "losses", "kl", "distributions", "schedules", "errors", "statistics"]
    loaded = loaded_by("; ".join(f"import tabular.core.{name}" for name in modules))
    assert "torch" in loaded
    assert not loaded & {"scipy", "gymnasium", "numba", "transformers", "accelerate", "peft", "datasets", "rlhf"}
    assert not {name for name in loaded if name.startswith("tabular.")} - {
        "tabular.core",
        *(f"tabular.core.{name}" for name in modules),
    }


def test_sweeps_of_the_line_world_worked_by_hand(cli):
    """10, then .9 * 10, .9 * 9 and .9 * 8.1: one state more is exact after each sweep."""
    status, out, _ = cli("solve", "lineworld", "--gamma", "0.9", "--sweeps", "0,1,2,3,4")
    assert status == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert rows[:5] == [
        ["0", "0", "0", "0", "0"],
        ["1", "0", "0", "0", "10"],
        ["2", "0", "0", "9", "10"],
        ["3", "0", "8.1", "9", "10"],
        ["4", "7.29", "8.1", "9", "10"],
    ]


def test_sweeps_on_a_grid_are_grids(cli):
    _, out, _ = cli("solve", "maze", "--gamma", "0.5", "--sweeps", "1,2")
    assert grid(out, "k = 1")[1][8] == "1"
    assert grid(out, "k = 2")[2][8] == "0.5"


def test_the_random_policy_is_evaluated(cli, tmp_path):
    argv = ("solve", "maze", "--env.step_reward=-1", "--gamma", "1", "--policy", "random")
    status, out, _ = cli(*argv, "--plot", "random.png")
    assert status == 0
    assert float(field(out, "value at the start")) == pytest.approx(-866.725, abs=1e-3)
    assert field(out, "error bound") == "unknown (gamma 1)"
    assert "\npolicy\n" not in out
    assert (tmp_path / "random.png").is_file()
    status, out, _ = cli("solve", "maskedmaze", "--gamma", "0.5", "--policy", "random")
    assert float(field(out, "error bound")) <= 1e-10


def test_a_plot_without_a_grid_is_refused_before_solving(cli):
    status, out, err = cli("solve", "Taxi-v4", "--plot", "taxi.png")
    assert (status, out) == (2, "")
    assert err == "error: Taxi-v4 is not a grid, so --plot has nothing to draw\n"
