"""Splitting a large text file at the starts of rows, in one parallel pass that counts them.

A task can start anywhere in a CSV file only if it knows whether that byte is inside a quoted value, and the number of
the row there. Both follow from what comes before. So every range is scanned for both cases (it begins outside or inside
quotes), and the ranges are put together afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from longbatch.schemas.types import BoolArray, Int64Array

from . import chunks
from .chunks import Piece
from .file_threads import in_threads
from .files import read_range
from .text_stream import NEWLINE, RETURN

logger = logging.getLogger(__name__)

RANGES_PER_CHUNK = 8
SHORTEST_RANGE = 4  # of tests; a byte order mark must not be divided
Pair = tuple[int, int]
RangeScanner = Callable[[Sequence[Piece], "TextFormat"], "list[RangeScan]"]
"""Scans ranges of text files: `scan_in_threads`, or another way to run `scan_range`."""
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
    """Return the ranges to scan of a file: parts of a chunk, because many threads have one in memory.

    Args:
        piece: All of a file that is not compressed.
    """
    size = piece.size
    length = max(SHORTEST_RANGE, chunks.CHUNK_BYTES // RANGES_PER_CHUNK)
    return [replace(piece, first=first, last=min(first + length, size)) for first in range(0, size, length)]


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
    # Looking for one byte is several times faster than counting it.
    is_plain = b"\r" not in data or data.count(b"\r") == data.count(b"\r\n")
    if not text.separator:
        is_plain &= b"\n " not in data and b"\n\t" not in data
    byte = np.frombuffer(data, dtype=np.uint8)
    has_quotes = bool(text.quote) and text.quote.encode() in data
    quotes = np.flatnonzero(byte[1 : length + 1] == ord(text.quote)) + 1 if has_quotes else np.zeros(0, dtype=np.int64)
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
    opens_after = np.zeros(256, dtype=np.bool_)
    opens_after[[ord(text.separator), NEWLINE, RETURN, ord(text.quote)]] = True
    may_open: BoolArray = opens_after[byte[quotes - 1]]
    return bool(may_open[0::2].all()), bool(may_open[1::2].all())


def _offset(starts: Int64Array, first: int) -> int:
    return first + int(starts[0]) - 1 if len(starts) else -1


def scan_in_threads(ranges: Sequence[Piece], text: TextFormat) -> list[RangeScan]:
    """Scan ranges of text files in threads of this process.

    Args:
        ranges: The ranges.
        text: What ends a row.

    Returns:
        The scan of each range, in order.
    """
    return in_threads(lambda piece: scan_range(piece, text), ranges)


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
    shortest_piece = chunks.CHUNK_BYTES - chunks.CHUNK_BYTES // RANGES_PER_CHUNK  # then most pieces are one chunk
    case, rows = 0, 0  # at the start of a range: inside quotes or not, and rows before
    starts: list[Pair] = []
    for scan in scans:
        if not (scan.is_clear[case] and scan.is_plain):
            logger.info("%s is read as one piece, because its quotes or line ends are ambiguous", piece.path)
            return [piece]
        start = scan.first_start[case]
        if scan.rows[case] and (not starts or start - starts[-1][0] >= shortest_piece):
            starts.append((start, rows))
        rows += scan.rows[case]
        case = (case + scan.quotes) & 1
    if not starts:
        return [piece]
    starts[0] = (0, 0)  # what comes before the first row, such as empty lines, belongs to the first piece
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
