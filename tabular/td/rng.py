"""Random numbers for compiled loops: a stream whose state is an array [4] of uint64, changed in place.

Passing one of numpy's generators to a compiled function takes microseconds; an array costs nothing and is easily saved.
"""

from typing import no_type_check

import numpy as np

from tabular.compiled import compiled


def make_rng(seed: np.random.SeedSequence) -> np.ndarray:
    """The initial state [4] of a stream."""
    return seed.generate_state(4, np.uint64)


@compiled
@no_type_check
def uniform(rng):
    """The next random number in [0, 1): xoshiro256+ of Blackman & Vigna (2021), arXiv 1805.01407."""
    result = rng[0] + rng[3]
    t = rng[1] << np.uint64(17)
    rng[2] ^= rng[0]
    rng[3] ^= rng[1]
    rng[1] ^= rng[2]
    rng[0] ^= rng[3]
    rng[2] ^= t
    rng[3] = (rng[3] << np.uint64(45)) | (rng[3] >> np.uint64(19))
    return (result >> np.uint64(11)) * 2.0**-53


@compiled
@no_type_check
def draw(cumulative, first, count, rng):
    """An index from `first` to `first + count - 1` by cumulative probabilities; a single one draws no number."""
    last = first + count - 1
    if count == 1:
        return last
    u = uniform(rng)
    while first < last and u >= cumulative[first]:
        first += 1
    return first
