import gymnasium as gym
import numpy as np
import pytest

from tabular.envs.small import LineWorld, RandomWalk, ShortCorridor, WindyGrid
from tabular.envs.table import check_option, grid_of
from tabular.planning.dynamic_programming import policy_evaluation, value_iteration
from tabular.planning.mdp import MDP, line_world


def steps(env, actions):
    env.reset(seed=0)
    return [env.step(action)[:3] for action in actions]


def test_line_world_equals_the_table_of_the_worked_example():
    assert steps(LineWorld(), [1, 1, 1, 1]) == [(1, 0, False), (2, 0, False), (3, 0, False), (3, 10, True)]
    same = MDP.from_gym(LineWorld(success=0.8), 0.9)
    assert value_iteration(same).values == pytest.approx(value_iteration(line_world(success=0.8)).values)


def test_random_walk_values_examples_6_2_and_7_1():
    """Sutton & Barto, example 6.2: V = k / 6; with 19 states and -1 at the left, example 7.1: -0.9 to 0.9."""
    five = MDP.from_gym(RandomWalk(), 1)
    assert policy_evaluation(five, np.full((5, 2), 0.5)) == pytest.approx(np.arange(1, 6) / 6, abs=1e-12)
    nineteen = MDP.from_gym(RandomWalk(19, left_reward=-1.0), 1)
    assert policy_evaluation(nineteen, np.full((19, 2), 0.5)) == pytest.approx(np.arange(-9, 10) / 10, abs=1e-12)
    assert steps(RandomWalk(3), [1, 1]) == [(2, 0, False), (2, 1, True)]
    assert steps(RandomWalk(3, left_reward=-1), [0, 0]) == [(0, 0, False), (0, -1, True)]
    with pytest.raises(ValueError, match="n_states is 4, but must be odd"):
        RandomWalk(4)


@pytest.mark.parametrize("p", [0.1, 0.5, 2 - 2**0.5, 0.9])
def test_short_corridor_values_example_13_1(p):
    """J(p) = -2 (2 - p) / (p (1 - p)), best at p = 2 - sqrt 2 with -(6 + 4 sqrt 2)."""
    values = policy_evaluation(MDP.from_gym(ShortCorridor(), 1), np.tile([1 - p, p], (3, 1)))
    assert values[0] == pytest.approx(-2 * (2 - p) / (p * (1 - p)), rel=1e-12)
    assert values[0] <= -(6 + 4 * 2**0.5) + 1e-9


def test_aliased_corridor_states_have_one_observation():
    assert steps(ShortCorridor(), [1, 0, 1]) == [(0, -1, False), (0, -1, False), (0, -1, True)]
    assert steps(ShortCorridor(aliased=False), [1, 1, 1]) == [(1, -1, False), (0, -1, False), (1, -1, False)]
    assert ShortCorridor().observation_space == gym.spaces.Discrete(1)


@pytest.mark.parametrize(("options", "steps"), [({}, 15), ({"kings_moves": True}, 7)])
def test_shortest_paths_of_the_windy_grid(options, steps):
    mdp = MDP.from_gym(WindyGrid(**options), 1)
    assert mdp.start @ value_iteration(mdp).values == -steps


def test_wind_shifts_the_next_state():
    assert WindyGrid().P[33][1][0][1] == 24  # from the first windy column: one right, one up
    gusts = WindyGrid(stochastic=True).P[33][1]
    assert sorted(o[1] for o in gusts) == [14, 24, 34]
    assert sum(o[0] for o in gusts) == pytest.approx(1)
    assert len(WindyGrid(stochastic=True).P[30][1]) == 1  # no wind, no gusts


def test_success_is_an_end_with_the_largest_reward():
    env = RandomWalk(3, left_reward=-1)
    for action, success in ((1, True), (0, False)):
        env.reset(seed=0)
        assert env.step(action)[4]["success"] is False
        assert env.step(action)[4]["success"] is success


def test_grids_of_gymnasium_environments():
    lake, cliff = grid_of(gym.make("FrozenLake-v1")), grid_of(gym.make("CliffWalking-v1"))
    assert lake is not None
    assert cliff is not None
    assert lake.cells == ("SFFF", "FHFH", "FFFH", "HFFG")
    assert (lake.arrows, cliff.arrows) == ("←↓→↑", "↑→↓←")
    assert cliff.cells[3] == "SCCCCCCCCCCG"
    assert cliff.positions[36] == (3, 0)
    assert grid_of(gym.make("Taxi-v4")) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LineWorld(n_states=1), "n_states is 1, but must be a whole number from 2"),
        (lambda: LineWorld(success=1.2), r"success is 1.2, but must be a finite number in \[0, 1\]"),
        (lambda: LineWorld(goal_value=float("inf")), "goal_value is inf, but must be a finite number"),
        (lambda: LineWorld(step_reward=float("nan")), "step_reward is nan, but must be a finite number"),
        (lambda: RandomWalk(n_states=-1), "n_states is -1, but must be a whole number from 1"),
        (lambda: RandomWalk(left_reward=float("nan")), "left_reward is nan, but must be a finite number"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_options_of_the_wrong_type_are_refused():
    """Tested directly: in constructors the run-time type checker of the tests would refuse them first."""
    for value, kind in (("abc", int), (5.0, int), (True, int), ("nan", float), (True, float), (1, bool), ("yes", bool)):
        with pytest.raises(ValueError, match=rf"speed is {value!r}, but must be "):
            check_option("speed", value, kind)
    for value, kind in ((np.int64(5), int), (5, float), (np.float32(0.5), float), (np.True_, bool), (False, bool)):
        check_option("speed", value, kind)
    for value in (1, 11):
        with pytest.raises(ValueError, match=rf"speed is {value}, but must be a whole number in \[2, 10\]"):
            check_option("speed", value, int, 2, 10)
