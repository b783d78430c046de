import subprocess
import sys

import pytest

from tabular.envs.registry import find_env, make_env, options_of

CHAIN = """
import gymnasium as gym


class Chain(gym.Env):
    observation_space, action_space = gym.spaces.Discrete(3), gym.spaces.Discrete(2)

    def __init__(self, reward=1.0):
        self.reward = reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return self.state, {}

    def step(self, action):
        self.state = min(self.state + 1, 2) if action else 0
        return self.state, float(self.reward * (self.state == 2)), self.state == 2, False, {}


gym.register("Chain-v0", entry_point=Chain, max_episode_steps=50)
"""


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("8", "--env.map_name of FrozenLake-v1 is 8, which it does not offer: there are 4x4, 8x8"),
        ("9x9", "--env.map_name of FrozenLake-v1 is '9x9', which it does not offer: there are 4x4, 8x8"),
    ],
)
def test_an_unknown_map_name_is_answered_with_the_valid_ones(value, message):
    with pytest.raises(ValueError, match=message):
        make_env(*find_env("FrozenLake-v1", {"map_name": value}))
    assert make_env(*find_env("FrozenLake-v1", {"map_name": "8x8"})).observation_space.n == 64  # pyright: ignore


def test_an_environment_of_a_module_in_the_current_folder(tmp_path):
    """In a process without the current folder on sys.path, as that of the `tabular` command."""
    (tmp_path / "my_chain.py").write_text(CHAIN)
    program = (
        "import sys\n"
        "sys.path[:] = [entry for entry in sys.path if entry]\n"
        "from tabular.envs.registry import find_env, make_env, options_of\n"
        "env_id, options = find_env('my_chain:Chain-v0', {'reward': '2'})\n"
        "env = make_env(env_id, options)\n"
        "print(env_id, env.unwrapped.reward, options_of(env_id))\n"
        "try:\n    make_env('my_chain:Chain-v0', {'rewrad': 2})\n"
        "except ValueError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "my_chain:Chain-v0 2 {'reward': '1.0', 'max_episode_steps': '50'}",
        "my_chain:Chain-v0 has no option --env.rewrad: did you mean reward?",
    ], done.stderr


def test_a_module_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="no_such_module:Env-v0 cannot be made: No module named 'no_such_module'"):
        make_env("no_such_module:Env-v0", {})


def test_options_and_defaults_of_an_environment():
    assert options_of("tabular/RandomWalk-v0") == {"n_states": "5", "left_reward": "0.0", "max_episode_steps": "None"}
