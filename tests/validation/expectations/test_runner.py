"""Great Expectations on small builds, valid ones and wrong ones."""

from __future__ import annotations

import math
import os
import socket
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from expectation_inputs import Inputs, T, built, with_counters, with_every_counter, with_sample

from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.errors import MachineError
from longbatch.schemas.profile import TABLES, ColumnProfile, TableProfile
from longbatch.validation.expectations.generated_suites import generated_suites
from longbatch.validation.expectations.runner import ExpectationResults, run_expectations

pytestmark = pytest.mark.slow


def test_a_valid_dataset_meets_every_expectation_without_a_warning(valid_run: ExpectationResults) -> None:
    assert valid_run.failures == []
    assert valid_run.warnings == []
    assert [(suite.name, suite.checked, suite.rows) for suite in valid_run.suites] == [
        ("sources, counters", "row accounting of 7 rows", 7),
        ("events, counters", "counters of all 6 rows", 6),
        ("impressions, counters", "counters of all 5 rows", 5),
        ("requests, counters", "counters of all 4 rows", 4),
        ("events, sample", "all 6 rows", 6),
        ("impressions, sample", "all 5 rows", 5),
        ("requests, sample", "all 4 rows", 4),
    ]


UNUSUAL = """
history_length = 5
[sources.events]
path = "events.parquet"
[sources.shown]
path = "shown.parquet"
[sources.acts]
path = "acts.parquet"
[history]
source = "events"
user_id = { column = "user", type = "string" }
item_id = { column = "item", type = "string" }
event_time = { column = "time", unit = "s" }
arrival_time = { column = "arrived", unit = "s" }
[history.features]
never = { type = "int16", min = 1, max = 2 }
ratio = "float32"
kind = { type = "id", values = ["a", "b"], default = "none" }
code = { type = "id", values = [7, 8] }
big = { type = "int64", min = 1152921504606846977, max = 1152921504606846977 }
flag = "bool"
[requests]
source = "shown"
user_id = { column = "user", type = "string" }
item_id = { column = "item", type = "string" }
request_time = { column = "time", unit = "s" }
request_id = { column = "request", type = "string" }
[requests.features]
weight = { type = "float32", min = 0.2, max = 0.3, default = 0.5 }
[requests.target_features]
place = { type = "int8", values = [1, 2], default = -1 }
[requests.labels]
share = "float64"
seen = { type = "bool", contained_in = "seen_items" }
bought = { aggregate = "any", within = "10s" }
acts = { aggregate = "count", within = "10s" }
spent = { aggregate = "sum", column = "price", type = "int64", min = 1, max = 5, within = "10s" }
dearest = { aggregate = "max", column = "price", type = "int64", min = 1, max = 5, within = "10s" }
[actions]
source = "acts"
user_id = { column = "user", type = "string" }
item_id = { column = "item", type = "string" }
event_time = { column = "time", unit = "s" }
"""


def unusual_logs() -> dict[str, pl.DataFrame]:
    """Return valid rows with unusual values: all null, NaN, infinite, defaults outside the declared set, no events."""
    events = pl.DataFrame(
        {
            "user": ["ann", "ann", "bob"],
            "item": ["x", "y", "x"],
            "time": [T, T + 1, T + 2],
            "arrived": [T + 9, T + 1, T + 2],
            "never": pl.Series([None] * 3, dtype=pl.Int16),
            "ratio": [math.nan, math.inf, None],
            "kind": ["a", None, "b"],
            "code": ["7", "8", None],
            "big": [2**60 + 1, None, 2**60 + 1],
            "flag": [True, None, False],
        }
    )
    shown = pl.DataFrame(
        {
            "user": ["ann", "ann", "cy"],
            "item": ["x", "y", "x"],
            "time": [T + 20, T + 20, T + 21],
            "request": ["r1", "r1", "r2"],
            "weight": [None, None, 0.2],
            "place": [1, None, 2],
            "share": [math.nan, 0.5, math.inf],
            "seen_items": [["x"], [], ["x"]],
        }
    )
    acts = pl.DataFrame(
        {
            "user": ["ann", "ann", "zoe"],
            "item": ["x", "x", "x"],
            "time": [T + 22, T + 23, T + 99],
            "price": [4, 5, 1],
        }
    )
    return {"events": events, "shown": shown, "acts": acts}


def test_unusual_but_valid_values_meet_every_expectation(tmp_path: Path) -> None:
    results = built(UNUSUAL, unusual_logs()).run(tmp_path / "docs")
    assert results.failures == []
    assert [line for line in results.warnings if "never" not in line and "label.share" not in line] == []
    assert any("history.never is below 1: observed 1.0" in line for line in results.warnings)


def test_a_dataset_without_events_is_only_a_warning(valid: Inputs, tmp_path: Path) -> None:
    inputs = with_sample(valid, "events", lambda frame: frame.clear())
    none = {column: ColumnProfile() for column in valid.profile.tables["events"].columns}
    tables = {**valid.profile.tables, "events": TableProfile(0, none)}
    results = replace(inputs, profile=replace(valid.profile, tables=tables)).run(tmp_path / "docs")
    assert results.failures == []
    assert results.warnings == [
        "events, counters: the number of events is at least 1: observed 0 (expect_column_min_to_be_between on rows)"
    ]


def test_each_wrong_counter_and_row_fails_its_own_expectation_only(wrong_run: ExpectationResults) -> None:
    assert wrong_run.warnings == []
    assert sorted(wrong_run.failures) == sorted(
        [
            "sources, counters: the number of rows of log without an outcome is 0: observed 1 "
            "(expect_column_min_to_be_between on log)",
            "sources, counters: the share of rows of log rejected for missing_user is at most 0.2: observed 0.25 "
            "(expect_column_max_to_be_between on log)",
            "events, counters: the share of nulls in user_id is 0: observed 0.5 "
            "(expect_column_max_to_be_between on user_id)",
            "events, counters: the largest event_time is at most 2024-01-01 00:00:00 UTC: "
            "observed 2100-01-01 00:00:00+00:00 (expect_column_max_to_be_between on event_time)",
            "impressions, counters: the smallest request.tab is at least -1: observed -2 "
            "(expect_column_min_to_be_between on request.tab)",
            "impressions, counters: the mean of label.click, a rate, is between 0 and 1: observed -0.2 "
            "(expect_column_min_to_be_between on label.click)",
            "requests, counters: the largest history_length is at most 3: observed 4 "
            "(expect_column_max_to_be_between on history_length)",
            "requests, counters: the smallest newest_age_us is at least 1: observed 0 "
            "(expect_column_min_to_be_between on newest_age_us)",
            "requests, counters: the number of targets of all requests minus the number of impressions is 0: "
            "observed 1.0 (expect_column_min_to_be_between on targets)",
            "events, sample: history.action is 'view' or 'buy': not so in 1 of 6 rows, "
            "for example <script>alert(1)</script> "
            "(expect_column_values_to_be_in_set on history.action)",
            "events, sample: history.dwell_ms is between 0 and 60,000: not so in 1 of 6 rows, for example -5 "
            "(expect_column_values_to_be_between on history.dwell_ms)",
            "events, sample: the time from event_time to visible_time is always 1,000,000 us: not so in 1 of 6 rows, "
            "for example 0 (expect_column_values_to_be_between on lag_us)",
            "impressions, sample: target.score is of type float32: observed float64 "
            "(expect_column_values_to_be_of_type on target.score)",
            "impressions, sample: label.click is 0 or 1: not so in 1 of 5 rows, for example 2 "
            "(expect_column_values_to_be_in_set on label.click)",
            "requests, sample: newest_age_us is not null where history_length is above 0: not so in 1 of 4 rows, "
            "for example null (expect_column_values_to_not_be_null on newest_age_us)",
            "requests, sample: each request of a user occurs once: not so in 2 of 5 rows, for example "
            "{'user_id': 2, 'request_id': 3512452115698523514} (expect_compound_columns_to_be_unique)",
        ]
    )


def wrong_values(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the sample with values that nothing allows, of the right types."""
    long_ago = pl.lit(0).cast(pl.Datetime("us", "UTC")) - pl.duration(days=pl.int_range(pl.len()))
    changes = {
        "user_id": pl.lit(1, pl.Int64),
        "request_id": pl.lit(1, pl.Int64),
        "event_time": long_ago,
        "visible_time": long_ago,
        "request_time": long_ago,
        "history.action": pl.lit("?"),
        "history.dwell_ms": pl.lit(-1, pl.Int32),
        "request.tab": pl.lit(-2, pl.Int8),
        "target.score": pl.lit(0, pl.Float32),
        "label.click": pl.lit(7, pl.Int8),
        "targets": pl.lit(0, pl.Int64),
        "history_length": pl.lit(9, pl.Int64),
        "newest_age_us": pl.when(pl.int_range(pl.len()) > 0).then(pl.lit(0, pl.Int64)),
    }
    return frame.with_columns(**{name: value for name, value in changes.items() if name in frame.columns})


def wrong_types(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the sample with other types, and without a column."""
    kept = frame.drop("item_id" if "item_id" in frame.columns else "targets")
    return kept.select(
        pl.col(name).cast(pl.Date) if dtype == pl.Datetime else pl.col(name).is_null().cast(pl.UInt8)
        for name, dtype in kept.schema.items()
    )


def test_every_generated_expectation_can_fail(valid: Inputs, tmp_path: Path) -> None:
    rejected = RowAccounting(rows=100, rejected=90, reasons={"missing_user": 90})
    far = with_every_counter(valid, lambda table, column: ColumnProfile(1, -(10**18), 10**18, 1e18))
    far = replace(far, row_accounting={"log": rejected})
    constant = with_every_counter(valid, lambda table, column: ColumnProfile(1, 1, 1))
    constant = with_counters(constant, "events", history_dot_action__nulls=6, history_dot_dwell_ms__nulls=6)
    constant = with_counters(constant, "impressions", target_dot_score__nulls=5)
    for table in TABLES:
        far = with_counters(with_sample(far, table, wrong_values), table, rows=0)
        constant = with_sample(constant, table, wrong_types)
    runs = [inputs.run(tmp_path / "docs") for inputs in (far, constant)]
    lines = [line for run in runs for line in [*run.failures, *run.warnings]]
    for suite in generated_suites(valid.spec):
        for expectation in suite.expectations:
            start = f"{suite.name}: {expectation.statement}: "
            assert [line for line in lines if line.startswith(start)], f"nothing made this fail: {start}"


# User suites


def test_a_user_suite_runs_on_the_sample(valid: Inputs, tmp_path: Path) -> None:
    path = tmp_path / "$HOME" / "suite.json"
    path.parent.mkdir()
    path.write_text(
        """{"name": "suite", "expectations": [
        {"type": "expect_column_max_to_be_between", "kwargs": {"column": "history.dwell_ms", "max_value": 100}},
        {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "lag_us", "min_value": 1}},
        {"type": "expect_column_values_to_be_in_set", "severity": "warning", "description": "all view",
         "kwargs": {"column": "history.action", "value_set": ["view"]}},
        {"type": "expect_column_values_to_be_between", "kwargs": {"column": "history.action", "min_value": 3}}]}"""
    )
    own = valid.spec.expectations.model_copy(update={"events": str(path)})
    results = replace(valid, spec=valid.spec.model_copy(update={"expectations": own})).run(tmp_path / "docs")
    suite = results.suites[-1]
    assert (suite.name, suite.expectations) == ("events, user suite", 4)
    assert suite.checked == f"all 6 rows, suite from {path}"
    assert results.warnings == [
        "events, user suite: all view: not so in 1 of 6 rows, "
        "for example buy (expect_column_values_to_be_in_set on history.action)"
    ]
    assert sorted(results.failures) == [
        "events, user suite: column = 'history.action', min_value = 3.0: failed with: Column values, min_value, and "
        "max_value must either be None or of the same type. (expect_column_values_to_be_between on history.action)",
        "events, user suite: column = 'history.dwell_ms', max_value = 100.0: observed 60000 "
        "(expect_column_max_to_be_between on history.dwell_ms)",
    ]


def test_only_data_docs_are_written_and_nothing_is_sent(
    valid: Inputs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a connection to {arguments[1:]}")

    elsewhere = {name: tmp_path / name for name in ("home", "work", "tmp")}
    for folder in elsewhere.values():
        folder.mkdir()
    monkeypatch.setenv("HOME", str(elsewhere["home"]))
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere["tmp"]))
    monkeypatch.chdir(elsewhere["work"])
    monkeypatch.delenv("GX_ANALYTICS_ENABLED", raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    stages: list[str] = []
    run_expectations(
        valid.spec,
        valid.profile,
        valid.samples,
        valid.row_accounting,
        tmp_path / "docs",
        progress=lambda stage, done, total: stages.append(stage),
    )
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"
    assert [path for folder in elsewhere.values() for path in folder.rglob("*")] == []
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert list(dict.fromkeys(stages)) == ["expectations", "data docs"]


def test_missing_great_expectations_is_an_error_with_the_command_to_install_it(
    valid: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "great_expectations", None)
    with pytest.raises(MachineError, match=r'pip install "longbatch\[validate\]"'):
        valid.run(tmp_path / "docs")


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(valid: Inputs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="file"):
        valid.run(tmp_path / "file" / "docs")
