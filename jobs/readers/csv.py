"""Reader of CSV and TSV files: every value is a string, and lines with a wrong number of fields are kept aside."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from typing import IO, Any, Literal, cast

import polars as pl
import pyarrow as pa
from pyarrow import csv

from longbatch.schemas.errors import DataError
from longbatch.schemas.spec.source import Source

from . import chunks
from .chunks import Chunk, Piece
from .files import SourceFile
from .text_ranges import TextFormat
from .text_stream import TextStream, open_text

logger = logging.getLogger(__name__)

HEADER_BYTES = 1 << 20
PARQUET_MAGIC = b"PAR1"

MalformedLine = tuple[int, str]
"""Row number in the file, and the line."""

RowHandler = Callable[[csv.InvalidRow], Literal["skip", "error"]]


def text_format(source: Source) -> TextFormat:
    """Return what ends a row of a CSV file.

    Args:
        source: The source's section of the spec.
    """
    return TextFormat(source.field_separator, source.quote or "", 0 if source.columns else 1)


def read_header(source: Source, file: SourceFile) -> tuple[str, ...]:
    """Read the column names in the first line of a CSV file.

    Args:
        source: The source's section of the spec.
        file: The file.

    Returns:
        The names; none for an empty file, which has no rows.

    Raises:
        DataError: The file has no readable header.
    """
    try:
        data = open_text(file.path, file.size_bytes).read(HEADER_BYTES)
        if not data:
            return ()
        if data.startswith(PARQUET_MAGIC):
            raise DataError(f'{file.path} is a Parquet file, not CSV. Set the source\'s format to "parquet".')
        reader = csv.open_csv(
            cast(IO[Any], pa.BufferReader(data + b"\n")),  # a header alone may lack its line end
            read_options=csv.ReadOptions(block_size=HEADER_BYTES, use_threads=False),
            parse_options=_parse_options(source, lambda _: "skip"),
        )
        return tuple(reader.schema.names)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{file.path} has no readable CSV header: {error}") from None


def read_csv(source: Source, piece: Piece, columns: list[str]) -> Iterator[Chunk]:
    """Read a CSV file or a part of it, compressed or not.

    Args:
        source: The source's section of the spec: separator, quote, and the column names of a file without a header.
        piece: The file or the range to read.
        columns: Columns to read.

    Yields:
        Chunks of about CHUNK_BYTES of text, in file order. An empty field is null, an empty quoted one is "".

    Raises:
        DataError: The file is not readable as CSV, or a quoted value does not end.
    """
    names = list(source.columns or piece.header)
    if not names:
        return
    header_rows = 0 if source.columns or piece.first else 1
    malformed: list[MalformedLine] = []
    # A line with a field too many, so that the parser reports it as malformed. If it does not, the line became a part
    # of a quoted value that never ends.
    end_mark = source.field_separator.join([uuid.uuid4().hex[:8]] + [""] * len(names))
    ended = False

    def keep_aside(row: csv.InvalidRow) -> Literal["skip"]:
        nonlocal ended
        if row.text == end_mark:
            ended = True
        else:
            # pyarrow counts rows from 1, and the header as one of them.
            malformed.append((piece.first_row + (row.number or 0) - 1 - header_rows, str(row.text)))
        return "skip"

    try:
        stream = TextStream(piece, b"\n" + end_mark.encode())
        reader = csv.open_csv(
            cast(IO[Any], stream),
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
        end_row = piece.first_row
        for chunk in _chunks(piece, reader, malformed):
            end_row = chunk.first_row + chunk.frame.height + len(chunk.malformed)
            yield chunk
    except pa.ArrowInvalid as error:
        raise DataError(f"{piece.path} cannot be read as CSV: {error}") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{piece.path} cannot be read: {error}") from None
    if not ended:
        raise DataError(
            f"{piece.path}: a quoted value in row {end_row - 1:,} does not end, so the rest of the file became a part "
            'of it. Remove the quote that opens it, or set quote = "" if quotes are ordinary characters.'
        )
    # An independent count: a stray quote that a later one closes makes one row of many lines.
    inside = stream.lines - header_rows - (end_row - piece.first_row)
    if inside > 0:
        logger.warning(
            "%s: %d lines from row %d on are inside quoted values. If they should be rows, a quote is not closed.",
            piece.path,
            inside,
            piece.first_row,
        )


def _chunks(piece: Piece, reader: csv.CSVStreamingReader, malformed: list[MalformedLine]) -> Iterator[Chunk]:
    """Pair each batch with the malformed lines within it; the reader appends to `malformed`, also ahead of a batch.

    Batches of 2 and 3 rows, malformed lines at rows 1 and 5 of the file:  0 [1] 2 | 3 4 [5] 6
    -> chunk at row 0 with line 1, chunk at row 3 with line 5.
    """
    first_row = piece.first_row
    for batch in reader:
        # Each malformed line before the batch's end moves that end by one row.
        end, count = first_row + batch.num_rows, 0
        while count < len(malformed) and malformed[count][0] <= end:
            end, count = end + 1, count + 1
        if batch.num_rows or count:
            yield _chunk(piece.path, first_row, batch, malformed[:count])
        del malformed[:count]
        first_row = end
    if malformed:
        yield _chunk(piece.path, first_row, reader.schema.empty_table(), malformed)


def _chunk(path: str, first_row: int, rows: pa.RecordBatch | pa.Table, malformed: list[MalformedLine]) -> Chunk:
    lines, numbers = tuple(line for _, line in malformed), tuple(number for number, _ in malformed)
    return Chunk(path, first_row, pl.DataFrame(pl.from_arrow(rows)), lines, numbers)


def _parse_options(source: Source, handler: RowHandler) -> csv.ParseOptions:
    return csv.ParseOptions(
        delimiter=source.field_separator,
        quote_char=source.quote or False,
        newlines_in_values=bool(source.quote),
        invalid_row_handler=handler,
    )
