"""The Spark engine: the same tasks as the local one, moved by Spark.

Rows do not travel one by one. A map task types its piece of the input, splits it by user bucket, and emits one row
per bucket and kind, whose `data` is an Arrow stream of all its rows for that bucket. Spark shuffles and sorts these
few, large rows (and spills them); a reduce task gets all of a bucket, runs the kernel, writes the shard and returns
its description. The driver commits.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from longbatch.jobs.java import provide_java
from longbatch.jobs.local import Progress
from longbatch.jobs.sources import CHUNK_ROWS, Chunk, Piece, plain_types, plan_pieces, read_piece
from longbatch.jobs.tasks import (
    Built,
    bucket_count,
    bucket_parts,
    make_bucket,
    make_quarantine,
    make_vocabulary,
    split_by_bucket,
    type_chunk,
)
from longbatch.pipelines.canonicalize import conflicting_requests, needed_columns
from longbatch.schemas import errors
from longbatch.schemas.ledger import Counts, RowLedger
from longbatch.schemas.shard import SHARDS_SCHEMA
from longbatch.schemas.spec import BuildSpec
from longbatch.schemas.tables import canonical_schema

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

PARTS = pa.schema({"bucket": pa.int32(), "kind": pa.string(), "name": pa.string(), "data": pa.binary()})
PARTS_DDL = "bucket int, kind string, name string, data binary"
RESULTS_DDL = "shards binary, books string"
FLUSH_BYTES = 32 << 20


class SparkEngine:
    """Builds on Spark: on the session that is there, else on a new one at `master` (default `local[*]`)."""

    def __init__(self, master: str | None = None) -> None:
        self.master = master

    def build(self, spec: BuildSpec, root: Path, attempt: str, progress: Progress) -> Built:
        """Build all files of a dataset under `root`, which every executor must reach by the same path."""
        session, ours = None, False
        try:
            session, ours = self._session(root, attempt)
            return _build(session, spec, root.absolute(), attempt, progress)
        except Exception as error:
            raise _own_error(error) from None
        finally:
            if session is not None and ours:
                _stop(session)
            shutil.rmtree(_scratch(root, attempt), ignore_errors=True)

    def _session(self, root: Path, attempt: str) -> tuple[SparkSession, bool]:
        try:
            from pyspark.sql import SparkSession
        except ImportError:
            raise errors.MachineError('the spark engine needs pyspark: pip install "longbatch[spark]"') from None
        active = SparkSession.getActiveSession()
        if active is not None:
            return active, False
        if "PYSPARK_GATEWAY_PORT" in os.environ:  # spark-submit has set up Java, master and all settings
            return SparkSession.builder.appName("longbatch build").getOrCreate(), True
        provide_java()
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        builder = SparkSession.builder.appName("longbatch build")
        scratch = _scratch(root, attempt)
        scratch.mkdir(parents=True, exist_ok=True)
        if self.master:
            builder = builder.master(self.master)
        for key, value in _LOCAL_SETTINGS.items() if (self.master or "local").startswith("local") else ():
            builder = builder.config(key, value.format(scratch=scratch, java=_java_folder()))
        return builder.getOrCreate(), True


def _stop(session: SparkSession) -> None:
    """Stop a session of our own, and let Java forget its scratch folder: the next session has another."""
    java: Any = session.sparkContext._jvm
    session.stop()
    getattr(getattr(java.org.apache.spark.util, "Utils$"), "MODULE$").clearLocalRootDirs()


def _scratch(root: Path, attempt: str) -> Path:
    return root.absolute() / f".work-{attempt}"


@cache
def _java_folder() -> str:
    """A folder for the temporary files of Java, which outlives every session of this process."""
    folder = tempfile.mkdtemp(prefix="longbatch-spark-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


# For a session of our own on this machine: quiet, no port opened but on loopback, no trace outside the output.
_LOCAL_SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "ERROR",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "2g",
    "spark.local.dir": "{scratch}",
    "spark.sql.warehouse.dir": "{scratch}/warehouse",
    "spark.driver.extraJavaOptions": '-XX:TieredStopAtLevel=1 -XX:-UsePerfData -Djava.io.tmpdir="{java}"',
}


def _build(session: SparkSession, spec: BuildSpec, root: Path, attempt: str, progress: Progress) -> Built:
    pieces = {s: plan_pieces(spec, s) for s, e in spec.sources.items() if e.file_format != "table"}
    rows = sum(piece.rows for listed in pieces.values() for piece in listed)
    tables = [source for source in spec.sources if source not in pieces]
    rows += sum(_table(session, spec, source).count() for source in tables)
    buckets = bucket_count(rows)
    progress("map", 0, 3)
    mapped = _map_pieces(session, spec, [piece for listed in pieces.values() for piece in listed], buckets)
    for source in tables:
        part = _map_table(session, spec, source, buckets)
        mapped = part if mapped is None else mapped.unionAll(part)
    empty = Built(ledgers={source: RowLedger() for source in spec.sources})
    if mapped is None:
        return empty
    with _persisted(session, mapped, wanted=spec.requests.request_id is not None):
        conflicts = [] if spec.requests.request_id is None else _find_conflicts(mapped, buckets)
        progress("shards", 1, 3)
        reduced = (
            mapped.filter("kind <> 'owners'")
            .repartitionById(buckets, mapped["bucket"])
            .sortWithinPartitions("bucket", "kind", "name")
            .mapInArrow(partial(_reduce, spec.model_dump_json(), str(root), attempt, conflicts), RESULTS_DDL)
            .collect()
        )
    progress("shards", 2, 3)
    built = sum((_unpack_result(row["shards"], row["books"]) for row in reduced), empty)
    if conflicts:
        built += _quarantine_conflicts(session, spec, pieces, root, attempt, conflicts)
    progress("shards", 3, 3)
    return built


@contextmanager
def _persisted(session: SparkSession, frame: DataFrame, *, wanted: bool) -> Iterator[None]:
    """Keep a frame that is read twice on the executors' disks, in small batches, for its rows are large."""
    from pyspark import StorageLevel

    if not wanted:
        yield
        return
    size = "spark.sql.inMemoryColumnarStorage.batchSize"
    before = session.conf.get(size)
    session.conf.set(size, "4")
    frame.persist(StorageLevel.DISK_ONLY)
    try:
        yield
    finally:
        frame.unpersist()
        session.conf.set(size, before)


def _map_pieces(session: SparkSession, spec: BuildSpec, pieces: list[Piece], buckets: int) -> DataFrame | None:
    if not pieces:
        return None
    rows = [(number, json.dumps(asdict(piece))) for number, piece in enumerate(pieces)]
    frame = session.createDataFrame(rows, "number int, piece string").repartitionById(len(pieces), "number")
    return frame.mapInArrow(partial(_map_piece_batches, spec.model_dump_json(), buckets), PARTS_DDL)


def _table(session: SparkSession, spec: BuildSpec, source: str) -> DataFrame:
    from pyspark.errors import AnalysisException

    name = spec.sources[source].path[0]
    try:
        return session.table(name)
    except AnalysisException as error:
        reason = str(error).splitlines()[0]
        raise errors.SourceError(f"source {source}: Spark knows no table {name}: {reason}") from None


def _map_table(session: SparkSession, spec: BuildSpec, source: str, buckets: int) -> DataFrame:
    """Type the rows of a table that Spark knows by name; it has no files, so rows are numbered per task."""
    name, frame = spec.sources[source].path[0], _table(session, spec, source)
    missing = [column for column in needed_columns(spec, source) if column not in frame.columns]
    if missing:
        raise errors.SourceError(
            f"source {source}: table {name} has no column {', '.join(map(repr, missing))}; "
            f"its columns are {', '.join(frame.columns)}"
        )
    selected = frame.select(*needed_columns(spec, source))
    return selected.mapInArrow(partial(_map_table_batches, spec.model_dump_json(), source, name, buckets), PARTS_DDL)


def _map_piece_batches(spec_json: str, buckets: int, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    spec = BuildSpec.model_validate_json(spec_json)
    for batch in batches:
        for text in batch["piece"].to_pylist():
            piece = Piece(**json.loads(text))
            for chunk in read_piece(spec, piece):
                yield from _map_chunk(spec, piece.source, chunk, buckets)


def _piece_chunks(spec: BuildSpec, batches: Iterable[pa.RecordBatch]) -> Iterator[Chunk]:
    for batch in batches:
        for text in batch["piece"].to_pylist():
            yield from read_piece(spec, Piece(**json.loads(text)))


def _map_table_batches(
    spec_json: str, source: str, name: str, buckets: int, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    spec = BuildSpec.model_validate_json(spec_json)
    for chunk in _table_chunks(name, batches):
        yield from _map_chunk(spec, source, chunk, buckets)


def _table_chunks(name: str, batches: Iterable[pa.RecordBatch]) -> Iterator[Chunk]:
    """Chunks of about CHUNK_ROWS from the small batches that Spark sends."""
    first, held, rows = 0, [], 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        if rows >= CHUNK_ROWS:
            yield _table_chunk(name, first, held)
            first, held, rows = first + rows, [], 0
    if held:
        yield _table_chunk(name, first, held)


def _table_chunk(name: str, first: int, batches: list[pa.RecordBatch]) -> Chunk:
    return Chunk(name, first, plain_types(pl.DataFrame(pl.from_arrow(pa.Table.from_batches(batches)))))


def _map_chunk(spec: BuildSpec, source: str, chunk: Chunk, buckets: int) -> Iterator[pa.RecordBatch]:
    """Parts of one chunk, in record batches of about FLUSH_BYTES."""
    typed = type_chunk(spec, source, chunk)
    name = f"{chunk.path}#{chunk.first_row}"
    home = sum(name.encode()) % buckets
    rows: list[dict[str, Any]] = [_part(home, f"ledger:{source}", name, json.dumps(typed.ledger.as_dict()).encode())]
    if typed.rejected.height or chunk.malformed:
        rows.append(_part(home, f"rejected:{source}", _origin(chunk), _stream(_whole(typed.rejected))))
    for kind, (frame, bucket) in bucket_parts(spec, source, typed, buckets).items():
        for number, batch in enumerate(split_by_bucket(frame, bucket, buckets)):
            if batch.num_rows:
                rows.append(_part(number, kind, name, _stream(batch)))
            if sum(len(row["data"]) for row in rows) >= FLUSH_BYTES:
                yield pa.RecordBatch.from_pylist(rows, schema=PARTS)
                rows = []
    if rows:
        yield pa.RecordBatch.from_pylist(rows, schema=PARTS)


def _part(bucket: int, kind: str, name: str, data: bytes) -> dict[str, Any]:
    return {"bucket": bucket, "kind": kind, "name": name, "data": data}


def _origin(chunk: Chunk) -> str:
    return json.dumps({"path": chunk.path, "first_row": chunk.first_row, "malformed": chunk.malformed})


def _whole(frame: pl.DataFrame) -> pa.RecordBatch:
    batches = frame.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=frame.head(0).to_arrow().schema)


def _stream(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def _frame(parts: list[bytes]) -> pl.DataFrame:
    tables = [pa.ipc.open_stream(part).read_all() for part in parts]
    return pl.DataFrame(pl.from_arrow(pa.concat_tables(tables)))


def _find_conflicts(mapped: DataFrame, buckets: int) -> list[Any]:
    """Request ids that several users share: each id's owners meet in one bucket."""
    owners = mapped.filter("kind = 'owners'").repartitionById(buckets, mapped["bucket"])
    found = owners.sortWithinPartitions("bucket").mapInArrow(_conflict_batches, "ids binary").collect()
    frames = [_frame([row["ids"]]) for row in found]
    return pl.concat(frames)["request_id"].to_list() if frames else []


def _conflict_batches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for _, parts in groupby(_rows(batches), key=lambda row: row["bucket"]):
        conflicts = conflicting_requests(_frame([row["data"] for row in parts]))
        if len(conflicts):
            yield pa.RecordBatch.from_pydict({"ids": [_stream(_whole(conflicts.to_frame()))]}, schema=_IDS)


_IDS = pa.schema({"ids": pa.binary()})


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """One dict per part: few and large, never one per row of the data."""
    for batch in batches:
        yield from batch.to_pylist()


def _reduce(
    spec_json: str, root: str, attempt: str, conflicts: list[Any], batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Build every bucket of this partition; file names carry the task attempt, so a retry never meets its elder."""
    from pyspark import TaskContext

    context = TaskContext.get()
    name = f"{attempt}-{context.taskAttemptId() if context else 0}"
    spec = BuildSpec.model_validate_json(spec_json)
    ids = pl.Series("request_id", conflicts) if conflicts else None
    for bucket, parts in groupby(_rows(batches), key=lambda row: int(row["bucket"])):
        kinds = {kind: list(rows) for kind, rows in groupby(parts, key=lambda row: str(row["kind"]))}
        yield _pack_result(_reduce_bucket(spec, Path(root), name, bucket, kinds, ids))


def _reduce_bucket(
    spec: BuildSpec,
    root: Path,
    attempt: str,
    bucket: int,
    kinds: dict[str, list[dict[str, Any]]],
    conflicts: pl.Series | None,
) -> Built:
    built = Built()
    frames = {}
    for source in spec.sources:
        for row in kinds.pop(f"ledger:{source}", []):
            built += Built(ledgers={source: RowLedger(**json.loads(row["data"]))})
        for number, row in enumerate(kinds.pop(f"rejected:{source}", [])):
            origin = json.loads(row["name"])
            chunk = Chunk(origin["path"], origin["first_row"], pl.DataFrame(), tuple(origin["malformed"]))
            file = f"{source}-{attempt}-{bucket:05d}-{number:04d}"
            built += make_quarantine(_frame([row["data"]]), chunk, root, file)
        parts = kinds.pop(f"rows:{source}", [])
        empty = pl.DataFrame(pl.from_arrow(canonical_schema(spec, source).empty_table()))
        frames[source] = _frame([row["data"] for row in parts]) if parts else empty
        del parts
    words = kinds.pop("vocabulary", [])
    if words:
        built += make_vocabulary(_frame([row["data"] for row in words]), spec, root, bucket, attempt)
    return built + make_bucket(spec, frames, conflicts, root, bucket, attempt)


def _pack_result(built: Built) -> pa.RecordBatch:
    shards = _stream(pa.RecordBatch.from_pylist(built.shards, schema=SHARDS_SCHEMA))
    books = {
        "vocabulary": built.vocabulary,
        "quarantine": built.quarantine,
        "ledgers": {source: ledger.as_dict() for source, ledger in built.ledgers.items()},
        "counts": built.counts.as_dict(),
        "collisions": built.collisions,
    }
    schema = pa.schema({"shards": pa.binary(), "books": pa.string()})
    return pa.RecordBatch.from_pydict({"shards": [shards], "books": [json.dumps(books)]}, schema=schema)


def _unpack_result(shards: bytes, text: str) -> Built:
    books = json.loads(text)
    return Built(
        shards=pa.ipc.open_stream(shards).read_all().to_pylist(),
        vocabulary=books["vocabulary"],
        quarantine=books["quarantine"],
        ledgers={source: RowLedger(**ledger) for source, ledger in books["ledgers"].items()},
        counts=Counts(**books["counts"]),
        collisions=books["collisions"],
    )


def _quarantine_conflicts(
    session: SparkSession,
    spec: BuildSpec,
    pieces: dict[str, list[Piece]],
    root: Path,
    attempt: str,
    conflicts: list[Any],
) -> Built:
    """Read the requests' source once more, only to keep the rows of conflicting requests as they came."""
    source = spec.requests.source
    if source in pieces:
        rows = [(number, json.dumps(asdict(piece))) for number, piece in enumerate(pieces[source])]
        frame = session.createDataFrame(rows, "number int, piece string").repartitionById(len(rows), "number")
    else:
        frame = _table(session, spec, source).select(*needed_columns(spec, source))
    function = partial(_conflict_rows, spec.model_dump_json(), source in pieces, str(root), attempt, conflicts)
    found = frame.mapInArrow(function, RESULTS_DDL).collect()
    return sum((_unpack_result(row["shards"], row["books"]) for row in found), Built())


def _conflict_rows(
    spec_json: str, from_files: bool, root: str, attempt: str, conflicts: list[Any], batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    from pyspark import TaskContext

    context = TaskContext.get()
    task = context.taskAttemptId() if context else 0
    spec = BuildSpec.model_validate_json(spec_json)
    source, ids = spec.requests.source, pl.Series("request_id", conflicts)
    chunks = _piece_chunks(spec, batches) if from_files else _table_chunks(spec.sources[source].path[0], batches)
    for number, chunk in enumerate(chunks):
        typed = type_chunk(spec, source, chunk, ids)
        hit = typed.rejected.filter(pl.col("_reasons") == ["conflicting_request"])
        name = f"conflicts-{attempt}-{task}-{number:06d}"
        yield _pack_result(make_quarantine(hit, Chunk(chunk.path, chunk.first_row, chunk.frame), Path(root), name))


def _own_error(error: Exception) -> Exception:
    """Give back the longbatch error that a task raised, without Spark's wrapping; any other error as it is."""
    if isinstance(error, errors.LongbatchError):
        return error
    if "JAVA_GATEWAY_EXITED" in str(error):
        return errors.MachineError("Java did not start (it says why above); set JAVA_HOME to a Java 17 or newer")
    match = re.search(r"longbatch\.schemas\.errors\.(\w+): (.*)", str(error))
    kind = getattr(errors, match[1], None) if match else None
    return kind(match[2]) if match and isinstance(kind, type) else error
