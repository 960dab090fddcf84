"""Stable hashes, the same on every engine and in every version (specified in docs/semantics.md).

A string is hashed over the 8-byte words of its UTF-8 bytes, all rows of a column at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl

from longbatch.schemas.types import Int64Array

UInt64Array = npt.NDArray[np.uint64]

# 256 KiB of 64-bit values: a chain of operations on this many stays in the level-2 cache of a processor core.
CACHED_VALUES = 1 << 15
LENGTH_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
# Element n keeps the n lowest bytes of a word, for the last word of a string.
_WORD_MASKS = np.array([(1 << (8 * count)) - 1 for count in range(8)] + [2**64 - 1], dtype=np.uint64)


def mix(values: UInt64Array) -> UInt64Array:
    """Scramble 64-bit values with the finalizer of splitmix64 (Steele, Lea, Flood 2014, figure 17).

    Args:
        values: (N,) uint64.

    Returns:
        (N,) uint64; different inputs give different outputs.
    """
    # Each step is a bijection modulo 2^64 (a shift-xor, or a product with an odd number), so mixing adds no collisions.
    mixed = values ^ (values >> np.uint64(30))
    mixed *= _MIX_1
    mixed ^= mixed >> np.uint64(27)
    mixed *= _MIX_2
    mixed ^= mixed >> np.uint64(31)
    return mixed


def hash_string(strings: pl.Series) -> pl.Series:
    """Hash strings to ids.

    Args:
        strings: (N,) strings.

    Returns:
        (N,) int64 in [0, 2^63); a null stays null.
    """
    array = strings.cast(pl.String).rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    # Buffers of a large string array: validity, offsets, bytes.
    _, offset_buffer, data_buffer = (cast("memoryview | None", buffer) for buffer in array.buffers())
    hashed = np.empty(0, dtype=np.uint64)
    if len(array) and offset_buffer is not None:
        offsets = np.frombuffer(offset_buffer, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
        content = np.frombuffer(data_buffer, dtype=np.uint8) if data_buffer else np.empty(0, np.uint8)
        # Eight spare bytes let the last word of the last string be read whole.
        data = np.zeros(len(content) + 8, dtype=np.uint8)
        data[:-8] = content
        hashed = _hash_bytes(data, offsets[:-1], np.diff(offsets))
    # One bit is dropped, so that every id is a non-negative int64, which all readers of the files have.
    ids = pl.Series(strings.name, (mix(hashed) >> np.uint64(1)).astype(np.int64))
    if strings.null_count():
        ids = ids.zip_with(strings.is_not_null(), pl.Series([None], dtype=pl.Int64))
    return ids


def _hash_bytes(data: npt.NDArray[np.uint8], starts: Int64Array, lengths: Int64Array) -> UInt64Array:
    """Fold the 8-byte words of each byte range into one hash; `data` ends in 8 spare bytes.

    Ranges of lengths [3, 11]: round 1 folds 3 bytes of row 0 and 8 bytes of row 1; row 0 is done.
    Round 2 folds the last 3 bytes of row 1. So there are as many rounds as the longest range has words.
    """
    # words[i] is the 8 bytes from byte i on: a view, so that strings need not be copied to aligned positions.
    words = np.lib.stride_tricks.sliding_window_view(data, 8)
    # The length goes in first, else "a" and "a\0", equal when padded with zeros, would have the same hash.
    hashed = lengths.astype(np.uint64) * LENGTH_FACTOR
    remaining, rows, begin = lengths, np.arange(len(lengths)), starts
    while True:
        # Finished rows are dropped, so the total work is the number of words, not rows times the longest string.
        unfinished = remaining > 0
        if not unfinished.all():
            remaining, rows, begin = remaining[unfinished], rows[unfinished], begin[unfinished]
        if not len(rows):
            return hashed
        word = words[begin].view("<u8").reshape(-1) & _WORD_MASKS[np.minimum(remaining, 8)]
        hashed[rows] = mix(hashed[rows] ^ word)
        remaining, begin = remaining - 8, begin + 8


def request_ids_of(user_id: Int64Array, request_time: Int64Array, position: Int64Array | None = None) -> Int64Array:
    """Generate ids of requests that the log does not name.

    Args:
        user_id: User of each request, (N,).
        request_time: Microseconds, (N,).
        position: Position of each request among those of the same user and time, (N,); None if all are 0.

    Returns:
        (N,) int64 in [0, 2^63).
    """
    mixed = mix(mix(user_id.view(np.uint64)) ^ request_time.view(np.uint64))
    # Position 0 adds nothing: a request that is alone at its time has the same id with and without `max_targets`.
    if position is not None:
        mixed = np.where(position == 0, mixed, mix(mixed + position.view(np.uint64)))
    return (mixed >> np.uint64(1)).astype(np.int64)


def bucket_of(ids: Int64Array, buckets: int) -> npt.NDArray[np.uint16]:
    """Assign ids to buckets by their hash.

    Args:
        ids: (N,) int64.
        buckets: Number of buckets, at most 65,536.

    Returns:
        (N,) uint16 in [0, buckets).
    """
    # 16 bits, because NumPy's stable sort of 16-bit integers is a radix sort, and `split_frame` sorts by bucket.
    bucket = np.empty(len(ids), dtype=np.uint16)
    for part in cached_parts(len(ids)):
        bucket[part] = mix(ids[part].view(np.uint64) ^ LENGTH_FACTOR) % np.uint64(buckets)
    return bucket


def cached_parts(count: int) -> Iterator[slice]:
    """Split [0, count) into slices of CACHED_VALUES values, so that intermediate results stay in the cache."""
    return (slice(start, start + CACHED_VALUES) for start in range(0, count, CACHED_VALUES))
