"""Keys that send rows to chosen Spark partitions, with nothing but `DataFrame.repartition`.

`repartition(n, "partition_key")` sends a row to partition `pmod(hash(partition_key), n)`, where `hash` is Murmur3 with
seed 42. That function is a bijection of 32-bit integers, so every partition number has a key whose hash it is. Rows of
distinct numbers below n therefore go to distinct partitions. Nothing is wrong if a Spark used another hash: equal keys
still meet in one partition, which then may have several of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

PARTITION_KEY = "partition_key"

# Murmur3 of one 32-bit integer (Spark's `Murmur3_x86_32.hashInt`) backwards: each step below undoes one of its steps.
_SEED = np.uint32(42)
_ADDED = np.uint32(0xE6546B64)
_LENGTH = np.uint32(4)
# Modulo 2^32 an odd number has an inverse, which undoes the multiplication by it.
_INVERSE_5, _INVERSE_C1, _INVERSE_C2, _INVERSE_F1, _INVERSE_F2 = (
    np.uint32(pow(factor, -1, 2**32)) for factor in (5, 0xCC9E2D51, 0x1B873593, 0x85EBCA6B, 0xC2B2AE35)
)


def partition_keys(partitions: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    """Return the integers whose hash in Spark is the number of a partition.

    Args:
        partitions: Numbers of partitions, (N,), from 0.

    Returns:
        Keys, (N,).

    Example:
        >>> partition_keys(np.array([0, 1])).tolist()
        [-1693959553, -1910889132]
    """
    hashed = partitions.astype(np.uint32)
    # Finalizer, from its last step to its first.
    hashed ^= hashed >> np.uint32(16)
    hashed *= _INVERSE_F2
    hashed ^= (hashed >> np.uint32(13)) ^ (hashed >> np.uint32(26))
    hashed *= _INVERSE_F1
    hashed ^= hashed >> np.uint32(16)
    hashed ^= _LENGTH
    # The one block: h = rotate(seed ^ k, 13) * 5 + c, with k = rotate(key * c1, 15) * c2.
    block = _rotate_right((hashed - _ADDED) * _INVERSE_5, 13) ^ _SEED
    keys = _rotate_right(block * _INVERSE_C2, 15) * _INVERSE_C1
    return keys.view(np.int32)


def _rotate_right(values: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint32]:
    return (values >> np.uint32(bits)) | (values << np.uint32(32 - bits))
