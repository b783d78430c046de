"""Environments by name: a gymnasium id, a short name, MODULE:ID, or a maze's text file, with options from text."""

import difflib
import importlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator

import tabular.envs
from tabular.envs.maze import read_layout
from tabular.text import did_you_mean, parse_value

SHORT_NAMES = {env_id.split("/")[1].split("-v")[0].lower(): env_id for env_id in tabular.envs.IDS}
"""maze -> tabular/Maze-v0, ..."""

MAZES = ("tabular/Maze-v0", "tabular/MaskedMaze-v0")
"""Environments with a `layout`."""

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
"""`*args` and `**kwargs`, which name no option."""


def find_env(text: str, options: Mapping[str, str] | None = None) -> tuple[str, dict[str, Any]]:
    """The gymnasium id of an environment, and its options as values.

    A maze's file becomes its text, because the file may change or move.

    Args:
        text: an id, a short name (`maze`), MODULE:ID, or a text file.
        options: option -> text, as typed.

    Raises:
        ValueError: for an unknown environment, with similar names, and for a file that is not a maze.
    """
    values = read_options(options or {})
    if text.endswith(".txt"):
        values = {"layout": text, **values}
        text = "maze"
    env_id = SHORT_NAMES.get(text.lower(), text)
    if env_id not in gym.registry and ":" not in env_id:
        raise ValueError(_unknown(env_id, [*gym.registry]))
    layout = str(values.get("layout"))
    if env_id in MAZES and "\n" not in layout and Path(layout).is_file():
        values["layout"] = "\n".join(read_layout(layout)) + "\n"
    return env_id, values


def read_options(options: Mapping[str, str]) -> dict[str, Any]:
    """The options as values.

    Raises:
        ValueError: for `render_mode`, because commands that take options draw nothing.
    """
    if "render_mode" in options:
        raise ValueError("--env.render_mode is not used here, leave it out; `tabular watch RUN` shows a policy")
    return {name: parse_value(value) for name, value in options.items()}


def make_env(env_id: str, options: Mapping[str, Any]) -> gym.Env:
    """Makes the environment; the module of MODULE:ID may also be in the current folder.

    Raises:
        ValueError: for options that do not exist or have a wrong value, and where the environment cannot be made.
    """
    try:
        spec = _spec(env_id)
    except ImportError as error:
        raise ValueError(f"{env_id} cannot be made: {error}") from error
    parameters = _parameters(spec)
    _check_types(env_id, options, parameters)
    try:
        return gym.make(env_id, **options)
    except (gym.error.Error, ImportError) as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # environments raise many types for an option that they do not accept
        if isinstance(error, ValueError) and env_id in tabular.envs.IDS:
            raise
        text = " ".join(str(error).split(" was raised from")[0].split())  # gymnasium appends all options
        if isinstance(error, TypeError):
            _check_names(env_id, options, parameters, text)
        if isinstance(error, KeyError):
            _check_choices(env_id, options, parameters, spec, text)
        arguments = " ".join(f"--env.{name} {value}" for name, value in options.items()) or "its defaults"
        reason = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise ValueError(f"{env_id} cannot be made with {arguments}: {reason}") from error


def options_of(env_id: str) -> dict[str, str]:
    """The options of an environment, and their defaults as text."""
    spec = _spec(env_id) or gym.spec(env_id)
    parameters = _parameters(spec).values()
    defaults = {p.name: p.default for p in parameters if p.kind not in VARIADIC and p.name != "render_mode"}
    defaults |= {"max_episode_steps": spec.max_episode_steps} | spec.kwargs
    return {name: "" if default is inspect.Parameter.empty else str(default) for name, default in defaults.items()}


def _spec(env_id: str) -> EnvSpec | None:
    """The registration of an environment, after importing the module of MODULE:ID; None for an unknown one."""
    module, colon, name = env_id.rpartition(":")
    if colon:
        current = str(Path.cwd())
        if current not in sys.path and "" not in sys.path:  # a console command's sys.path lacks the current folder
            sys.path.append(current)
        importlib.import_module(module)
    return gym.registry.get(name)


def _creator(spec: EnvSpec | None) -> Any:
    """The class or function that makes an environment; None if it cannot be loaded, which `gym.make` reports."""
    if spec is None or not isinstance(spec.entry_point, str):
        return spec.entry_point if spec is not None else None
    try:
        return load_env_creator(spec.entry_point)
    except Exception:  # whatever the module raises on import
        return None


def _parameters(spec: EnvSpec | None) -> Mapping[str, inspect.Parameter]:
    """The parameters of an environment's class or function; none if it cannot be loaded."""
    creator = _creator(spec)
    return {} if creator is None else inspect.signature(creator).parameters


def _check_types(env_id: str, options: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> None:
    """Checks each option against the type of its default: gymnasium itself would take any text as true."""
    for name, value in options.items():
        default = parameters[name].default if name in parameters else None
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
        if name == "max_episode_steps" and not (number and isinstance(value, int) and value >= 1):
            requirement = "a whole number from 1"
        elif isinstance(default, bool) and not isinstance(value, bool):
            requirement = "true or false"
        elif isinstance(default, int | float) and not isinstance(default, bool) and not number:
            requirement = "a finite number"
        else:
            continue
        raise ValueError(f"--env.{name} of {env_id} is {value!r}, but must be {requirement}")


def _check_names(
    env_id: str, options: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], text: str
) -> None:
    """Raises ValueError for an option that does not exist, a possible cause of a TypeError with this text."""
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    names = ["max_episode_steps", *(n for n in parameters if n != "render_mode" and kinds[n] not in VARIADIC)]
    passes_on = inspect.Parameter.VAR_KEYWORD in kinds.values()  # then only the text says which one was not accepted
    for name in options:
        if name not in (*names, "render_mode") and (not passes_on or repr(name) in text):
            raise ValueError(f"{env_id} has no option --env.{name}: {did_you_mean(name, names)}")


def _check_choices(
    env_id: str,
    options: Mapping[str, Any],
    parameters: Mapping[str, inspect.Parameter],
    spec: EnvSpec | None,
    text: str,
) -> None:
    """Raises ValueError for an option whose value is the missing key of a KeyError with this text.

    The valid values are the keys of a dict in the environment's module that has the default as a key, such as the MAPS
    of FrozenLake.
    """
    module = inspect.getmodule(_creator(spec))
    for name, value in options.items():
        if text != repr(value):
            continue
        default = parameters[name].default if name in parameters else None
        tables = [table for table in vars(module).values() if isinstance(table, dict)] if module is not None else []
        choices = next((list(table) for table in tables if isinstance(default, str) and default in table), [])
        hint = f": {did_you_mean(str(value), choices)}" if choices else ""
        raise ValueError(f"--env.{name} of {env_id} is {value!r}, which it does not offer{hint}")


def _unknown(env_id: str, registered: list[str]) -> str:
    # Compared without the version, which makes unrelated names similar; the last version registered is the newest.
    # Gymnasium has namespaces (one of them `tabular`, too) for variants that need JAX; they are left out.
    newest = {_name(other): other for other in registered if "/" not in other or other in tabular.envs.IDS}
    similar = [newest[name] for name in difflib.get_close_matches(_name(env_id), newest)]
    hint = f"did you mean {' or '.join(similar)}?" if similar else "see `tabular list`"
    return f"unknown environment {env_id!r}: {hint}"


def _name(env_id: str) -> str:
    return env_id.split("/")[-1].split("-v")[0].lower()
