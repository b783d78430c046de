"""Pairs, a store, and a server of them."""

from collections.abc import Callable
from typing import Any

import pytest

from rlhf.people.pairs import Pair
from rlhf.people.server import make_app
from rlhf.people.store import Store


@pytest.fixture
def pairs() -> Callable[..., list[tuple[int, Pair]]]:
    """`pairs(30)`: that many pairs with their positions, of two origins."""

    def make(count: int, **changes: Any) -> list[tuple[int, Pair]]:
        settings = {"origin_a": "start", "origin_b": "trained"} | changes
        return [(i, Pair(f"prompt {i}", f"first {i}", f"second answer {i}", **settings)) for i in range(count)]

    return make


@pytest.fixture
def store(tmp_path, pairs) -> Store:
    """30 pairs; none is repeated or seen by two people."""
    made = Store(tmp_path / "preferences.jsonl", repeats=0.0, overlap=0.0)
    made.add("test", pairs(30))
    return made


@pytest.fixture
def serve(serve_app) -> Callable[..., Any]:
    """`serve(store, "ada")`: a client of a running server."""
    return lambda store, annotator="ada", **options: serve_app(make_app(store, annotator, "secret", **options))
