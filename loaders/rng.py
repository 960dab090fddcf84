"""Random numbers that depend only on their key: equal on every machine, rank and worker, in any order of calls."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from longbatch.schemas.types import Int64Array


class Purpose(IntEnum):
    """What a random stream is used for. It is part of the key, so that two uses of one seed are independent."""

    # Saved states rely on these numbers: another number gives the same seed another order, which no check of a state
    # notices. Renumber only together with a new `state.VERSION`.
    BLOCK_ORDER = 1
    WINDOW_ORDER = 2
    HISTORY_LENGTHS = 3


def generator(*key: int) -> np.random.Generator:
    """Create the generator of a key. No global random state is read or changed.

    Args:
        *key: Non-negative integers, e.g. seed, epoch, purpose and block number.

    Returns:
        A Philox generator. It is counter-based, so that its numbers are the same on all platforms.
    """
    # SeedSequence mixes all integers of the key, so that keys that differ in one bit give unrelated numbers. It pads
    # short keys with zeros: (1,) equals (1, 0). Keys of one purpose have the same length, and no purpose is 0.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def shuffled_groups(size: int, group: int, *key: int) -> Int64Array:
    """Permute the numbers 0 to size - 1 and keep groups of neighbors together.

    Args:
        size: How many numbers to permute.
        group: Size of a group. The last one may be smaller.
        *key: Key of the random stream, see `generator`.

    Returns:
        The permutation, (size,).

    Example:
        With size=5 and group=2 the groups are [0 1] [2 3] [4].
        If the groups are permuted to 2, 0, 1, the result is [4 0 1 2 3].
    """
    if group == 1:
        return generator(*key).permutation(size)  # what the lines below return, without their copies
    # Permute groups instead of numbers: requests of one user stay in one batch, where they can share a timeline.
    groups = generator(*key).permutation(-(-size // group))
    permutation: Int64Array = (groups[:, None] * group + np.arange(group)).ravel()
    return permutation[permutation < size]  # the last group is filled up to `group` numbers above
