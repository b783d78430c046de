"""The reviews recipe: its data, its judge, and its settings."""

import json
from pathlib import Path

import pytest

from rlhf.config.jobs import PPOJob, RewardJob
from rlhf.config.parsing import parse
from rlhf.demo import reviews
from rlhf.errors import UserError

FOLDER = Path(__file__).parents[2] / "recipes" / "reviews"


@pytest.fixture(scope="module")
def recipe(load_script):
    return load_script(FOLDER / "data.py")


def test_every_text_begins_with_the_prefix_and_held_out_films_are_not_trained_on(recipe, tmp_path):
    folder = tmp_path / "reviews"
    recipe.write(folder)
    rows = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.iterdir()}
    assert sorted(rows) == ["pairs", "pairs_test", "prompts", "prompts_test"]
    assert (len(rows["pairs"]), len(rows["pairs_test"])) == (2_000, 500)
    assert {row["prompt"] for row in rows["pairs"] + rows["pairs_test"]} == {"Film review:"}
    assert all(row[side].startswith(" ") for row in rows["pairs"] for side in ("chosen", "rejected"))
    assert all(row["prompt"].startswith("Film review: ") and len(row["prompt"].split()) == 4 for row in rows["prompts"])
    split = {review.text: reviews.split_of(review.film) for review in reviews.reviews()}
    assert {split[row["chosen"].strip()] for row in rows["pairs"]} == {"train"}
    assert {split[row["rejected"].strip()] for row in rows["pairs_test"]} == {"test"}
    with pytest.raises(UserError, match="exists; name another folder"):
        recipe.write(folder)


def test_the_judge_reads_a_review_without_the_prefix(recipe):
    texts = [" a moving and beautiful film", " a dull and lifeless mess"]
    scores = recipe.judge(["Film review: it is"] * 2, texts)
    assert scores == reviews.judge(["it is"] * 2, texts)
    assert scores[0] > 0.5 > scores[1]


def test_the_settings_fit_together():
    reward = parse(RewardJob, ["--config", str(FOLDER / "reward.yaml")], "rlhf reward")
    ppo = parse(PPOJob, ["--config", str(FOLDER / "ppo.yaml")], "rlhf ppo")
    assert ppo.reward.model == reward.output
    assert (ppo.model.path, reward.export) == (reward.model.path, "adapter")
