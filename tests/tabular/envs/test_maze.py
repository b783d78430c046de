import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import tabular.envs
from tabular.envs.maze import LAYOUTS, Maze, MazePool, generate, read_layout, shortest_path
from tabular.planning.dynamic_programming import action_values, value_iteration
from tabular.planning.mdp import MDP
from tabular.planning.policies import greedy_actions

TINY = "S.\n#G"


@pytest.mark.parametrize("env_id", tabular.envs.IDS)
@pytest.mark.parametrize("mode", [None, "ansi", "rgb_array"])
def test_environments_pass_gymnasiums_checker(env_id, mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id, render_mode=mode).unwrapped)


def test_image_observations_pass_gymnasiums_checker():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make("tabular/Maze-v0", observation="image").unwrapped)


def test_steps_in_a_tiny_maze():
    env = Maze(TINY, step_reward=-0.5, goal_reward=2.0)
    assert env.observation_space.n == 3  # type: ignore
    assert env.reset(seed=0) == (0, {})
    up, right, down, left = range(4)
    for bump in (up, down, left):  # edge, wall, edge
        assert env.step(bump) == (0, -0.5, False, False, {"success": False})
    assert env.step(right) == (1, -0.5, False, False, {"success": False})
    assert env.step(down) == (2, 2.0, True, False, {"success": True})


def test_rendering():
    env = Maze(TINY, render_mode="ansi")
    env.reset(seed=0)
    assert env.render() == "@.\n#G"
    env.step(1)
    assert env.render() == "S@\n#G"
    picture = Maze(TINY, render_mode="rgb_array")
    picture.reset(seed=0)
    before = picture.render()
    assert before.shape == (48, 48, 3)
    assert before.dtype == np.uint8
    picture.step(1)
    changed = np.argwhere((picture.render() != before).any(axis=2))
    assert changed[:, 0].max() < 24  # only the upper row
    with pytest.raises(ValueError, match="render_mode is 'human', but must be ansi, rgb_array or None"):
        Maze(render_mode="human")


def test_images_have_channels_for_walls_goal_and_agent():
    env = Maze(TINY, observation="image")
    image, _ = env.reset(seed=0)
    assert image.tolist() == [[[0, 0, 255], [0, 0, 0]], [[255, 0, 0], [0, 255, 0]]]
    moved, *_ = env.step(1)
    assert moved[..., 2].tolist() == [[0, 255], [0, 0]]
    assert image[..., 2].tolist() == [[255, 0], [0, 0]]  # not the same memory


def test_the_dyna_maze_of_example_8_1():
    """Sutton & Barto, example 8.1: 47 states, 14 steps."""
    mdp = MDP.from_gym(gym.make("tabular/Maze-v0"), 0.95)
    assert mdp.n_states == 47
    assert mdp.start @ value_iteration(mdp).values == pytest.approx(0.95**13, rel=1e-12)
    assert shortest_path(read_layout("dyna")) == 14


def test_slip_replaces_actions_with_random_ones():
    env = Maze(TINY, slip=0.4)
    probabilities = {o[1]: 0.0 for o in env.P[1][2]}
    for probability, state, *_ in env.P[1][2]:
        probabilities[int(state)] += probability
    assert probabilities == pytest.approx({1: 0.2, 2: 0.7, 0: 0.1})
    env.reset(seed=0)
    env.s = 1
    reached = []
    for _ in range(2000):
        env.s = 1
        reached.append(env.step(2)[0])
    assert np.bincount(reached) / 2000 == pytest.approx([0.1, 0.2, 0.7], abs=0.03)


def test_action_masks_are_1_for_actions_that_move():
    env = Maze(TINY, masked=True)
    _, info = env.reset(seed=0)
    assert info["action_mask"].tolist() == [0, 1, 0, 0]
    state, reward, *_ = env.step(0)
    assert (state, reward) == (0, -1.0)  # a masked action stays, and costs
    *_, info = env.step(1)
    assert info["action_mask"].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [5, 9, 21])
def test_every_cell_of_a_generated_maze_is_connected_to_the_goal(seed, size):
    cells = generate(size, size, seed)
    assert shortest_path(cells) is not None
    assert {*cells[0], *cells[-1], *(line[0] + line[-1] for line in cells)} <= {"#", "##"}
    mdp = MDP.from_gym(Maze("\n".join(cells), step_reward=-1.0, goal_reward=-1.0), 1)
    assert -mdp.start @ value_iteration(mdp).values == shortest_path(cells)  # gamma 1: an error where there is no way


def test_the_maze_seed_determines_the_maze():
    assert generate(11, 15, 3) == generate(11, 15, 3)
    assert len({generate(11, 11, seed) for seed in range(20)}) == 20
    walls = [sum(line.count("#") for line in generate(21, 21, 0, openness)) for openness in (0.0, 0.2, 1.0)]
    assert walls[0] > walls[1] > walls[2]


def test_a_pool_uses_all_of_its_mazes_and_no_other():
    pool = MazePool(mazes=3, maze_seed=5, size=7)
    pool.reset(seed=0)
    seen = {pool.reset()[0].tobytes() for _ in range(50)}
    assert seen == {Maze(size=7, maze_seed=seed, observation="image").reset(seed=0)[0].tobytes() for seed in (5, 6, 7)}


def test_layouts_are_read_by_name_file_and_text(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_text(TINY + "\n")
    assert read_layout(str(file)) == read_layout(TINY) == ("S.", "#G")
    assert shortest_path(read_layout("S #\n.  \n##G")) == 4  # a space is floor, too
    assert read_layout("S. \r\n#G\r\n") == read_layout(TINY)
    assert all(shortest_path(read_layout(layout.stem)) for layout in LAYOUTS.glob("*.txt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "S.\n."}, r"all rows must be equally long, got \[2, 1\]"),
        ({"layout": "S.\n.."}, "there must be exactly one G, but there are 0"),
        ({"layout": "SS\n.G"}, "there must be exactly one S, but there are 2"),
        ({"layout": "S.\n*G"}, r"the maze: '\*' in row 2, column 1 is not a cell: # is a wall"),
        ({"layout": "S.x\nXXG"}, "'x' in row 1, column 3 is not a cell"),
        ({"layout": "S.\n\t.\n.G"}, r"'\\t' in row 2, column 1 is not a cell"),
        ({"layout": "S#\n#G"}, "there is no path from S to G"),
        ({"layout": "nowhere"}, "layout is 'nowhere', but must be a text file or one of dyna, rooms"),
        ({"size": 6}, "the maze is 6 x 6, but its sides must be odd and at least 5"),
        ({"slip": 1.5}, r"slip is 1.5, but must be a finite number in \[0, 1\]"),
        ({"slip": float("nan")}, "slip is nan, but must be a finite number"),
        ({"size": -5}, "size is -5, but must be a whole number from 5"),
        ({"size": 9, "maze_seed": -1}, "maze_seed is -1, but must be a whole number from 0"),
        ({"step_reward": float("nan")}, "step_reward is nan, but must be a finite number"),
        ({"goal_reward": float("inf")}, "goal_reward is inf, but must be a finite number"),
        ({"observation": "smell"}, "observation is 'smell', but must be 'state' or 'image'"),
    ],
)
def test_invalid_maze_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Maze(**options)


@pytest.mark.parametrize("options", [{"mazes": 0}, {"maze_seed": -1}, {"size": -3}, {"slip": 2}])
def test_invalid_pool_options_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} is {value}, but must be a .*number"):
        MazePool(**options)


def test_a_layout_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "maze.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"maze\.txt is not a text file: 'utf-8'"):
        read_layout(str(tmp_path / "maze.txt"))


def test_the_episode_ends_at_the_goal():
    """Any action value of the goal is 0: the table ends the episode there again."""
    env = Maze(TINY)
    mdp = MDP.from_gym(env, 0.9)
    q_values = action_values(mdp, value_iteration(mdp).values)
    assert q_values[2].tolist() == [0, 0, 0, 0]
    assert q_values[1, 2] == 1.0
    assert greedy_actions(q_values)[0].tolist() == [False, True, False, False]
