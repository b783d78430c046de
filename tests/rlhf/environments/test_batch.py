"""Environments of the user, stepped together: their answers, and what happens to those that fail."""

import asyncio
import threading
import time

import pytest

from rlhf.config.environment import EnvironmentConfig
from rlhf.environments.batch import EnvironmentBatch, EnvironmentFailure, Step, load_environment
from rlhf.errors import UserError


class Echo:
    def __init__(self, suffix=""):
        self.suffix = suffix

    def reset(self, prompt, wanted):
        self.wanted = wanted
        return f"{prompt}{self.suffix}"

    def step(self, text):
        return (None, 1.0) if text == self.wanted else (text, -1)


def batch(kind, prompts=("p", "q"), **settings):
    return EnvironmentBatch(kind, EnvironmentConfig(path="e.py:E", **settings), list(prompts))


def test_each_prompt_has_an_environment_of_its_own_with_its_columns():
    games = batch(Echo, parameters={"suffix": "!"})
    assert games.reset({"wanted": ["a", "b"], "other": [1, 2]}) == ["p!", "q!"]
    assert games.step({0: "a", 1: "a"}) == {0: Step(None, 1.0), 1: Step("a", -1.0)}
    assert games.step({1: "b"}) == {1: Step(None, 1.0)}


def test_async_environments_wait_at_the_same_time():
    together = threading.Barrier(3)  # passes only when all three wait, without a time limit of their own

    class Waits:
        async def reset(self, prompt):
            await asyncio.to_thread(together.wait, 60)
            return prompt

        async def step(self, text):
            await asyncio.sleep(0)
            return "more", 0

    games = batch(Waits, "abc")
    assert games.reset({}) == ["a", "b", "c"]
    assert games.step({0: "x", 2: "y"}) == {0: Step("more", 0.0), 2: Step("more", 0.0)}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("more", "returned 'more', but must return (reply or None, reward)"),
        ((1, 0.0), "the reply 1, but a reply is a text, or None at the end"),
        (("more", float("nan")), "the reward nan, but a reward must be a finite number"),
        (("more", "much"), "the reward 'much', but a reward must be a finite number"),
        (KeyError("x"), "step of prompt 'p': raised KeyError: 'x'"),
        (SystemExit(0), "step of prompt 'p': raised SystemExit"),
    ],
)
def test_a_failing_environment_does_not_stop_the_others(answer, message):
    class Fails(Echo):
        def step(self, text):
            if text == "fail":
                if isinstance(answer, BaseException):
                    raise answer
                return answer
            return super().step(text)

    games = batch(Fails)
    games.reset({"wanted": ["a", "b"]})
    results = games.step({0: "fail", 1: "b"})
    assert results[1] == Step(None, 1.0)
    assert isinstance(results[0], EnvironmentFailure)
    assert message in results[0].message
    assert "environment e.py:E" in results[0].message


def test_a_hanging_environment_ends_after_its_time_limit():
    class Hangs(Echo):
        def step(self, text):
            time.sleep(60 if text == "hang" else 0)
            return super().step(text)

    games = batch(Hangs, timeout=0.5)
    games.reset({"wanted": ["a", "b"]})
    results = games.step({0: "hang", 1: "b"})
    assert results[1] == Step(None, 1.0)
    assert "took longer than environment.timeout = 0.5 s" in results[0].message


def test_reset_must_return_text():
    class Empty(Echo):
        def reset(self, prompt):
            return "" if prompt == "p" else "text"

    first, second = batch(Empty).reset({})
    assert "reset returned '', but must return a text or messages" in first.message
    assert second == "text"


@pytest.mark.parametrize(
    ("text", "parameters", "message"),
    [
        ("class E:\n    pass\n", {}, "has no method reset"),
        ("class E:\n    def reset(self, prompt): ...\n", {}, "has no method step"),
        ("class E:\n    def reset(self): ...\n    def step(self): ...\n", {"size": 1}, "cannot be made: TypeError"),
        ("x = 1\n", {}, "has no function 'E'"),
    ],
)
def test_unusable_classes_are_rejected_when_loaded(tmp_path, text, parameters, message):
    file = tmp_path / "env_rejected.py"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        load_environment(EnvironmentConfig(path=f"{file}:E", parameters=parameters))
