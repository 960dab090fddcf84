"""Reading raw logs: files of a source -> pieces that tasks can read on their own -> chunks of raw rows.

One reader serves both engines, so that a value means the same on a laptop and on a cluster. CSV and JSON columns
arrive as text and are typed by the spec, so that a bad value is a rejected row and not a crash.
"""

from __future__ import annotations

import codecs
import fnmatch
import glob
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from pyarrow import csv

from longbatch.pipelines.canonicalize import needed_columns
from longbatch.schemas.errors import DataError, SourceError
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import duration_us
from longbatch.schemas.spec.source import Source, SyntheticTime
from longbatch.schemas.tables import list_columns

CHUNK_ROWS = 1 << 20
CHUNK_BYTES = 64 << 20
BYTES_PER_TEXT_ROW = 48


@dataclass(frozen=True)
class Piece:
    """What one task reads: row groups [first, last) of a Parquet file, or all of another file.

    size: bytes on disk, for progress. rows: exact for Parquet, estimated for others. first_row: of the file.
    file: number of the file in the source.
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
    """Raw rows of one file, beginning at its row `first_row`; `malformed` are lines that were no rows at all.

    malformed_rows: where among the rows of the file those lines stand, ascending; empty where that is not known.
    """

    path: str
    first_row: int
    frame: pl.DataFrame
    malformed: tuple[str, ...] = ()
    malformed_rows: tuple[int, ...] = ()

    def source_rows(self, places: pl.Series) -> pl.Series:
        """Return which rows of the file, malformed lines counted, these rows of the frame are."""
        sound_before = np.asarray(self.malformed_rows, dtype=np.int64) - self.first_row
        sound_before -= np.arange(len(sound_before))
        place = places.cast(pl.Int64).to_numpy()
        return pl.Series(places.name, place + self.first_row + np.searchsorted(sound_before, place, side="right"))


Reader = Callable[[Source, Piece, list[str]], Iterator[Chunk]]


def filesystem_of(path: str) -> tuple[Any, str]:
    """Return (pyarrow filesystem, path within it) of a local path or a URI."""
    if "://" not in path:
        return pa.fs.LocalFileSystem(), path
    try:
        return pa.fs.FileSystem.from_uri(path)  # type: ignore[no-any-return]
    except (pa.ArrowException, ValueError, OSError) as error:
        raise SourceError(f"cannot reach {path!r}: {error}") from None


def list_files(pattern: str) -> list[tuple[str, int]]:
    """Sorted (path or URI, bytes) of the files a path, glob or URI names; raises SourceError if there are none."""
    system, inner = filesystem_of(pattern)
    if "://" not in pattern:
        paths = sorted(glob.glob(inner, recursive=True)) if glob.has_magic(inner) else [inner]
    elif glob.has_magic(inner):
        folder = inner[: inner.index(next(c for c in inner if c in "*?["))].rpartition("/")[0]
        found = system.get_file_info(pa.fs.FileSelector(folder, recursive=True, allow_not_found=True))
        paths = sorted(info.path for info in found if fnmatch.fnmatch(info.path, inner))
    else:
        paths = [inner]
    infos = [info for info in system.get_file_info(paths) if info.type == pa.fs.FileType.File] if paths else []
    if not infos:
        kind = "no file matches" if glob.has_magic(inner) else "there is no file"
        raise SourceError(f"{kind} {pattern!r}; check the path (relative paths start at the spec's folder)")
    return [(_whole_uri(pattern, inner, info.path), int(info.size)) for info in infos]


def _whole_uri(pattern: str, inner: str, path: str) -> str:
    """The URI of a file found by `pattern`, whose path within the file system is `inner`: host and options kept."""
    if "://" not in pattern:
        return path
    parts = urlsplit(pattern)
    container = inner.removesuffix(parts.path.lstrip("/"))
    return urlunsplit(parts._replace(path="/" + path.removeprefix(container).lstrip("/")))


def plan_pieces(spec: BuildSpec, source: str) -> list[Piece]:
    """Split a source's files into pieces of about CHUNK_ROWS rows, in a fixed order."""
    entry = spec.sources[source]
    if entry.file_format == "table":
        raise SourceError(f"source {source} is a table that Spark knows by name; build with --engine spark")
    try:
        files = list(dict.fromkeys(file for pattern in entry.path for file in list_files(pattern)))
    except SourceError as error:
        raise SourceError(f"source {source}: {error}") from None
    pieces: list[Piece] = []
    for number, (path, size) in enumerate(files):
        if entry.file_format == "parquet":
            pieces += [replace(piece, file=number) for piece in _parquet_pieces(source, path, size)]
        else:
            pieces.append(Piece(source, path, size, rows=_estimated_rows(path, size), file=number))
    return pieces


def _estimated_rows(path: str, size: int) -> int:
    unpacked = size * 4 if path.endswith((".gz", ".zst", ".bz2", ".lz4")) else size
    return max(1, unpacked // BYTES_PER_TEXT_ROW)


def _parquet_pieces(source: str, path: str, size: int) -> list[Piece]:
    metadata = _open_parquet(path).metadata
    pieces: list[Piece] = []
    first, row, rows = 0, 0, 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= CHUNK_ROWS or group == metadata.num_row_groups - 1:
            share = size * rows // max(1, metadata.num_rows)
            pieces.append(Piece(source, path, share, rows, first, group + 1, row))
            first, row, rows = group + 1, row + rows, 0
    return pieces


def _open_parquet(path: str) -> pq.ParquetFile:
    system, inner = filesystem_of(path)
    try:
        return pq.ParquetFile(system.open_input_file(inner), pre_buffer="://" in path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from None


def read_piece(spec: BuildSpec, piece: Piece) -> Iterator[Chunk]:
    """Yield a piece's rows in file order, only the columns the spec needs."""
    entry = spec.sources[piece.source]
    columns = needed_columns(spec, piece.source)
    readers: dict[str, Reader] = {
        "parquet": _read_parquet,
        "csv": _read_csv,
        "jsonl": partial(_read_json, lists=list_columns(spec, piece.source)),
        "arrow": _read_arrow,
    }
    place = piece.first_row
    for chunk in readers[entry.file_format](entry, piece, columns):
        try:
            frame = plain_types(chunk.frame)
        except pl.exceptions.PolarsError as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{chunk.path} holds a binary column whose bytes are not UTF-8 text: {reason}") from None
        if entry.synthetic_time:
            _check_synthetic_time(entry.synthetic_time, piece, place + frame.height)
            frame = with_synthetic_time(frame, entry.synthetic_time, piece.file, place)
        place += frame.height
        yield replace(chunk, frame=frame)


def _check_synthetic_time(made: SyntheticTime, piece: Piece, rows: int) -> None:
    if rows > duration_us(made.per_file):
        raise DataError(
            f"source {piece.source}: {piece.path} has {rows:,} rows or more, and synthetic_time.per_file is only {made.per_file}, "
            "so its times would reach into the next file's; give it a longer per_file"
        )


def with_synthetic_time(frame: pl.DataFrame, made: SyntheticTime, file: int, place: int) -> pl.DataFrame:
    """Add the time made from the place of each row among the rows of its file, malformed lines not counted."""
    first = made.of_file(file) + place
    times = pl.int_range(first, first + pl.len(), dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))
    return frame.with_columns(times.alias(made.column))


def plain_types(frame: pl.DataFrame) -> pl.DataFrame:
    """Turn dictionary, binary and fixed-size-list columns into plain text and lists."""
    plain = {name: _plain(dtype) for name, dtype in frame.schema.items()}
    casts = [pl.col(name).cast(dtype) for name, dtype in plain.items() if dtype != frame.schema[name]]
    return frame.with_columns(casts) if casts else frame


def _plain(dtype: pl.DataType) -> pl.DataType:
    if isinstance(dtype, pl.Categorical | pl.Enum | pl.Binary):
        return pl.String()
    if isinstance(dtype, pl.List | pl.Array):
        return pl.List(_plain(pl.List(dtype.inner).inner))  # type: ignore[arg-type]
    return dtype


def require_columns(columns: list[str], available: list[str], piece: Piece, made: SyntheticTime | None) -> None:
    """Raise SourceError naming the columns that a file lacks and those it has, or one that is to be made."""
    if made and made.column in available:
        raise SourceError(
            f"source {piece.source}: {piece.path} has a column {made.column!r}, which synthetic_time would replace; name another"
        )
    missing = [name for name in columns if name not in available]
    if missing:
        raise SourceError(
            f"source {piece.source}: {piece.path} has no column {', '.join(map(repr, missing))}; "
            f"its columns are {', '.join(available)}"
        )


def _read_parquet(entry: Source, piece: Piece, columns: list[str]) -> Iterator[Chunk]:
    file = _open_parquet(piece.path)
    require_columns(columns, file.schema_arrow.names, piece, entry.synthetic_time)
    try:
        table = file.read_row_groups(range(piece.first, piece.last), columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{piece.path}: row groups {piece.first} to {piece.last - 1}: {error}") from None
    frame = pl.DataFrame(pl.from_arrow(table))
    for start in range(0, frame.height, 2 * CHUNK_ROWS):
        yield Chunk(piece.path, piece.first_row + start, frame[start : start + 2 * CHUNK_ROWS])


def _read_arrow(entry: Source, piece: Piece, columns: list[str]) -> Iterator[Chunk]:
    system, inner = filesystem_of(piece.path)
    try:
        file = system.open_input_file(inner)
        names = pa.ipc.open_file(file).schema.names
        require_columns(columns, names, piece, entry.synthetic_time)
        options = pa.ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns], use_threads=False)
        reader = pa.ipc.open_file(file, options=options)
        row = 0
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            for start in range(0, batch.num_rows, CHUNK_ROWS):
                part = pl.DataFrame(pl.from_arrow(batch.slice(start, CHUNK_ROWS)))
                yield Chunk(piece.path, row + start, part.select(columns))
            row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{piece.path} is not a readable Arrow IPC file: {error}") from None


def _read_csv(entry: Source, piece: Piece, columns: list[str]) -> Iterator[Chunk]:
    system, inner = filesystem_of(piece.path)
    names = list(entry.columns) if entry.columns else _csv_header(entry, piece)
    if not names:
        return
    require_columns(columns, names, piece, entry.synthetic_time)
    header_rows = 0 if entry.columns else 1
    malformed: list[tuple[int, str]] = []

    def skip(line: Any) -> str:
        malformed.append((line.number - 1 - header_rows, str(line.text)))
        return "skip"

    try:
        reader = csv.open_csv(
            system.open_input_stream(inner, compression="detect"),
            read_options=csv.ReadOptions(
                column_names=names, skip_rows=header_rows, block_size=CHUNK_BYTES, use_threads=False
            ),
            parse_options=_csv_options(entry, skip),
            convert_options=csv.ConvertOptions(
                include_columns=columns,
                column_types=dict.fromkeys(columns, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        yield from _csv_chunks(piece.path, reader, malformed)
    except pa.ArrowInvalid as error:
        if "Empty CSV" not in str(error):
            raise DataError(f"{piece.path} cannot be read as CSV: {error}") from None
    except OSError as error:
        raise DataError(f"{piece.path} cannot be read: {error}") from None


def _csv_chunks(path: str, reader: Any, malformed: list[tuple[int, str]]) -> Iterator[Chunk]:
    """Chunks of a reader that appends to `malformed` what it meets, (row of the file, text), also ahead of a batch."""
    row = 0
    for batch in reader:
        end, own = row + batch.num_rows, 0
        while own < len(malformed) and malformed[own][0] <= end:
            end, own = end + 1, own + 1
        yield _csv_chunk(path, row, batch, malformed[:own])
        del malformed[:own]
        row = end
    if malformed:
        yield _csv_chunk(path, row, reader.schema.empty_table(), malformed)


def _csv_chunk(path: str, row: int, rows: Any, malformed: list[tuple[int, str]]) -> Chunk:
    frame = pl.DataFrame(pl.from_arrow(rows))
    return Chunk(path, row, frame, tuple(text for _, text in malformed), tuple(number for number, _ in malformed))


def _csv_options(entry: Source, handler: Any = None) -> Any:
    return csv.ParseOptions(
        delimiter=entry.field_separator,
        quote_char=entry.quote or False,
        newlines_in_values=bool(entry.quote),
        invalid_row_handler=handler,
    )


def _csv_header(entry: Source, piece: Piece) -> list[str]:
    """Names of the first line; none for a file without a byte, which holds no rows."""
    system, inner = filesystem_of(piece.path)
    try:
        with system.open_input_stream(inner, compression="detect") as stream:
            if not stream.read(1):
                return []
        reader = csv.open_csv(
            system.open_input_stream(inner, compression="detect"),
            read_options=csv.ReadOptions(block_size=1 << 20, use_threads=False),
            parse_options=_csv_options(entry, lambda _: "skip"),
        )
        return list(reader.schema.names)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{piece.path} has no readable CSV header: {error}") from None


def _read_json(entry: Source, piece: Piece, columns: list[str], lists: set[str]) -> Iterator[Chunk]:
    schema = {name: pl.List(pl.String) if name in lists else pl.String() for name in columns}
    system, inner = filesystem_of(piece.path)
    row = 0
    try:
        with system.open_input_stream(inner, compression="detect") as stream:
            for block in _line_blocks(stream):
                frame, malformed = _parse_json(block, schema)
                yield Chunk(piece.path, row, frame, tuple(malformed))
                row += frame.height + len(malformed)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{piece.path} cannot be read: {error}") from None


def _line_blocks(stream: Any) -> Iterator[bytes]:
    """Blocks of whole lines, about CHUNK_BYTES each."""
    rest, started = b"", False
    while data := stream.read(CHUNK_BYTES):
        data = data if started else data.removeprefix(codecs.BOM_UTF8)
        started = True
        whole, newline, rest_of_data = data.rpartition(b"\n")
        if not newline:
            rest += data
            continue
        yield rest + whole + newline
        rest = rest_of_data
    if rest.strip():
        yield rest


def _parse_json(block: bytes, schema: dict[str, Any]) -> tuple[pl.DataFrame, list[str]]:
    """Rows of a block, and the lines that are no rows (looked for only once parsing has failed)."""
    try:
        return pl.read_ndjson(io.BytesIO(block), schema=schema), []
    except pl.exceptions.PolarsError:
        good: list[bytes] = []
        bad: list[bytes] = []
        for line in block.splitlines():
            (good if _is_object(line) else bad).append(line)
        frame, odd = _parse_lines(good, schema)
        return frame, [line.decode(errors="replace") for line in [*bad, *odd] if line.strip()]


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _parse_lines(lines: list[bytes], schema: dict[str, Any]) -> tuple[pl.DataFrame, list[bytes]]:
    """Rows of JSON objects, and the few that still are no rows (NaN, no list where one is due), found by halving."""
    if not lines:
        return pl.DataFrame(schema=schema), []
    try:
        return pl.read_ndjson(io.BytesIO(b"\n".join(lines)), schema=schema), []
    except pl.exceptions.PolarsError:
        if len(lines) == 1:
            return pl.DataFrame(schema=schema), lines
        half = len(lines) // 2
        (first, odd_first), (rest, odd_rest) = (_parse_lines(part, schema) for part in (lines[:half], lines[half:]))
        return pl.concat([first, rest]), [*odd_first, *odd_rest]
