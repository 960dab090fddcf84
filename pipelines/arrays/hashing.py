"""Stable hashes, the same on every engine and in every version (specified in docs/meaning.md).

Text is hashed over 8-byte words of its UTF-8 bytes, all rows of a column at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import polars as pl

from longbatch.schemas.types import Int64Array

UInt64Array = npt.NDArray[np.uint64]

CACHED_VALUES = 1 << 15
LENGTH_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_WORD_MASKS = np.array([(1 << (8 * count)) - 1 for count in range(8)] + [2**64 - 1], dtype=np.uint64)


def mix(values: UInt64Array) -> UInt64Array:
    """Finalizer of splitmix64 (Steele, Lea, Flood 2014, figure 17): (N,) uint64 -> (N,) uint64, a bijection."""
    mixed = values ^ (values >> np.uint64(30))
    mixed *= _MIX_1
    mixed ^= mixed >> np.uint64(27)
    mixed *= _MIX_2
    mixed ^= mixed >> np.uint64(31)
    return mixed


def hash_string(texts: pl.Series) -> pl.Series:
    """Hash a text column (N,) to ids below 2^63; nulls stay null."""
    array = texts.cast(pl.String).rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offset_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    data = np.zeros((len(data_buffer) if data_buffer else 0) + 8, dtype=np.uint8)
    if data_buffer:
        data[:-8] = np.frombuffer(data_buffer, dtype=np.uint8)
    hashed = _hash_bytes(data, offsets[:-1], np.diff(offsets)) if len(array) else np.empty(0, dtype=np.uint64)
    ids = pl.Series(texts.name, (mix(hashed) >> np.uint64(1)).astype(np.int64))
    if texts.null_count():
        ids = ids.zip_with(texts.is_not_null(), pl.Series([None], dtype=pl.Int64))
    return ids


def _hash_bytes(data: npt.NDArray[np.uint8], starts: Int64Array, lengths: Int64Array) -> UInt64Array:
    """Fold the words of each byte range of `data`, which ends in 8 spare bytes."""
    words = np.lib.stride_tricks.sliding_window_view(data, 8)
    hashed = lengths.astype(np.uint64) * LENGTH_FACTOR
    remaining, rows, begin = lengths, np.arange(len(lengths)), starts
    while True:
        longer = remaining > 0
        if not longer.all():
            remaining, rows, begin = remaining[longer], rows[longer], begin[longer]
        if not len(rows):
            return hashed
        word = words[begin].view("<u8").reshape(-1) & _WORD_MASKS[np.minimum(remaining, 8)]
        hashed[rows] = mix(hashed[rows] ^ word)
        remaining, begin = remaining - 8, begin + 8


def request_ids_of(user_id: Int64Array, request_time: Int64Array, place: Int64Array | None = None) -> Int64Array:
    """Ids of requests that the log does not name, from user and time, (N,) -> (N,).

    `place` counts, from 0, the requests of one user at one time.
    """
    mixed = mix(mix(user_id.view(np.uint64)) ^ request_time.view(np.uint64))
    if place is not None:
        mixed = np.where(place == 0, mixed, mix(mixed + place.view(np.uint64)))
    return (mixed >> np.uint64(1)).astype(np.int64)


def bucket_of(ids: Int64Array, buckets: int) -> npt.NDArray[np.uint16]:
    """Bucket of each id, (N,) -> (N,) uint16 in [0, buckets)."""
    found = np.empty(len(ids), dtype=np.uint16)
    for part in cached_parts(len(ids)):
        found[part] = mix(ids[part].view(np.uint64) ^ LENGTH_FACTOR) % np.uint64(buckets)
    return found


def cached_parts(count: int) -> Iterator[slice]:
    """Slices of so many values, short enough for what is computed of them to stay in a processor's cache."""
    return (slice(start, start + CACHED_VALUES) for start in range(0, count, CACHED_VALUES))
