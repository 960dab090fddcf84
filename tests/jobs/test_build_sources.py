"""Builds of logs as they lie there: partitioned folders, changing columns, large text files."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from longbatch.jobs.build import BuildSummary, build
from longbatch.jobs.engines.engine import Engine
from longbatch.jobs.engines.local import LocalEngine
from longbatch.jobs.engines.spark import SparkEngine
from longbatch.jobs.readers import chunks
from longbatch.pipelines.content_hash import content_hash
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec
from longbatch.validation.audit.audit import audit

SPEC = """
[sources.log]
path = "PATH"
format = "FORMAT"
[history]
source = "log"
where = "dt >= '2026-11-02'"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
features = { dwell = { type = "int32", default = 7 }, hour = "int8", city = "id" }
[requests]
source = "log"
where = "dt >= '2026-11-03' AND item > 2"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
labels = { click = { type = "int8", default = 0 } }
"""
START = 1_793_491_200  # 2026-11-01


def day_of_rows(day: int, hour: int) -> pl.DataFrame:
    """40 rows of one hour; the columns dwell, city and click change from day to day."""
    n = pl.int_range(40, eager=True)
    frame = pl.DataFrame({"user": n % 7, "item": n % 11, "time": START + day * 86_400 + hour * 3_600 + n * 60})
    if day >= 2:
        frame = frame.with_columns(dwell=(n % 5).cast(pl.Int16 if day == 2 else pl.Int64))
    if day >= 3:
        frame = frame.with_columns(click=(n % 2).cast(pl.Int8))
    city = n % 3
    return frame.with_columns(city=city.cast(pl.String) if day >= 3 else city)


def write_log(folder: Path, suffix: str) -> None:
    for day in range(1, 5):
        for hour in (0, 7):
            path = folder / f"dt=2026-11-{day:02}" / f"hour={hour:02}" / f"part-0.{suffix}"
            path.parent.mkdir(parents=True)
            frame = day_of_rows(day, hour)
            if suffix == "parquet":
                frame.write_parquet(path)
            elif suffix == "csv":
                frame.write_csv(path)
            else:
                path.write_text(frame.write_ndjson())
        (folder / f"dt=2026-11-{day:02}" / "_SUCCESS").touch()


def log_spec(folder: Path, suffix: str) -> BuildSpec:
    return parse_spec(SPEC.replace("PATH", str(folder)).replace("FORMAT", suffix))


def hash_of(summary: BuildSummary) -> str:
    dataset = open_dataset(summary.path)
    return content_hash(dataset.blocks(), dataset.spec.history_length)


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_partitions_and_changing_columns_are_read_right(tmp_path: Path, suffix: str) -> None:
    write_log(tmp_path / "log", suffix)
    summary = build(log_spec(tmp_path / "log", suffix), tmp_path / "dataset", engine=LocalEngine(2))
    accounting = summary.row_accounting["log"]
    assert (accounting.rows, accounting.rejected) == (240, 0), "the files of the first day are not opened"
    assert audit(tmp_path / "dataset", users=None).findings == []


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_large_text_file_in_pieces_gives_the_same_dataset(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_log(tmp_path / "log", suffix)
    spec = log_spec(tmp_path / "log", suffix)
    expected = build(spec, tmp_path / "expected", engine=LocalEngine(1))
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 256)
    result = build(spec, tmp_path / "result", engine=LocalEngine(2))
    assert hash_of(result) == hash_of(expected)
    assert result.row_accounting == expected.row_accounting


@pytest.mark.spark
@pytest.mark.usefixtures("spark_session")
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_both_engines_read_the_same(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 512)
    write_log(tmp_path / "log", suffix)
    engines: list[Engine] = [LocalEngine(1), SparkEngine()]
    spec = log_spec(tmp_path / "log", suffix)
    local, spark = (build(spec, tmp_path / str(n), engine=engine) for n, engine in enumerate(engines))
    assert hash_of(local) == hash_of(spark)
    assert local.row_accounting == spark.row_accounting
