"""What runs inside Spark tasks: Arrow batches in, Arrow batches out, nothing of Spark but the task's number.

Map: pieces or table rows to *parts*, one row per chunk, kind and bucket, whose `data` is an Arrow stream. Reduce: all
parts of a bucket to its shard on disk and one *result* row that describes it.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from longbatch.jobs.commit.incremental_state import Increment
from longbatch.jobs.readers.chunks import CHUNK_ROWS, Chunk, Piece, plain_types
from longbatch.jobs.readers.sources import read_piece
from longbatch.pipelines.arrays.narrow_ints import widen
from longbatch.pipelines.canonicalize import LogFacts
from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.format.shard import SHARDS_SCHEMA
from longbatch.schemas.profile import TABLES, profile_of
from longbatch.schemas.spec.build_spec import BuildSpec

from .stages import (
    Built,
    bucket_parts,
    empty_rows,
    find_conflicts,
    make_bucket,
    make_quarantine,
    make_vocabulary,
    one_batch,
    quarantine_conflicts,
    split_by_bucket,
    type_chunk,
)

PARTS = pa.schema({"bucket": pa.int32(), "kind": pa.string(), "name": pa.string(), "data": pa.binary()})
PARTS_DDL = "bucket int, kind string, name string, data binary"
RESULTS_DDL = "shards binary, books string"
OWNERS, LATEST_ACTION = "owners", "latest_action"  # kinds of parts that the driver asks for before the reduce
BUCKET = "bucket"  # a part that only says that there is the bucket
FLUSH_BYTES = 32 << 20


def map_pieces(
    spec_json: str, buckets: int, grown: str | None, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    spec = BuildSpec.model_validate_json(spec_json)
    for source, chunk in _piece_chunks(spec, batches):
        yield from _map_chunk(spec, source, chunk, buckets, Increment.of_json(grown))


def _piece_chunks(spec: BuildSpec, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[str, Chunk]]:
    """Source and chunk of every piece that the rows name."""
    for batch in batches:
        for text in batch["piece"].to_pylist():
            piece = Piece(**json.loads(text))
            for chunk in read_piece(spec, piece):
                yield piece.source, chunk


def map_table(
    spec_json: str, source: str, name: str, buckets: int, grown: str | None, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    spec = BuildSpec.model_validate_json(spec_json)
    for chunk in _table_chunks(name, batches):
        yield from _map_chunk(spec, source, chunk, buckets, Increment.of_json(grown))


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


def _map_chunk(
    spec: BuildSpec, source: str, chunk: Chunk, buckets: int, increment: Increment | None
) -> Iterator[pa.RecordBatch]:
    """Parts of one chunk, in record batches of about FLUSH_BYTES."""
    typed = type_chunk(spec, source, chunk, increment)
    name = f"{chunk.path}#{chunk.first_row}"
    home = sum(name.encode()) % buckets
    rows: list[dict[str, Any]] = [
        _part(home, f"accounting:{source}", name, json.dumps(typed.accounting.as_dict()).encode())
    ]
    if typed.latest_action is not None:
        rows.append(_part(home, LATEST_ACTION, str(typed.latest_action), b""))
    if typed.rejected.height or chunk.malformed:
        rows.append(_part(home, f"rejected:{source}", _origin(chunk), _stream(one_batch(typed.rejected))))
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
    lines = {"malformed": chunk.malformed, "malformed_rows": chunk.malformed_rows}
    return json.dumps({"path": chunk.path, "first_row": chunk.first_row, **lines})


def _stream(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def frame_of(parts: list[bytes]) -> pl.DataFrame:
    """The rows of all parts, in one frame."""
    return widen([pa.ipc.open_stream(part).read_next_batch() for part in parts])


def conflicts_of(
    root: str, attempt: str, grown: str | None, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    name, increment = f"{attempt}-{_task_number()}", Increment.of_json(grown)
    for bucket, parts in groupby(_rows(batches), key=lambda row: int(row["bucket"])):
        pairs = frame_of([row["data"] for row in parts])
        conflicts, built = find_conflicts(pairs, Path(root), bucket, name, increment)
        if len(conflicts) or built.state:
            row = {"ids": [_stream(one_batch(conflicts.to_frame()))], "state": [json.dumps(built.state)]}
            yield pa.RecordBatch.from_pydict(row, schema=_IDS)


_IDS = pa.schema({"ids": pa.binary(), "state": pa.string()})


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """One dict per part: few and large, never one per row of the data."""
    for batch in batches:
        yield from batch.to_pylist()


def _task_number() -> int:
    """Number of this task attempt, unique within a Spark application."""
    from pyspark import TaskContext

    context = TaskContext.get()
    return context.taskAttemptId() if context else 0


def reduce_buckets(
    spec_json: str,
    root: str,
    attempt: str,
    buckets: int,
    conflicts: list[Any],
    log_end: int | None,
    grown: str | None,
    batches: Iterable[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    """Build every bucket of this partition; file names carry the task attempt, so a retry never meets its elder."""
    name = f"{attempt}-{_task_number()}"
    spec = BuildSpec.model_validate_json(spec_json)
    facts = LogFacts(pl.Series("request_id", conflicts) if conflicts else None, log_end)
    for bucket, parts in groupby(_rows(batches), key=lambda row: int(row["bucket"])):
        kinds = {kind: list(rows) for kind, rows in groupby(parts, key=lambda row: str(row["kind"]))}
        yield _pack_result(
            _reduce_bucket(spec, Path(root), name, bucket, buckets, kinds, facts, Increment.of_json(grown))
        )


def _reduce_bucket(
    spec: BuildSpec,
    root: Path,
    attempt: str,
    bucket: int,
    buckets: int,
    kinds: dict[str, list[dict[str, Any]]],
    facts: LogFacts,
    increment: Increment | None,
) -> Built:
    built = Built()
    frames = {}
    for source in spec.sources:
        for row in kinds.pop(f"accounting:{source}", []):
            built += Built(row_accounting={source: RowAccounting(**json.loads(row["data"]))})
        for number, row in enumerate(kinds.pop(f"rejected:{source}", [])):
            origin = json.loads(row["name"])
            chunk = Chunk(**origin, frame=pl.DataFrame())
            file = f"{source}-{attempt}-{bucket:05d}-{number:04d}"
            built += make_quarantine(frame_of([row["data"]]), chunk, root, file)
        parts = kinds.pop(f"rows:{source}", [])
        built += Built(shuffled_bytes=sum(len(row["data"]) for row in parts))
        frames[source] = frame_of([row["data"] for row in parts]) if parts else empty_rows(spec, source)
    words = kinds.pop("vocabulary", [])
    if words:
        built += make_vocabulary(frame_of([row["data"] for row in words]), spec, root, bucket, attempt, increment)
    return built + make_bucket(spec, frames, facts, root, bucket, buckets, attempt, increment)


def _pack_result(built: Built) -> pa.RecordBatch:
    shards = _stream(pa.RecordBatch.from_pylist(built.shards, schema=SHARDS_SCHEMA))
    books = {
        "vocabulary": built.vocabulary,
        "quarantine": built.quarantine,
        "row_accounting": {source: accounting.as_dict() for source, accounting in built.row_accounting.items()},
        "counts": built.counts.as_dict(),
        "collisions": built.collisions,
        "state": built.state,
        "shuffled_bytes": built.shuffled_bytes,
        "profile": built.profile.as_dict(),
        "samples": {name: b64encode(_stream(one_batch(rows))).decode() for name, rows in built.samples.items()},
    }
    schema = pa.schema({"shards": pa.binary(), "books": pa.string()})
    return pa.RecordBatch.from_pydict({"shards": [shards], "books": [json.dumps(books)]}, schema=schema)


def unpack_result(shards: bytes, text: str) -> Built:
    """Read back what a task built."""
    books = json.loads(text)
    return Built(
        shards=pa.ipc.open_stream(shards).read_all().to_pylist(),
        vocabulary=books["vocabulary"],
        quarantine=books["quarantine"],
        row_accounting={source: RowAccounting(**accounting) for source, accounting in books["row_accounting"].items()},
        counts=Counts(**books["counts"]),
        collisions=books["collisions"],
        state=books["state"],
        shuffled_bytes=books["shuffled_bytes"],
        profile=profile_of(books["profile"]),
        samples={name: frame_of([b64decode(books["samples"][name])]) for name in TABLES if name in books["samples"]},
    )


def quarantine_rows(
    spec_json: str,
    from_files: bool,
    root: str,
    attempt: str,
    conflicts: list[Any],
    grown: str | None,
    batches: Iterable[pa.RecordBatch],
) -> Iterator[pa.RecordBatch]:
    task = _task_number()
    spec = BuildSpec.model_validate_json(spec_json)
    source, ids = spec.requests.source, pl.Series("request_id", conflicts)
    table = spec.sources[source].path[0]
    chunks = (chunk for _, chunk in _piece_chunks(spec, batches)) if from_files else _table_chunks(table, batches)
    for number, chunk in enumerate(chunks):
        name = f"conflicts-{attempt}-{task}-{number:06d}"
        yield _pack_result(quarantine_conflicts(spec, chunk, ids, Path(root), name, Increment.of_json(grown)))
