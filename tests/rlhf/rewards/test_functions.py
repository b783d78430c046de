"""Reward functions: what they are called with, what they may return, and how they are imported."""

import asyncio
import sys
import threading

import numpy as np
import pytest
import torch

from rlhf.errors import UserError
from rlhf.rewards.functions import FunctionReward, load_function
from rlhf.rewards.results import Context
from rlhf.rewards.sources import RewardSource


def score_with(returned):
    """The scores of two completions by a function that returns `returned`."""
    return FunctionReward(lambda **_: returned, "my_reward")(["p", "p"], ["left", "right"], {})


def test_function_is_called_by_keyword_with_texts_and_every_column():
    arguments = {}
    source = FunctionReward(lambda **columns: arguments.update(columns) or [1, 2.5], "my_reward")
    assert isinstance(source, RewardSource)
    assert source(["a", "b"], ["c", "d"], {"wanted": ["x", "y"], "n": [1, 2]}) == [1.0, 2.5]
    assert arguments == {"prompts": ["a", "b"], "completions": ["c", "d"], "wanted": ["x", "y"], "n": [1, 2]}


@pytest.mark.parametrize(
    "function",
    [
        lambda completions: [float(len(text)) for text in completions],
        lambda completions, prompts: [float(len(text)) for text in completions],
        lambda completions, n: [float(len(text)) for text in completions],
        lambda completions, scale=1.0: [len(text) * scale for text in completions],
        lambda completions, **columns: [float(len(text)) for text in completions],
    ],
)
def test_function_gets_the_arguments_that_it_names(function):
    source = FunctionReward(function, "my_reward")
    columns = {"wanted": ["x", "y"], "n": [1, 2]}
    source.check_columns(columns, "data.jsonl")
    assert source(["a", "b"], ["c", "dd"], columns) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("function", "columns", "message"),
    [
        (
            *(lambda completions, answer: [], ["wanted"]),
            "reward function my_reward needs an argument 'answer', but data.jsonl has no such column; there are "
            "prompts, completions, wanted",
        ),
        (lambda completions, *, answer, **others: [], [], "needs an argument 'answer'"),
        (lambda **columns: [], ["completions"], "data.jsonl has a column 'completions', but reward functions such as"),
        (lambda prompts, **columns: [], ["prompts", "n"], "data.jsonl has a column 'prompts', but reward functions"),
        (len, [], "reward function my_reward takes 'obj' by position, but is called by keyword, with prompts, compl"),
    ],
)
def test_a_function_that_cannot_be_called_with_the_columns_is_rejected(function, columns, message):
    with pytest.raises(UserError) as error:
        FunctionReward(function, "my_reward").check_columns(columns, "data.jsonl")
    assert message in str(error.value)


@pytest.mark.parametrize(
    "returned",
    [
        [1, -2.5],
        (True, -2.5),
        torch.tensor([1.0, -2.5]),
        torch.tensor([1.0, -2.5], dtype=torch.bfloat16, requires_grad=True),
        np.array([1.0, -2.5], dtype=np.float32),
        [np.float32(1), np.float64(-2.5)],
        [torch.tensor(1), torch.tensor(-2.5)],
    ],
)
def test_numbers_of_every_type_are_accepted(returned):
    scores = score_with(returned)
    assert scores == [1.0, -2.5]
    assert [type(score) for score in scores] == [float, float]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "my_reward returned 1 scores for 2 completions"),
        ([1.0, 2.0, 3.0], "my_reward returned 3 scores for 2 completions"),
        (
            [1.0, float("nan")],
            r"returned nan for the completion 'right' \(row 1, prompt 'p'\), but a score must be a finite",
        ),
        ([float("-inf"), 1.0], "my_reward returned -inf for the completion 'left'"),
        (torch.tensor([torch.nan, 1.0]), "my_reward returned nan for the completion 'left'"),
        (["good", 1.0], "my_reward returned 'good' for the completion 'left'"),
        ([1.0, None], r"my_reward has no score \(None\) for the completion 'right' \(row 1, prompt 'p'\)"),
        ([[1.0, "a"], 0], r"my_reward returned \[1.0, 'a'\] for the completion 'left'.*a reward by token must be a fi"),
        ([0, [(2, 1.0), 3]], r"my_reward returned \[\(2, 1.0\), 3\] for the completion 'right'.*numbers, or pairs"),
        (
            [[(9, 1.0)], 0],
            r"my_reward returned \[\(9, 1.0\)\] for the completion 'left'.*number from 0 to 4, the compl",
        ),
        ([[(1.5, 1.0)], 0], "an end offset must be a whole number from 0 to 4"),
        ([[(2, float("inf"))], 0], "a reward by token must be a finite number"),
        (None, "my_reward returned None, but must return a list of numbers"),
        (1.0, "my_reward returned 1.0, but must return a list"),
        (torch.tensor(1.0), "my_reward returned 1.0, but must return a list"),
        ("ab", "my_reward returned 'ab', but must return a list"),
        ([10**400, 1], "my_reward returned 1000.* for the completion 'left'"),
        ({"a": 1, "b": 2}, "my_reward returned {.*}, but must return a list"),
    ],
)
def test_other_return_values_are_rejected_and_shown(returned, message):
    with pytest.raises(UserError, match=message):
        score_with(returned)


@pytest.mark.parametrize("returned", [[[1.0, 2.5], 3], [torch.tensor([1.0, 2.5]), 3.0], [[(1, 1.0), (4, 2.5)], [3]]])
def test_rewards_by_token_are_read_and_their_sum_is_the_number(returned):
    assert score_with(returned) == [3.5, 3.0]
    by_token = FunctionReward(lambda **_: returned, "my_reward").score(["p", "p"], ["left", "right"], {})[0]
    assert by_token.values == [1.0, 2.5]
    assert by_token.ends in (None, [1, 4])


def test_none_means_that_there_is_no_score():
    assert FunctionReward(lambda **_: [None, 1], "f").score(["p", "p"], ["left", "right"], {}) == [None, 1.0]


def test_only_functions_that_name_the_step_and_the_token_ids_get_them():
    context = Context(step=7, completion_ids=[[3, 4]])

    def named(completions, step, completion_ids):
        return [100.0 * step + sum(completion_ids[0])]

    def unnamed(completions, **columns):
        return [float(len(columns))]

    assert FunctionReward(named, "named").score(["p"], ["c"], {"n": [1]}, context) == [707.0]
    assert FunctionReward(unnamed, "unnamed").score(["p"], ["c"], {"n": [1]}, context) == [2.0]  # prompts and n
    with pytest.raises(
        UserError, match="has a column 'step', but reward functions such as named get the step of the run"
    ):
        FunctionReward(named, "named").check_columns(["step"], "data.jsonl")
    FunctionReward(unnamed, "unnamed").check_columns(["step"], "data.jsonl")


def test_parameters_are_passed_and_win_over_columns():
    source = FunctionReward(lambda completions, scale, n: [scale * n[0]], "f", {"scale": 3.0})
    source.check_columns(["n"], "data.jsonl")
    assert source([""], ["c"], {"n": [2], "scale": [99]}) == [6.0]
    with pytest.raises(UserError, match="reward function f takes no parameter 'scal'; it takes scale, n besides texts"):
        FunctionReward(lambda completions, scale, n: [], "f", {"scal": 3.0})


def test_a_class_is_made_once_with_its_parameters():
    class Counter:
        def __init__(self, start):
            self.calls = start

        def __call__(self, completions):
            self.calls += 1
            return [self.calls] * len(completions)

    source = FunctionReward(Counter, "Counter", {"start": 5})
    assert [source([""], ["c"], {}) for _ in range(2)] == [[6.0], [7.0]]
    assert FunctionReward(Counter(0), "counter")([""], ["c"], {}) == [1.0]
    with pytest.raises(UserError, match=r"reward function Counter cannot be made: TypeError: .*start"):
        FunctionReward(Counter, "Counter")
    with pytest.raises(UserError, match="reward function object is a class without __call__"):
        FunctionReward(object, "object")


def test_async_functions_are_awaited_even_inside_a_running_event_loop():
    async def later(completions):
        await asyncio.sleep(0)
        return [len(text) for text in completions]

    async def notebook():
        return FunctionReward(later, "later")([""] * 2, ["a", "bb"], {})

    assert asyncio.run(notebook()) == [1.0, 2.0]

    async def boom(completions):
        raise KeyError("x")

    with pytest.raises(UserError, match=r"reward function boom raised KeyError: 'x' \(.*test_functions.py, line \d+\)"):
        FunctionReward(boom, "boom")([""], ["a"], {})


def test_a_function_above_its_time_limit_is_an_error():
    never = threading.Event()

    async def hanging(completions):
        await asyncio.Event().wait()

    for function in (lambda completions: never.wait(), hanging):
        with pytest.raises(UserError, match=r"function slow took longer than its time limit of 0.05 s"):
            FunctionReward(function, "slow", timeout=0.05)([""], ["a"], {})
    never.set()
    assert FunctionReward(lambda completions: [1], "fast", timeout=60.0)([""], ["a"], {}) == [1.0]


def test_an_async_function_may_raise_a_timeout_of_its_own():
    async def client(completions):
        raise TimeoutError("server")

    with pytest.raises(UserError, match="reward function client raised TimeoutError: server"):
        FunctionReward(client, "client")([""], ["a"], {})


def test_error_of_a_function_is_reported_with_its_name():
    def broken(**_):
        raise KeyError("label")

    with pytest.raises(UserError, match="reward function my_reward raised KeyError: 'label'"):
        FunctionReward(broken, "my_reward")(["p"], ["c"], {})


def test_function_is_imported_from_a_file_or_a_module(reward_file, monkeypatch):
    monkeypatch.syspath_prepend(reward_file.parent)
    for name in (f"{reward_file}:good", "my_reward:good"):
        assert load_function(name)(prompts=[""], completions=["good a"], anything=[0]) == [0.5]
    sys.modules.pop("my_reward")


def test_a_file_in_the_home_folder_may_define_dataclasses(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "dataclass_reward.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\nclass Weights:\n    length: float = 0.5\n"
        "def score(completions, **columns):\n    return [Weights().length * len(c) for c in completions]\n"
    )
    assert load_function("~/dataclass_reward.py:score")(completions=["four"]) == [2.0]
    sys.modules.pop("dataclass_reward")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{dir}/none.py:good", "reward function file .*none.py does not exist"),
        ("{file}:godo", "my_reward.py has no function 'godo'; it has good"),
        ("no_such_module_anywhere:good", "cannot import no_such_module_anywhere .*ModuleNotFoundError"),
        ("{dir}/broken.py:good", "cannot import .*broken.py for the reward function: SyntaxError"),
        ("{dir}/failing.py:good", "cannot import .*failing.py for the reward function: ZeroDivisionError"),
        ("{dir}/constant.py:good", "constant.py has no function 'good'; it has none"),
    ],
)
def test_unusable_functions_are_rejected_when_loaded(reward_file, name, message):
    folder = reward_file.parent
    (folder / "broken.py").write_text("def good(:\n")
    (folder / "failing.py").write_text("1 / 0\n")
    (folder / "constant.py").write_text("good = 3\n")
    with pytest.raises(UserError, match=message):
        load_function(name.format(dir=folder, file=reward_file))
