"""The profile of a build: counters of every column, the largest users and requests, and the history lengths.

A build computes it in the passes that it makes anyway. Profiles of parts add up to the profile of the dataset, so
engines compute one per bucket. There are three tables: "events" (accepted events of the timelines), "impressions"
(one row per target) and "requests" (one row each); docs/quality.md lists their columns.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

TableName = Literal["events", "impressions", "requests"]
TABLES: tuple[TableName, ...] = ("events", "impressions", "requests")
LARGEST = 20  # number of users and requests that a profile names
Number = int | float


@dataclass(frozen=True)
class ColumnProfile:
    """Counters of one column over all rows.

    Attributes:
        nulls: Number of nulls.
        min: Smallest number; of times in microseconds since 1970 UTC. None for other types, or if all rows are null.
        max: Largest number, in the same units.
        total: Sum of the numbers; None for times and other types, or if all rows are null.
    """

    nulls: int = 0
    min: Number | None = None
    max: Number | None = None
    total: Number | None = None

    def __add__(self, other: ColumnProfile) -> ColumnProfile:
        """Return the counters of both parts."""
        totals = [total for total in (self.total, other.total) if total is not None]
        return ColumnProfile(
            self.nulls + other.nulls,
            min((bound for bound in (self.min, other.min) if bound is not None), default=None),
            max((bound for bound in (self.max, other.max) if bound is not None), default=None),
            sum(totals) if totals else None,
        )


@dataclass(frozen=True)
class TableProfile:
    """Counters of one table.

    Attributes:
        rows: Number of rows.
        columns: Counters of each column, by name.
    """

    rows: int = 0
    columns: Mapping[str, ColumnProfile] = field(default_factory=dict)

    def __add__(self, other: TableProfile) -> TableProfile:
        """Return the counters of both parts."""
        names = dict.fromkeys([*self.columns, *other.columns])
        empty = ColumnProfile()
        columns = {name: self.columns.get(name, empty) + other.columns.get(name, empty) for name in names}
        return TableProfile(self.rows + other.rows, columns)


@dataclass(frozen=True)
class Large:
    """One of the largest users or requests.

    Attributes:
        size: Number of events of the user, or of targets of the request.
        name: The user's id, or "user/request".
    """

    size: int
    name: str


@dataclass(frozen=True)
class Skew:
    """How uneven the data is.

    Attributes:
        users: Largest users by events.
        requests: Largest requests by targets.
        history_lengths: Number of requests by the bit length of their history's length: 0 for an empty history, and
            k for 2^(k-1) to 2^k - 1 events.
        policy_users: For each policy the largest users that it was applied to, by events.
    """

    users: tuple[Large, ...] = ()
    requests: tuple[Large, ...] = ()
    history_lengths: Mapping[int, int] = field(default_factory=dict)
    policy_users: Mapping[str, tuple[Large, ...]] = field(default_factory=dict)

    def __add__(self, other: Skew) -> Skew:
        """Return the largest of both parts, and the sum of their history lengths."""
        lengths = sorted({*self.history_lengths, *other.history_lengths})
        policies = sorted({*self.policy_users, *other.policy_users})
        return Skew(
            _largest(self.users, other.users),
            _largest(self.requests, other.requests),
            {bits: self.history_lengths.get(bits, 0) + other.history_lengths.get(bits, 0) for bits in lengths},
            {
                policy: _largest(self.policy_users.get(policy, ()), other.policy_users.get(policy, ()))
                for policy in policies
            },
        )


def _largest(first: tuple[Large, ...], second: tuple[Large, ...]) -> tuple[Large, ...]:
    """The largest of two parts, by descending size; names break ties, so that the order of the parts is irrelevant."""
    return tuple(heapq.nsmallest(LARGEST, (*first, *second), key=lambda large: (-large.size, large.name)))


@dataclass(frozen=True)
class Profile:
    """The profile of a dataset or of a part of it.

    Attributes:
        tables: Counters of each table, by name.
        skew: How uneven the data is.
    """

    tables: Mapping[TableName, TableProfile] = field(default_factory=dict)
    skew: Skew = field(default_factory=Skew)

    def __add__(self, other: Profile) -> Profile:
        """Return the profile of both parts."""
        empty = TableProfile()
        names = [name for name in TABLES if name in self.tables or name in other.tables]
        tables = {name: self.tables.get(name, empty) + other.tables.get(name, empty) for name in names}
        return Profile(tables, self.skew + other.skew)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def profile_of(document: Mapping[str, Any]) -> Profile:
    """Read a profile back from JSON.

    Args:
        document: What `Profile.as_dict` returned; JSON may have turned integer keys into strings.

    Returns:
        The profile.

    Raises:
        KeyError: A key is missing.
        TypeError: A counter is unknown.
    """
    tables = {
        name: TableProfile(table["rows"], {c: ColumnProfile(**counters) for c, counters in table["columns"].items()})
        for name in TABLES
        if (table := document["tables"].get(name))
    }
    skew = document["skew"]
    return Profile(
        tables,
        Skew(
            tuple(Large(**large) for large in skew["users"]),
            tuple(Large(**large) for large in skew["requests"]),
            {int(bits): count for bits, count in skew["history_lengths"].items()},
            {policy: tuple(Large(**large) for large in users) for policy, users in skew["policy_users"].items()},
        ),
    )
