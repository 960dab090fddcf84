"""Reader of CSV and TSV files: every value is a string, and lines with a wrong number of fields are kept aside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, Any, Literal, cast

import polars as pl
import pyarrow as pa
from pyarrow import csv

from longbatch.schemas.errors import DataError
from longbatch.schemas.spec.source import Source

from . import chunks
from .chunks import Chunk, Piece, require_columns
from .files import filesystem_of

HEADER_BYTES = 1 << 20

MalformedLine = tuple[int, str]
"""Row number in the file, and the line."""

RowHandler = Callable[[csv.InvalidRow], Literal["skip", "error"]]


def read_csv(source: Source, piece: Piece, columns: list[str]) -> Iterator[Chunk]:
    """Read a CSV file, compressed or not.

    Args:
        source: The source's section of the spec: separator, quote, and the column names of a file without a header.
        piece: The file to read.
        columns: Columns to read.

    Yields:
        Chunks of about CHUNK_BYTES of text, in file order. An empty field is null, an empty quoted one is "".

    Raises:
        SourceError: A column is missing.
        DataError: The file is not readable as CSV.
    """
    names = list(source.columns) if source.columns else _header(source, piece)
    if not names:
        return
    require_columns(columns, names, piece, source.synthetic_time)
    header_rows = 0 if source.columns else 1
    malformed: list[MalformedLine] = []

    def keep_aside(row: csv.InvalidRow) -> Literal["skip"]:
        # pyarrow counts rows from 1, and the header as one of them.
        malformed.append(((row.number or 0) - 1 - header_rows, str(row.text)))
        return "skip"

    try:
        reader = csv.open_csv(
            _open(piece.path),
            read_options=csv.ReadOptions(
                column_names=names, skip_rows=header_rows, block_size=chunks.CHUNK_BYTES, use_threads=False
            ),
            parse_options=_parse_options(source, keep_aside),
            convert_options=csv.ConvertOptions(
                include_columns=columns,
                column_types=dict.fromkeys(columns, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        yield from _chunks(piece.path, reader, malformed)
    except pa.ArrowInvalid as error:
        if "Empty CSV" not in str(error):
            raise DataError(f"{piece.path} cannot be read as CSV: {error}") from None
    except OSError as error:
        raise DataError(f"{piece.path} cannot be read: {error}") from None


def _chunks(path: str, reader: csv.CSVStreamingReader, malformed: list[MalformedLine]) -> Iterator[Chunk]:
    """Pair each batch with the malformed lines within it; the reader appends to `malformed`, also ahead of a batch.

    Batches of 2 and 3 rows, malformed lines at rows 1 and 5 of the file:  0 [1] 2 | 3 4 [5] 6
    -> chunk at row 0 with line 1, chunk at row 3 with line 5.
    """
    first_row = 0
    for batch in reader:
        # Each malformed line before the batch's end moves that end by one row.
        end, count = first_row + batch.num_rows, 0
        while count < len(malformed) and malformed[count][0] <= end:
            end, count = end + 1, count + 1
        yield _chunk(path, first_row, batch, malformed[:count])
        del malformed[:count]
        first_row = end
    if malformed:
        yield _chunk(path, first_row, reader.schema.empty_table(), malformed)


def _chunk(path: str, first_row: int, rows: pa.RecordBatch | pa.Table, malformed: list[MalformedLine]) -> Chunk:
    lines, numbers = tuple(line for _, line in malformed), tuple(number for number, _ in malformed)
    return Chunk(path, first_row, pl.DataFrame(pl.from_arrow(rows)), lines, numbers)


def _open(path: str) -> IO[Any]:
    """Open a file, decompressed by its suffix. pyarrow's streams are files, which its type stubs do not declare."""
    filesystem, inner = filesystem_of(path)
    return cast(IO[Any], filesystem.open_input_stream(inner, compression="detect"))


def _parse_options(source: Source, handler: RowHandler) -> csv.ParseOptions:
    return csv.ParseOptions(
        delimiter=source.field_separator,
        quote_char=source.quote or False,
        newlines_in_values=bool(source.quote),
        invalid_row_handler=handler,
    )


def _header(source: Source, piece: Piece) -> list[str]:
    """Names in the first line; an empty list for an empty file, which has no rows."""
    try:
        with _open(piece.path) as stream:
            if not stream.read(1):
                return []
        reader = csv.open_csv(
            _open(piece.path),
            read_options=csv.ReadOptions(block_size=HEADER_BYTES, use_threads=False),
            parse_options=_parse_options(source, lambda _: "skip"),
        )
        return list(reader.schema.names)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{piece.path} has no readable CSV header: {error}") from None
