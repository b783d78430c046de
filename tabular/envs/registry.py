"""Environments by what a person types: an id, a short name, or a maze's text file."""

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

import tabular.envs
from tabular.envs.maze import read_layout
from tabular.text import did_you_mean, parse_value

SHORT_NAMES = {env_id.split("/")[1].split("-v")[0].lower(): env_id for env_id in tabular.envs.IDS}
"""maze -> tabular/Maze-v0, ..."""

MAZES = ("tabular/Maze-v0", "tabular/MaskedMaze-v0")
"""Environments with a `layout`."""

REST = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
"""`*args` and `**kwargs` are no options."""


def find_env(text: str, options: Mapping[str, str] | None = None) -> tuple[str, dict[str, Any]]:
    """The id, and the options as values; a maze's file becomes its text, because the file may change or move.

    Raises ValueError, with the near names, for an unknown environment, and for a file that is no maze.
    """
    values = read_options(options or {})
    if text.endswith(".txt"):
        text, values = "maze", {"layout": text, **values}
    env_id = SHORT_NAMES.get(text.lower(), text)
    if env_id not in gym.registry and ":" not in env_id:
        raise ValueError(_unknown(env_id, [*gym.registry]))
    layout = str(values.get("layout"))
    if env_id in MAZES and "\n" not in layout and Path(layout).is_file():
        values["layout"] = "\n".join(read_layout(layout)) + "\n"
    return env_id, values


def read_options(options: Mapping[str, str]) -> dict[str, Any]:
    """The options as values. Raises ValueError for `render_mode`, which is for those who look on."""
    if "render_mode" in options:
        raise ValueError("--env.render_mode: nothing is drawn here, leave it out; `tabular watch RUN` shows a policy")
    return {name: parse_value(value) for name, value in options.items()}


def make_env(env_id: str, options: Mapping[str, Any]) -> gym.Env:
    """The environment. Raises ValueError for options that it does not know or take, and where it cannot be made."""
    known = _parameters(env_id)
    _check_kinds(env_id, options, known)
    try:
        return gym.make(env_id, **options)
    except (gym.error.Error, ImportError) as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # each environment has its own way of saying what it does not take
        if isinstance(error, ValueError) and env_id in tabular.envs.IDS:
            raise
        text = " ".join(str(error).split(" was raised from")[0].split())  # gymnasium appends all options
        if isinstance(error, TypeError):
            _check_names(env_id, options, known, text)
        given = " ".join(f"--env.{name} {value}" for name, value in options.items())
        reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise ValueError(f"{env_id} cannot be made with {given or 'its defaults'}: {reason}") from error


def _parameters(env_id: str) -> Mapping[str, inspect.Parameter]:
    """The options of what makes an environment; none if that is not known before it is made."""
    spec = gym.registry.get(env_id)
    if spec is None or spec.entry_point is None:
        return {}
    try:
        creator: Any = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    except Exception:  # `gym.make` will say it
        return {}
    return inspect.signature(creator).parameters


def _check_kinds(env_id: str, options: Mapping[str, Any], known: Mapping[str, inspect.Parameter]) -> None:
    """The kind of the default says what an option must be: gymnasium itself takes any text for true."""
    for name, value in options.items():
        default = known[name].default if name in known else None
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
        if name == "max_episode_steps" and not (number and isinstance(value, int) and value >= 1):
            wanted = "a whole number from 1"
        elif isinstance(default, bool) and not isinstance(value, bool):
            wanted = "true or false"
        elif isinstance(default, int | float) and not isinstance(default, bool) and not number:
            wanted = "a finite number"
        else:
            continue
        raise ValueError(f"--env.{name} of {env_id} must be {wanted}, got {value!r}")


def _check_names(env_id: str, options: Mapping[str, Any], known: Mapping[str, inspect.Parameter], text: str) -> None:
    """Raises ValueError for an option that does not exist, which may be why there was a TypeError with this text."""
    kinds = {name: parameter.kind for name, parameter in known.items()}
    names = ["max_episode_steps", *(name for name in known if name != "render_mode" and kinds[name] not in REST)]
    passed_on = inspect.Parameter.VAR_KEYWORD in kinds.values()  # then only the text tells which one nobody wanted
    for name in options:
        if name not in (*names, "render_mode") and (not passed_on or repr(name) in text):
            raise ValueError(f"{env_id} has no option --env.{name}: {did_you_mean(name, names)}")


def options_of(env_id: str) -> dict[str, str]:
    """The options that an environment can be made with, and their defaults."""
    spec, parameters = gym.spec(env_id), _parameters(env_id).values()
    defaults = {p.name: p.default for p in parameters if p.kind not in REST and p.name != "render_mode"}
    defaults |= {"max_episode_steps": spec.max_episode_steps} | spec.kwargs
    return {name: "" if default is inspect.Parameter.empty else str(default) for name, default in defaults.items()}


def _unknown(env_id: str, known: list[str]) -> str:
    # By name without the version, which makes strangers look alike; the last version registered is the newest.
    # Gymnasium has namespaces of its own (one of them `tabular`, too) for twins that need JAX.
    newest = {_name(known_id): known_id for known_id in known if "/" not in known_id or known_id in tabular.envs.IDS}
    found = [newest[name] for name in difflib.get_close_matches(_name(env_id), newest)]
    hint = f"did you mean {' or '.join(found)}?" if found else "see `tabular list`"
    return f"unknown environment {env_id!r}: {hint}"


def _name(env_id: str) -> str:
    return env_id.split("/")[-1].split("-v")[0].lower()
