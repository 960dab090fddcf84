"""Datetimes and microseconds convert exactly in both directions."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from longbatch.schemas.time import from_microseconds, to_microseconds


def test_times_become_exact_microseconds() -> None:
    assert to_microseconds(datetime(2024, 1, 1, 0, 0, 0, 1, tzinfo=UTC)) == 1_704_067_200_000_001
    assert to_microseconds(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)) == -1
    assert to_microseconds(datetime(2262, 4, 11, 23, 47, 16, 854_775, tzinfo=UTC)) == 9_223_372_036_854_775


def test_times_of_other_zones_count_from_1970_in_utc() -> None:
    assert to_microseconds(datetime(1970, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))) == 0


@pytest.mark.parametrize("microseconds", [0, -1, 1_704_067_200_000_001, 253_402_300_799_999_999])
def test_microseconds_become_the_same_time_again(microseconds: int) -> None:
    assert to_microseconds(from_microseconds(microseconds)) == microseconds


def test_a_time_without_a_zone_is_an_error() -> None:
    with pytest.raises(TypeError, match="offset-naive"):
        to_microseconds(datetime(2024, 1, 1))
