"""From YAML files and options to a tree of dataclasses and back; `config.py` has the tree.

The only file that knows the command-line library. It knows nothing of the settings themselves.
"""

import difflib
import re
import sys
import typing
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from rlhf.config.aliases import ALIASES, UNSUPPORTED
from rlhf.errors import UserError

Job = TypeVar("Job")


def parse(kind: type[Job], argv: Sequence[str] | None = None, prog: str | None = None) -> Job:
    """Build a job from `--config file.yaml` (several: later ones win) and dotted overrides such as `--ppo.lr 1e-5`.

    Raises:
        UserError: an unknown key, a wrong type or an impossible value, named with the key's full name.
    """
    from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

    argv = _whole_numbers(kind, list(sys.argv[1:] if argv is None else argv))
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, exit_on_error=False, description=kind.__doc__)
    parser.add_argument(
        "--config", action="config", help="YAML file with any of these settings; may come several times"
    )
    parser.add_class_arguments(kind, None)
    _refuse_unknown(kind, argv)
    try:
        settings = parser.parse_args(argv)
        settings.pop("config", None)
        return _build(kind, settings.as_dict())
    except ArgumentError as error:
        raise UserError(_plain(str(error))) from None


def from_dict(kind: type[Job], settings: dict[str, Any]) -> Job:
    """Build a job from nested settings, as `config.yaml` holds them; checks them as `parse` does."""
    flat = flatten(settings)
    _refuse(sorted(set(flat) - set(keys_of(kind))), kind)
    argv = [f"--{key}={as_text(value)}" for key, value in flat.items()]
    return parse(kind, argv)


def to_yaml(job: object) -> str:
    """All settings of a job; `parse(type(job), ["--config", file])` gives the same job back."""
    assert is_dataclass(job)
    assert not isinstance(job, type)
    return yaml.safe_dump(_without_tuples(asdict(job)), sort_keys=False, allow_unicode=True)


def flat(job: object) -> dict[str, Any]:
    """Dotted name -> value of every setting of a job."""
    assert is_dataclass(job)
    assert not isinstance(job, type)
    return flatten(asdict(job))


def keys_of(kind: type, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> type of every setting of a job."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(kind)
    for item in fields(kind):
        if is_dataclass(hints[item.name]):
            found |= keys_of(hints[item.name], f"{prefix}{item.name}.")
        else:
            found[prefix + item.name] = hints[item.name]
    return found


def _build(kind: type[Job], settings: dict[str, Any]) -> Job:
    hints = typing.get_type_hints(kind)
    values = {}
    for item in fields(kind):  # pyright: ignore[reportArgumentType]
        value = settings[item.name]
        values[item.name] = _build(hints[item.name], dict(value)) if is_dataclass(hints[item.name]) else value
    return kind(**values)


def _whole_numbers(kind: type, argv: list[str]) -> list[str]:
    """Options with `1e5` written out where a whole number is wanted."""
    whole = {f"--{key}" for key, hint in keys_of(kind).items() if hint in (int, int | None)}
    found, name = [], ""
    for arg in argv:
        option, _, value = arg.partition("=") if arg.startswith("--") else (name, "", arg)
        if option in whole and re.fullmatch(r"\d+(\.\d+)?[eE]\+?\d+", value) and float(value).is_integer():
            arg = arg.removesuffix(value) + str(int(float(value)))
        found.append(arg)
        name = arg if arg.startswith("--") else ""
    return found


def _refuse_unknown(kind: type, argv: list[str]) -> None:
    """Name the first unknown key, in an option or a file, and the nearest one that exists."""
    own = {"config", "help", "print_config"}
    options = [arg[2:].split("=")[0].rstrip("+") for arg in argv if re.match(r"--[A-Za-z]", arg)]
    groups = {key.rsplit(".", n)[0] for key in keys_of(kind) for n in range(1, key.count(".") + 1)}
    _refuse([o for o in options if o not in own | groups and o not in keys_of(kind)], kind)
    for i, arg in enumerate(argv):
        name = (
            arg.split("=", 1)[1]
            if arg.startswith("--config=")
            else (argv[i + 1 : i + 2] or [""])[0]
            if arg == "--config"
            else None
        )
        if name is not None:
            _refuse(sorted(set(flatten(read_yaml(Path(name)))) - set(keys_of(kind))), kind, where=f"{name}: ")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping; `UserError` where it does not."""
    if not path.is_file():
        raise UserError(f"config file {path} does not exist" if path.name else "--config needs the name of a YAML file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        raise UserError(f"{path} holds no settings")
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds a {type(content).__name__}; a config file holds settings such as 'ppo: {{lr: 1e-5}}'"
        )
    return content


def _refuse(unknown: Sequence[str], kind: type, where: str = "") -> None:
    if not unknown:
        return
    key, known = unknown[0], list(keys_of(kind))
    if members := [k for k in known if k.startswith(f"{key}.")]:
        raise UserError(f"{where}{key} is a section, not a setting; it holds {', '.join(members)}")
    last = key.rsplit(".", 1)[-1]
    if last in UNSUPPORTED:
        raise UserError(f"{where}there is no setting {key}: {UNSUPPORTED[last]}")
    if ALIASES.get(last) in known:
        raise UserError(f"{where}unknown setting {key}; here it is {ALIASES[last]}")
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    leaf = [k for k in known if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    hint = f"; did you mean {(leaf or near)[0]}?" if leaf or near else f"; known: {', '.join(known)}"
    raise UserError(f"{where}unknown setting {key}{hint}")


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def as_text(value: Any) -> str:
    return (
        value
        if isinstance(value, str)
        else yaml.safe_dump(_without_tuples(value), default_flow_style=True).strip().removesuffix("\n...")
    )


def _without_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_tuples(v) for k, v in value.items()}
    return [_without_tuples(v) for v in value] if isinstance(value, list | tuple) else value


def _plain(message: str) -> str:
    """The library's message in one line, without Python's names for the types."""
    match = re.search(r'[Pp]arser key "([^"]+)":?\s*(.*)', message, re.S)
    text = f"{match[1]}: {match[2]}" if match else message
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("typing.", "")
    return " ".join(text.split())
