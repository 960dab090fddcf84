"""The local engine: the dataset does not depend on workers, chunks, buckets and the order of files."""

from __future__ import annotations

import gzip
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from longbatch.jobs.build import BuildSummary, build
from longbatch.jobs.commit.attempt import DATASET_FOLDERS
from longbatch.jobs.engines import stages
from longbatch.jobs.engines.local import LocalEngine
from longbatch.jobs.readers import chunks
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.spec.build_spec import load_spec

Contents = Callable[[Path, BuildSummary], dict[str, Any]]


def build_contents(spec: Path, out: Path, contents: Contents, workers: int = 2) -> dict[str, Any]:
    return contents(out, build(load_spec(spec), out, engine=LocalEngine(workers)))


def test_every_row_of_a_corrupt_log_has_an_outcome(corrupt_log: Path, tmp_path: Path, contents: Contents) -> None:
    accounting = build_contents(corrupt_log, tmp_path / "out", contents)["row_accounting"]["log"]
    assert accounting["rows"] == 270
    assert accounting["duplicate"] > 10
    assert set(accounting["reasons"]) == {
        "conflicting_request",
        "missing_label:click",
        "missing_user",
        "time_out_of_range",
    }


def test_the_quarantine_contains_every_rejected_row(corrupt_log: Path, tmp_path: Path, contents: Contents) -> None:
    result = build_contents(corrupt_log, tmp_path / "out", contents)
    assert len(result["quarantine"]) == result["row_accounting"]["log"]["rejected"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "rows_per_bucket", "chunk_rows"), [(1, 1 << 20, 1 << 20), (3, 30, 1 << 20), (2, 100, 20), (2, 7, 5)]
)
def test_the_dataset_does_not_depend_on_workers_buckets_and_chunks(
    corrupt_log: Path,
    tmp_path: Path,
    contents: Contents,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    rows_per_bucket: int,
    chunk_rows: int,
) -> None:
    expected = build_contents(corrupt_log, tmp_path / "expected", contents)
    monkeypatch.setattr(stages, "ROWS_PER_BUCKET", rows_per_bucket)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", chunk_rows)
    assert build_contents(corrupt_log, tmp_path / "out", contents, workers) == expected
    shards = open_dataset(tmp_path / "out").shards
    assert (len(shards) > 1) == (rows_per_bucket < 270)


def test_the_dataset_does_not_depend_on_the_order_and_number_of_files(
    corrupt_log: Path, tmp_path: Path, contents: Contents
) -> None:
    expected = build_contents(corrupt_log, tmp_path / "expected", contents)
    folder = corrupt_log.parent / "log"
    rows = pl.concat([pl.read_parquet(path) for path in sorted(folder.iterdir())])
    for path in list(folder.iterdir()):
        path.unlink()
    rows.sample(fraction=1, shuffle=True, seed=3).write_parquet(folder / "one.parquet")
    assert build_contents(corrupt_log, tmp_path / "out", contents) == expected


@pytest.mark.parametrize("name", ["csv", "csv.gz", "jsonl", "arrow"])
def test_the_dataset_does_not_depend_on_the_format_of_the_log(
    corrupt_log: Path, tmp_path: Path, contents: Contents, name: str
) -> None:
    expected = build_contents(corrupt_log, tmp_path / "expected", contents)
    folder = corrupt_log.parent / "log"
    for path in list(folder.iterdir()):
        frame, target = pl.read_parquet(path), path.with_name(f"{path.stem}.{name}")
        path.unlink()
        if name == "arrow":
            frame.write_ipc(target)
        elif name == "jsonl":
            frame.write_ndjson(target)
        else:
            csv = frame.write_csv(quote_style="non_numeric").encode()
            target.write_bytes(gzip.compress(csv) if "gz" in name else csv)
    text = corrupt_log.read_text().replace("*.parquet", f"*.{name}")
    corrupt_log.write_text(text if name == "arrow" else text.replace("shown = 1", "shown = '1'"))
    result = build_contents(corrupt_log, tmp_path / "out", contents)
    assert {**result, "quarantine": len(result["quarantine"])} == {
        **expected,
        "quarantine": len(expected["quarantine"]),
    }


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


def test_temporary_files_are_removed(corrupt_log: Path, tmp_path: Path) -> None:
    build(load_spec(corrupt_log), tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} <= set(DATASET_FOLDERS)


def test_the_default_is_one_worker_per_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longbatch.jobs.engines.local.os.cpu_count", lambda: 5)
    assert LocalEngine().workers == 5
    assert LocalEngine(3).workers == 3


def test_each_stage_logs_one_line_and_each_task_a_detail(
    corrupt_log: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="longbatch"):
        build(load_spec(corrupt_log), tmp_path / "out", engine=LocalEngine(1))
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    names = [line.partition(":")[0] for line in lines if line.startswith("stage ")]
    assert names == ["stage scan", "stage request ids", "stage quarantine", "stage vocabulary", "stage shards"]
    assert lines[0].startswith("stage scan: 270 rows, ")
    assert re.match(r"stage request ids: [1-9]\d* rows, \d+\.\d\d seconds", lines[1])
    details = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    assert any(re.match(r"canonicalized .*part-0\.parquet from row 0: \d+ rows, ", line) for line in details)
    assert any(line.startswith("built bucket 0: ") for line in details)
