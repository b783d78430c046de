"""The order in which a run uses its data: endless shuffled passes that are a function of the seed alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_BATCHES_PER_POOL = 32
"""Rows are sorted by length within pools of this many random batches."""


@dataclass(frozen=True)
class ShuffledStream:
    """Item numbers in endless passes, each pass in a new random order.

    Orders depend on the arguments alone, so a resumed run needs no more than the number of items or batches so far.
    """

    count: int
    """Items of one pass."""
    seed: int
    key: tuple[int, ...] = ()
    """Distinguishes streams with the same seed."""

    def take(self, start: int, count: int) -> list[int]:
        """Items `start` to `start + count` of the stream, across the borders of passes."""
        items: list[int] = []
        while len(items) < count:
            pass_number, offset = divmod(start + len(items), self.count)
            order = self._generator(pass_number).permutation(self.count)
            items += order[offset : offset + count - len(items)].tolist()
        return items

    def batch(self, number: int, size: int, lengths: Sequence[int] | None = None) -> list[int]:
        """Items of the batch with this number; each pass drops the items that do not fill its last batch.

        Args:
            number: counted from 0 over all passes.
            size: items of a batch, at most `count`.
            lengths: of each item in tokens. Items of similar length then share a batch, so that little of it is
                padding; the order of the batches stays random.
        """
        per_pass = self.count // size
        pass_number, index = divmod(number, per_pass)
        generator = self._generator(pass_number)
        order = generator.permutation(self.count)[: per_pass * size]
        if lengths is None:
            return order[index * size : (index + 1) * size].tolist()
        pool_ends = range(_BATCHES_PER_POOL * size, len(order), _BATCHES_PER_POOL * size)
        pools = [sorted(pool, key=lengths.__getitem__) for pool in np.split(order, pool_ends)]
        batches = np.concatenate(pools).reshape(-1, size)
        return generator.permutation(batches)[index].tolist()

    def _generator(self, pass_number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *self.key, pass_number])
