"""The algorithms by name, their settings from text, and which of them fit an environment."""

import ast
import importlib
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from tabular.text import did_you_mean, parse_value

ALGORITHMS = {
    "q_learning": "tabular.td.control:QLearning",
    "sarsa": "tabular.td.control:Sarsa",
    "expected_sarsa": "tabular.td.control:ExpectedSarsa",
    "double_q_learning": "tabular.td.control:DoubleQLearning",
    "n_step_sarsa": "tabular.td.multistep:NStepSarsa",
    "sarsa_lambda": "tabular.td.traces:SarsaLambda",
    "monte_carlo": "tabular.td.multistep:MonteCarlo",
    "dyna_q": "tabular.td.dyna:DynaQ",
    "dqn": "tabular.deep.dqn:DQN",
    "reinforce": "tabular.deep.reinforce:REINFORCE",
    "actor_critic": "tabular.deep.actor_critic:ActorCritic",
    "a2c": "tabular.deep.a2c:A2C",
    "npg": "tabular.deep.natural_gradient:NaturalGradient",
    "trpo": "tabular.deep.trpo:TRPO",
    "ppo": "tabular.deep.ppo:PPO",
}
"""Name -> module and class, in the order of the theory; a module is imported when its algorithm is loaded."""

SOURCES = {
    "q_learning": "off-policy TD control, Watkins (1989)",
    "sarsa": "on-policy TD control, Rummery & Niranjan (1994)",
    "expected_sarsa": "SARSA with an expectation, van Seijen et al. (2009)",
    "double_q_learning": "two tables against the maximum's bias, van Hasselt (2010)",
    "n_step_sarsa": "SARSA over n rewards, Sutton & Barto (2018), section 7.2",
    "sarsa_lambda": "SARSA with eligibility traces, Rummery & Niranjan (1994)",
    "monte_carlo": "whole returns, no bootstrapping, Sutton & Barto (2018), section 5.4",
    "dyna_q": "Q-learning that plans with a learned model, Sutton (1990)",
    "dqn": "Q-learning with a network and a replay buffer, Mnih et al. (2015)",
    "reinforce": "policy gradient from whole returns, Williams (1992)",
    "actor_critic": "policy gradient with the TD error, Sutton & Barto (2018), section 13.5",
    "a2c": "actor-critic with GAE over parallel environments, Mnih et al. (2016)",
    "npg": "natural policy gradient, Kakade (2001)",
    "trpo": "natural gradient within a true KL, Schulman et al. (2015)",
    "ppo": "clipped or KL-penalised surrogate, Schulman et al. (2017)",
}

TABLES = (
    "q_learning",
    "sarsa",
    "expected_sarsa",
    "double_q_learning",
    "n_step_sarsa",
    "sarsa_lambda",
    "monte_carlo",
    "dyna_q",
)
"""These need discrete observations and actions."""

VALUES = (*TABLES, "dqn")
"""These need discrete actions: they take a maximum over them. All others learn a policy for any space."""


def load(name: str) -> Any:
    """The class of an algorithm. Raises ValueError, with the near names, for an unknown one."""
    if name not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {name!r}: {did_you_mean(name, ALGORITHMS)}")
    module, cls = ALGORITHMS[name].split(":")
    return getattr(importlib.import_module(module), cls)


def needs(name: str) -> str:
    """The spaces that an algorithm needs, in words."""
    if name in TABLES:
        return "discrete observations and actions"
    return (
        "observations of numbers, discrete actions"
        if name in VALUES
        else "observations of numbers, discrete or continuous actions"
    )


def fitting(env: gym.Env) -> list[str]:
    """The algorithms for an environment's spaces: none for observations of text or of no fixed size, or for actions
    that no policy here has a distribution of."""
    actions, parts = env.action_space, list(_parts(env.observation_space))
    counted = all(isinstance(part, spaces.Discrete | spaces.MultiDiscrete) for part in parts)
    numbers = all(
        isinstance(part, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box) for part in parts
    )
    if isinstance(actions, spaces.Discrete):
        return [name for name in ALGORITHMS if (counted if name in TABLES else numbers)]
    vector = isinstance(actions, spaces.MultiDiscrete | spaces.Box) and len(actions.shape) == 1
    continuous = isinstance(actions, spaces.Box) and np.issubdtype(actions.dtype, np.floating)
    some = vector and numbers and (continuous or isinstance(actions, spaces.MultiDiscrete))
    return [name for name in ALGORITHMS if some and name not in VALUES]


def _parts(space: gym.Space) -> Iterator[gym.Space]:
    """The spaces that a Tuple or Dict space is made of, or the space itself."""
    if isinstance(space, spaces.Tuple | spaces.Dict):
        for part in space.values() if isinstance(space, spaces.Dict) else space:
            yield from _parts(part)
    else:
        yield space


def settings(config_class: Any, options: Mapping[str, str]) -> Any:
    """A config from `{"alpha": "0.1"}`. Raises ValueError, with the name, for unknown ones and for wrong values."""
    hints = get_type_hints(config_class)
    names = [field.name for field in fields(config_class) if field.init]
    values = {}
    for name, text in options.items():
        if name not in names:
            raise ValueError(f"unknown option --{name}: {did_you_mean(name, names)}")
        values[name] = value = parse_value(text)
        if not _fits(value, hints[name]):
            if not _fits(text, hints[name]):
                raise ValueError(f"--{name} is {text!r}, but must be {_describe(hints[name])}")
            values[name] = text
    return config_class(**values)


def check_settings(config_class: Any, values: Mapping[str, Any]) -> None:
    """Raises ValueError, with the name, for values that are no settings of a config class."""
    hints = get_type_hints(config_class)
    names = [field.name for field in fields(config_class) if field.init]
    for name, value in values.items():
        if name not in names:
            raise ValueError(f"unknown setting {name}: {did_you_mean(name, names)}")
        if not _fits(value, hints[name]):
            raise ValueError(f"{name} is {value!r}, but must be {_describe(hints[name])}")
    config_class(**values)


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(hint)[0]) for item in value)
    if hint in (int, float):
        return isinstance(value, hint) and not isinstance(value, bool)
    return hint is Any or value is hint or isinstance(value, hint if isinstance(hint, type) else object)


def _describe(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        names = [_describe(option) for option in get_args(hint)]
        return "a number" if set(names) == {"an integer", "a number"} else " or ".join(names)
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return "a tuple like (64,64)"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", types.NoneType: "none"}
    return names.get(hint, str(hint))


def describe(config_class: Any) -> list[tuple[str, str, str]]:
    """Name, default and meaning of each setting: the string under a field is its documentation."""
    import inspect

    meanings: dict[str, str] = {}
    for cls in reversed(config_class.__mro__[:-1]):
        body = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body[0]
        for field, text in zip(body.body, body.body[1:], strict=False):  # pyright: ignore
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                meanings[field.target.id] = str(text.value.value)  # pyright: ignore
    return [
        (field.name, "" if field.default is MISSING else str(field.default), meanings.get(field.name, ""))
        for field in fields(config_class)
    ]
