"""Units of reading: a piece is the input of one task, a chunk is what a reader yields at a time."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from longbatch.schemas.types import BoolArray

# Module attributes, read where they are used, so that tests can lower them.
CHUNK_ROWS = 1 << 20
CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Piece:
    """The input of one task: a part of a file, or all of it. Plain values only.

    Attributes:
        source: Name of the source in the spec.
        path: Local path or URI of the file.
        size: Bytes on disk, for progress.
        rows: Number of rows: exact for Parquet, estimated from the size for other formats.
        first: First row group of a Parquet file, or first byte of a part of a text file.
        last: Row group or byte after the last; 0 for all of a text file.
        first_row: Row number, in the file, of the piece's first row.
        file: Position of the file in the source, which synthetic timestamps depend on.
        file_size: Length of the file in bytes.
        constants: Columns that have one value in all rows of the file, encoded by `file_columns.encode_constants`.
        as_strings: Columns to cast to strings, because other files of the source have strings.
        as_utc: Timestamp columns that are UTC by the definition of the table, although the file does not say so.
        header: Column names of a CSV file that has a header.
        deleted: Mask of the piece's rows that a Delta table has deleted, encoded by `encode_mask`.
        scan_task: What `iceberg.read_iceberg` reads, as JSON.
        is_stream: Whether the piece is a text file of any size, which one task reads from front to back.
    """

    source: str
    path: str
    size: int
    rows: int
    first: int = 0
    last: int = 0
    first_row: int = 0
    file: int = 0
    file_size: int | None = None
    constants: str = ""
    as_strings: Sequence[str] = ()
    as_utc: Sequence[str] = ()
    header: Sequence[str] = ()
    deleted: str = ""
    scan_task: str = ""
    is_stream: bool = False


@dataclass(frozen=True)
class Chunk:
    """Consecutive raw rows of one file, and the lines among them that could not be parsed as rows.

    Attributes:
        path: Local path or URI of the file, or the name of a Spark table.
        first_row: Row number, in the file, of the chunk's first row or malformed line.
        frame: The rows that could be parsed, in file order.
        malformed: The lines that could not be parsed.
        malformed_rows: Row number, in the file, of each malformed line, ascending; empty if the reader cannot know.
        deleted_rows: Row number, in the file, of each row that the table has deleted, ascending.
    """

    path: str
    first_row: int
    frame: pl.DataFrame
    malformed: tuple[str, ...] = ()
    malformed_rows: tuple[int, ...] = ()
    deleted_rows: tuple[int, ...] = ()

    def source_rows(self, rows: pl.Series) -> pl.Series:
        """Convert row numbers of the frame to row numbers of the file, where malformed lines and deleted rows count.

        first_row = 100, malformed_rows = (101, 102): the file's rows are  100 [101] [102] 103 104
        the frame's rows are                                                 0               1   2
        so source_rows([0, 1, 2]) is [100, 103, 104].

        Args:
            rows: Row numbers of the frame, (N,).

        Returns:
            Row numbers of the file, (N,), in a series of the same name.
        """
        # Rows of the frame before the i-th other row: its distance from the chunk's start, less the i rows before it.
        others = np.asarray(self.malformed_rows or self.deleted_rows, dtype=np.int64)
        rows_before = others - self.first_row - np.arange(len(others))
        row = rows.cast(pl.Int64).to_numpy()
        others_before = np.searchsorted(rows_before, row, side="right")
        return pl.Series(rows.name, row + self.first_row + others_before)


def encode_mask(mask: BoolArray) -> str:
    """Encode a mask as a string that JSON can hold, small if few rows are marked.

    Args:
        mask: The mask, (rows,).

    Returns:
        The encoded mask, "" if no row is marked.
    """
    return base64.b64encode(zlib.compress(np.packbits(mask).tobytes())).decode() if mask.any() else ""


def decode_mask(encoded: str, rows: int) -> BoolArray:
    """Decode the result of `encode_mask`.

    Args:
        encoded: The encoded mask.
        rows: Number of rows.

    Returns:
        The mask, (rows,).
    """
    if not encoded:
        return np.zeros(rows, dtype=np.bool_)
    packed = np.frombuffer(zlib.decompress(base64.b64decode(encoded)), dtype=np.uint8)
    return np.unpackbits(packed, count=rows).astype(np.bool_)


def plain_types(frame: pl.DataFrame) -> pl.DataFrame:
    """Cast dictionary, binary and fixed-size-list columns to strings and lists.

    Args:
        frame: Raw rows.

    Returns:
        The same rows in types that the pipelines know.

    Raises:
        polars.exceptions.PolarsError: A binary column is not UTF-8.
    """
    plain = {name: _plain(dtype) for name, dtype in frame.schema.items()}
    casts = [pl.col(name).cast(dtype) for name, dtype in plain.items() if dtype != frame.schema[name]]
    return frame.with_columns(casts) if casts else frame


def _plain(dtype: pl.DataType) -> pl.DataType:
    if isinstance(dtype, pl.Categorical | pl.Enum | pl.Binary):
        return pl.String()
    if isinstance(dtype, pl.List | pl.Array):
        inner = dtype.inner
        return pl.List(_plain(inner if isinstance(inner, pl.DataType) else inner()))
    return dtype
