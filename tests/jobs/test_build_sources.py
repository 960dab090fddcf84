"""Builds of logs as they lie there: partitioned folders, changing columns, large text files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deltalake
import polars as pl
import pyarrow as pa
import pytest
from delta_tables import delete_with_vector, write_delta
from iceberg_tables import open_catalog, write_iceberg

from longbatch.jobs.build import BuildSummary, build
from longbatch.jobs.engines import spark_scans
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


def write_delta_log(path: Path) -> None:
    """Four days, partitioned by dt; columns are added by day, rows are deleted by a rewrite and by a vector."""
    for day in range(1, 5):
        frame = pl.concat([day_of_rows(day, hour).with_columns(hour=pl.lit(hour, pl.Int8)) for hour in (0, 7)])
        frame = frame.with_columns(pl.col("city").cast(pl.String), dt=pl.lit(f"2026-11-{day:02}"))
        frame = frame.with_columns(pl.col("^dwell$").cast(pl.Int64))
        write_delta(path, frame, partition_by=["dt"], schema_mode="merge")
    table = deltalake.DeltaTable(str(path))
    table.delete("dt = '2026-11-03' and item = 5")
    (file,) = [file for file in deltalake.DeltaTable(str(path)).file_uris() if "dt=2026-11-04" in file]
    delete_with_vector(path, Path(file).relative_to(path).as_posix(), range(10, 30))


def write_iceberg_log(catalog: Any) -> str:
    """As `write_delta_log`, with the columns of the last day in all days; returns the table's metadata file."""
    frames = []
    for day in range(1, 5):
        frame = pl.concat([day_of_rows(day, hour).with_columns(hour=pl.lit(hour, pl.Int32)) for hour in (0, 7)])
        frame = frame.with_columns(pl.col("city").cast(pl.String), dt=pl.lit(f"2026-11-{day:02}"))
        frames.append(frame.with_columns(pl.col("^(dwell|click)$").cast(pl.Int32)))
    table = write_iceberg(catalog, frames[0])
    with table.update_schema() as update:
        update.union_by_name(to_arrow(frames[3]).schema)
    for frame in frames[1:]:
        table.append(to_arrow(frame))
    table.delete("item = 5 and dt = '2026-11-03'")
    return str(table.metadata_location)


def to_arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def test_a_delta_table_is_read_at_one_version_which_the_dataset_records(tmp_path: Path) -> None:
    write_delta_log(tmp_path / "log")
    summary = build(log_spec(tmp_path / "log", "delta"), tmp_path / "dataset", engine=LocalEngine(2))
    accounting = summary.row_accounting["log"]
    assert accounting.rows == 240 - 8 - 20
    assert open_dataset(tmp_path / "dataset").spec.sources["log"].version == 5
    # Later changes of the table do not change what the recorded version is.
    deltalake.DeltaTable(str(tmp_path / "log")).update(updates={"item": "1"}, predicate="dt = '2026-11-02'")
    assert audit(tmp_path / "dataset", users=None).findings == []


def test_an_iceberg_table_is_read_at_one_snapshot_which_the_dataset_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = open_catalog(tmp_path, monkeypatch)
    write_iceberg_log(catalog)
    spec = log_spec(Path("prod.db.log"), "iceberg")
    summary = build(spec, tmp_path / "dataset", engine=LocalEngine(2))
    accounting = summary.row_accounting["log"]
    assert (accounting.rows, accounting.filtered) == (320 - 8, 80)
    table = catalog.load_table("db.log")
    assert open_dataset(tmp_path / "dataset").spec.sources["log"].snapshot == table.current_snapshot().snapshot_id
    table.delete("item = 1")
    assert audit(tmp_path / "dataset", users=None).findings == []


@pytest.mark.spark
@pytest.mark.usefixtures("spark_session")
def test_both_engines_read_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_delta_log(tmp_path / "log")
    metadata = write_iceberg_log(open_catalog(tmp_path, monkeypatch))
    specs = [log_spec(tmp_path / "log", "delta"), log_spec(Path(metadata), "iceberg")]
    engines: list[Engine] = [LocalEngine(1), SparkEngine()]
    for number, spec in enumerate(specs):
        local, spark = (build(spec, tmp_path / f"{number}{n}", engine=engine) for n, engine in enumerate(engines))
        assert hash_of(local) == hash_of(spark)
        assert local.row_accounting == spark.row_accounting


@pytest.mark.spark
@pytest.mark.usefixtures("spark_session")
@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_both_engines_read_the_same(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 512)
    monkeypatch.setattr(spark_scans, "MIN_RANGES", 1)
    write_log(tmp_path / "log", suffix)
    engines: list[Engine] = [LocalEngine(1), SparkEngine()]
    spec = log_spec(tmp_path / "log", suffix)
    local, spark = (build(spec, tmp_path / str(n), engine=engine) for n, engine in enumerate(engines))
    assert hash_of(local) == hash_of(spark)
    assert local.row_accounting == spark.row_accounting
