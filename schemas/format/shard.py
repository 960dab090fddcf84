"""The shard: Arrow IPC files of one user bucket, timelines and requests, block beside block, and their dictionaries.

Writer and reader side by side; `stored` says how a block lies in them, docs/format.md the same to other languages.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.errors import DatasetError, MachineError
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import TIMESTAMP

from .decoder import Decoder
from .dictionaries import Columns, dictionaries_schema, read_dictionaries
from .encoder import encode_blocks
from .local_files import Files, LocalFiles, block_range, read_record_batch
from .physical_schema import ALL_FIELDS, Batches, Fields, stored_requests_schema, stored_timelines_schema

T = TypeVar("T")
FILE_FIELDS = {"path": pa.string(), "bytes": pa.int64(), "sha256": pa.string()}
BLOCK_FIELDS = {
    "segments": pa.int64(),
    "events": pa.int64(),
    "requests": pa.int64(),
    "targets": pa.int64(),
    "history_events": pa.int64(),
    "first_request_time": TIMESTAMP,
    "last_request_time": TIMESTAMP,
    "timelines_offset": pa.int64(),
    "timelines_bytes": pa.int64(),
    "timelines_crc32": pa.uint32(),
    "requests_offset": pa.int64(),
    "requests_bytes": pa.int64(),
    "requests_crc32": pa.uint32(),
}
ZSTD_LEVEL = 3
SHARD_TABLES = ("timelines", "requests", "dictionaries")
COUNTED = ("segments", "events", "requests", "targets", "history_events")
SHARDS_SCHEMA = pa.schema(
    {
        "bucket": pa.int32(),
        "timelines": pa.struct(FILE_FIELDS),
        "requests": pa.struct(FILE_FIELDS),
        "dictionaries": pa.struct(FILE_FIELDS),
        **{f"total_{name}": pa.int64() for name in COUNTED},
        "first_request_time": TIMESTAMP,
        "last_request_time": TIMESTAMP,
        "blocks": pa.list_(pa.struct(BLOCK_FIELDS)),
    }
)
NEVER_NULL = {
    *("user_id", "segment", "item_id", "event_time"),
    *("request_id", "request_time", "timeline_row", "history_end"),
}


@dataclass(frozen=True)
class Block:
    """A pair of record batches: the timelines, and the requests that point into them."""

    timelines: pa.RecordBatch
    requests: pa.RecordBatch


class HashingFile:
    """A file being written once, front to back, that knows its length and checksums."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self.crc32 = 0
        self._sha256 = hashlib.sha256()
        self._file: BinaryIO = path.open("xb")

    def write(self, data: Any) -> int:
        """Append bytes; a full disk is a MachineError that names the file."""
        view = memoryview(data)
        try:
            self._file.write(view)
        except OSError as error:
            raise MachineError(disk_message(error, self.path)) from None
        self._sha256.update(view)
        self.crc32 = zlib.crc32(view, self.crc32)
        self.bytes += view.nbytes
        return view.nbytes

    def close(self) -> None:
        """Flush to the disk itself, so that a committed snapshot never names a file that a crash could lose."""
        if self._file.closed:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise MachineError(disk_message(error, self.path)) from None
        finally:
            self._file.close()

    @property
    def closed(self) -> bool:
        """Whether the file is closed (asked by pyarrow)."""
        return self._file.closed

    def flush(self) -> None:
        """Do nothing (asked by pyarrow): `close` flushes."""

    def readable(self) -> bool:
        """Say no (asked by pyarrow)."""
        return False

    def writable(self) -> bool:
        """Say yes (asked by pyarrow)."""
        return True

    def seekable(self) -> bool:
        """Say no (asked by pyarrow)."""
        return False

    def describe(self, root: Path) -> dict[str, Any]:
        """Path relative to the dataset, bytes, sha256."""
        relative = self.path.relative_to(root).as_posix()
        return {"path": relative, "bytes": self.bytes, "sha256": self._sha256.hexdigest()}


def disk_message(error: OSError, path: Path) -> str:
    """Say what went wrong with the disk, where, and that nothing is committed."""
    return f"cannot write {path}: {error.strerror or error}; free space there and run again; nothing was committed"


def codec_of(compression: str) -> pa.Codec | None:
    """The codec of a spec's `compression`. Level 3 of zstd is 14-20 % smaller than Arrow's default 1, measured."""
    if compression == "none":
        return None
    return pa.Codec("zstd", compression_level=ZSTD_LEVEL) if compression == "zstd" else pa.Codec("lz4")


class _TableWriter:
    """One of the two files of a shard."""

    def __init__(self, path: Path, schema: pa.Schema, compression: str) -> None:
        self.file = HashingFile(path)
        try:
            options = pa.ipc.IpcWriteOptions(compression=codec_of(compression), use_threads=False)
            self._sink = pa.PythonFile(self.file, mode="w")
            self._writer = pa.ipc.new_file(self._sink, schema, options=options)
        except BaseException:
            self.discard()
            raise

    def write(self, batch: pa.RecordBatch) -> tuple[int, int, int]:
        """Append a record batch; return its offset, length and crc32 in the file."""
        offset, self.file.crc32 = self.file.bytes, 0
        self._writer.write_batch(batch)
        return offset, self.file.bytes - offset, self.file.crc32

    def close(self) -> None:
        try:
            self._writer.close()
        finally:
            self.file.close()

    def discard(self) -> None:
        """Close and remove the file, whatever state an error left it in."""
        with suppress(MachineError):
            self.file.close()
        self.file.path.unlink(missing_ok=True)


def shard_files(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The file entries {path, bytes, sha256} of a row of the shards table: a shard without dictionaries has two."""
    return [row[table] for table in SHARD_TABLES if row[table] is not None]


def write_shard(
    root: Path, bucket: int, attempt: str, spec: BuildSpec, blocks: Iterable[tuple[pa.RecordBatch, pa.RecordBatch]]
) -> dict[str, Any] | None:
    """Write a bucket's blocks under `root`; return its row of the shards table, or None if there are no blocks.

    `attempt` makes the file names unique, so that a retried task never touches another's files. On an
    error all its files are removed.
    """
    name = f"{bucket:05d}-{attempt}.arrow"
    schemas = stored_timelines_schema(spec), stored_requests_schema(spec)
    tables: list[_TableWriter] = []
    described: list[dict[str, Any]] = []
    plain, blocks = tee(blocks)
    try:
        dictionaries, stored = encode_blocks(spec, blocks)
        for (timelines, requests), batches in zip(plain, stored, strict=True):
            if not tables:
                for folder, schema in zip(SHARD_TABLES, schemas, strict=False):
                    tables.append(_TableWriter(root / folder / name, schema, spec.compression))
            places = tables[0].write(batches[0]), tables[1].write(batches[1])
            described.append(_describe(timelines, requests, places, spec.history_length))
        if dictionaries is not None:
            tables.append(_TableWriter(root / SHARD_TABLES[2] / name, dictionaries.schema, spec.compression))
            tables[2].write(dictionaries)
        for table in tables:
            table.close()
    except BaseException:
        for table in tables:
            table.discard()
        raise
    return _shard_row(bucket, described, [table.file.describe(root) for table in tables]) if tables else None


def _describe(
    timelines: pa.RecordBatch, requests: pa.RecordBatch, places: tuple[tuple[int, int, int], ...], length: int
) -> dict[str, Any]:
    first_last = pc.min_max(requests["request_time"])
    lengths = pc.min_element_wise(requests["history_end"], length)
    places_of = dict(zip(("timelines", "requests"), places, strict=True))
    return {
        "segments": timelines.num_rows,
        "events": len(timelines["events"].flatten()),
        "requests": requests.num_rows,
        "targets": len(requests["targets"].flatten()),
        "history_events": pc.sum(lengths.cast(pa.int64())).as_py() or 0,
        "first_request_time": first_last["min"],
        "last_request_time": first_last["max"],
        **{
            f"{table}_{what}": place[i]
            for table, place in places_of.items()
            for i, what in enumerate(("offset", "bytes", "crc32"))
        },
    }


def _shard_row(bucket: int, blocks: list[dict[str, Any]], files: list[dict[str, Any]]) -> dict[str, Any]:
    blocks = [{k: v.as_py() if isinstance(v, pa.Scalar) else v for k, v in block.items()} for block in blocks]
    return {
        "bucket": bucket,
        "timelines": files[0],
        "requests": files[1],
        "dictionaries": files[2] if len(files) > 2 else None,
        **{f"total_{name}": sum(block[name] for block in blocks) for name in COUNTED},
        "first_request_time": min(block["first_request_time"] for block in blocks),
        "last_request_time": max(block["last_request_time"] for block in blocks),
        "blocks": blocks,
    }


class ShardReader:
    """Reads blocks of one shard from memory-mapped files; opened where it is used, never pickled.

    fields: those of events and targets to read and decode; blocks then hold only them.
    """

    def __init__(
        self,
        root: Path,
        row: dict[str, Any],
        spec: BuildSpec,
        fields: Fields = ALL_FIELDS,
        files: Files | None = None,
    ) -> None:
        self._root, self._row, self._spec, self._fields = root, row, spec, fields
        self._files = files or LocalFiles(root)
        self._checked: set[int] = (
            set()
        )  # blocks found sound: their bytes, once compared with their checksum, are the same
        self._paths = {table: str(root / str(row[table]["path"])) for table in ("timelines", "requests")}
        self._schemas = {"timelines": stored_timelines_schema(spec), "requests": stored_requests_schema(spec)}
        self._decoder = Decoder(spec, self._dictionaries(), fields) if spec.is_compact else None
        if files is None:
            for table, schema in self._schemas.items():
                self._check_footer(table, schema)

    def _check_footer(self, table: str, schema: pa.Schema) -> None:
        """Other readers find blocks by the footer; here they are read where the snapshot lists them."""
        path = check_file(self._root, self._row[table])
        reader = _open_arrow(path, schema)
        if reader.num_record_batches != len(self._row["blocks"]):
            raise DatasetError(
                f"{path} holds {reader.num_record_batches} blocks, the snapshot lists {len(self._row['blocks'])}; "
                "build it again"
            )

    def _included(self, table: str, schema: pa.Schema) -> list[int] | None:
        """The columns of a file to read: of the lists of events those that the chosen fields need."""
        if self._decoder is None or self._fields == ALL_FIELDS:
            return None
        names = self._decoder.stored_events
        return [place for place, name in enumerate(schema.names) if not name.startswith("events.") or name in names]

    def _dictionaries(self) -> dict[str, Columns]:
        schema = dictionaries_schema(self._spec)
        if not schema.names:
            return {}
        if self._row["dictionaries"] is None:
            raise DatasetError(
                f"{self._root / self._row['timelines']['path']} has no dictionaries listed; build it again"
            )
        path = self._root / str(self._row["dictionaries"]["path"])
        buffer = self._files.whole(self._row["dictionaries"])
        try:
            return read_dictionaries(self._spec, _only_batch(pa.ipc.open_file(buffer), schema))
        except (DatasetError, pa.ArrowException, OSError) as error:
            raise DatasetError(f"{path} cannot be read: {error}; build it again") from None

    def block(self, number: int) -> Block:
        """Read block `number`, checked the first time: row counts against the snapshot, and every offset within bounds.

        Raises DatasetError naming file and block.
        """
        timelines, requests = self.stored(number)
        where, fresh = self.where("requests", number), number not in self._checked
        if self._decoder is None:
            if fresh:
                _check_cuts(timelines, requests, where)
        else:
            timelines, events = _told(self.where("timelines", number), self._decoder.timelines, timelines)
            if fresh:
                _check_cuts(timelines, requests, where)
            requests = _told(where, self._decoder.requests, requests, timelines, events)
        if fresh:
            _check_known(timelines, "events", self.where("timelines", number))
            _check_known(requests, "targets", where)
            self._checked.add(number)
        return Block(timelines, requests)

    def stored(self, number: int) -> Batches:
        """Block `number` as it lies in the files, timelines and requests; only row counts are checked."""
        return self._stored("timelines", number), self._stored("requests", number)

    def where(self, table: str, number: int) -> str:
        """The file of a block, and which of its blocks it is."""
        return f"{self._paths[table]}, block {number}"

    def request_columns(self, number: int, names: Sequence[str]) -> pa.RecordBatch:
        """Columns of a block's requests, of those that belong to no target; nothing else is decoded."""
        schema = self._schemas["requests"]
        return self._stored("requests", number, [schema.get_field_index(name) for name in names])

    def _stored(self, table: str, number: int, included: Sequence[int] | None = None) -> pa.RecordBatch:
        """One record batch as it lies in the file."""
        where, schema = self.where(table, number), self._schemas[table]
        buffer = self._files.range(block_range(self._row, table, number), where)
        included = self._included(table, schema) if included is None else included
        batch = read_record_batch(buffer, number, schema, included, where)
        listed = self._row["blocks"][number]["segments" if table == "timelines" else "requests"]
        if batch.num_rows != listed:
            raise DatasetError(f"{where} holds {batch.num_rows} rows, the snapshot lists {listed}; build it again")
        return batch


def _only_batch(reader: pa.RecordBatchFileReader, schema: pa.Schema) -> pa.RecordBatch:
    """The one record batch of a file, every offset and text of it checked before anything follows them."""
    if not reader.schema.equals(schema):
        raise DatasetError("its columns are not those of the dataset's spec")
    if reader.num_record_batches != 1:
        raise DatasetError(f"it holds {reader.num_record_batches} record batches, where one was written")
    batch = reader.get_batch(0)
    batch.validate(full=True)
    return batch


def _told(where: str, decode: Callable[..., T], *parts: Any) -> T:
    """Call a decoder; its errors say where."""
    try:
        return decode(*parts)
    except (DatasetError, pa.ArrowException) as error:
        raise DatasetError(f"{where} cannot be read: {error}; build it again") from None


def _open_arrow(path: Path, schema: pa.Schema) -> pa.RecordBatchFileReader:
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} is not the Arrow file that was written: {error}; build it again") from None
    if not reader.schema.equals(schema):
        raise DatasetError(f"{path}: its columns are not those of the dataset's spec; build it again")
    return reader


def _check_known(batch: pa.RecordBatch, records: str, where: str) -> None:
    """Raise DatasetError for a null in a column of the format itself, which never holds one."""
    lists = batch[records]
    own = {name: batch[name] for name in batch.schema.names if name in NEVER_NULL}
    inner = {f"{records}.{name}": lists.values.field(name) for name in lists.values.type.names if name in NEVER_NULL}
    for name, values in {**own, records: lists, f"{records}.": lists.values, **inner}.items():
        if values.null_count:
            raise DatasetError(f"{where}: {name} has {values.null_count} nulls, and must have none; build it again")


def _check_cuts(timelines: pa.RecordBatch, requests: pa.RecordBatch, where: str) -> None:
    """Raise DatasetError unless every request points to a timeline of its own user, and its slice lies inside."""
    if not requests.num_rows:
        return
    rows, ends = requests["timeline_row"], requests["history_end"]
    bounds = pc.min_max(rows)
    if rows.null_count or bounds["min"].as_py() < 0 or bounds["max"].as_py() >= timelines.num_rows:
        raise DatasetError(f"{where}: timeline_row points outside the {timelines.num_rows} timelines beside it")
    lengths = pc.list_value_length(timelines["events"]).take(rows)
    fine = pc.and_(pc.greater_equal(ends, 0), pc.less_equal(ends, lengths))
    if not pc.all(fine, skip_nulls=False).as_py():
        bad = pc.index(fine.fill_null(False), False).as_py()
        raise DatasetError(
            f"{where}: request row {bad} has history_end {ends[bad].as_py()}, "
            f"but its timeline holds {lengths[bad].as_py()} events"
        )
    _check_owners(timelines, requests, where)


def _check_owners(timelines: pa.RecordBatch, requests: pa.RecordBatch, where: str) -> None:
    rows = requests["timeline_row"]
    pointed = {name: timelines[name].take(rows) for name in ("user_id", "segment")}
    fine = pc.and_(*(pc.equal(requests[name], pointed[name]) for name in pointed))
    if not pc.all(fine, skip_nulls=False).as_py():
        bad = pc.index(fine.fill_null(False), False).as_py()
        mine, other = ({name: table[name][bad].as_py() for name in pointed} for table in (requests, pointed))
        raise DatasetError(
            f"{where}: request row {bad} is of user {mine['user_id']} (segment {mine['segment']}), "
            f"its timeline of user {other['user_id']} (segment {other['segment']})"
        )


def check_file(root: Path, entry: dict[str, Any], *, checksum: bool = False) -> Path:
    """Return the path of a listed file; raise DatasetError if it is missing, of another length, or altered."""
    path = root / str(entry["path"])
    try:
        size = path.stat().st_size
    except OSError:
        raise DatasetError(f"{path} is listed in the snapshot but missing; restore it or build again") from None
    if size != entry["bytes"]:
        raise DatasetError(f"{path} has {size:,} bytes, the snapshot lists {entry['bytes']:,}; build it again")
    if checksum:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != entry["sha256"]:
            raise DatasetError(f"{path} was altered: sha256 {found[:12]}..., listed {str(entry['sha256'])[:12]}...")
    return path


def file_entry(root: Path, path: Path, rows: int) -> dict[str, Any]:
    """Path relative to the dataset, bytes, sha256 and rows of a small file just written, which is then on disk for good."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return {"path": path.relative_to(root).as_posix(), "bytes": path.stat().st_size, "sha256": digest, "rows": rows}
