"""Values from command-line text, and suggestions for misspelled names."""

import ast
import difflib
from collections.abc import Iterable
from typing import Any


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`did you mean ...?` with the most similar of the valid `names`, or all of them if none is similar."""
    names = list(names)
    normalised = {_normalised(valid): valid for valid in names}
    similar = [normalised[match] for match in difflib.get_close_matches(_normalised(name), normalised)]
    return f"did you mean {' or '.join(similar)}?" if similar else f"there are {', '.join(names)}"


def _normalised(name: str) -> str:
    return name.lower().replace("-", "_").strip("_")


def parse_value(text: str) -> Any:
    """A number, a boolean (`true`, `false`), None (`none`) or a tuple; any other text is returned as it is."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return tuple(value) if isinstance(value, list) else value
