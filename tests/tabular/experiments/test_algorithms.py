from dataclasses import dataclass, fields
from typing import Literal

import gymnasium as gym
import pytest
from gymnasium import spaces

from tabular.experiments import algorithms
from tabular.experiments.algorithms import ALGORITHMS, SOURCES, TABLES, fitting, load, settings
from tabular.td.control import ControlConfig


@dataclass(frozen=True)
class Everything:
    """Settings of every kind."""

    size: int = 3
    "an integer"
    rate: float | int = 0.5
    "a number"
    flag: bool = False
    "yes or no"
    name: str = "a"
    "some text"
    layers: tuple[int, ...] = (64, 64)
    "widths"
    kind: Literal["clip", "kl"] = "clip"
    "one of two"
    limit: float | int | None = None
    "a number, or none"


def test_texts_become_values():
    texts = {
        "size": "7",
        "rate": "1e-3",
        "flag": "true",
        "name": "12",
        "layers": "[32,16]",
        "kind": "kl",
        "limit": "none",
    }
    assert settings(Everything, texts) == Everything(7, 1e-3, True, "12", (32, 16), "kl", None)
    assert settings(Everything, {"rate": "2", "limit": "3", "layers": "(8,)"}) == Everything(
        rate=2, limit=3, layers=(8,)
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("size", "1.5", "--size is '1.5', but must be an integer"),
        ("size", "true", "--size is 'true', but must be an integer"),
        ("rate", "fast", "--rate is 'fast', but must be a number"),
        ("flag", "1", "--flag is '1', but must be true or false"),
        ("layers", "64", r"--layers is '64', but must be a tuple like \(64,64\)"),
        ("kind", "kll", "--kind is 'kll', but must be clip or kl"),
        ("raet", "1", "unknown option --raet: did you mean rate"),
    ],
)
def test_texts_of_the_wrong_type(name, text, message):
    with pytest.raises(ValueError, match=message):
        settings(Everything, {name: text})


def test_algorithms_by_name():
    assert load("q_learning").__name__ == "QLearning"
    with pytest.raises(ValueError, match="unknown algorithm 'Q-Learning': did you mean q_learning"):
        load("Q-Learning")
    assert list(SOURCES) == list(ALGORITHMS)


@pytest.mark.parametrize("name", TABLES)
def test_every_setting_is_described(name):
    rows = algorithms.describe(load(name).Config)
    assert [row[0] for row in rows] == [field.name for field in fields(load(name).Config)]
    assert all(default and meaning for _, default, meaning in rows)


def test_inherited_settings_are_described_by_the_nearest_class():
    rows = {name: meaning for name, _, meaning in algorithms.describe(load("monte_carlo").Config)}
    assert "plain average" in rows["alpha"]
    assert rows["gamma"] == dict((n, m) for n, _, m in algorithms.describe(ControlConfig))["gamma"]  # noqa: C402


@pytest.mark.parametrize(
    ("env_id", "out"),
    [
        ("CliffWalking-v1", set()),
        ("Blackjack-v1", set()),
        ("CartPole-v1", set(TABLES)),
        ("Pendulum-v1", {*TABLES, "dqn"}),
    ],
)
def test_which_algorithms_fit(env_id, out):
    assert set(fitting(gym.make(env_id))) == set(ALGORITHMS) - out


@pytest.mark.parametrize(
    ("observations", "actions", "out"),
    [
        (spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(0, 1, (2,))}), spaces.Discrete(2), set(TABLES)),
        (spaces.Tuple([spaces.Dict({"a": spaces.Discrete(2)}), spaces.Discrete(3)]), spaces.Discrete(2), set()),
        (spaces.MultiBinary(3), spaces.MultiDiscrete([2, 3]), {*TABLES, "dqn"}),
        (spaces.Text(5), spaces.Discrete(2), set(ALGORITHMS)),
        (spaces.Dict({"a": spaces.Sequence(spaces.Discrete(2))}), spaces.Discrete(2), set(ALGORITHMS)),
        (spaces.Discrete(2), spaces.MultiBinary(2), set(ALGORITHMS)),
        (spaces.Discrete(2), spaces.Box(0, 1, (2, 2)), set(ALGORITHMS)),
        (spaces.Discrete(2), spaces.Box(0, 9, (2,), int), set(ALGORITHMS)),
    ],
)
def test_which_algorithms_fit_spaces(observations, actions, out):
    env = gym.Env()
    env.observation_space, env.action_space = observations, actions
    assert set(fitting(env)) == set(ALGORITHMS) - out
