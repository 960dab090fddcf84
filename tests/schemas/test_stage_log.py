"""The log line of a stage."""

from __future__ import annotations

import logging

import pytest

from longbatch.schemas.stage_log import collect_stages, logged_stage


def test_a_stage_logs_rows_bytes_and_seconds_once(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("longbatch.stage_test")
    with caplog.at_level(logging.INFO), logged_stage(logger, "scan") as stage:
        stage.rows, stage.size_bytes = 7, 100
    (record,) = caplog.records
    assert record.getMessage().startswith("stage scan: 7 rows, 100 bytes, 0.")
    assert record.levelno == logging.INFO


def test_a_stage_that_does_not_count_rows_logs_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), logged_stage(logging.getLogger("longbatch.stage_test"), "scan") as stage:
        stage.size_bytes = 5
    assert caplog.records[0].getMessage().startswith("stage scan: 5 bytes, 0.")


def test_a_stage_that_fails_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(ValueError, match="broken"),
        logged_stage(logging.getLogger("longbatch.stage_test"), "scan"),
    ):
        raise ValueError("broken")
    assert caplog.records == []


def test_stages_are_collected_in_the_order_in_which_they_end() -> None:
    logger = logging.getLogger("longbatch.stage_test")
    with collect_stages() as stages:
        with logged_stage(logger, "outer"), logged_stage(logger, "inner") as inner:
            inner.rows = 3
        with pytest.raises(ValueError, match="broken"), logged_stage(logger, "last"):
            raise ValueError("broken")
    assert [(stage.name, stage.rows, stage.failed) for stage in stages] == [
        ("inner", 3, False),
        ("outer", None, False),
        ("last", None, True),
    ]
    assert all(stage.seconds is not None for stage in stages)


def test_stages_outside_of_the_block_are_not_collected() -> None:
    with collect_stages() as stages:
        pass
    with logged_stage(logging.getLogger("longbatch.stage_test"), "scan"):
        pass
    assert stages == []
