"""Reader of JSON lines: every value is a string or a list of strings, and lines that are not objects are kept aside."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from longbatch.schemas.errors import DataError

from . import chunks
from .chunks import Chunk, Piece
from .files import SourceFile
from .text_stream import TextStream, open_text

HEAD_BYTES = 1 << 20

JsonSchema = dict[str, pl.DataType]


def read_json_lines(piece: Piece, columns: list[str], list_columns: frozenset[str]) -> Iterator[Chunk]:
    """Read a file of one JSON object a line or a part of it, compressed or not.

    Args:
        piece: The file or the range to read.
        columns: Keys to read; a missing key is null.
        list_columns: Those of the keys that hold lists.

    Yields:
        Chunks of about CHUNK_BYTES of text, in file order.

    Raises:
        DataError: The file cannot be read or decompressed.
    """
    schema: JsonSchema = {name: pl.List(pl.String) if name in list_columns else pl.String() for name in columns}
    first_row = piece.first_row
    try:
        for block in _line_blocks(TextStream(piece)):
            frame, malformed = _parse_block(block, schema)
            yield Chunk(piece.path, first_row, frame, tuple(malformed))
            first_row += frame.height + len(malformed)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{piece.path} cannot be read: {error}") from None


@dataclass(frozen=True)
class JsonHead:
    """The start of a JSON-lines file.

    Attributes:
        keys: Those of the needed columns that occur in it.
        first_keys: All keys of its first object.
        is_complete: Whether it is the complete file.
    """

    keys: frozenset[str]
    first_keys: tuple[str, ...]
    is_complete: bool


def read_head(file: SourceFile, needed: Sequence[str]) -> JsonHead:
    """Look for keys in the start of a file.

    Args:
        file: The file.
        needed: The keys to look for.

    Returns:
        What occurs in it. A key counts if its name occurs in quotes, so that none is missed.

    Raises:
        DataError: The file cannot be read or decompressed.
    """
    try:
        data = open_text(file.path, file.size_bytes).read(HEAD_BYTES)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file.path} cannot be read: {error}") from None
    spellings = {name: {json.dumps(name).encode(), json.dumps(name, ensure_ascii=False).encode()} for name in needed}
    keys = frozenset(name for name, quoted in spellings.items() if any(key in data for key in quoted))
    return JsonHead(keys, _first_keys(data), len(data) < HEAD_BYTES)


def _first_keys(data: bytes) -> tuple[str, ...]:
    try:
        first = json.loads(data.removeprefix(codecs.BOM_UTF8).partition(b"\n")[0])
    except (ValueError, RecursionError):
        return ()
    return tuple(first) if isinstance(first, dict) else ()


def _line_blocks(stream: TextStream) -> Iterator[bytes]:
    """Split a stream into blocks of complete lines, about CHUNK_BYTES each; a longer line is one block."""
    rest, started = b"", False
    while data := stream.read(chunks.CHUNK_BYTES):
        data = data if started else data.removeprefix(codecs.BOM_UTF8)
        started = True
        complete, newline, begun = data.rpartition(b"\n")
        if not newline:
            rest += data
            continue
        yield rest + complete + newline
        rest = begun
    if rest.strip():
        yield rest


def _parse_block(block: bytes, schema: JsonSchema) -> tuple[pl.DataFrame, list[str]]:
    """Rows of a block, and the lines that cannot be parsed. Lines are looked at one by one only if parsing fails."""
    try:
        return pl.read_ndjson(io.BytesIO(block), schema=schema), []
    except pl.exceptions.PolarsError:
        objects: list[bytes] = []
        others: list[bytes] = []
        for line in block.splitlines():
            (objects if _is_object(line) else others).append(line)
        frame, unparsable = _parse_objects(objects, schema)
        return frame, [line.decode(errors="replace") for line in [*others, *unparsable] if line.strip()]


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parse_objects(lines: list[bytes], schema: JsonSchema) -> tuple[pl.DataFrame, list[bytes]]:
    """Rows of JSON objects, and the few lines that Polars refuses nevertheless (NaN, a number instead of a list).

    Bisection: a list of lines that fails is halved until single lines fail, so the cost grows with their number.
    """
    if not lines:
        return pl.DataFrame(schema=schema), []
    try:
        return pl.read_ndjson(io.BytesIO(b"\n".join(lines)), schema=schema), []
    except pl.exceptions.PolarsError:
        if len(lines) == 1:
            return pl.DataFrame(schema=schema), lines
        half = len(lines) // 2
        first, first_refused = _parse_objects(lines[:half], schema)
        second, second_refused = _parse_objects(lines[half:], schema)
        return pl.concat([first, second]), [*first_refused, *second_refused]
