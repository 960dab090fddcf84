"""A corrupt log, the contents of the dataset that it becomes, and one Spark session for all tests of a process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from longbatch.jobs.build import BuildSummary
from longbatch.pipelines.content_hash import content_hash
from longbatch.schemas.format.dataset import open_dataset

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

T = 1_700_000_000
CORRUPT_SPEC = """
history_length = 4
block_events = 16
max_rejected = 0.5
[sources.log]
path = "log/*.parquet"
[history]
source = "log"
where = "dwell is not null"
user_id = { column = "user", type = "string" }
item_id = { column = "item", type = "string" }
event_time = { column = "time", unit = "s" }
delay = "2s"
request_id = { column = "request", type = "string" }
features = { dwell = "int16", city = "id" }
[requests]
source = "log"
where = "shown = 1"
user_id = { column = "user", type = "string" }
item_id = { column = "item", type = "string" }
request_time = { column = "time", unit = "s" }
request_id = { column = "request", type = "string" }
features = { tab = "int8" }
labels = { click = "int8" }
"""


def corrupt_rows() -> pl.DataFrame:
    """240 rows of 7 users with string ids: duplicates, nulls, times out of range, a shared request id in 24 rows."""
    n = pl.int_range(240)
    return pl.select(
        user=pl.when(n % 53 == 7).then(None).otherwise(pl.format("user {}", n % 7)),
        item=pl.when(n % 61 == 3).then(pl.lit("")).otherwise(pl.format("item {}", n * 7 % 40)),
        time=pl.when(n % 47 == 5).then(-1).otherwise(T + n // 3),
        request=pl.when(n % 10 == 9).then(pl.lit("shared")).otherwise(pl.format("r{}-{}", n % 7, n // 21)),
        shown=(n % 3 > 0).cast(pl.Int64),
        dwell=pl.when(n % 4 == 0).then(None).otherwise(n * 31 % 50_000),
        city=pl.when(n % 5 == 0).then(None).otherwise(pl.format("city {}", n % 3)),
        tab=n % 2,
        click=pl.when(n % 37 == 11).then(None).otherwise(n % 2),
    )


@pytest.fixture
def corrupt_log(tmp_path: Path) -> Path:
    """A spec beside a corrupt log in four Parquet files; some rows are duplicated in another file."""
    rows = corrupt_rows()
    folder = tmp_path / "in" / "log"
    folder.mkdir(parents=True)
    parts = [rows[:80], rows[80:100], rows[100:].reverse(), rows[60:90]]
    for number, part in enumerate(parts):
        part.write_parquet(folder / f"part-{number}.parquet", row_group_size=25)
    (tmp_path / "in" / "spec.toml").write_text(CORRUPT_SPEC)
    return tmp_path / "in" / "spec.toml"


@pytest.fixture
def contents() -> Callable[[Path, BuildSummary], dict[str, Any]]:
    """Return everything of a dataset that must not depend on how it was built."""

    def read(out: Path, summary: BuildSummary) -> dict[str, Any]:
        opened = open_dataset(out)
        quarantine = [pl.read_parquet(out / entry.path) for entry in opened.snapshot.quarantine]
        return {
            "content": content_hash(opened.blocks(), opened.spec.history_length),
            "row_accounting": {source: accounting.as_dict() for source, accounting in summary.row_accounting.items()},
            "counts": {**summary.counts.as_dict(), "segments": None, "stored_with_overlap": None},
            "profile": opened.snapshot.profile,
            "log_end": opened.snapshot.log_end,
            "samples": {
                entry.table: sorted(map(str, pl.read_parquet(out / entry.path).to_dicts()))
                for entry in opened.snapshot.samples
            },
            "vocabulary": sorted(opened.vocabulary().to_pylist(), key=str),
            "quarantine": sorted(
                str(tuple(row.values()))
                for rows in quarantine
                for row in rows.drop("_source_file", "_source_row").to_dicts()
            ),
        }

    return read


@pytest.fixture(scope="session")
def spark_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The session that the engine itself would start, shared by all tests of this process. It leaves no files."""
    pytest.importorskip("pyspark")
    from longbatch.jobs.engines.spark_session import open_session

    original, cwd = Path.cwd(), tmp_path_factory.mktemp("cwd")
    scratch = tmp_path_factory.mktemp("spark") / "scratch"
    os.chdir(cwd)  # Java keeps the folder in which it starts
    try:
        opened = open_session("local[2]", scratch)
        session = opened.__enter__()
    finally:
        os.chdir(original)
    yield session
    opened.__exit__(None, None, None)
    assert list(cwd.iterdir()) == []
    assert [path.name for path in scratch.parent.iterdir()] == ["scratch"]
