"""Raw files of a source, read chunk by chunk: Parquet, Arrow, CSV and JSON lines.

The naive reference reads files itself, so that it shares no reader with the build it checks. Values of CSV and JSON
lines are strings. Memory is that of some chunks: at least a row group of Parquet, a record batch of Arrow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Literal, cast

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars import selectors
from pyarrow import csv, ipc

from longbatch.schemas.errors import DataError, SourceError
from longbatch.schemas.source_schema import source_schema
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.source import Source, SyntheticTime

from .raw_tables import table_rows
from .source_files import File, folder_columns, skipped_rows, source_files
from .values import Row, as_string

CHUNK_ROWS = 1 << 17
CHUNK_BYTES = 16 << 20
LINE = "{line}"  # the column of a chunk of JSON lines that contains the complete line
FOLDER = "{folder}"  # prefix of the columns of such a chunk that are names of folders
Advance = Callable[[int], None]  # called with the number of rows just read, to report progress


@dataclass(frozen=True)
class Chunk:
    """Some raw rows, and the number of malformed lines among them."""

    frame: pl.DataFrame
    malformed: int = 0


def read_chunks(
    spec: BuildSpec, source: str, columns: list[str], advance: Advance = lambda rows: None
) -> Iterator[Chunk]:
    """Read columns of all files of a source.

    Of JSON lines the columns contain strings (null where a line lacks the key), and `LINE` the complete line. A
    source with `synthetic_time` has that column too.

    Args:
        spec: The build spec.
        source: Name of the source.
        columns: The raw columns to read.
        advance: Called with the number of rows of each chunk, malformed lines included.

    Yields:
        The rows in file order.

    Raises:
        SourceError: A file lacks a column.
        DataError: A file cannot be read.
    """
    entry, synthetic = spec.sources[source], spec.sources[source].synthetic_time
    columns = [name for name in columns if synthetic is None or name != synthetic.column]
    if entry.file_format in ("delta", "iceberg"):
        for frame in table_rows(spec, source, columns):
            yield Chunk(_plain(frame))
            advance(frame.height)
    for number, file in enumerate(source_files(spec, source)):
        rows_before = 0
        in_file = [name for name in columns if name not in file.folders]
        try:
            for chunk in _READERS[entry.file_format](entry, file, in_file):
                _require(spec, source, file, in_file, chunk.frame.columns)
                chunk = _with_folders(spec, source, file, chunk, columns)
                if synthetic:
                    first_us = synthetic.of_file(number) + rows_before
                    chunk = _with_synthetic_time(chunk, synthetic, first_us, source_schema(spec, source).list_columns)
                yield chunk
                rows_before += chunk.frame.height
                advance(chunk.frame.height + chunk.malformed)
        except (pa.ArrowException, pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"cannot read {file.path}: {error}") from None


def _require(spec: BuildSpec, source: str, file: File, columns: list[str], available: list[str]) -> None:
    """Raise SourceError for a column that the file lacks, unless nulls are allowed or replaced by a default."""
    schema = source_schema(spec, source)
    with_default = {mapped.column for mapped in schema.columns.values() if getattr(mapped, "default", None) is not None}
    missing = [name for name in columns if name not in available and name not in with_default]
    if missing and spec.sources[source].missing_columns == "error":
        raise SourceError(f"source {source}: {file.path} has no column {', '.join(map(repr, missing))}.")


def _with_folders(spec: BuildSpec, source: str, file: File, chunk: Chunk, columns: list[str]) -> Chunk:
    """Add the columns that folders name and nulls for those that the file lacks; drop rows that a build skips."""
    frame = _plain(chunk.frame)
    nulls = [pl.lit(None).alias(name) for name in columns if name not in frame.columns and name not in file.folders]
    folders = folder_columns(file, frame.height)
    if folders.height and skipped_rows(spec, source, folders.head(1)).all():
        frame, folders, chunk = frame.clear(), folders.clear(), Chunk(frame, 0)
    shared = folders.select(name for name in columns if name in folders.columns)
    frame = pl.concat([frame.with_columns(nulls), shared], how="horizontal")
    frame = frame.select(*columns, *(name for name in (LINE,) if name in frame.columns))
    if LINE in frame.columns:  # the values that `parse_chunk_rows` adds to the parsed lines
        frame = pl.concat([frame, folders.rename(lambda name: FOLDER + name)], how="horizontal")
    return Chunk(frame, chunk.malformed)


def _with_synthetic_time(chunk: Chunk, synthetic: SyntheticTime, first_us: int, lists: frozenset[str]) -> Chunk:
    """Add the time generated from each row's number in its file; malformed JSON lines are dropped and not numbered."""
    frame = chunk.frame
    if LINE in frame.columns:
        frame = frame.filter(pl.Series([_json_row(line, lists) is not None for line in frame[LINE]], dtype=pl.Boolean))
    times = pl.int_range(first_us, first_us + frame.height, dtype=pl.Int64, eager=True)
    synthetic_times = times.cast(pl.Datetime("us", "UTC")).alias(synthetic.column)
    return Chunk(frame.with_columns(synthetic_times), chunk.malformed + chunk.frame.height - frame.height)


def _plain(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns((selectors.binary() | selectors.categorical()).cast(pl.String))


def _frame(batch: pa.RecordBatch | pa.Table) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(batch))


# One reader for each file format; each yields at least one chunk, so that an empty file has its columns and types


def _read_parquet(entry: Source, file: File, columns: list[str]) -> Iterator[Chunk]:
    with file.open() as opened:
        reader = pq.ParquetFile(opened, coerce_int96_timestamp_unit="us")
        columns = [name for name in columns if name in reader.schema_arrow.names]
        yield Chunk(_frame(reader.schema_arrow.empty_table().select(columns)))
        for batch in reader.iter_batches(CHUNK_ROWS, columns=columns):
            yield Chunk(_frame(batch))


def _read_arrow(entry: Source, file: File, columns: list[str]) -> Iterator[Chunk]:
    with file.open() as opened:
        names = ipc.open_file(opened).schema.names
        columns = [name for name in columns if name in names]
        options = ipc.IpcReadOptions(included_fields=[names.index(name) for name in columns])
        reader = ipc.open_file(opened, options=options)
        yield Chunk(_frame(reader.schema.empty_table()).select(columns))
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            for start in range(0, batch.num_rows, CHUNK_ROWS):
                yield Chunk(_frame(batch.slice(start, CHUNK_ROWS)).select(columns))


def _read_csv(entry: Source, file: File, columns: list[str]) -> Iterator[Chunk]:
    malformed: list[int | None] = []

    def skip(row: csv.InvalidRow) -> Literal["skip"]:
        malformed.append(row.number)
        return "skip"

    parse = csv.ParseOptions(
        delimiter=entry.field_separator,
        quote_char=entry.quote or False,
        newlines_in_values=bool(entry.quote),
        invalid_row_handler=skip,
    )
    names = list(entry.columns or _csv_header(file, parse) or columns)
    malformed.clear()
    columns = [name for name in columns if name in names]
    convert = csv.ConvertOptions(
        include_columns=columns,
        column_types=dict.fromkeys(columns, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    read = csv.ReadOptions(block_size=CHUNK_BYTES, column_names=names, skip_rows=0 if entry.columns else 1)
    with _decompressed(file) as opened:
        try:
            for batch in csv.open_csv(opened, read, parse, convert):
                yield Chunk(_frame(batch), len(malformed))
                malformed.clear()
        except pa.ArrowInvalid as error:
            if "Empty CSV" not in str(error):
                raise
    yield Chunk(pl.DataFrame(schema=dict.fromkeys(columns, pl.String)), len(malformed))


def _csv_header(file: File, parse: csv.ParseOptions) -> list[str]:
    with _decompressed(file) as opened:
        try:
            return list(csv.open_csv(opened, csv.ReadOptions(block_size=CHUNK_BYTES), parse).schema.names)
        except pa.ArrowInvalid as error:
            if "Empty CSV" not in str(error):
                raise
            return []


def _decompressed(file: File) -> IO[bytes]:
    """Open a file, decompressed by its suffix. The stubs of pyarrow's CSV reader lack Arrow's own files."""
    codecs: dict[str, Literal["gzip", "zstd", "bz2", "lz4"]] = {"gz": "gzip", "zst": "zstd", "bz2": "bz2", "lz4": "lz4"}
    codec = codecs.get(file.path.rpartition(".")[2])
    return cast(IO[bytes], pa.CompressedInputStream(file.open(), codec) if codec else file.open())


def _read_json_lines(entry: Source, file: File, columns: list[str]) -> Iterator[Chunk]:
    with _decompressed(file) as opened:
        unfinished = b""  # the last line of a block, continued in the next
        while data := opened.read(CHUNK_BYTES):
            lines, newline, unfinished = (unfinished + data).rpartition(b"\n")
            yield _json_chunk(lines + newline, columns)
        yield _json_chunk(unfinished, columns)


def _json_chunk(block: bytes, columns: list[str]) -> Chunk:
    """Extract the columns from JSON lines; a line that is not UTF-8 is malformed."""
    lines = [line for line in block.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()]
    decoded = [line for line in map(_decode_or_none, lines) if line is not None]
    frame = pl.DataFrame({LINE: decoded}, schema={LINE: pl.String})
    values = [pl.col(LINE).str.json_path_match(f"$[{json.dumps(name)}]").alias(name) for name in columns]
    return Chunk(frame.with_columns(values), len(lines) - len(decoded))


def _decode_or_none(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


_READERS: dict[str, Callable[[Source, File, list[str]], Iterator[Chunk]]] = {
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "csv": _read_csv,
    "jsonl": _read_json_lines,
}


# JSON lines, one by one


def parse_json_lines(lines: pl.Series, columns: list[str], lists: frozenset[str]) -> Chunk:
    """Parse JSON lines with Python's parser.

    Args:
        lines: The lines.
        columns: The keys to return.
        lists: Those of them that must be lists or null.

    Returns:
        A row of strings for each line, numbers as they are written in it; and how many lines are not such a row.
    """
    rows = [row for row in (_json_row(line, lists) for line in lines) if row is not None]
    schema = {name: pl.List(pl.String) if name in lists else pl.String() for name in columns}
    frame = pl.DataFrame([[row.get(name) for name in columns] for row in rows], schema=schema, orient="row")
    return Chunk(frame, len(lines) - len(rows))


def _json_row(line: str, lists: frozenset[str]) -> Row | None:
    """Return one line as strings, None if it is malformed."""
    try:
        row = json.loads(line, parse_int=str, parse_float=_check_finite, parse_constant=_refuse_number)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(isinstance(row.get(name), list | None) for name in lists):
        return None
    return {name: _json_string(value) for name, value in row.items()}


def _check_finite(number: str) -> str:
    return number if abs(float(number)) != float("inf") else _refuse_number(number)


def _refuse_number(number: str) -> str:
    raise ValueError(f"{number} is not a number in JSON")


def _json_string(value: object) -> object:
    """Return a JSON value as a string, a list as a list of strings; null stays null."""
    if isinstance(value, list):
        return [_json_string(element) for element in value]
    if value is None:
        return None
    return json.dumps(value) if isinstance(value, dict) else as_string(value)
