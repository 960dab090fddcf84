"""Frames in as few bytes as their values need, for the way from the scan to the buckets.

Most 64-bit columns of a chunk (times of some days, ids of some millions) span fewer than 2^32 steps of a common unit.
They are stored as unsigned codes, `value = base + code * unit` (frame of reference encoding), which halves the bytes
that are gathered, written and read again.
"""

from __future__ import annotations

import json
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from longbatch.schemas.types import ArrowArray, Int64Array

from .sorting import scale_of

CODES = b"longbatch codes"
Code = tuple[int, int]
"""Base and unit of a coded column."""


def narrow(frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, Code]]:
    """Code the 64-bit columns that fit in fewer bits.

    Args:
        frame: Any frame; columns with nulls and other types stay as they are.

    Returns:
        The frame with coded columns, and the base and unit of each coded column.
    """
    codes: dict[str, Code] = {}
    narrowed = []
    for column in frame.iter_columns():
        if column.dtype == pl.Int64 and len(column) and not column.null_count():
            values = column.to_numpy()
            # Two passes over the column: one for its range and unit, one for the codes.
            scale = scale_of(values)
            # Codes of more than 32 bits would be stored in 64 bits again.
            if scale.bits <= 32:
                codes[column.name] = scale.low, scale.unit
                column = pl.Series(column.name, scale.codes(values, _dtype_of(scale.bits)))
        narrowed.append(column)
    return pl.DataFrame(narrowed), codes


def _dtype_of(bits: int) -> npt.DTypeLike:
    return np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32


def with_codes(batch: pa.RecordBatch, codes: dict[str, Code]) -> pa.RecordBatch:
    """Record in the schema metadata of a batch which columns are coded, and how."""
    return batch.replace_schema_metadata({CODES: json.dumps(codes)})


def widen(batches: list[pa.RecordBatch]) -> pl.DataFrame:
    """Decode and concatenate batches, each of which may have other codes.

    Args:
        batches: At least one batch from `with_codes`, all with the same column names.

    Returns:
        All rows, coded columns as int64, each column in one chunk.
    """
    # A code means nothing without the base and unit of its batch, so columns are decoded before they are concatenated.
    codes_of = [_codes_of(batch) for batch in batches]
    columns = {}
    for index, name in enumerate(batches[0].schema.names):
        parts = [(batch.column(index), codes.get(name)) for batch, codes in zip(batches, codes_of, strict=True)]
        is_coded = any(code for _, code in parts)
        columns[name] = _decoded(name, parts) if is_coded else _joined([array for array, _ in parts])
    return pl.DataFrame(columns)


def _codes_of(batch: pa.RecordBatch) -> dict[str, Code]:
    read: dict[str, list[int]] = json.loads((batch.schema.metadata or {}).get(CODES, b"{}"))
    return {name: (base, unit) for name, (base, unit) in read.items()}


def _joined(arrays: list[ArrowArray]) -> pl.Series:
    return cast("pl.Series", pl.from_arrow(pa.chunked_array(arrays))).rechunk()


def _decoded(name: str, parts: list[tuple[ArrowArray, Code | None]]) -> pl.Series:
    """Decode all parts of a column straight into one array; parts with nulls, never coded, are joined by Polars."""
    if any(array.null_count for array, _ in parts):
        return pl.concat([_decoded(name, [part]) if part[1] else _joined([part[0]]) for part in parts], rechunk=True)
    # The result is allocated once and filled part by part. Decoding first and concatenating then would take twice the
    # memory.
    values = np.empty(sum(len(array) for array, _ in parts), dtype=np.int64)
    first = 0
    for array, code in parts:
        _decode_into(values[first : first + len(array)], array, code)
        first += len(array)
    return pl.Series(name, values)


def _decode_into(values: Int64Array, array: ArrowArray, code: Code | None) -> None:
    stored = array.to_numpy()  # without a copy: there are no nulls
    if code is None:
        values[:] = stored
        return
    base, unit = code
    # With dtype given, because NumPy 1 would multiply uint32 by a small integer in 32 bits, and wrap around.
    np.multiply(stored, unit, out=values, dtype=np.int64)
    np.add(values, base, out=values, dtype=np.int64)
