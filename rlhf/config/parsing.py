"""From YAML files and command-line options to a tree of settings dataclasses, and back.

The grammar of all commands: `--key value` or `--key=value`, with dashes or underscores in the key; `--config file.yaml`
reads settings from a file and may come several times; later files win over earlier ones, and options over files. This
is the only module that uses the command-line library, and it depends on no particular setting.
"""

import difflib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from rlhf.config.aliases import explain
from rlhf.config.mappings import (
    flatten,
    is_mapping,
    mapping_around,
    mappings_of,
    merge,
    nested,
    setting_types,
    take,
    type_of,
)
from rlhf.errors import UserError

Job = TypeVar("Job")

TYPE_NAMES = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false", NoneType: "null"}
BOOLEANS = ("true", "false", "yes", "no")


def parse(
    kind: type[Job], argv: Sequence[str] | None = None, prog: str | None = None, positional: str | None = None
) -> Job:
    """Build a job from a command line.

    Args:
        kind: class of the job.
        argv: the words of the command line; None: those of this process.
        prog: the command's name for usage and messages; None: the script's.
        positional: the setting that may be given without its name, as in `rlhf report RUN`.

    Raises:
        UserError: an unknown key, a wrong type or an impossible value, named with the key's full name.
        SystemExit: after `--help` was printed.
    """
    from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

    prog = prog or Path(sys.argv[0]).name
    arguments, words = split_words(kind, sys.argv[1:] if argv is None else argv)
    _check_keys(kind, words)
    if len(arguments) > (positional is not None):
        is_pair = re.fullmatch(r"[\w.]+=.*", arguments[-1], re.S)
        hint = f"did you mean --{arguments[-1]}?" if is_pair else f"name its setting, one of `{prog} --help`"
        raise UserError(f"`{prog}` takes no argument {arguments[-1]!r}; {hint}")
    words += [f"--{positional}={argument}" for argument in arguments]
    words, mappings = _take_mappings(kind, words)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    usage = f"{prog}{f' [{positional.upper()}]' if positional else ''} [--config FILE ...] [--SETTING VALUE ...]"
    parser = ArgumentParser(prog=prog, usage=usage, exit_on_error=False, description=kind.__doc__)
    parser.add_argument("--config", action="config", help="YAML file with any of these settings; may be repeated")
    parser.add_class_arguments(kind, None)
    try:
        settings = parser.parse_args(words)
    except ArgumentError as error:
        raise UserError(_type_message(kind, str(error))) from None
    except OverflowError:
        named = next((word.partition("=")[0] for word in words if re.search(r"=-?\d{309}", word)), "a setting")
        raise UserError(f"{named} has more digits than a number can have here; write it as 1e-5 or 1e6") from None
    settings.pop("config", None)
    return _build(kind, settings.as_dict(), mappings)


def from_dict(kind: type[Job], settings: dict[str, Any]) -> Job:
    """Build a job from nested settings, as `config.yaml` holds them; checks them as `parse` does."""
    _raise_all(_unknown(kind, flatten(settings)))
    return parse(kind, to_options(kind, settings))


def to_options(kind: type, settings: dict[str, Any]) -> list[str]:
    """Nested settings of a class of jobs as command-line options."""
    return [f"--{key}={as_text(value)}" for key, value in flatten(settings, leaves=mappings_of(kind)).items()]


def to_yaml(job: object) -> str:
    """All settings of a job; `parse(type(job), ["--config", file])` gives the same job back."""
    assert is_dataclass(job)
    assert not isinstance(job, type)
    return yaml.safe_dump(_without_tuples(asdict(job)), sort_keys=False, allow_unicode=True)


def flat_settings(job: object) -> dict[str, Any]:
    """Dotted key -> value of every setting of a job."""
    assert is_dataclass(job)
    assert not isinstance(job, type)
    return flatten(asdict(job), leaves=mappings_of(type(job)))


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a YAML file.

    Raises:
        UserError: there is no such file, it is not YAML, or it does not hold a mapping.
    """
    if not path.is_file():
        raise UserError(f"config file {path} does not exist")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply for settings; --help shows their sections") from None
    if content is None:
        raise UserError(f"{path} has no settings")
    if not isinstance(content, dict):
        name = type(content).__name__
        raise UserError(f"{path} holds a {name}, but must hold settings such as 'ppo: {{lr: 1e-5}}'")
    return content


# ------------------------------------------------------------------------------------------------------ command line


def split_words(kind: type, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line that belong to no option, and all options as one word each: `--key=value`.

    Keys get underscores for dashes, a flag without a value is true, and a whole number may be written as 1e5. This
    comes before the command-line library, which would take the value of an unknown option for an argument.

    Raises:
        UserError: an option needs a value and has none.
    """
    types = setting_types(kind)
    arguments: list[str] = []
    options: list[str] = []
    waiting = list(argv)
    while waiting:
        word = waiting.pop(0)
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        if word == "-h" or key in ("help", "print_config") or key in [f"{name}.help" for name in mappings_of(kind)]:
            options.append(word)
            continue
        if not word.startswith("--"):
            arguments.append(word)
            continue
        hint = type_of(types, key)
        if not equals and hint is bool and not (waiting and waiting[0].lower() in BOOLEANS):
            value = "true"
        elif not equals and waiting and not waiting[0].startswith("--"):
            value = waiting.pop(0)
        elif not equals and (hint is not None or key == "config"):
            raise UserError(f"option --{key} needs a value")
        options.append(f"--{key}={_normalise(value, hint)}")
    return arguments, options


def _normalise(text: str, kind: Any) -> str:
    """The value of an option as the command-line library reads it."""
    if kind in (int, int | None):
        return _whole_number(text)
    if kind in (list[int], list[int] | None) and re.fullmatch(r"-?\d+", text):
        return f"[{text}]"
    return _list_of_text(text) if _holds_texts(kind) and text != "null" else text


def _holds_texts(kind: Any) -> bool:
    """Whether a type is a list of text, or null."""
    return any(get_origin(item) is list and get_args(item)[0] is not int for item in (kind, *get_args(kind)))


def _list_of_text(text: str) -> str:
    r"""A list of text as YAML; one text needs no brackets, and `\n` and `\t` outside quotes are what they stand for."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in ("'", '"'):
        return f"[{text}]"
    items = [text]
    if text.startswith("["):
        if '"' in text or "'" in text or not text.endswith("]"):
            return text
        items = yaml.safe_load(text)
    if not all(isinstance(item, str) for item in items):
        return text
    items = [item.replace("\\n", "\n").replace("\\t", "\t") for item in items]
    return json.dumps(items, ensure_ascii=False)


def _whole_number(text: str) -> str:
    """`1e5` written out."""
    if re.fullmatch(r"\d+(\.\d+)?[eE]\+?\d+", text) and float(text).is_integer():
        return str(int(float(text)))
    return text


def _check_keys(kind: type, words: Sequence[str]) -> None:
    """Raise one UserError for all unknown keys, in options and in config files."""
    sections = {key.rsplit(".", n)[0] for key in setting_types(kind) for n in range(1, key.count(".") + 1)}
    options = [word[2:].partition("=") for word in words if word.startswith("--")]
    wholes = {key for key, _, value in options if key in sections and (value[:1] == "{" or Path(value).is_file())}
    others = {"config", "help", "print_config", *wholes}
    messages = _unknown(kind, [name for key, _, _ in options if (name := key.rstrip("+")) not in others])
    for word in words:
        if word.startswith("--config="):
            file = word.removeprefix("--config=")
            messages += [f"{file}: {message}" for message in _unknown(kind, flatten(read_yaml(Path(file))))]
    _raise_all(messages)


def _raise_all(messages: Sequence[str]) -> None:
    """Raise one UserError with all messages, unless there are none."""
    if len(messages) > 1:
        raise UserError(f"{len(messages)} settings cannot be used:\n  " + "\n  ".join(messages))
    if messages:
        raise UserError(messages[0])


def _unknown(kind: type, keys: Iterable[str]) -> list[str]:
    """A message for each of the dotted `keys` that is no setting, with the nearest one that is."""
    types = setting_types(kind)
    return [_unknown_message(key, types) for key in keys if type_of(types, key) is None]


def _unknown_message(key: str, types: Mapping[str, Any]) -> str:
    valid = list(types)
    if mapping := mapping_around((name for name, hint in types.items() if is_mapping(hint)), key):
        entry, _, setting = key.removeprefix(f"{mapping}.").partition(".")
        inside = list(setting_types(get_args(types[mapping])[1]))
        similar = difflib.get_close_matches(setting, inside, n=1, cutoff=0.5)
        prefix = f"{mapping}.{entry}"
        hint = f"did you mean {prefix}.{similar[0]}?" if similar else f"{prefix} takes {', '.join(inside)}"
        return f"unknown setting {key}; {hint}"
    if members := [name for name in valid if name.startswith(f"{key}.")]:
        return f"{key} is a section, not a setting; it holds {', '.join(members)}"
    if explanation := explain(key, valid):
        return explanation
    last = key.rsplit(".", 1)[-1]
    same_name = [name for name in valid if name.rsplit(".", 1)[-1] == last]
    similar = same_name or difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    hint = f"did you mean {similar[0]}?" if similar else "--help lists all settings"
    return f"unknown setting {key}; {hint}"


# -------------------------------------------------------------------------------------------------- values and types


def _take_mappings(kind: type, words: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The words of a command line without those of mappings, and the mappings' values; later words win.

    A file that holds one is replaced by options with its other settings.
    """
    mappings = mappings_of(kind)
    values: dict[str, Any] = {}
    others: list[str] = []
    for word in words:
        key, _, text = word[2:].partition("=")
        taken: dict[str, Any] = {}
        if key.removesuffix(".help") in mappings and key.endswith(".help"):
            others.append(word)
        elif (mapping := mapping_around(mappings, key)) is not None:
            inside = key.removeprefix(mapping).removeprefix(".")
            value = _value(text, type_of(setting_types(kind), key))
            if not inside:
                values.pop(mapping, None)
            taken = {mapping: nested(inside, value) if inside else value}
        else:
            rest, taken = take(_content(key, text, mappings), mappings)
            others += split_words(kind, to_options(kind, rest))[1] if taken else [word]
        values |= {name: merge(values.get(name, {}), value) for name, value in taken.items()}
    return others, values


def _content(key: str, text: str, mappings: Sequence[str]) -> dict[str, Any]:
    """What a word with a file or a whole section sets, as nested settings; {} for other words."""
    if key == "config":
        return read_yaml(Path(text))
    if any(mapping.startswith(f"{key}.") for mapping in mappings):
        whole = read_yaml(Path(text)) if Path(text).is_file() else _value(text, dict)
        return nested(key, whole) if isinstance(whole, dict) else {}
    return {}


def _value(text: str, hint: Any) -> Any:
    """An option's text inside a mapping: as YAML where anything may stand, else as it is."""
    if hint is not Any and hint is not dict and not is_mapping(hint) and not is_dataclass(hint):
        return None if text == "null" else text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _build(
    kind: type[Job], settings: dict[str, Any], mappings: Mapping[str, Any] | None = None, prefix: str = ""
) -> Job:
    """A job from nested settings of the right types; the command-line library lets null pass for any type."""
    hints = get_type_hints(kind)
    values = {}
    for item in fields(kind):  # pyright: ignore[reportArgumentType]
        value, hint, key = settings[item.name], hints[item.name], prefix + item.name
        if is_mapping(hint):
            values[item.name] = _build_mapping(key, (mappings or {}).get(key, {}), get_args(hint)[1])
            continue
        _check_null(key, value, hint)
        is_section = is_dataclass(hint)
        section = _build(hint, dict(value), mappings, f"{key}.") if is_section else None  # pyright: ignore[reportArgumentType]
        values[item.name] = section if is_section else value
    return kind(**values)


def _build_mapping(key: str, entries: Any, item: Any) -> dict[str, Any]:
    """The value of a mapping; entries that are null are left out."""
    if not isinstance(entries, dict):
        raise UserError(f"{key} is {entries!r}, but must be settings under names, such as {{name: ...}}")
    if not is_dataclass(item):
        return dict(entries)
    built: dict[str, Any] = {}
    for name, settings in entries.items():
        if settings is None:
            continue
        if not isinstance(settings, dict):
            raise UserError(f"{key}.{name} is {settings!r}, but must be settings, such as {{model: runs/reward}}")
        try:
            built[name] = parse(item, to_options(item, settings))  # pyright: ignore[reportArgumentType]
        except UserError as error:
            raise UserError(f"{key}.{name}.{error}") from None
    return built


def _check_null(key: str, value: Any, hint: Any) -> None:
    if value is None and NoneType not in (hint, *get_args(hint)):
        must_be = "a section of settings" if is_dataclass(hint) else _type_name(hint)
        raise UserError(f"{key} is null, but must be {must_be}")


def _type_message(kind: type, message: str) -> str:
    """The command-line library's message about a value of a wrong type, in the words of all other messages."""
    match = re.search(r'[Pp]arser key "([^"]+)":?\s*(.*)', message, re.S)
    value = re.search(r"(?:Got|Given) value: (.*?)(?:\n|$)", message)
    types = setting_types(kind)
    if match is None or value is None or match[1] not in types:
        return " ".join((f"{match[1]}: {match[2]}" if match else message).split())
    return f"{match[1]} is {value[1]}, but must be {_type_name(types[match[1]])}"


def _type_name(hint: Any) -> str:
    """A type in words: `null or a number`, `one of k1, k2, k3`, `a list of text`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        null_first = sorted(arguments, key=lambda argument: argument is not NoneType)
        return " or ".join(_type_name(argument) for argument in null_first)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is list:
        return f"a list, with each item {_type_name(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)} values, each {_type_name(arguments[0])}"
    return TYPE_NAMES[hint]


def as_text(value: Any) -> str:
    """A value as it is written in an option."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and any(isinstance(item, str) for item in value):
        return json.dumps(value, ensure_ascii=False)  # in quotes, outside of which backslashes have a meaning
    text = yaml.safe_dump(_without_tuples(value), default_flow_style=True, sort_keys=False)
    return text.strip().removesuffix("\n...")


def _without_tuples(value: Any) -> Any:
    """Tuples as lists, which YAML has."""
    if isinstance(value, dict):
        return {k: _without_tuples(v) for k, v in value.items()}
    return [_without_tuples(v) for v in value] if isinstance(value, list | tuple) else value
