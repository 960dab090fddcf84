"""`longbatch validate`: the audit, the expectations on the samples of the build, and the Data Docs."""

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

pytestmark = pytest.mark.slow

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


def test_a_valid_dataset_passes_and_gets_data_docs(dataset: Path) -> None:
    build_it(dataset)
    validation = validate(dataset, users=None)
    assert validation.passed
    assert validation.audit.findings == []
    assert validation.audit.requests_checked == 20
    assert validation.expectations is not None
    assert {suite.checked for suite in validation.expectations.suites} >= {"all 40 rows", "all 20 rows"}
    page = (dataset / DATA_DOCS / "index.html").read_text(encoding="utf-8")
    assert "events, counters" in page
    assert "requests, sample" in page
    assert json.loads(json.dumps(validation.as_dict()))["passed"] is True


def test_the_path_can_be_relative(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_it(dataset)
    monkeypatch.chdir(dataset.parent)
    validation = validate(Path("out"), users=1)
    assert validation.passed
    assert (dataset / DATA_DOCS / "index.html").exists()


def test_an_unmet_expectation_of_a_user_suite_fails(dataset: Path) -> None:
    kwargs = {"column": "history.dwell", "max_value": 100}
    suite = {"name": "user suite", "expectations": [{"type": "expect_column_values_to_be_between", "kwargs": kwargs}]}
    (dataset.parent / "user.json").write_text(json.dumps(suite))
    build_it(dataset, '[expectations]\nevents = "user.json"\n')
    validation = validate(dataset)
    assert not validation.passed
    assert validation.audit.findings == []
    assert validation.expectations is not None
    (failure,) = validation.expectations.failures
    assert "history.dwell" in failure


def test_a_missing_user_suite_is_an_error_before_the_build(dataset: Path) -> None:
    with pytest.raises(SpecError, match=r"file not found: '.*gone\.json' \(expectations\.events\)\. Fix the path"):
        build_it(dataset, '[expectations]\nevents = "gone.json"\n')
    assert not dataset.exists()


def test_a_removed_user_suite_is_an_error_with_its_name(dataset: Path) -> None:
    suite = dataset.parent / "gone.json"
    suite.write_text('{"name": "user suite", "expectations": []}')
    build_it(dataset, '[expectations]\nevents = "gone.json"\n')
    suite.unlink()
    with pytest.raises(SpecError, match=r"gone\.json"):
        validate(dataset)


def test_an_altered_sample_is_a_finding_and_expectations_do_not_run(dataset: Path) -> None:
    build_it(dataset)
    (sample,) = (dataset / "samples").glob("events-*.parquet")
    data = bytearray(sample.read_bytes())
    data[len(data) // 2] ^= 1
    sample.write_bytes(data)
    validation = validate(dataset)
    assert validation.expectations is None
    assert len(validation.audit.findings) == 1
    assert "events-" in validation.audit.findings[0]


def test_replacing_a_dataset_removes_its_data_docs(dataset: Path) -> None:
    build_it(dataset)
    validate(dataset, users=1)
    assert (dataset / DATA_DOCS).exists()
    build_it(dataset)
    assert not (dataset / "reports").exists()


def test_without_expectations_there_are_no_data_docs(dataset: Path) -> None:
    build_it(dataset)
    assert validate(dataset, users=1, expectations=False).expectations is None
    assert not (dataset / "reports").exists()
