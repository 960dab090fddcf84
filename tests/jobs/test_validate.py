"""`longbatch validate` as a whole: the audit, the expectations on what the build sampled, and the Data Docs."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from longbatch.jobs.build import build
from longbatch.jobs.engines.local import LocalEngine
from longbatch.jobs.validate import DATA_DOCS, validate
from longbatch.schemas.errors import SpecError
from longbatch.schemas.spec.build_spec import load_spec

T = 1_700_000_000
SPEC = """
name = "small"
[sources.log]
path = "log.parquet"
[history]
source = "log"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
features = { dwell = { type = "int32", min = 0 } }
[requests]
source = "log"
where = "shown = 1"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
labels = { click = "int8" }
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rows = range(40)
    log = {
        "user": [n % 4 for n in rows],
        "item": [n % 7 for n in rows],
        "time": [T + n for n in rows],
        "dwell": [n * 10 for n in rows],
        "shown": [n % 2 for n in rows],
        "click": [n % 3 % 2 for n in rows],
    }
    pl.DataFrame(log).write_parquet(tmp_path / "log.parquet")
    (tmp_path / "spec.toml").write_text(SPEC)
    return tmp_path / "out"


def build_it(dataset: Path, more: str = "") -> None:
    spec = dataset.parent / "spec.toml"
    spec.write_text(SPEC + more)
    build(load_spec(spec), dataset, engine=LocalEngine(1), overwrite=True)


def test_a_sound_dataset_passes_and_has_data_docs(dataset: Path) -> None:
    build_it(dataset)
    found = validate(dataset, users=None)
    assert found.passed
    assert found.audit.findings == []
    assert found.audit.requests_checked == 20
    assert found.expectations is not None
    assert {suite.checked for suite in found.expectations.suites} >= {"all 40 rows", "all 20 rows"}
    page = (dataset / DATA_DOCS / "index.html").read_text(encoding="utf-8")
    assert "events, counters" in page
    assert "requests, sample" in page
    assert json.loads(json.dumps(found.as_dict()))["passed"] is True


def test_a_dataset_is_found_by_a_relative_path_too(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_it(dataset)
    monkeypatch.chdir(dataset.parent)
    found = validate(Path("out"), users=1)
    assert found.passed
    assert (dataset / DATA_DOCS / "index.html").exists()


def test_an_expectation_of_ones_own_that_is_not_met_fails(dataset: Path) -> None:
    kwargs = {"column": "history.dwell", "max_value": 100}
    suite = {"name": "mine", "expectations": [{"type": "expect_column_values_to_be_between", "kwargs": kwargs}]}
    (dataset.parent / "mine.json").write_text(json.dumps(suite))
    build_it(dataset, '[expectations]\nevents = "mine.json"\n')
    found = validate(dataset)
    assert not found.passed
    assert found.audit.findings == []
    assert found.expectations is not None
    (failure,) = found.expectations.failures
    assert "history.dwell" in failure


def test_a_suite_of_ones_own_that_is_not_there_is_named_before_the_build(dataset: Path) -> None:
    with pytest.raises(SpecError, match=r"file not found: '.*gone\.json' \(expectations\.events\)\. Fix the path"):
        build_it(dataset, '[expectations]\nevents = "gone.json"\n')
    assert not dataset.exists()


def test_a_suite_of_ones_own_that_is_gone_is_named(dataset: Path) -> None:
    suite = dataset.parent / "gone.json"
    suite.write_text('{"name": "mine", "expectations": []}')
    build_it(dataset, '[expectations]\nevents = "gone.json"\n')
    suite.unlink()
    with pytest.raises(SpecError, match=r"gone\.json"):
        validate(dataset)


def test_an_altered_sample_is_a_finding_and_no_expectation_runs_on_it(dataset: Path) -> None:
    build_it(dataset)
    (sample,) = (dataset / "samples").glob("events-*.parquet")
    data = bytearray(sample.read_bytes())
    data[len(data) // 2] ^= 1
    sample.write_bytes(data)
    found = validate(dataset)
    assert found.expectations is None
    assert len(found.audit.findings) == 1
    assert "events-" in found.audit.findings[0]


def test_the_data_docs_of_a_replaced_dataset_go_with_it(dataset: Path) -> None:
    build_it(dataset)
    validate(dataset, users=1)
    assert (dataset / DATA_DOCS).exists()
    build_it(dataset)
    assert not (dataset / "reports").exists()


def test_without_expectations_nothing_is_written(dataset: Path) -> None:
    build_it(dataset)
    assert validate(dataset, users=1, expectations=False).expectations is None
    assert not (dataset / "reports").exists()
