"""The log line of a stage."""

from __future__ import annotations

import logging

import pytest

from longbatch.jobs.engines.stage_log import logged_stage


def test_a_stage_logs_rows_bytes_and_seconds_once(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("longbatch.stage_test")
    with caplog.at_level(logging.INFO), logged_stage(logger, "scan") as totals:
        totals.rows, totals.size = 7, 100
    (record,) = caplog.records
    assert record.getMessage().startswith("stage scan: 7 rows, 100 bytes, 0.")
    assert record.levelno == logging.INFO


def test_a_stage_that_does_not_count_rows_logs_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), logged_stage(logging.getLogger("longbatch.stage_test"), "scan") as totals:
        totals.size = 5
    assert caplog.records[0].getMessage().startswith("stage scan: 5 bytes, 0.")


def test_a_stage_that_fails_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(ValueError, match="broken"),
        logged_stage(logging.getLogger("longbatch.stage_test"), "scan"),
    ):
        raise ValueError("broken")
    assert caplog.records == []
