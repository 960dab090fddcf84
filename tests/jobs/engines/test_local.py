"""The local engine: the same dataset whatever the workers, the chunks, the buckets and the order of files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from longbatch.jobs.build import BuildSummary, build
from longbatch.jobs.commit.write_lock import DATASET_FOLDERS
from longbatch.jobs.engines import stages
from longbatch.jobs.engines.local import LocalEngine
from longbatch.jobs.engines.spill import Partition
from longbatch.jobs.engines.stages import bucket_count, split_frame
from longbatch.jobs.engines.worker_pool import WorkerPool
from longbatch.jobs.readers import chunks
from longbatch.schemas.errors import DataError
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.spec.build_spec import load_spec

Books = Callable[[Path, BuildSummary], dict[str, Any]]


def built(spec: Path, out: Path, books: Books, workers: int = 2) -> dict[str, Any]:
    return books(out, build(load_spec(spec), out, engine=LocalEngine(workers)))


def test_every_row_of_a_dirty_log_has_its_fate(corrupt_log: Path, tmp_path: Path, books: Books) -> None:
    accounting = built(corrupt_log, tmp_path / "out", books)["row_accounting"]["log"]
    assert accounting["rows"] == 270
    assert accounting["duplicate"] > 10
    assert set(accounting["reasons"]) == {
        "conflicting_request",
        "missing_label:click",
        "missing_user",
        "time_out_of_range",
    }


def test_the_quarantine_holds_every_rejected_row(corrupt_log: Path, tmp_path: Path, books: Books) -> None:
    found = built(corrupt_log, tmp_path / "out", books)
    assert len(found["quarantine"]) == found["row_accounting"]["log"]["rejected"]


@pytest.mark.parametrize(
    ("workers", "rows_per_bucket", "chunk_rows"), [(1, 1 << 20, 1 << 20), (3, 30, 1 << 20), (2, 100, 20), (2, 7, 5)]
)
def test_workers_buckets_and_chunks_change_nothing(
    corrupt_log: Path,
    tmp_path: Path,
    books: Books,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    rows_per_bucket: int,
    chunk_rows: int,
) -> None:
    expected = built(corrupt_log, tmp_path / "expected", books)
    monkeypatch.setattr(stages, "ROWS_PER_BUCKET", rows_per_bucket)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", chunk_rows)
    assert built(corrupt_log, tmp_path / "out", books, workers) == expected
    shards = open_dataset(tmp_path / "out").shards
    assert (len(shards) > 1) == (rows_per_bucket < 270)


def test_the_order_and_number_of_files_change_nothing(corrupt_log: Path, tmp_path: Path, books: Books) -> None:
    expected = built(corrupt_log, tmp_path / "expected", books)
    folder = corrupt_log.parent / "log"
    rows = pl.concat([pl.read_parquet(path) for path in sorted(folder.iterdir())])
    for path in list(folder.iterdir()):
        path.unlink()
    rows.sample(fraction=1, shuffle=True, seed=3).write_parquet(folder / "one.parquet")
    assert built(corrupt_log, tmp_path / "out", books) == expected


@pytest.mark.parametrize("name", ["csv", "csv.gz", "jsonl", "arrow"])
def test_the_format_of_the_log_changes_nothing(corrupt_log: Path, tmp_path: Path, books: Books, name: str) -> None:
    expected = built(corrupt_log, tmp_path / "expected", books)
    folder = corrupt_log.parent / "log"
    for path in list(folder.iterdir()):
        frame, target = pl.read_parquet(path), path.with_name(f"{path.stem}.{name}")
        path.unlink()
        if name == "arrow":
            frame.write_ipc(target)
        elif name == "jsonl":
            frame.write_ndjson(target)
        else:
            frame.write_csv(target, quote_style="non_numeric", compression="gzip" if "gz" in name else "uncompressed")
    text = corrupt_log.read_text().replace("*.parquet", f"*.{name}")
    corrupt_log.write_text(text if name == "arrow" else text.replace("shown = 1", "shown = '1'"))
    found = built(corrupt_log, tmp_path / "out", books)
    assert {**found, "quarantine": len(found["quarantine"])} == {**expected, "quarantine": len(expected["quarantine"])}


def test_malformed_lines_are_rejected_rows(corrupt_log: Path, tmp_path: Path) -> None:
    folder = corrupt_log.parent / "log"
    pl.read_parquet(folder / "part-0.parquet").write_csv(folder / "part.csv")
    with (folder / "part.csv").open("a") as file:
        file.write("only,two\n")
    corrupt_log.write_text(corrupt_log.read_text().replace("*.parquet", "*.csv").replace("shown = 1", "shown = '1'"))
    accounting = build(load_spec(corrupt_log), tmp_path / "out").row_accounting["log"]
    assert (accounting.rows, accounting.reasons["malformed_row"]) == (81, 1)
    opened = open_dataset(tmp_path / "out")
    rows = pl.concat(
        [pl.read_parquet(tmp_path / "out" / e.path) for e in opened.snapshot.quarantine], how="diagonal_relaxed"
    )
    assert rows.filter(pl.col("_reasons").list.contains("malformed_row"))["_text"].to_list() == ["only,two"]
    assert rows.height == accounting.rejected


def test_nothing_of_the_work_is_left(corrupt_log: Path, tmp_path: Path) -> None:
    build(load_spec(corrupt_log), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(DATASET_FOLDERS)


def test_the_first_error_of_a_task_stops_the_rest() -> None:
    started: list[int] = []

    def work(number: int) -> int:
        started.append(number)
        if number == 3:
            raise DataError("three is broken")
        return number

    with pytest.raises(DataError, match="three is broken"):
        list(WorkerPool(1).run(partial(work, number) for number in range(1000)))
    assert len(started) < 10


def test_tasks_are_taken_only_a_few_ahead_of_what_is_consumed() -> None:
    taken: list[int] = []

    def make() -> Iterator[Callable[[], int]]:
        for number in range(100):
            taken.append(number)
            yield lambda number=number: number  # type: ignore[misc]

    results = WorkerPool(2).run(make())
    next(results)
    assert len(taken) <= 4
    assert threading.active_count() < 10
    results.close()


def test_one_worker_per_core_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longbatch.jobs.engines.local.os.cpu_count", lambda: 5)
    assert LocalEngine().workers == 5
    assert LocalEngine(3).workers == 3


@pytest.mark.parametrize(("rows", "buckets"), [(0, 1), (1, 1), (1 << 20, 1), ((1 << 20) + 1, 2), (1 << 40, 8192)])
def test_a_bucket_for_every_million_rows(rows: int, buckets: int) -> None:
    assert bucket_count(rows) == buckets


def test_rows_keep_their_order_within_a_bucket() -> None:
    frame = pl.DataFrame({"n": [0, 1, 2, 3, 4], "text": ["a", None, "c", "d", "e"]})
    parts = split_frame(frame, pl.Series([2, 0, 2, 0, 2]).cast(pl.UInt16).to_numpy(), 4)
    assert [part["n"].to_pylist() for part in parts] == [[1, 3], [], [0, 2, 4], []]
    assert [part.num_rows for part in split_frame(frame.head(0), frame["n"].head(0).to_numpy(), 2)] == [0, 0]


def test_a_partition_gives_back_a_bucket_of_every_chunk(tmp_path: Path) -> None:
    partition = Partition(tmp_path / "rows")
    assert partition.read(0) is None
    for name, start in (("b", 10), ("a", 0)):
        partition.write(name, [pa.record_batch({"n": [start]}), pa.record_batch({"n": [start + 1]})])
    found = partition.read(1)
    assert found is not None
    assert found["n"].to_list() == [1, 11]
