"""Runs of Great Expectations that several tests read."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
from expectation_inputs import LOG, SPEC, Inputs, T, built, on_row, with_counters, with_sample

from longbatch.validation.expectations.runner import ExpectationResults


@pytest.fixture(scope="session")
def valid() -> Inputs:
    return built(SPEC, {"log": LOG})


@pytest.fixture(scope="session")
def valid_run(valid: Inputs, tmp_path_factory: pytest.TempPathFactory) -> ExpectationResults:
    return valid.run(tmp_path_factory.mktemp("valid") / "reports" / "data_docs")


@pytest.fixture(scope="session")
def wrong_run(valid: Inputs, tmp_path_factory: pytest.TempPathFactory) -> ExpectationResults:
    """Run on counters, rows and row accounting with several independent errors."""
    wrong = with_counters(valid, "events", user_id__nulls=3, event_time__max=4_102_444_800_000_000)
    wrong = with_counters(wrong, "impressions", label_dot_click__total=-1.0, request_dot_tab__min=-2)
    wrong = with_counters(wrong, "requests", newest_age_us__min=0, history_length__max=4, targets__total=6.0)
    wrong = with_sample(wrong, "events", on_row(1, "history.dwell_ms", -5))
    wrong = with_sample(wrong, "events", on_row(0, "history.action", "<script>alert(1)</script>"))
    wrong = with_sample(wrong, "events", on_row(3, "visible_time", (T + 7) * 1_000_000))
    wrong = with_sample(wrong, "impressions", lambda frame: frame.with_columns(pl.col("target.score").cast(pl.Float64)))
    wrong = with_sample(wrong, "impressions", on_row(2, "label.click", 2))
    wrong = with_sample(wrong, "requests", on_row(1, "newest_age_us", None))
    wrong = with_sample(wrong, "requests", lambda frame: pl.concat([frame, frame[-1:]]))
    wrong = replace(
        wrong, row_accounting={"log": replace(valid.row_accounting["log"], rows=8, reasons={"missing_user": 2})}
    )
    return wrong.run(tmp_path_factory.mktemp("wrong") / "docs")
