"""Splitting a large text file at the starts of rows, in one parallel pass that counts them.

A task can start anywhere in a CSV file only if it knows whether that byte is inside a quoted value, and the number of
the row there. Both follow from what comes before. So every range is scanned for both cases (it begins outside or inside
quotes), and the ranges are put together afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from longbatch.schemas.types import BoolArray, Int64Array

from . import chunks
from .chunks import Piece
from .files import read_range
from .text_stream import NEWLINE, RETURN

logger = logging.getLogger(__name__)

Pair = tuple[int, int]
ByteArray = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class TextFormat:
    """What ends a row of a text file.

    Attributes:
        separator: Separator of the fields of a CSV file; "" for JSON lines.
        quote: Quote character of a CSV file; "" if it has none.
        header_rows: Number of rows before the data.
    """

    separator: str = ""
    quote: str = ""
    header_rows: int = 0


@dataclass(frozen=True)
class RangeScan:
    """What a range of a file contains: first if it begins outside of quotes, then if it begins inside.

    Attributes:
        quotes: Number of quotes.
        rows: Number of rows that start in the range.
        first_start: Offset in the file of the first row that starts in the range, -1 if none does.
        is_clear: Whether the quotes can be read in only one way.
        is_plain: Whether every line ends with a newline and starts with its first field.
    """

    quotes: int
    rows: Pair
    first_start: Pair
    is_clear: tuple[bool, bool]
    is_plain: bool


def ranges_of(piece: Piece) -> list[Piece]:
    """Return the ranges of CHUNK_BYTES to scan of a file.

    Args:
        piece: All of a file that is not compressed.
    """
    size = piece.size
    firsts = range(0, size, chunks.CHUNK_BYTES)
    return [replace(piece, first=first, last=min(first + chunks.CHUNK_BYTES, size)) for first in firsts]


def scan_range(piece: Piece, text: TextFormat) -> RangeScan:
    """Count the rows that start in a range of a file.

    Args:
        piece: The range, from `ranges_of`.
        text: What ends a row.

    Returns:
        The counts.
    """
    # One byte before tells whether a row starts at the first byte, one after whether a "\r" at the end is alone.
    before = 1 if piece.first else 0
    data = read_range(piece.path, piece.first - before, min(piece.last + 1, piece.size) - piece.first + before)
    length = piece.last - piece.first
    if not before:
        data = b"\n" + data.removeprefix(b"\xef\xbb\xbf").rjust(len(data), b"\n")
    is_plain = data.count(b"\r") == data.count(b"\r\n")
    if not text.separator:
        is_plain &= b"\n " not in data and b"\n\t" not in data
    byte = np.frombuffer(data, dtype=np.uint8)
    quotes = _quotes(byte[: length + 1], text)
    starts = _line_starts(byte, length)
    # Quotes before each start: an even number, counted from outside of quotes, means that it is the start of a row.
    inside = (np.searchsorted(quotes, starts) & 1).astype(np.bool_)
    by_case = [starts[~inside], starts[inside]]
    return RangeScan(
        quotes=len(quotes),
        rows=(len(by_case[0]), len(by_case[1])),
        first_start=(_offset(by_case[0], piece.first), _offset(by_case[1], piece.first)),
        is_clear=_clear(byte, quotes, text),
        is_plain=is_plain,
    )


def _quotes(byte: ByteArray, text: TextFormat) -> Int64Array:
    """Return the indices of the quotes of a range, whose first byte has index 1."""
    if not text.quote:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(byte[1:] == ord(text.quote)) + 1


def _line_starts(byte: ByteArray, length: int) -> Int64Array:
    """Return the indices of the first bytes of lines that are not empty."""
    starts = np.flatnonzero(byte[:length] == NEWLINE) + 1
    first = byte[starts]
    return np.asarray(starts[(first != NEWLINE) & (first != RETURN)])


def _clear(byte: ByteArray, quotes: Int64Array, text: TextFormat) -> tuple[bool, bool]:
    """Return whether every quote that opens a value is at the start of a field, in both cases.

    A quote within a quoted value is doubled, which closes the value and opens it again at once. A quote in the middle
    of an unquoted field is an ordinary character, so that counting quotes would not be enough.
    """
    if not len(quotes):
        return True, True
    may_open: BoolArray = np.isin(byte[quotes - 1], [ord(text.separator), NEWLINE, RETURN, ord(text.quote)])
    return bool(may_open[0::2].all()), bool(may_open[1::2].all())


def _offset(starts: Int64Array, first: int) -> int:
    return first + int(starts[0]) - 1 if len(starts) else -1


def split_at_rows(piece: Piece, scans: Sequence[RangeScan], text: TextFormat) -> list[Piece]:
    """Split a file where rows start.

    Args:
        piece: All of a file.
        scans: The scans of its ranges, in order.
        text: What ends a row.

    Returns:
        Pieces with their first bytes, first rows and numbers of rows; the file as one piece where a row cannot be told
        from a part of a quoted value.
    """
    case, rows = 0, 0  # at the start of a range: inside quotes or not, and rows before
    starts: list[Pair] = []
    for scan in scans:
        if not (scan.is_clear[case] and scan.is_plain):
            logger.info("%s is read as one piece, because its quotes or line ends are ambiguous", piece.path)
            return [piece]
        if scan.rows[case]:
            starts.append((scan.first_start[case], rows))
        rows += scan.rows[case]
        case = (case + scan.quotes) & 1
    if not starts:
        return [piece]
    # What comes before the first row, such as empty lines, belongs to the first piece.
    starts[0] = (0, 0)
    ends = [*starts[1:], (piece.size, rows)]
    pieces = []
    for (first, row), (last, row_after) in zip(starts, ends, strict=True):
        header = text.header_rows if row == 0 else 0
        pieces.append(
            replace(
                piece,
                first=first,
                last=last,
                size=last - first,
                first_row=max(0, row - text.header_rows),
                rows=row_after - row - header,
                is_stream=False,
            )
        )
    return pieces
