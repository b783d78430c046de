"""The games recipe: its environments by hand, its data, and its settings."""

import json
from pathlib import Path

import pytest

from rlhf.config.jobs import PPOJob, SFTJob
from rlhf.config.parsing import parse
from rlhf.environments.batch import load_environment

FOLDER = Path(__file__).parents[2] / "recipes" / "games"


@pytest.fixture(scope="module")
def games(load_script):
    return load_script(FOLDER / "games.py")


def test_a_guess_is_answered_with_its_side_and_pays_less_the_later_it_is_right(games):
    game = games.Guess()
    assert game.reset("Guess a digit.\n", secret=6) == "Guess a digit.\n"
    assert game.step("4\n") == ("higher\n", 0.0)
    assert game.step("8") == ("lower\n", 0.0)
    assert game.step("eight") == ("a digit\n", -0.2)
    assert game.step("6\n") == (None, pytest.approx(0.7))


def test_the_calculator_replies_for_a_price_and_any_other_text_is_the_answer(games):
    game = games.Calculator()
    assert game.reset("47+25=\n", answer=72) == "47+25=\n"
    assert game.step("calc 47+25\n") == ("72\n", -0.05)
    assert game.step("72\n") == (None, 1.0)
    assert game.step("calc 47 25") == (None, 0.0)


def test_held_out_sums_are_in_no_demonstration(load_script, tmp_path):
    data = load_script(FOLDER / "data.py")
    assert data.main([str(tmp_path / "games")]) == 0

    def rows(name):
        return [json.loads(line) for line in (tmp_path / "games" / f"{name}.jsonl").read_text().splitlines()]

    held_out = {row["prompt"] for row in rows("calculator_test")}
    assert len(held_out) == 100
    assert not held_out & {row["prompt"] for row in rows("calculator")}
    assert not held_out & {row["text"].partition("\n")[0] + "\n" for row in rows("calculator_demonstrations")}
    assert {row["secret"] for row in rows("guess")} == set(range(1, 10))
    with pytest.raises(SystemExit):
        data.main([str(tmp_path / "games")])


@pytest.mark.parametrize("name", ["guess", "calculator"])
def test_the_settings_parse_and_name_the_environments(name, monkeypatch):
    monkeypatch.chdir(FOLDER.parents[1])
    parse(SFTJob, ["--config", str(FOLDER / f"{name}_sft.yaml")])
    job = parse(PPOJob, ["--config", str(FOLDER / f"{name}.yaml")])
    assert load_environment(job.environment).__name__ == name.capitalize()
