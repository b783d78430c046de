"""Rules by hand, and the parameters that they refuse."""

import importlib.util

import pytest

from rlhf.errors import UserError
from rlhf.rewards.functions import open_rule
from rlhf.rewards.rules import RULES

HAS_MATH_VERIFY = importlib.util.find_spec("math_verify") is not None


@pytest.mark.parametrize(
    ("rule", "parameters", "completions", "answers", "expected"),
    [
        ("length_target", {"target": 2}, ["a b", "", "a b c d", "a"], None, [0.0, -1.0, -1.0, -0.5]),
        ("length_target", {"target": 4, "unit": "characters"}, ["abcd", "abcde"], None, [0.0, -0.25]),
        ("pattern", {"pattern": "<a>.*</a>"}, ["<a>x\ny</a>", "so <a>x</a>"], None, [1.0, 0.0]),
        ("pattern", {"pattern": "<a>.*</a>", "whole": False}, ["so <a>x</a>", "<a>x"], None, [1.0, 0.0]),
        ("exact_answer", {}, [" Paris\n", "paris", "Paris."], ["paris"] * 3, [1.0, 1.0, 0.0]),
        ("exact_answer", {"ignore_case": False}, ["Paris", "paris"], ["Paris"] * 2, [1.0, 0.0]),
        ("exact_answer", {"extract": r"is (\w+)"}, ["is it? It is Paris.", "Paris"], ["Paris"] * 2, [1.0, 0.0]),
        ("exact_answer", {}, ["7"], [7], [1.0]),
        ("numeric_answer", {}, ["so 1,000.", "3/4", "none", "-2e3"], ["1000", "0.75", "5", -2000], [1, 1, 0, 1]),
        ("numeric_answer", {"tolerance": 0.1}, ["9.5", "8.9"], [10, 10], [1.0, 0.0]),
        ("numeric_answer", {}, ["2 then 3"], ["= 3"], [1.0]),
        ("repetition", {"n": 2}, ["a b a b a b", "a b c", "a", ""], None, [2 / 5 - 1, 0.0, 0.0, 0.0]),
        ("repetition", {}, ["x x x x"], None, [-0.5]),
        ("word_list", {"words": ["please"]}, ["Please don't.", "no", ""], None, [0.5, 0.0, 0.0]),
        ("word_list", {"words": ["Please"], "ignore_case": False}, ["please", "Please"], None, [0.0, 1.0]),
    ],
)
def test_rules_by_hand(rule, parameters, completions, answers, expected):
    source = open_rule(rule, parameters)
    columns = {} if answers is None else {"answer": answers}
    assert source([""] * len(completions), completions, columns) == pytest.approx(expected)


@pytest.mark.skipif(not HAS_MATH_VERIFY, reason="math-verify is not installed")
def test_math_verify_reads_expressions():
    source = open_rule("numeric_answer", {"checker": "math_verify"})
    answers = {"answer": ["0.75", "$1+x$", "5"]}
    assert source([""] * 3, ["so $\\frac{3}{4}$", "\\boxed{x+1}", "4"], answers) == [1.0, 1.0, 0.0]


def test_math_verify_that_is_missing_is_reported_when_the_rule_is_opened(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("rlhf.rewards.rules.importlib.import_module", missing)
    with pytest.raises(UserError, match="needs the package math-verify; pip install math-verify"):
        open_rule("numeric_answer", {"checker": "math_verify"})


@pytest.mark.parametrize(
    ("rule", "parameters", "message"),
    [
        ("patern", {}, "there is no rule 'patern'; there are length_target, pattern, exact_answer, numeric_answer, "),
        ("length_target", {}, "rule length_target needs a parameter 'target'; set it in the source's parameters"),
        ("length_target", {"target": 0}, "rule length_target: parameter target is 0, but must be a positive whole"),
        ("length_target", {"target": 3, "unit": "bytes"}, "parameter unit is 'bytes', but must be one of words, char"),
        ("length_target", {"target": 3, "n": 1}, "takes no parameter 'n'; it takes target, unit besides texts"),
        ("pattern", {"pattern": "("}, r"rule pattern: '\(' is no regular expression"),
        ("exact_answer", {"extract": "["}, "is no regular expression"),
        ("numeric_answer", {"tolerance": -1.0}, "parameter tolerance is -1.0, but must be at least 0"),
        ("numeric_answer", {"checker": "sympy"}, "parameter checker is 'sympy', but must be plain or math_verify"),
        ("repetition", {"n": 0}, "parameter n is 0, but must be a positive whole number"),
        ("word_list", {"words": "please"}, "parameter words is 'please', but must be a list of words"),
    ],
)
def test_parameters_are_checked_when_the_rule_is_opened(rule, parameters, message):
    with pytest.raises(UserError, match=message):
        open_rule(rule, parameters)


def test_an_answer_without_a_number_is_an_error():
    with pytest.raises(UserError, match="rule numeric_answer finds no number in the answer 'five'"):
        open_rule("numeric_answer")([""], ["5"], {"answer": ["five"]})


def test_columns_never_replace_parameters():
    assert open_rule("repetition", {})([""], ["x x x x"], {"n": ["words"]}) == [-0.5]


def test_an_answer_column_is_needed_where_a_rule_compares():
    with pytest.raises(UserError, match=r"rule exact_answer needs an argument 'answer', but data.jsonl has no such"):
        open_rule("exact_answer").check_columns(["label"], "data.jsonl")


def test_every_rule_is_tested_here():
    tested = {case[0] for case in test_rules_by_hand.pytestmark[0].args[1]}
    assert tested == set(RULES)
