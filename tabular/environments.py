"""Environments by what a person types: an id, a short name, or a maze's text file."""

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

import tabular.envs
from tabular.algorithms import near, parse
from tabular.envs.maze import read_layout

SHORT_NAMES = {env_id.split("/")[1].split("-v")[0].lower(): env_id for env_id in tabular.envs.IDS}
"""maze -> tabular/Maze-v0, ..."""

MAZES = ("tabular/Maze-v0", "tabular/MaskedMaze-v0")
"""Environments with a `layout`."""


def find_env(text: str, options: Mapping[str, str] | None = None) -> tuple[str, dict[str, Any]]:
    """The id, and the options as values; a maze's file becomes its text, because the file may change or move.

    Raises ValueError, with the near names, for an unknown environment, and for a file that is no maze.
    """
    values = {name: parse(value) for name, value in (options or {}).items()}
    if text.endswith(".txt"):
        text, values = "maze", {"layout": text, **values}
    env_id = SHORT_NAMES.get(text.lower(), text)
    if env_id not in gym.registry and ":" not in env_id:
        raise ValueError(_unknown(env_id, [*gym.registry]))
    if env_id in MAZES and Path(str(values.get("layout"))).is_file():
        values["layout"] = "\n".join(read_layout(values["layout"])) + "\n"
    return env_id, values


def make_env(env_id: str, options: Mapping[str, Any]) -> gym.Env:
    """The environment. Raises ValueError for options that it does not know, and where it cannot be made at all."""
    try:
        return gym.make(env_id, **options)
    except TypeError as error:
        spec = gym.registry.get(env_id)
        known = ["max_episode_steps"]
        if spec is not None and spec.entry_point is not None:
            creator: Any = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
            known += [name for name in inspect.signature(creator).parameters if name not in ("render_mode", "kwargs")]
        for name in options:
            if name not in known:
                raise ValueError(f"{env_id} has no option --env.{name}: {near(name, known)}") from error
        given = " ".join(f"--env.{name} {value}" for name, value in options.items())
        reason = str(error).split(" was raised from")[0]
        raise ValueError(f"{env_id} cannot be made with {given or 'its defaults'}: {reason}") from error
    except (gym.error.Error, ImportError) as error:
        raise ValueError(str(error)) from error


def options_of(env_id: str) -> dict[str, str]:
    """The options that an environment can be made with, and their defaults."""
    spec: Any = gym.spec(env_id)
    creator: Any = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    parameters = inspect.signature(creator).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD and p.name != "render_mode"}
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
