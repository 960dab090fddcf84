"""The Spark engine: the same dataset and the same books as the local engine's, from files and from tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from days import DAYS_SPEC, a_log, content, end_of, write

from longbatch.jobs.append import append
from longbatch.jobs.build import BuildSummary, build
from longbatch.jobs.commit.write_lock import DATASET_FOLDERS
from longbatch.jobs.engines import stages
from longbatch.jobs.engines.local import LocalEngine
from longbatch.jobs.engines.spark import SparkEngine, own_error
from longbatch.jobs.engines.spark_session import open_session
from longbatch.jobs.readers import chunks
from longbatch.schemas.errors import DataError, LongbatchError, MachineError, SourceError
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.spec.build_spec import load_spec

pytest.importorskip("pyspark")
if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Books = Callable[[Path, BuildSummary], dict[str, Any]]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The session that the engine itself makes, kept for all tests of this file; nothing is left where it ran."""
    here, cwd = Path.cwd(), tmp_path_factory.mktemp("cwd")
    scratch = tmp_path_factory.mktemp("root") / "scratch"
    os.chdir(cwd)
    try:
        with open_session("local[2]", scratch) as opened:
            yield opened
        assert list(cwd.iterdir()) == []
        assert [path.name for path in scratch.parent.iterdir()] == ["scratch"]
    finally:
        os.chdir(here)


@pytest.fixture
def engine(session: SparkSession) -> SparkEngine:
    return SparkEngine()


def test_both_engines_build_the_same(corrupt_log: Path, tmp_path: Path, books: Books, engine: SparkEngine) -> None:
    spec = load_spec(corrupt_log)
    expected = books(tmp_path / "local", build(spec, tmp_path / "local", engine=LocalEngine(1)))
    found = books(tmp_path / "spark", build(spec, tmp_path / "spark", engine=engine))
    assert expected["row_accounting"]["log"]["reasons"]["conflicting_request"] > 0
    assert found == expected
    assert sorted(path.name for path in (tmp_path / "spark").iterdir()) == sorted(DATASET_FOLDERS)


def test_buckets_pieces_and_files_change_nothing(
    corrupt_log: Path, tmp_path: Path, books: Books, engine: SparkEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = books(tmp_path / "local", build(load_spec(corrupt_log), tmp_path / "local", engine=LocalEngine(1)))
    folder = corrupt_log.parent / "log"
    rows = pl.concat([pl.read_parquet(path) for path in sorted(folder.iterdir())])
    for path in list(folder.iterdir()):
        path.unlink()
    rows.sample(fraction=1, shuffle=True, seed=3).write_parquet(folder / "one.parquet", row_group_size=40)
    monkeypatch.setattr(stages, "ROWS_PER_BUCKET", 60)
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 80)
    found = books(tmp_path / "spark", build(load_spec(corrupt_log), tmp_path / "spark", engine=engine))
    assert found == expected
    assert len(open_dataset(tmp_path / "spark").shards) > 2


LATER = """
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


def test_both_engines_agree_on_sessions_policies_and_labels_from_later_events(
    corrupt_log: Path, tmp_path: Path, books: Books, engine: SparkEngine
) -> None:
    text = corrupt_log.read_text().replace('request_id = { column = "request", type = "string" }', "", 1)
    text = text.replace('request_id = { column = "request", type = "string" }', 'session_gap = "1s"\nmax_targets = 3')
    assert 'labels = { click = "int8" }' in text
    corrupt_log.write_text(text.replace('labels = { click = "int8" }', '[requests.labels]\nclick = "int8"') + LATER)
    spec = load_spec(corrupt_log)
    expected = books(tmp_path / "local", build(spec, tmp_path / "local", engine=LocalEngine(1)))
    found = books(tmp_path / "spark", build(spec, tmp_path / "spark", engine=engine))
    counts = expected["counts"]
    assert counts["pending_requests"] > 0
    assert counts["capped_users"] > 0
    assert counts["requests"] > 10
    assert expected["log_end"] > 1_700_000_000_000_000
    assert found == expected


def test_a_table_that_spark_knows_is_a_source(
    corrupt_log: Path, tmp_path: Path, books: Books, session: SparkSession, engine: SparkEngine
) -> None:
    expected = books(tmp_path / "local", build(load_spec(corrupt_log), tmp_path / "local", engine=LocalEngine(1)))
    session.read.parquet(str(corrupt_log.parent / "log")).createOrReplaceTempView("corrupt")
    corrupt_log.write_text(corrupt_log.read_text().replace('"log/*.parquet"', '"corrupt"\nformat = "table"'))
    found = books(tmp_path / "spark", build(load_spec(corrupt_log), tmp_path / "spark", engine=engine))
    assert found == expected


def test_a_table_without_a_column_is_refused(
    corrupt_log: Path, tmp_path: Path, session: SparkSession, engine: SparkEngine
) -> None:
    session.read.parquet(str(corrupt_log.parent / "log")).drop("city", "tab").createOrReplaceTempView("narrow")
    corrupt_log.write_text(corrupt_log.read_text().replace('"log/*.parquet"', '"narrow"\nformat = "table"'))
    message = r"source log: table narrow has no column 'city', 'tab'\. Its columns are user, item, time, request, shown"
    with pytest.raises(SourceError, match=message):
        build(load_spec(corrupt_log), tmp_path / "out", engine=engine)
    assert not (tmp_path / "out").exists()


def test_a_table_that_nobody_knows_is_named(corrupt_log: Path, tmp_path: Path, engine: SparkEngine) -> None:
    corrupt_log.write_text(corrupt_log.read_text().replace('"log/*.parquet"', '"nobody"\nformat = "table"'))
    with pytest.raises(SourceError, match=r"source log: Spark has no table nobody"):
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
def test_an_error_within_a_task_is_raised_as_our_own(
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


def test_a_source_without_rows_is_no_valid_row(corrupt_log: Path, tmp_path: Path, engine: SparkEngine) -> None:
    for path in (corrupt_log.parent / "log").iterdir():
        pl.read_parquet(path).head(0).write_parquet(path)
    for chosen in (engine, LocalEngine(1)):
        with pytest.raises(DataError, match=r"source log has no valid row: 0 rows, 0 filtered, 0 rejected"):
            build(load_spec(corrupt_log), tmp_path / "out", engine=chosen)  # type: ignore[arg-type]


def test_the_session_is_left_as_it_was(
    corrupt_log: Path, tmp_path: Path, session: SparkSession, engine: SparkEngine
) -> None:
    size = "spark.sql.inMemoryColumnarStorage.batchSize"
    before = session.conf.get(size)
    build(load_spec(corrupt_log), tmp_path / "out", engine=engine)
    assert session.conf.get(size) == before
    assert session.sparkContext._jsc.getPersistentRDDs().isEmpty()  # type: ignore[union-attr]
    assert session.range(3).count() == 3, "a session that is not ours is not stopped"


def test_only_errors_of_ours_are_unwrapped() -> None:
    told = "Traceback ...\nlongbatch.schemas.errors.DataError: a.csv, row 5: no number\n\tat java.lang.Thread"
    assert repr(own_error(RuntimeError(told))) == repr(DataError("a.csv, row 5: no number"))
    for other in (RuntimeError("boom"), RuntimeError("longbatch.schemas.errors.Nonsense: x"), DataError("y")):
        assert own_error(other) is other
    assert isinstance(own_error(RuntimeError("[JAVA_GATEWAY_EXITED] ...")), MachineError)


def test_days_are_appended_by_spark_as_by_the_local_engine(tmp_path: Path, engine: SparkEngine) -> None:
    (tmp_path / "spec.toml").write_text(DAYS_SPEC)
    write(tmp_path, *a_log(1, days=2))
    spec = load_spec(tmp_path / "spec.toml")
    build(spec, tmp_path / "grown", engine=engine, until=end_of(1))
    append(spec, tmp_path / "grown", end_of(2), engine=engine)
    found = append(spec, tmp_path / "grown", end_of(3), engine=engine)
    build(spec, tmp_path / "whole", until=end_of(3))
    assert found.snapshot == 3
    assert content(tmp_path / "grown") == content(tmp_path / "whole")
