"""The arithmetic recipe: its data, its rewards, and its settings."""

import json
import re
from pathlib import Path

import pytest

from rlhf.cli.main import main
from rlhf.config.jobs import PPOJob
from rlhf.config.parsing import parse
from rlhf.errors import UserError
from rlhf.rewards.functions import FunctionReward, load_function

FOLDER = Path(__file__).parents[2] / "recipes" / "arithmetic"
REWARD = f"{FOLDER / 'reward.py'}"


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def problems(text: str) -> set[tuple[str, ...]]:
    """Every problem of a text."""
    return set(re.findall(r"(\d) ([+*]) (\d)", text))


@pytest.fixture(scope="module")
def load(load_script):
    """`load("data")`: a script of the recipe."""
    return lambda name: load_script(FOLDER / f"{name}.py")


@pytest.fixture(scope="module")
def data(load, tmp_path_factory):
    folder = tmp_path_factory.mktemp("arithmetic") / "data"
    assert load("data").main([str(folder)]) == 0
    return folder


# ---------------------------------------------------------------------------------------------------------------- data


def test_the_rows_look_like_this(load):
    data = load("data")
    assert data.text_row((4, "*", 2), (2, "+", 3)) == {"prompt": "2 + 3 = 5\n4 * 2 =", "answer": "8"}
    content = "What is 4 + 9? Answer with the number alone."
    assert data.chat_row((4, "+", 9)) == {"prompt": [{"role": "user", "content": content}], "answer": "13"}


def test_every_problem_is_on_one_side_and_the_other_order_of_a_held_out_one_is_trained_on(load):
    training, held_out = load("data").split_problems()
    assert len(training) == 160
    assert len(held_out) == 40
    assert len({*training, *held_out}) == 200
    assert {(b, op, a) for a, op, b in held_out} <= set(training)


def test_no_training_prompt_has_a_held_out_problem_even_as_its_example(data):
    for kind in ("text", "chat"):
        held_out = {
            p for row in rows(data / f"{kind}_test.jsonl") for p in problems(str(row["prompt"]).split("\n")[-1])
        }
        seen = {p for row in rows(data / f"{kind}.jsonl") for p in problems(str(row["prompt"]))}
        assert len(held_out) == 40
        assert len(seen) == 160
        assert not held_out & seen


def test_the_answers_are_right_and_the_example_is_another_problem(data):
    for row in [*rows(data / "text.jsonl"), *rows(data / "text_test.jsonl")]:
        example, problem = row["prompt"].split("\n")
        assert eval(problem.removesuffix("=")) == int(row["answer"])
        left, right = example.split("=")
        assert eval(left) == int(right)
        assert sorted(example.split("=")[0]) != sorted(problem.removesuffix("="))


def test_existing_data_is_not_overwritten(load, tmp_path):
    with pytest.raises(UserError, match="exists already"):
        load("data").main([str(tmp_path)])


# ------------------------------------------------------------------------------------------------------------- rewards


def score(name: str, completions: list[str], answers: list[str]) -> list[float]:
    function = load_function(f"{REWARD}:{name}")
    return FunctionReward(function, name)([""] * len(completions), completions, {"answer": answers})


def test_the_first_line_must_be_the_answer_and_nothing_else():
    completions = [" 8", "8\n9 + 1 = 10", " 8 apples", " 18", "", "\n 8", " 7"]
    assert score("first_line", completions, ["8"] * 7) == [1, 1, 0, 0, 0, 1, 0]


def test_the_last_number_of_a_sentence_must_be_the_answer():
    completions = ["4 + 4 = 8.", "8", "The answer is eight.", "It is 8, and 4 + 4 is 9", "80", ""]
    assert score("last_number", completions, ["8"] * 6) == [1, 1, 0, 0, 0, 0]


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("*.yaml")))
def test_the_settings_parse_and_name_the_recipes_files(load, file):
    job = parse(PPOJob, ["--config", str(FOLDER / file)])
    assert job.output == f"runs/arithmetic/{file.removesuffix('.yaml')}"
    assert job.reward.function is not None
    name, _, function = job.reward.function.partition(":")
    assert (FOLDER.parents[1] / name).samefile(REWARD)
    assert callable(getattr(load("reward"), function))
    kind = "chat" if file.startswith("chat") else "text"
    assert job.data.path == f"data/arithmetic/{kind}.jsonl"
    assert job.data.eval_path == f"data/arithmetic/{kind}_test.jsonl"


@pytest.mark.slow
def test_two_steps_with_a_tiny_model(data, models, tmp_path, monkeypatch):
    """Every variant, shortened, as a user starts it; a tiny random model stands in for SmolLM2."""
    monkeypatch.chdir(FOLDER.parents[1])
    for file in sorted(FOLDER.glob("*.yaml")):
        kind = "chat" if file.stem == "chat" else "text"
        options = ["--model.path", str(models("llama", chat=True)), "--output", str(tmp_path / file.stem)]
        options += ["--data.path", str(data / f"{kind}.jsonl"), "--data.eval_path", str(data / f"{kind}_test.jsonl")]
        options += ["--ppo.total_episodes", "96", "--eval.prompts", "4"]
        assert main(["ppo", "--config", str(file), *options]) == 0
        lines = (tmp_path / file.stem / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2]
        assert json.loads(lines[0])["objective/kl"] == 0
