"""Tasks of the Spark engine, called without Spark."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import polars as pl
import pytest

from longbatch.jobs.engines import spark_functions
from longbatch.jobs.engines.context import BuildContext
from longbatch.jobs.engines.spark_functions import TaskSettings, map_table, split_partitions
from longbatch.jobs.engines.spark_parts import PARTS_SCHEMA, Part, frame_of, parts_batch, read_parts
from longbatch.jobs.engines.stages import one_batch
from longbatch.schemas.spec.build_spec import load_spec
from longbatch.schemas.storage.local_store import LocalStore

Rows = dict[tuple[int, str], list[tuple[object, ...]]]


def sorted_parts(settings: TaskSettings, rows: pl.DataFrame) -> list[Part]:
    """The output of the map task of 40 chunks, as Spark sorts it."""
    chunks = [one_batch(chunk) for chunk in rows.iter_slices(6)]
    parts = [part for batch in map_table(settings, "log", chunks) for part in read_parts(batch)]
    return sorted(parts, key=lambda part: (part.bucket, part.content, part.chunk))


def rows_of(parts: list[Part]) -> Rows:
    """Rows by bucket and content; canonical rows in order, distinct pairs in any order."""
    is_rows = [part for part in parts if part.content.startswith(("rows:", "request_users", "vocabulary"))]
    groups = groupby(is_rows, key=lambda part: (part.bucket, part.content))
    rows = {key: frame_of(group).rows() for key, group in groups}
    return {key: of_key if key[1].startswith("rows:") else sorted(of_key) for key, of_key in rows.items()}


@pytest.mark.parametrize("partitions", [1, 2, 5])
@pytest.mark.parametrize("flush_bytes", [1, 3000, 32 << 20])
def test_rows_split_by_partition_and_then_by_bucket_are_those_split_by_bucket_at_once(
    corrupt_log: Path, monkeypatch: pytest.MonkeyPatch, partitions: int, flush_bytes: int
) -> None:
    monkeypatch.setattr("longbatch.jobs.readers.chunks.CHUNK_ROWS", 6)
    log = pl.read_parquet(corrupt_log.parent / "log" / "*.parquet")
    context = BuildContext(load_spec(corrupt_log), LocalStore(corrupt_log.parent), "attempt", buckets=11)
    expected = rows_of(sorted_parts(TaskSettings(context, 11, log_level=0), log))
    settings = TaskSettings(context, partitions, log_level=0)
    monkeypatch.setattr(spark_functions, "FLUSH_BYTES", flush_bytes)
    batches = [parts_batch(sorted_parts(settings, log), partitions)]
    split = [part for batch in split_partitions(settings, batches) for part in read_parts(batch)]
    assert rows_of(sorted(split, key=lambda part: (part.bucket, part.content, part.chunk))) == expected
    assert len(expected) > 20


def test_a_map_task_emits_rows_of_the_parts_schema(corrupt_log: Path) -> None:
    context = BuildContext(load_spec(corrupt_log), LocalStore(corrupt_log.parent), "attempt", buckets=3)
    log = one_batch(pl.read_parquet(corrupt_log.parent / "log" / "*.parquet"))
    batches = list(map_table(TaskSettings(context, 3, log_level=0), "log", [log]))
    assert all(batch.schema == PARTS_SCHEMA for batch in batches)
    contents = {part.content for batch in batches for part in read_parts(batch)}
    assert contents == {"accounting:log", "rejected:log", "rows:log", "request_users", "vocabulary"}
