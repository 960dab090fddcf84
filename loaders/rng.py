"""Random numbers that depend on their key alone: the same on every machine, rank and worker, in any order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

BLOCKS, WINDOW, LENGTHS = 1, 2, 3  # what a random stream is for; part of its key


def generator(*key: int) -> np.random.Generator:
    """A generator of its own for each key; no global state is read or changed."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def shuffled_runs(size: int, run: int, *key: int) -> Ints:
    """A permutation (size,) of 0 to size - 1 that moves runs of `run` neighbours as one."""
    if run == 1:
        return generator(*key).permutation(size)
    runs = generator(*key).permutation(-(-size // run))
    places: Ints = (runs[:, None] * run + np.arange(run)).ravel()
    return places[places < size]
