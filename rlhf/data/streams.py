"""The order in which a run uses its data: endless shuffled passes that are a function of the seed alone.

Several data sets are mixed in fixed shares, each in passes of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

_BATCHES_PER_POOL = 32
"""Rows are sorted by length within pools of this many random batches."""


@dataclass(frozen=True)
class ShuffledStream:
    """Item numbers in endless passes, each pass in a new random order.

    Orders depend on the arguments alone, so a resumed run needs no more than the number of items or batches so far. The
    order of the newest pass is kept, since making it takes time in proportion to the items.
    """

    count: int
    """Items of one pass."""
    seed: int
    key: tuple[int, ...] = ()
    """Distinguishes streams with the same seed."""
    _newest: dict[str, tuple[Any, np.ndarray, Any]] = field(default_factory=dict, compare=False, repr=False)

    def take(self, start: int, count: int) -> list[int]:
        """Items `start` to `start + count` of the stream, across the borders of passes."""
        items: list[int] = []
        while len(items) < count:
            pass_number, offset = divmod(start + len(items), self.count)
            order = self._remembered("items", pass_number, lambda n: self._generator(n).permutation(self.count))
            items += order[offset : offset + count - len(items)].tolist()
        return items

    def batch(self, number: int, size: int, lengths: Sequence[int] | np.ndarray | None = None) -> list[int]:
        """Items of the batch with this number; each pass drops the items that do not fill its last batch.

        Args:
            number: counted from 0 over all passes.
            size: items of a batch, at most `count`.
            lengths: of each item in tokens. Items of similar length then share a batch, so that little of it is
                padding; the order of the batches stays random.
        """
        per_pass = self.count // size
        pass_number, index = divmod(number, per_pass)
        batches = self._remembered(
            "batches", (pass_number, size, id(lengths)), lambda key: self._batches(key[0], size, lengths), lengths
        )
        return batches[index].tolist()

    def _batches(self, pass_number: int, size: int, lengths: Sequence[int] | np.ndarray | None) -> np.ndarray:
        """[batches, size] the items of all batches of a pass."""
        generator = self._generator(pass_number)
        order = generator.permutation(self.count)[: self.count // size * size]
        if lengths is None:
            return order.reshape(-1, size)
        pool_ends = range(_BATCHES_PER_POOL * size, len(order), _BATCHES_PER_POOL * size)
        pools = [sorted(pool, key=lengths.__getitem__) for pool in np.split(order, pool_ends)]
        return generator.permutation(np.concatenate(pools).reshape(-1, size))

    def _remembered(self, name: str, key: Any, make: Callable[[Any], np.ndarray], held: Any = None) -> np.ndarray:
        """What `make` gives for a key, made again only where the key is another one than at the last call.

        Args:
            held: an object whose id is in the key; a later one cannot have its id while this one is referred to.
        """
        if name not in self._newest or self._newest[name][0] != key:
            self._newest[name] = (key, make(key), held)
        return self._newest[name][1]

    def _generator(self, pass_number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *self.key, pass_number])


_PERIOD = 1000
"""Items after which the pattern of a mixture repeats: shares are exact to a thousandth."""


@dataclass(frozen=True)
class MixedStream:
    """Item numbers of several data sets that stand one behind the other, in fixed shares, each in shuffled passes."""

    counts: tuple[int, ...]
    """Items of each set."""
    shares: tuple[float, ...]
    """Of the stream, for each set; they add up to 1."""
    seed: int

    @cached_property
    def pattern(self) -> np.ndarray:
        """[1000] the set of each item of a period: always the one that is furthest behind its share."""
        shares = np.array(self.shares)
        taken = np.zeros(len(shares))
        sets = np.zeros(_PERIOD, dtype=int)
        for position in range(_PERIOD):
            sets[position] = (shares * (position + 1) - taken).argmax()
            taken[sets[position]] += 1
        return sets

    @cached_property
    def _streams(self) -> list[ShuffledStream]:
        return [ShuffledStream(count, self.seed, key=(number,)) for number, count in enumerate(self.counts)]

    def take(self, start: int, count: int) -> list[int]:
        """Items `start` to `start + count` of the stream."""
        sets = self.pattern[np.arange(start, start + count) % _PERIOD]
        items = np.zeros(count, dtype=int)
        first = 0
        for number, size in enumerate(self.counts):
            places = (sets == number).nonzero()[0]
            stream = self._streams[number]
            items[places] = np.array(stream.take(self._before(number, start), len(places)), dtype=int) + first
            first += size
        return items.tolist()

    def _before(self, number: int, position: int) -> int:
        """How many of the first `position` items come from a set."""
        periods, offset = divmod(position, _PERIOD)
        from_set = self.pattern == number
        return periods * int(from_set.sum()) + int(from_set[:offset].sum())
