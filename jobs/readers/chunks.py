"""Units of reading: a piece is the input of one task, a chunk is what a reader yields at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from longbatch.schemas.errors import SourceError
from longbatch.schemas.spec.source import SyntheticTime

# Module attributes, read where they are used, so that tests can lower them.
CHUNK_ROWS = 1 << 20
CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Piece:
    """The input of one task: row groups [first, last) of a Parquet file, or all of another file. Plain values only.

    Attributes:
        source: Name of the source in the spec.
        path: Local path or URI of the file.
        size: Bytes on disk, for progress.
        rows: Number of rows: exact for Parquet, estimated from the size for other formats.
        first: First row group.
        last: Row group after the last.
        first_row: Row number, in the file, of the piece's first row.
        file: Position of the file in the source, which synthetic timestamps depend on.
    """

    source: str
    path: str
    size: int
    rows: int
    first: int = 0
    last: int = 0
    first_row: int = 0
    file: int = 0


@dataclass(frozen=True)
class Chunk:
    """Consecutive raw rows of one file, and the lines among them that could not be parsed as rows.

    Attributes:
        path: Local path or URI of the file, or the name of a Spark table.
        first_row: Row number, in the file, of the chunk's first row or malformed line.
        frame: The rows that could be parsed, in file order.
        malformed: The lines that could not be parsed.
        malformed_rows: Row number, in the file, of each malformed line, ascending; empty if the reader cannot know.
    """

    path: str
    first_row: int
    frame: pl.DataFrame
    malformed: tuple[str, ...] = ()
    malformed_rows: tuple[int, ...] = ()

    def source_rows(self, rows: pl.Series) -> pl.Series:
        """Convert row numbers of the frame to row numbers of the file, where malformed lines count as rows.

        first_row = 100, malformed_rows = (101, 102): the file's rows are  100 [101] [102] 103 104
        the frame's rows are                                                 0               1   2
        so source_rows([0, 1, 2]) is [100, 103, 104].

        Args:
            rows: Row numbers of the frame, (N,).

        Returns:
            Row numbers of the file, (N,), in a series of the same name.
        """
        # Parsed rows before the i-th malformed line: its distance from the chunk's start, less the i lines before it.
        parsed_before = np.asarray(self.malformed_rows, dtype=np.int64) - self.first_row
        parsed_before -= np.arange(len(parsed_before))
        row = rows.cast(pl.Int64).to_numpy()
        malformed_before = np.searchsorted(parsed_before, row, side="right")
        return pl.Series(rows.name, row + self.first_row + malformed_before)


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


def require_columns(columns: list[str], available: list[str], piece: Piece, synthetic: SyntheticTime | None) -> None:
    """Check the columns of a file.

    Args:
        columns: Columns to read.
        available: Columns of the file.
        piece: Names the source and the file in the message.
        synthetic: The synthetic timestamp that will be added to the rows, if any.

    Raises:
        SourceError: A column is missing, or the file already has the column of the synthetic timestamp.
    """
    if synthetic and synthetic.column in available:
        raise SourceError(
            f"source {piece.source}: {piece.path} already has the column {synthetic.column!r} of synthetic_time. "
            "Choose another name for synthetic_time.column."
        )
    missing = [name for name in columns if name not in available]
    if missing:
        raise SourceError(
            f"source {piece.source}: {piece.path} has no column {', '.join(map(repr, missing))}. "
            f"Its columns are {', '.join(available)}."
        )
