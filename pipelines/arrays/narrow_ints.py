"""Rows on their way to their bucket, in as few bytes as their values need.

Most 64-bit columns of a chunk (times of some days, ids of some millions) span less than 2^32 steps of a common unit.
They travel as unsigned codes, `value = base + code * unit`, which halves what is gathered, written and read again.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from .sorting import scale_of

CODES = b"longbatch codes"
Code = tuple[int, int]


def narrow(frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, Code]]:
    """Code the 64-bit columns without nulls that fit in fewer bits; return (base, unit) of those columns beside."""
    codes: dict[str, Code] = {}
    narrowed = []
    for column in frame.iter_columns():
        if column.dtype == pl.Int64 and len(column) and not column.null_count():
            values = column.to_numpy()
            scale = scale_of(values)
            if scale.bits <= 32:
                codes[column.name] = scale.low, scale.unit
                column = pl.Series(column.name, scale.codes(values, _dtype_of(scale.bits)))
        narrowed.append(column)
    return pl.DataFrame(narrowed), codes


def _dtype_of(bits: int) -> npt.DTypeLike:
    return np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32


def with_codes(batch: pa.RecordBatch, codes: dict[str, Code]) -> pa.RecordBatch:
    """Note in a batch's schema which columns are coded."""
    return batch.replace_schema_metadata({CODES: json.dumps(codes)})


def widen(batches: list[pa.RecordBatch]) -> pl.DataFrame:
    """All rows of some batches, coded columns as the 64-bit numbers they stand for, each column in one piece."""
    noted = [json.loads((batch.schema.metadata or {}).get(CODES, "{}")) for batch in batches]
    columns = {}
    for place, name in enumerate(batches[0].schema.names):
        parts = [(batch.column(place), codes.get(name)) for batch, codes in zip(batches, noted, strict=True)]
        plain = not any(code for _, code in parts)
        columns[name] = _joined([array for array, _ in parts]) if plain else _decoded(name, parts)
    return pl.DataFrame(columns)


def _joined(arrays: list[pa.Array]) -> pl.Series:
    return pl.Series(pl.from_arrow(pa.chunked_array(arrays))).rechunk()


def _decoded(name: str, parts: list[tuple[pa.Array, Code | None]]) -> pl.Series:
    """Decode straight into one array; a part with nulls (then it is not coded) makes that impossible."""
    if any(array.null_count for array, _ in parts):
        return pl.concat([_decoded(name, [part]) if part[1] else _joined([part[0]]) for part in parts], rechunk=True)
    whole = np.empty(sum(len(array) for array, _ in parts), dtype=np.int64)
    first = 0
    for array, code in parts:
        into = whole[first : first + len(array)]
        _decode(array, code, into)
        first += len(array)
    return pl.Series(name, whole)


def _decode(array: pa.Array, code: Code | None, into: npt.NDArray[Any]) -> None:
    kind = np.dtype(array.type.to_pandas_dtype())
    values = np.frombuffer(array.buffers()[1], dtype=kind, count=len(array), offset=array.offset * kind.itemsize)
    if code is None:
        into[:] = values
        return
    base, unit = code
    np.multiply(values, np.int64(unit), out=into, casting="unsafe")
    into += np.int64(base)
