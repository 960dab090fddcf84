"""Conversion between datetimes and microseconds since 1970 UTC, the unit of every time in memory and on disk."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_microseconds(moment: datetime) -> int:
    """Convert an aware datetime to microseconds since 1970 UTC, exactly.

    Args:
        moment: A datetime with a time zone.

    Returns:
        Microseconds, negative before 1970.

    Raises:
        TypeError: The datetime has no time zone.

    Example:
        >>> to_microseconds(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))
        1000000
    """
    return (moment - EPOCH) // timedelta(microseconds=1)


def from_microseconds(microseconds: int) -> datetime:
    """Convert microseconds since 1970 UTC to an aware datetime in UTC.

    Args:
        microseconds: Microseconds, negative before 1970.

    Returns:
        The datetime, exact to the microsecond.

    Raises:
        OverflowError: The time is outside the years 1 to 9999.

    Example:
        >>> from_microseconds(1_000_000)
        datetime.datetime(1970, 1, 1, 0, 0, 1, tzinfo=datetime.timezone.utc)
    """
    return EPOCH + timedelta(microseconds=microseconds)
