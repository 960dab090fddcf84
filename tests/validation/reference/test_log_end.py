"""The time up to which the log of actions is complete."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_raw_logs import T, write_actions, write_log

from longbatch.validation.reference.log_end import find_log_end


def test_the_log_ends_with_the_latest_valid_action(tmp_path: Path) -> None:
    """The latest action has no user, and the one before it is filtered."""
    assert find_log_end(write_actions(tmp_path, [T, T + 8, T + 5, T + 9])) == (T + 5) * 1_000_000


def test_the_latest_valid_action_may_come_after_many_invalid_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longbatch.validation.reference.log_end.SLICE_ROWS", 1)
    spec = write_actions(tmp_path, [str(T), str(T + 8), "soon", str(T + 9)])
    assert find_log_end(spec) == T * 1_000_000


def test_the_log_end_of_actions_with_iso_times(tmp_path: Path) -> None:
    times = ["2024-01-01T00:00:00+05:00", "2024-06-01T00:00:00Z", "2023-12-31T22:00:00Z", "2024-07-01T00:00:00Z"]
    spec = write_actions(tmp_path, times, ('at", unit = "s"', 'at", unit = "iso"'))
    assert find_log_end(spec) == 1_704_060_000_000_000


def test_until_in_the_spec_sets_the_log_end(tmp_path: Path) -> None:
    until = ('source = "acts"', 'source = "acts"\nuntil = 2024-01-01T00:00:00Z')
    assert find_log_end(write_actions(tmp_path, [T], until)) == 1_704_067_200_000_000
    assert find_log_end(write_log(tmp_path, "parquet")) is None
