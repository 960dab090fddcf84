"""The Spark engine: the same dataset and the same accounting as the local engine's, from files and from tables."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from days import DAYS_SPEC, a_log, content, end_of, write

from longbatch.jobs.append import append
from longbatch.jobs.build import BuildSummary, build
from longbatch.jobs.commit.attempt import DATASET_FOLDERS
from longbatch.jobs.engines import spark, stages
from longbatch.jobs.engines.local import LocalEngine
from longbatch.jobs.engines.spark import SparkEngine, unwrap_task_error
from longbatch.jobs.readers import chunks
from longbatch.schemas.errors import DataError, LongbatchError, MachineError, SourceError
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.spec.build_spec import load_spec

pytest.importorskip("pyspark")
from pyspark.errors import PySparkException

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark
Contents = Callable[[Path, BuildSummary], dict[str, Any]]


@pytest.fixture
def engine(spark_session: SparkSession) -> SparkEngine:
    return SparkEngine()


def test_both_engines_build_the_same(
    corrupt_log: Path, tmp_path: Path, contents: Contents, engine: SparkEngine
) -> None:
    spec = load_spec(corrupt_log)
    expected = contents(tmp_path / "local", build(spec, tmp_path / "local", engine=LocalEngine(1)))
    result = contents(tmp_path / "spark", build(spec, tmp_path / "spark", engine=engine))
    assert expected["row_accounting"]["log"]["reasons"]["conflicting_request"] > 0
    assert result == expected
    assert {path.name for path in (tmp_path / "spark").iterdir()} <= {*DATASET_FOLDERS}
    assert list((tmp_path / "spark").glob("state/*")) == [], "conflicts are temporary"


def test_the_dataset_does_not_depend_on_buckets_pieces_and_files(
    corrupt_log: Path, tmp_path: Path, contents: Contents, engine: SparkEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(tmp_path / "local", build(load_spec(corrupt_log), tmp_path / "local", engine=LocalEngine(1)))
    folder = corrupt_log.parent / "log"
    rows = pl.concat([pl.read_parquet(path) for path in sorted(folder.iterdir())])
    for path in list(folder.iterdir()):
        path.unlink()
    rows.sample(fraction=1, shuffle=True, seed=3).write_parquet(folder / "one.parquet", row_group_size=40)
    monkeypatch.setattr(stages, "ROWS_PER_BUCKET", 60)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 80)
    result = contents(tmp_path / "spark", build(load_spec(corrupt_log), tmp_path / "spark", engine=engine))
    assert result == expected
    assert len(open_dataset(tmp_path / "spark").shards) > 2


def test_the_dataset_does_not_depend_on_partitions_of_several_buckets_and_sums_of_results(
    corrupt_log: Path, tmp_path: Path, contents: Contents, engine: SparkEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(tmp_path / "local", build(load_spec(corrupt_log), tmp_path / "local", engine=LocalEngine(1)))
    monkeypatch.setattr(stages, "ROWS_PER_BUCKET", 12)
    monkeypatch.setattr(spark, "MAX_PARTITIONS", 4)
    monkeypatch.setattr(spark, "MAX_MAP_TASKS", 3)
    monkeypatch.setattr(spark, "MAX_COLLECTED", 2)
    result = contents(tmp_path / "spark", build(load_spec(corrupt_log), tmp_path / "spark", engine=engine))
    assert open_dataset(tmp_path / "spark").snapshot.buckets == 23
    assert result == expected


def test_a_session_that_keeps_no_rows_and_refuses_settings_builds_the_same(
    corrupt_log: Path,
    tmp_path: Path,
    contents: Contents,
    engine: SparkEngine,
    spark_session: SparkSession,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*arguments: Any) -> None:
        raise PySparkException("not supported on serverless compute")

    expected = contents(tmp_path / "local", build(load_spec(corrupt_log), tmp_path / "local", engine=LocalEngine(1)))
    monkeypatch.setattr(type(spark_session.range(1)), "persist", refuse)
    monkeypatch.setattr(type(spark_session.conf), "set", refuse)
    with caplog.at_level(logging.INFO, logger="longbatch"):
        result = contents(tmp_path / "spark", build(load_spec(corrupt_log), tmp_path / "spark", engine=engine))
    assert result == expected
    assert "they run again for each stage: not supported on serverless compute" in caplog.text


DELAYED_LABELS = """
liked = { aggregate = "any", where = "tab = 1", within = "9s" }
dwelt = { aggregate = "sum", column = "dwell", within = "20s" }
[actions]
source = "log"
user_id = { column = "user", type = "string" }
item_id = { column = "item", type = "string" }
event_time = { column = "time", unit = "s" }
[users]
max_events = 22
min_events = 3
"""


def test_both_engines_agree_on_sessions_policies_and_delayed_labels(
    corrupt_log: Path, tmp_path: Path, contents: Contents, engine: SparkEngine
) -> None:
    text = corrupt_log.read_text().replace('request_id = { column = "request", type = "string" }', "", 1)
    text = text.replace('request_id = { column = "request", type = "string" }', 'session_gap = "1s"\nmax_targets = 3')
    assert 'labels = { click = "int8" }' in text
    corrupt_log.write_text(
        text.replace('labels = { click = "int8" }', '[requests.labels]\nclick = "int8"') + DELAYED_LABELS
    )
    spec = load_spec(corrupt_log)
    expected = contents(tmp_path / "local", build(spec, tmp_path / "local", engine=LocalEngine(1)))
    result = contents(tmp_path / "spark", build(spec, tmp_path / "spark", engine=engine))
    counts = expected["counts"]
    assert counts["pending_requests"] > 0
    assert counts["capped_users"] > 0
    assert counts["requests"] > 10
    assert expected["log_end"] > 1_700_000_000_000_000
    assert result == expected


def test_a_spark_table_can_be_a_source(
    corrupt_log: Path, tmp_path: Path, contents: Contents, spark_session: SparkSession, engine: SparkEngine
) -> None:
    expected = contents(tmp_path / "local", build(load_spec(corrupt_log), tmp_path / "local", engine=LocalEngine(1)))
    spark_session.read.parquet(str(corrupt_log.parent / "log")).createOrReplaceTempView("corrupt")
    corrupt_log.write_text(corrupt_log.read_text().replace('"log/*.parquet"', '"corrupt"\nformat = "table"'))
    result = contents(tmp_path / "spark", build(load_spec(corrupt_log), tmp_path / "spark", engine=engine))
    assert result == expected


def test_a_missing_column_of_a_table_is_an_error(
    corrupt_log: Path, tmp_path: Path, spark_session: SparkSession, engine: SparkEngine
) -> None:
    spark_session.read.parquet(str(corrupt_log.parent / "log")).drop("city", "tab").createOrReplaceTempView("narrow")
    corrupt_log.write_text(corrupt_log.read_text().replace('"log/*.parquet"', '"narrow"\nformat = "table"'))
    message = r"source log: table narrow has no column 'city', 'tab'\. Its columns are user, item, time, request, shown"
    with pytest.raises(SourceError, match=message):
        build(load_spec(corrupt_log), tmp_path / "out", engine=engine)
    assert not (tmp_path / "out").exists()


def test_an_unknown_table_is_an_error_with_its_name(corrupt_log: Path, tmp_path: Path, engine: SparkEngine) -> None:
    corrupt_log.write_text(corrupt_log.read_text().replace('"log/*.parquet"', '"unknown"\nformat = "table"'))
    with pytest.raises(SourceError, match=r"source log: Spark has no table unknown"):
        build(load_spec(corrupt_log), tmp_path / "out", engine=engine)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        (
            'click = "int8"',
            'liked = "int8"',
            SourceError,
            r"^source log: .*part-\d\.parquet has no column 'liked'\. Its",
        ),
        (
            "shown = 1",
            "shown =",
            SourceError.__base__,
            r"^requests\.where is not an expression of Polars SQL: 'shown ='",
        ),
        ('"log/*.parquet"', '"none/*.parquet"', SourceError, r"^source log: no file matches '.*none/\*\.parquet'"),
        (
            "max_rejected = 0.5",
            "max_rejected = 0.01",
            DataError,
            r"^source log: .* were rejected, more than max_rejected",
        ),
    ],
)
def test_an_error_within_a_task_is_raised_without_stack_traces(
    corrupt_log: Path,
    tmp_path: Path,
    engine: SparkEngine,
    old: str,
    new: str,
    error: type[LongbatchError],
    message: str,
) -> None:
    corrupt_log.write_text(corrupt_log.read_text().replace(old, new))
    with pytest.raises(LongbatchError, match=message) as caught:
        build(load_spec(corrupt_log), tmp_path / "out", engine=engine)
    assert type(caught.value) is error
    assert caught.value.exit_code == error.exit_code
    assert "Traceback" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_source_without_rows_is_an_error(corrupt_log: Path, tmp_path: Path, engine: SparkEngine) -> None:
    for path in (corrupt_log.parent / "log").iterdir():
        pl.read_parquet(path).head(0).write_parquet(path)
    for chosen in (engine, LocalEngine(1)):
        with pytest.raises(DataError, match=r"source log has no valid row: 0 rows, 0 filtered, 0 rejected"):
            build(load_spec(corrupt_log), tmp_path / "out", engine=chosen)


def test_the_session_is_left_as_it_was(
    corrupt_log: Path, tmp_path: Path, spark_session: SparkSession, engine: SparkEngine
) -> None:
    size = "spark.sql.execution.arrow.maxRecordsPerBatch"
    before = spark_session.conf.get(size)
    build(load_spec(corrupt_log), tmp_path / "out", engine=engine)
    assert spark_session.conf.get(size) == before
    assert spark_session.sparkContext._jsc.getPersistentRDDs().isEmpty()
    assert spark_session.range(3).count() == 3, "a session that was active before is not stopped"


def test_only_longbatch_errors_are_unwrapped() -> None:
    trace = "Traceback ...\nlongbatch.schemas.errors.DataError: a.csv, row 5: no number\n\tat java.lang.Thread"
    assert repr(unwrap_task_error(RuntimeError(trace))) == repr(DataError("a.csv, row 5: no number"))
    for other in (RuntimeError("boom"), RuntimeError("longbatch.schemas.errors.Nonsense: x"), DataError("y")):
        assert unwrap_task_error(other) is other
    assert isinstance(unwrap_task_error(RuntimeError("[JAVA_GATEWAY_EXITED] ...")), MachineError)


def test_increments_of_spark_equal_one_build_of_the_local_engine(tmp_path: Path, engine: SparkEngine) -> None:
    (tmp_path / "spec.toml").write_text(DAYS_SPEC)
    write(tmp_path, *a_log(1, days=2))
    spec = load_spec(tmp_path / "spec.toml")
    build(spec, tmp_path / "appended", engine=engine, until=end_of(1))
    append(spec, tmp_path / "appended", end_of(2), engine=engine)
    result = append(spec, tmp_path / "appended", end_of(3), engine=engine)
    build(spec, tmp_path / "one-build", until=end_of(3))
    assert result.snapshot == 3
    assert content(tmp_path / "appended") == content(tmp_path / "one-build")


def test_the_driver_logs_one_line_per_stage(
    corrupt_log: Path, tmp_path: Path, engine: SparkEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="longbatch"):
        build(load_spec(corrupt_log), tmp_path / "out", engine=engine)
    lines = [record.getMessage() for record in caplog.records if record.name == "longbatch.jobs.engines.spark"]
    expected = {
        "map": r"\d+ bytes, \d+\.\d\d seconds",
        "request ids": r"[1-9]\d* rows, \d+\.\d\d seconds",
        "quarantine": r"\d+ rows, \d+ bytes, \d+\.\d\d seconds",
        "shards": r"\d+ rows, \d+ bytes, \d+\.\d\d seconds",
        "vocabulary": r"[1-9]\d* rows, \d+ bytes, in the tasks of stage shards",
    }
    for line, (stage, pattern) in zip(lines, expected.items(), strict=True):
        assert re.fullmatch(f"stage {stage}: {pattern}", line)


def test_progress_of_every_stage_ends_at_its_total(corrupt_log: Path, tmp_path: Path, engine: SparkEngine) -> None:
    calls: list[tuple[str, float, float]] = []
    build(load_spec(corrupt_log), tmp_path / "out", engine=engine, progress=lambda *step: calls.append(step))
    last = {stage: (done, total) for stage, done, total in calls}
    assert list(last) == ["map", "request ids", "shards"]
    assert all(done == total for done, total in last.values())
