"""Raw files, chunk by chunk, for what checks a build: Parquet, Arrow, CSV and JSON lines.

CSV and JSON lines come as text. Memory is that of some chunks: of Parquet a row group's, of Arrow a record batch's.
"""

from __future__ import annotations

import fnmatch
import glob
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
from polars import selectors
from pyarrow import csv

from longbatch.schemas.errors import DataError, SourceError
from longbatch.schemas.source_schema import source_schema
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.source import Source, SyntheticTime

from .values import Row, as_string

CHUNK_ROWS = 1 << 17
CHUNK_BYTES = 16 << 20
LINE = "{line}"  # the column of a chunk of JSON lines that holds each line whole
Advance = Callable[[int], None]


@dataclass(frozen=True)
class File:
    """A file of a source, on any file system that Arrow knows."""

    source: str
    system: Any
    path: str


@dataclass(frozen=True)
class Chunk:
    """Some raw rows, and how many lines among them were no rows."""

    frame: pl.DataFrame
    malformed: int = 0


def source_files(spec: BuildSpec, source: str) -> list[File]:
    """Return the files of a source, those of each pattern sorted. Raises SourceError where a pattern has none."""
    entry = spec.sources[source]
    if entry.file_format == "table":
        raise SourceError(f"source {source} is a table of Spark; the reference reads files only, so export it first")
    found: dict[str, File] = {}
    for pattern in entry.path:
        system, paths = _matching(pattern)
        if not paths:
            raise SourceError(f"source {source}: {pattern} matches no file; check the path of the source")
        found |= {path: File(source, system, path) for path in paths}
    return list(found.values())


def _matching(pattern: str) -> tuple[Any, list[str]]:
    """Return the file system of a path, glob or URI, and the files there that it names."""
    if "://" not in pattern:
        paths = glob.glob(pattern, recursive=True) if glob.has_magic(pattern) else [pattern]
        return pa.fs.LocalFileSystem(), sorted(path for path in paths if os.path.isfile(path))
    try:
        system, inner = pa.fs.FileSystem.from_uri(pattern)
        asked: Any = [inner]
        if glob.has_magic(inner):
            folder = re.split(r"[*?\[]", inner)[0].rpartition("/")[0]
            asked = pa.fs.FileSelector(folder, recursive=True, allow_not_found=True)
        infos = system.get_file_info(asked)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise SourceError(f"cannot reach {pattern!r}: {error}") from None
    paths = [info.path for info in infos if info.type == pa.fs.FileType.File]
    return system, sorted(path for path in paths if path == inner or fnmatch.fnmatch(path, inner))


def chunks(spec: BuildSpec, source: str, columns: list[str], advance: Advance = lambda rows: None) -> Iterator[Chunk]:
    """Yield these columns of all files of a source; `advance` is told of each chunk's rows.

    Of JSON lines the columns are values as text, null where there is none, and LINE holds each line whole. A source
    with `synthetic_time` has that column too. Raises SourceError for columns that are not there, DataError for a file that
    cannot be read.
    """
    entry, made = spec.sources[source], spec.sources[source].synthetic_time
    columns = [name for name in columns if made is None or name != made.column]
    lists = source_schema(spec, source).list_columns
    for number, file in enumerate(source_files(spec, source)):
        row = 0
        try:
            for chunk in _READERS[entry.file_format](entry, file, columns):
                plain = chunk.frame.with_columns((selectors.binary() | selectors.categorical()).cast(pl.String))
                chunk = Chunk(plain, chunk.malformed)
                if made:
                    chunk = _with_synthetic_time(chunk, made, made.of_file(number) + row, lists)
                yield chunk
                row += chunk.frame.height
                advance(chunk.frame.height + chunk.malformed)
        except (pa.ArrowException, pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{file.path} cannot be read: {error}") from None


def _with_synthetic_time(chunk: Chunk, made: SyntheticTime, first_us: int, lists: frozenset[str]) -> Chunk:
    """Add the time made of each row's place among the rows of its file; lines of JSON that are no rows have none."""
    frame = chunk.frame
    if LINE in frame.columns:
        frame = frame.filter(pl.Series([_json_row(line, lists) is not None for line in frame[LINE]], dtype=pl.Boolean))
    times = pl.int_range(first_us, first_us + frame.height, dtype=pl.Int64, eager=True)
    synthetic_times = times.cast(pl.Datetime("us", "UTC")).alias(made.column)
    return Chunk(frame.with_columns(synthetic_times), chunk.malformed + chunk.frame.height - frame.height)


def _frame(batch: pa.RecordBatch | pa.Table) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(batch))


def _require(columns: list[str], available: list[str], file: File) -> None:
    missing = [name for name in columns if name not in available]
    if missing:
        raise SourceError(f"source {file.source}: {file.path} has no column {missing}; its columns are {available}")


def _parquet(entry: Source, file: File, columns: list[str]) -> Iterator[Chunk]:
    with file.system.open_input_file(file.path) as opened:
        reader = pq.ParquetFile(opened)
        _require(columns, reader.schema_arrow.names, file)
        yield Chunk(_frame(reader.schema_arrow.empty_table().select(columns)))
        for batch in reader.iter_batches(CHUNK_ROWS, columns=columns):
            yield Chunk(_frame(batch))


def _arrow(entry: Source, file: File, columns: list[str]) -> Iterator[Chunk]:
    with file.system.open_input_file(file.path) as opened:
        names = pa.ipc.open_file(opened).schema.names
        _require(columns, names, file)
        options = pa.ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns])
        reader = pa.ipc.open_file(opened, options=options)
        yield Chunk(_frame(reader.schema.empty_table()).select(columns))
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            for start in range(0, batch.num_rows, CHUNK_ROWS):
                yield Chunk(_frame(batch.slice(start, CHUNK_ROWS)).select(columns))


def _csv(entry: Source, file: File, columns: list[str]) -> Iterator[Chunk]:
    malformed: list[Any] = []

    def skip(row: Any) -> str:
        malformed.append(row.number)
        return "skip"

    parse = csv.ParseOptions(
        delimiter=entry.field_separator,
        quote_char=entry.quote or False,
        newlines_in_values=bool(entry.quote),
        invalid_row_handler=skip,
    )
    convert = csv.ConvertOptions(
        include_columns=columns,
        column_types=dict.fromkeys(columns, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    names = list(entry.columns or ())
    with file.system.open_input_stream(file.path, compression="detect") as opened:
        try:
            read = csv.ReadOptions(block_size=CHUNK_BYTES, column_names=names or None)
            for batch in csv.open_csv(opened, read, parse, convert):
                yield Chunk(_frame(batch), len(malformed))
                malformed.clear()
        except pa.ArrowKeyError as error:
            raise SourceError(f"source {file.source}: {file.path}: {error}") from None
        except pa.ArrowInvalid as error:
            if "Empty CSV" not in str(error):
                raise
    yield Chunk(pl.DataFrame(schema=dict.fromkeys(columns, pl.String)), len(malformed))


def _json(entry: Source, file: File, columns: list[str]) -> Iterator[Chunk]:
    with file.system.open_input_stream(file.path, compression="detect") as opened:
        rest = b""
        while data := opened.read(CHUNK_BYTES):
            whole, newline, rest = (rest + data).rpartition(b"\n")
            yield _json_chunk(whole + newline, columns)
        yield _json_chunk(rest, columns)


def _json_chunk(block: bytes, columns: list[str]) -> Chunk:
    """Find the columns in lines of JSON; a line that is no UTF-8 is malformed."""
    lines = [line for line in block.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()]
    texts = [text for text in map(_text, lines) if text is not None]
    frame = pl.DataFrame({LINE: texts}, schema={LINE: pl.String})
    values = [pl.col(LINE).str.json_path_match(f"$[{json.dumps(name)}]").alias(name) for name in columns]
    return Chunk(frame.with_columns(values), len(lines) - len(texts))


def _text(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


_READERS: dict[str, Callable[[Source, File, list[str]], Iterator[Chunk]]] = {
    "parquet": _parquet,
    "arrow": _arrow,
    "csv": _csv,
    "jsonl": _json,
}


def parse_lines(lines: pl.Series, columns: list[str], lists: frozenset[str]) -> Chunk:
    """Read JSON lines one by one: rows of texts, numbers as they are written; what is no row is counted."""
    rows = [row for row in (_json_row(line, lists) for line in lines) if row is not None]
    schema = {name: pl.List(pl.String) if name in lists else pl.String() for name in columns}
    frame = pl.DataFrame([[row.get(name) for name in columns] for row in rows], schema=schema, orient="row")
    return Chunk(frame, len(lines) - len(rows))


def _json_row(line: str, lists: frozenset[str]) -> Row | None:
    try:
        row = json.loads(line, parse_int=str, parse_float=_finite, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(isinstance(row.get(name), list | None) for name in lists):
        return None
    return {name: _json_text(value) for name, value in row.items()}


def _finite(number: str) -> str:
    return number if abs(float(number)) != float("inf") else _refuse(number)


def _refuse(number: str) -> str:
    raise ValueError(f"{number} is no number of JSON")


def _json_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_json_text(element) for element in value]
    return value if value is None else json.dumps(value) if isinstance(value, dict) else as_string(value)
