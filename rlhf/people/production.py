"""Pairs that are made in the background while the first ones are being compared."""

import sys
import threading
from collections.abc import Iterator, Sequence

from rlhf.errors import UserError
from rlhf.people.pairs import Pair
from rlhf.people.sources import PairSource
from rlhf.people.store import Store


class Production:
    """A thread that adds a source's pairs to the store."""

    def __init__(self, source: PairSource | None, store: Store, reward_model: str | None, uncertain_first: bool):
        """Begin; without a source there is nothing to do.

        Args:
            reward_model: scores the answers.
            uncertain_first: order pairs by how little their scores differ.
        """
        self.error: str | None = None
        """Why no more pairs come, in a sentence."""
        self._source, self._store = source, store
        self._reward_model, self._uncertain_first = reward_model, uncertain_first
        self._first = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pairs", daemon=True)
        if source is not None:
            self._thread.start()

    @property
    def running(self) -> bool:
        """Whether more pairs may come."""
        return self._thread.is_alive()

    def wait_for_first(self) -> None:
        """Wait until there is something to compare.

        Raises:
            UserError: the first pairs cannot be made.
        """
        while self.running and self._store.count() == 0:
            self._first.wait(timeout=0.5)
            self._first.clear()  # a batch may hold nothing but pairs of equal answers
        if self.error is not None and self._store.count() == 0:
            raise UserError(self.error)

    def stop(self) -> None:
        """Stop after the present batch, and wait for it."""
        self._stop.set()
        if self._source is not None:
            self._thread.join()

    def _run(self) -> None:
        assert self._source is not None
        source, store = self._source, self._store
        try:
            for batch in self._scored(source.batches(store.positions(source.name))):
                store.add(source.name, batch, self._uncertain_first)
                self._first.set()
                if self._stop.is_set():
                    return
        except Exception as error:  # of any kind: the page continues with the pairs that are there
            self.error = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            print(f"warning: no more pairs are made, because of: {self.error}", file=sys.stderr)

    def _scored(self, batches: Iterator[list[tuple[int, Pair]]]) -> Iterator[Sequence[tuple[int, Pair]]]:
        if self._reward_model is None:
            yield from batches
            return
        from rlhf.people.sampled_pairs import BATCH_SIZE, PairScorer

        scorer = PairScorer(self._reward_model)
        for batch in batches:
            for start in range(0, len(batch), BATCH_SIZE):
                part = batch[start : start + BATCH_SIZE]
                pairs = scorer([pair for _, pair in part])
                yield [(position, pair) for (position, _), pair in zip(part, pairs, strict=True)]
