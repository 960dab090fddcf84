"""Both engines count the planted corrupt rows of a simulated log exactly, and quarantine them unchanged."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest

from longbatch.benchmarks.checks import Check
from longbatch.benchmarks.quality import FORMATS, compare_engines, compare_quarantine
from longbatch.jobs.build import build
from longbatch.jobs.engines import stages
from longbatch.jobs.engines.engine import Engine
from longbatch.jobs.engines.local import LocalEngine
from longbatch.jobs.engines.spark import SparkEngine
from longbatch.jobs.readers import chunks
from longbatch.jobs.simulation.ground_truth import read_truth
from longbatch.jobs.simulation.simulate import Simulation, simulate
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.spec.build_spec import load_spec


@pytest.fixture(scope="module", params=FORMATS)
def log(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with 20,000 clean rows, 600 corrupt rows, and outlier users."""
    out = tmp_path_factory.mktemp("planted") / "log"
    simulate(out, Simulation(users=20, events=20_000, seed=5, corrupt=0.03, format=request.param))
    assert min(read_truth(out).document["planted"].values()) > 0
    return out


def failed_checks(log: Path, engines: dict[str, Engine]) -> list[Check]:
    """The checks of a build by each engine that do not hold."""
    checks, seconds = compare_engines(log, engines)
    assert len(checks) > 35 * len(engines)
    assert len(seconds) == len(engines)
    return [check for check in checks if not check.holds]


@pytest.mark.slow
def test_the_local_engine_counts_what_was_planted_with_any_chunks_and_buckets(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 200_000)
    monkeypatch.setattr(stages, "ROWS_PER_BUCKET", 5_000)
    assert failed_checks(log, {"one": LocalEngine(1), "two": LocalEngine(2)}) == []


@pytest.mark.spark
@pytest.mark.usefixtures("spark_session")
def test_the_spark_engine_counts_what_was_planted_and_builds_the_same_dataset(log: Path) -> None:
    assert failed_checks(log, {"local": LocalEngine(1), "spark": SparkEngine()}) == []


def test_a_wrong_count_is_reported(log: Path, tmp_path: Path) -> None:
    log = shutil.copytree(log, tmp_path / "log")
    truth = log / "truth.json"
    truth.write_text(truth.read_text().replace('"missing_request": ', '"missing_request": 1'))
    off = failed_checks(log, {"local": LocalEngine(1)})
    assert {check.name.partition(": ")[2] for check in off} == {
        "reasons: missing_request",
        "quarantine: reasons whose count differs",
    }


def test_quarantined_rows_with_a_wrong_row_number_are_reported(log: Path, tmp_path: Path) -> None:
    summary = build(load_spec(log / "spec.toml"), tmp_path / "out", engine=LocalEngine(1))
    dataset, accounting = open_dataset(tmp_path / "out"), summary.row_accounting["log"]
    assert all(found == right for found, right in compare_quarantine(dataset, accounting).values())
    for entry in dataset.snapshot.quarantine:
        path = Path(dataset.location) / entry.path
        rows = pl.read_parquet(path)
        rows.with_columns(pl.col("_source_row").shift(1, fill_value=0)).write_parquet(path)
    found, right = compare_quarantine(dataset, accounting)["quarantine: rows equal to their row of the file"]
    assert found < 0.1 * right
