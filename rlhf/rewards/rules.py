"""Rules that ship: plain functions that a config names by `rule`, with `parameters`.

Each takes texts and columns as any reward function does, and its parameters by keyword after the star. Scores are
differences and shares without a scale of their own; the weight in a mix gives them one.
"""

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from rlhf.errors import UserError

UNITS = ("words", "characters")
NUMBER = re.compile(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][-+]?\d+)?(?:/\d+)?")
"""A number in text: 12, -3.5, 1,000, 2e-3, 3/4."""


def length_target(completions: list[str], *, target: int, unit: str = "words") -> list[float]:
    """Minus the distance from a length, as a share of it: 0 at the target, -1 for an empty or a twice as long response.

    Args:
        target: the length to aim at.
        unit: what is counted.
    """
    _require(isinstance(target, int) and target > 0, "target", target, "a positive whole number")
    _require(unit in UNITS, "unit", unit, f"one of {', '.join(UNITS)}")
    lengths = [len(text.split()) if unit == "words" else len(text) for text in completions]
    return [-abs(length - target) / target for length in lengths]


def pattern(completions: list[str], *, pattern: str, whole: bool = True) -> list[float]:
    """1 where a regular expression matches, else 0.

    Args:
        pattern: as in Python's `re`; a dot matches line breaks too.
        whole: whether it must match the whole response, or may match a part.
    """
    compiled = _compiled(pattern)
    match = compiled.fullmatch if whole else compiled.search
    return [float(match(text) is not None) for text in completions]


def exact_answer(
    completions: list[str], answer: list[Any], *, extract: str | None = None, ignore_case: bool = True
) -> list[float]:
    """1 where the response is the answer in the data's column `answer`, else 0; white space at the ends is ignored.

    Args:
        extract: regular expression whose first group, or whole match, is the answer in a response; its last match
            counts, and a response without one scores 0. None: the whole response is the answer.
    """
    compiled = None if extract is None else _compiled(extract)

    def normal(text: Any) -> str:
        return str(text).strip().casefold() if ignore_case else str(text).strip()

    answers = [text if compiled is None else _last_match(compiled, text) for text in completions]
    return [float(a is not None and normal(a) == normal(b)) for a, b in zip(answers, answer, strict=True)]


def numeric_answer(
    completions: list[str],
    answer: list[Any],
    *,
    tolerance: float = 1e-6,
    checker: str = "plain",
) -> list[float]:
    """1 where the last number of the response is the last number of the data's column `answer`, else 0.

    Args:
        tolerance: relative difference that counts as equal.
        checker: `plain` reads numbers; `math_verify` reads LaTeX, sets, intervals and expressions too, with the package
            of that name.
    """
    _require(tolerance >= 0, "tolerance", tolerance, "at least 0")
    _require(checker in ("plain", "math_verify"), "checker", checker, "plain or math_verify")
    if checker == "math_verify":
        return _math_verify(completions, answer)
    right = [_last_number(str(text)) for text in answer]
    if None in right:
        raise UserError(f"rule numeric_answer finds no number in the answer {answer[right.index(None)]!r}")
    pairs = zip(map(_last_number, completions), right, strict=True)
    return [float(a is not None and b is not None and abs(a - b) <= tolerance * max(1, abs(b))) for a, b in pairs]


def repetition(completions: list[str], *, n: int = 3) -> list[float]:
    """Minus the share of a response's word n-grams that occurred in it before: 0 without repetition."""
    _require(isinstance(n, int) and n > 0, "n", n, "a positive whole number")
    scores = []
    for text in completions:
        words = text.split()
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        scores.append(len(set(grams)) / len(grams) - 1.0 if grams else 0.0)
    return scores


def word_list(completions: list[str], *, words: Sequence[str], ignore_case: bool = True) -> list[float]:
    """The share of a response's words that are in a list; a negative weight makes it a list of words to avoid.

    Words are runs of letters, digits, apostrophes and hyphens.
    """
    is_list = isinstance(words, list) and bool(words) and all(isinstance(word, str) for word in words)
    _require(is_list, "words", words, "a list of words")

    def normal(text: str) -> str:
        return text.casefold() if ignore_case else text

    listed = {normal(word) for word in words}
    split = [re.findall(r"[\w'’-]+", normal(text)) for text in completions]
    return [sum(word in listed for word in text_words) / max(1, len(text_words)) for text_words in split]


RULES: Mapping[str, Callable[..., list[float]]] = {
    rule.__name__: rule for rule in (length_target, pattern, exact_answer, numeric_answer, repetition, word_list)
}
"""Name in a config -> rule."""


def _require(holds: bool, name: str, value: object, condition: str) -> None:
    if not holds:
        raise UserError(f"parameter {name} is {value!r}, but must be {condition}")


def _compiled(text: Any) -> re.Pattern[str]:
    try:
        return re.compile(text, re.DOTALL)
    except (re.error, TypeError) as error:
        raise UserError(f"{text!r} is no regular expression: {error}") from error


def _last_match(compiled: re.Pattern[str], text: str) -> str | None:
    matches = list(compiled.finditer(text))
    return None if not matches else matches[-1][1 if compiled.groups else 0]


def _last_number(text: str) -> float | None:
    matches = NUMBER.findall(text)
    if not matches:
        return None
    number, _, divisor = matches[-1].replace(",", "").partition("/")
    if not divisor:
        return float(number)
    return float(Fraction(number) / int(divisor)) if int(divisor) else None


def _math_verify(completions: Sequence[str], answer: Sequence[Any]) -> list[float]:
    try:
        checker = importlib.import_module("math_verify")
    except ImportError as error:
        raise UserError("checker math_verify needs the package math-verify; pip install math-verify") from error
    pairs = zip(completions, answer, strict=True)
    # Its time limits are signals, which only a main thread has; `timeout` of the source limits this function.
    return [
        float(
            checker.verify(
                checker.parse(str(right), parsing_timeout=None),
                checker.parse(text, parsing_timeout=None),
                timeout_seconds=None,
            )
        )
        for text, right in pairs
    ]
