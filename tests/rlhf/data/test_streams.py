"""The endless shuffled stream: the same whatever it is cut into, complete in each pass, bucketed by length."""

import numpy as np
import pytest

from rlhf.data.prompts import PromptSet
from rlhf.data.streams import MixedStream, ShuffledStream

FIVE = PromptSet(list("abcde"), [[7]] * 5, {}, 2)


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 7], [3, 4, 5], [11, 1]])
def test_stream_does_not_depend_on_how_it_is_cut(pieces):
    starts = [sum(pieces[:i]) for i in range(len(pieces))]
    cut = [i for start, count in zip(starts, pieces, strict=True) for i in FIVE.stream(start, count, seed=7)]
    assert cut == FIVE.stream(0, 12, seed=7)
    assert FIVE.stream(0, 12, seed=8) != cut


def test_every_pass_has_every_item_once_in_a_new_order():
    passes = [FIVE.stream(5 * number, 5, seed=0) for number in range(8)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in passes)
    assert len(set(map(tuple, passes))) > 4


def test_orders_are_numpy_permutations_of_seed_key_and_pass():
    """The orders of runs that are resumed must not change between versions."""
    stream = ShuffledStream(7, seed=3, key=(11,))
    passes = [np.random.default_rng([3, 11, number]).permutation(7).tolist() for number in range(2)]
    assert stream.take(0, 14) == passes[0] + passes[1]
    assert [stream.batch(number, 3) for number in range(4)] == [p[i : i + 3] for p in passes for i in (0, 3)]


@pytest.mark.parametrize(("count", "size"), [(10, 3), (12, 4), (200, 2)])
def test_batches_of_a_pass_hold_every_item_at_most_once_and_every_pass_differs(count, size):
    lengths = [1 + i % 7 for i in range(count)]
    per_pass = count // size
    stream = ShuffledStream(count, seed=0)
    passes = [[stream.batch(number * per_pass + i, size, lengths) for i in range(per_pass)] for number in range(3)]
    for batches in passes:
        items = [item for batch in batches for item in batch]
        assert all(len(batch) == size for batch in batches)
        assert len(set(items)) == len(items) == per_pass * size
    assert passes[0] != passes[1] != passes[2]
    assert [ShuffledStream(count, seed=9).batch(i, size, lengths) for i in range(per_pass)] not in passes


def test_items_of_similar_length_share_a_batch():
    lengths = [(37 * i) % 101 for i in range(256)]
    stream = ShuffledStream(256, seed=0)
    batches = [[lengths[i] for i in stream.batch(number, 8, lengths)] for number in range(32)]
    assert sum(max(batch) - min(batch) for batch in batches) / 32 < 10  # of 100; unsorted batches of 8 span about 78


def test_a_mixture_has_its_shares_in_every_stretch_and_passes_of_each_set():
    """Items 0 to 4 are the first set's, 5 to 11 the second's; each comes again only when its set is used up."""
    stream = MixedStream((5, 7), (0.75, 0.25), seed=3)
    items = stream.take(0, 2000)
    for start in range(0, 2000, 40):
        assert abs(sum(item < 5 for item in items[start : start + 40]) - 30) <= 1
    first = [item for item in items if item < 5]
    second = [item - 5 for item in items if item >= 5]
    assert (len(first), len(second)) == (1500, 500)
    assert first == ShuffledStream(5, 3, key=(0,)).take(0, 1500)
    assert second == ShuffledStream(7, 3, key=(1,)).take(0, 500)


@pytest.mark.parametrize("pieces", [[12], [1] * 12, [5, 7]])
def test_a_mixture_does_not_depend_on_how_it_is_cut(pieces):
    stream = MixedStream((4, 3, 2), (0.5, 0.3, 0.2), seed=1)
    begin = 995  # across the end of a period of the pattern
    starts = [begin + sum(pieces[:i]) for i in range(len(pieces))]
    cut = [item for start, count in zip(starts, pieces, strict=True) for item in stream.take(start, count)]
    assert cut == stream.take(0, 1007)[begin:]
