"""The grammar of the command line, the same for all commands.

`--key value` and `--key=value`, with dashes or underscores in the key; `--config file.yaml` reads options from a file
and may come several times. Later files win over earlier ones, and options of the command line win over files. A command
may also take settings of an algorithm (`--alpha 0.5`) and options of an environment (`--env.size 21`).
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tabular.core.errors import UserError
from tabular.text import did_you_mean

MAX_SEEDS = 10_000
"""More seeds than this are a slip of the finger."""

SECTIONS = {"settings": "", "env_options": "env."}
"""Sections of a run's config.yaml, and the prefix of their keys on the command line."""


@dataclass(frozen=True)
class Options:
    """A parsed command line."""

    values: dict[str, Any]
    "the command's own options and arguments, defaults included"
    explicit: frozenset[str]
    "names of those that the command line or a config file sets"
    settings: dict[str, str]
    "settings of an algorithm"
    env_options: dict[str, str]
    "options of the environment"


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are `UserError`s in the style of all other messages."""

    def __init__(self, name: str, description: str, epilog: str = "", usage: str | None = None) -> None:
        super().__init__(
            prog=f"tabular {name}",
            description=f"{description[0].upper()}{description[1:]}.",
            epilog=epilog,
            usage=usage,
            allow_abbrev=False,
            formatter_class=_HelpFormatter,
        )
        self.command = name
        self.add_argument(
            "--config", metavar="FILE", help="YAML file with any of these options; may come several times"
        )

    def error(self, message: str) -> NoReturn:
        """Raises UserError with argparse's message in this package's words."""
        if match := re.fullmatch(r"argument (\S+): (is .*)", message):
            message = f"{match[1].split('/')[-1]} {match[2]}"
        elif match := re.fullmatch(r"the following arguments are required: (.*)", message):
            message = f"`{self.prog}` needs {match[1]}; see `{self.prog} --help`"
        elif match := re.fullmatch(r"unrecognized arguments: (.*)", message):
            message = f"`{self.prog}` takes no argument {match[1]!r}"
        raise UserError(message)

    def read(self, argv: Sequence[str], settings: bool = False, env_options: bool = False) -> Options:
        """Parses a command line.

        Args:
            argv: the words after the command's name.
            settings: whether the command takes settings of an algorithm.
            env_options: whether it takes options of an environment.

        Raises:
            UserError: an unknown option, a missing or wrong value, a config file that cannot be read.
        """
        words, options = self._split(argv)
        positional = {action.dest: action for action in self._actions if not action.option_strings}
        own = {name: text for name, text in options.items() if f"--{name}" in self._option_string_actions}
        others = {name: text for name, text in options.items() if name not in own and name not in positional}
        if not words:
            words = [word for name in positional if name in options for word in options[name].split(",")]
        values = vars(self.parse_intermixed_args([*self._option_words(own), *words]))
        del values["config"]
        self._check_others(others, settings, env_options)
        return Options(
            values=values,
            explicit=frozenset([*own, *(name for name in positional if words)]),
            settings={name: text for name, text in others.items() if not name.startswith("env.")},
            env_options={name[4:]: text for name, text in others.items() if name.startswith("env.")},
        )

    def _split(self, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The words that belong to no option, and all options as text: those of config files, then those of `argv`.

        This comes before argparse, which would take the value of an option that it does not know for an argument.
        """
        words: list[str] = []
        from_files: dict[str, str] = {}
        options: dict[str, str] = {}
        waiting = list(argv)
        while waiting:
            word = waiting.pop(0)
            if not word.startswith("--"):
                words.append(word)
                continue
            name, equals, text = word[2:].partition("=")
            name = name.replace("-", "_")
            action = self._option_string_actions.get(f"--{name}")
            if not equals and (action is None or action.nargs != 0):
                if not waiting or waiting[0].startswith("--"):
                    raise UserError(
                        f"option --{name} " + ("needs a value" if action else "is unknown, or needs a value")
                    )
                text = waiting.pop(0)
            if name == "config":
                from_files |= self._read_file(Path(text))
            else:
                options[name] = text
        return words, from_files | options

    def _option_words(self, options: Mapping[str, str]) -> list[str]:
        flags = {name for name in options if self._option_string_actions[f"--{name}"].nargs == 0}
        return [f"--{name}" if name in flags else f"--{name}={text}" for name, text in options.items()]

    def _read_file(self, file: Path) -> dict[str, str]:
        """The options of a YAML file as text. `config.yaml` of a run or prediction is such a file, too."""
        content = read_yaml(file)
        options: dict[str, str] = {}
        for key, value in content.items():
            name = str(key).replace("-", "_")
            if name in SECTIONS and isinstance(value, dict):
                options |= {f"{SECTIONS[name]}{inner}": _text(inner_value) for inner, inner_value in value.items()}
            elif name == "seeds" and isinstance(value, list):
                options |= _seed_range(file, value)
            elif isinstance(value, dict):
                raise UserError(f"{file}: {key} holds a section; write {key}.NAME: VALUE for an option of its own")
            elif isinstance(value, list) and not self._takes_setting(name):
                options[name] = ",".join(_text(item) for item in value)
            elif value is not None or self._takes_setting(name):
                options[name] = _text(value)
        if self.command == "run" and "episodes" in options:  # as config.yaml calls it
            options["eval_episodes"] = options.pop("episodes")
        return options

    def _takes_setting(self, name: str) -> bool:
        return f"--{name}" not in self._option_string_actions and all(name != action.dest for action in self._actions)

    def _check_others(self, names: Mapping[str, str], settings: bool, env_options: bool) -> None:
        for name in names:
            if not (env_options if name.startswith("env.") else settings):
                own = [option for option in self._option_string_actions if option not in ("-h", "--help")]
                raise UserError(f"unknown option --{name}: {did_you_mean(f'--{name}', own)}")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Adds the default to an option's help where there is one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, argparse.SUPPRESS) or not action.option_strings:
            return action.help
        default = ",".join(map(str, action.default)) if isinstance(action.default, tuple) else action.default
        return f"{action.help} (default: {default})"


def read_yaml(file: Path) -> dict[Any, Any]:
    """A YAML file that holds a mapping.

    Raises:
        UserError: there is no such file, it is no YAML, or it holds something else.
    """
    import yaml

    if not file.is_file():
        raise UserError(f"config file {file} does not exist")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} must hold options such as `alpha: 0.5`, got {type(content).__name__}")
    return content


def _text(value: Any) -> str:
    """A YAML value as it is written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    return repr(tuple(value)) if isinstance(value, list) else str(value)


def _seed_range(file: Path, seeds: list[Any]) -> dict[str, str]:
    if not seeds or seeds != list(range(seeds[0], seeds[0] + len(seeds))):
        raise UserError(f"{file}: seeds must be a number or successive numbers, got {seeds}")
    return {"seed": str(seeds[0]), "seeds": str(len(seeds))}


# Types of options. argparse puts the option's name before the message.


def number(text: str) -> float:
    """A number, infinite or nan included."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"is {text!r}, but must be a number") from None


def finite(text: str) -> float:
    """A finite number."""
    if not abs(value := number(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"is {text}, but must be finite")
    return value


def not_negative(text: str) -> float:
    """A finite number from 0."""
    if (value := finite(text)) < 0:
        raise argparse.ArgumentTypeError(f"is {text}, but must be at least 0")
    return value


def positive(text: str) -> float:
    """A finite number above 0."""
    if not 0 < (value := number(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"is {text}, but must be positive and finite")
    return value


def fraction(text: str) -> float:
    """A number in [0, 1]."""
    if not 0 <= (value := number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"is {text}, but must be between 0 and 1")
    return value


def positive_fraction(text: str) -> float:
    """A number in (0, 1]."""
    if not 0 < (value := number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"is {text}, but must be above 0 and at most 1")
    return value


def fractions(text: str) -> tuple[float, ...]:
    """Numbers in [0, 1], separated by commas."""
    return tuple(fraction(part) for part in text.split(","))


def whole(text: str, least: int = 0) -> int:
    """A whole number from `least`; `100_000` and `1e5` are whole numbers, too."""
    digits = text.replace("_", "")
    if re.fullmatch(r"\d+(\.\d+)?[eE]\+?\d{1,2}", digits) and float(digits).is_integer():
        digits = str(int(float(digits)))
    if not digits.isdigit() or int(digits) < least:
        raise argparse.ArgumentTypeError(f"is {text!r}, but must be a whole number from {least}")
    return int(digits)


def whole_numbers(text: str) -> tuple[int, ...]:
    """Whole numbers from 0, separated by commas."""
    return tuple(whole(part) for part in text.split(","))


def count(text: str) -> int:
    """A whole number from 1."""
    return whole(text, 1)


def seed_count(text: str) -> int:
    """How many seeds: a whole number from 1 to `MAX_SEEDS`."""
    if (value := count(text)) > MAX_SEEDS:
        raise argparse.ArgumentTypeError(f"is {text}, but must be at most {MAX_SEEDS}")
    return value


def seed(text: str) -> int:
    """A seed: a whole number from 0 to 2^32 - 1."""
    if (value := whole(text)) >= 2**32:
        raise argparse.ArgumentTypeError(f"is {text}, but must be below 2^32")
    return value


class OneOf:
    """One of some names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self, text: str) -> str:
        if text not in self.names:
            raise argparse.ArgumentTypeError(f"is {text!r}, but must be one of {', '.join(self.names)}")
        return text
