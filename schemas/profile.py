"""The profile of a build: exact counters of every column, and who is largest; made in the passes a build makes anyway.

Profiles of parts add up to the profile of the whole, so engines compute them bucket by bucket.
Tables are "events" (the sound events of the timelines), "impressions" (a row per target) and "requests" (a row each);
docs/quality.md lists their columns.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

TableName = Literal["events", "impressions", "requests"]
TABLES: tuple[TableName, ...] = ("events", "impressions", "requests")
LARGEST = 20
Number = int | float


@dataclass(frozen=True)
class ColumnProfile:
    """Counters of one column over all rows: nulls; min, max and total of numbers (times: min and max, in us)."""

    nulls: int = 0
    min: Number | None = None
    max: Number | None = None
    total: Number | None = None

    def __add__(self, other: ColumnProfile) -> ColumnProfile:
        """Return the counters of both parts."""
        return ColumnProfile(
            self.nulls + other.nulls,
            min((v for v in (self.min, other.min) if v is not None), default=None),
            max((v for v in (self.max, other.max) if v is not None), default=None),
            self.total + other.total
            if self.total is not None and other.total is not None
            else (self.total if other.total is None else other.total),
        )


@dataclass(frozen=True)
class TableProfile:
    """Rows and columns of one table."""

    rows: int = 0
    columns: Mapping[str, ColumnProfile] = field(default_factory=dict)

    def __add__(self, other: TableProfile) -> TableProfile:
        """Return the counters of both parts."""
        names = dict.fromkeys([*self.columns, *other.columns])
        none = ColumnProfile()
        columns = {name: self.columns.get(name, none) + other.columns.get(name, none) for name in names}
        return TableProfile(self.rows + other.rows, columns)


@dataclass(frozen=True)
class Large:
    """A user or a request among the largest: its size in events or targets, and its id as text."""

    size: int
    name: str


@dataclass(frozen=True)
class Skew:
    """How uneven the data is.

    users: largest by events; requests: largest by targets, named "user/request"; history_lengths: number of requests
    by the bit length of the length of their history (0: none; k: 2^(k-1) to 2^k - 1 events);
    policy_users: per policy the largest users it was applied to, by events.
    """

    users: tuple[Large, ...] = ()
    requests: tuple[Large, ...] = ()
    history_lengths: Mapping[int, int] = field(default_factory=dict)
    policy_users: Mapping[str, tuple[Large, ...]] = field(default_factory=dict)

    def __add__(self, other: Skew) -> Skew:
        """Return the largest of both parts."""
        lengths = sorted({*self.history_lengths, *other.history_lengths})
        policies = sorted({*self.policy_users, *other.policy_users})
        return Skew(
            _largest(self.users, other.users),
            _largest(self.requests, other.requests),
            {k: self.history_lengths.get(k, 0) + other.history_lengths.get(k, 0) for k in lengths},
            {p: _largest(self.policy_users.get(p, ()), other.policy_users.get(p, ())) for p in policies},
        )


def _largest(mine: tuple[Large, ...], others: tuple[Large, ...]) -> tuple[Large, ...]:
    return tuple(heapq.nsmallest(LARGEST, (*mine, *others), key=lambda large: (-large.size, large.name)))


@dataclass(frozen=True)
class Profile:
    """Counters per table, and the skew."""

    tables: Mapping[TableName, TableProfile] = field(default_factory=dict)
    skew: Skew = field(default_factory=Skew)

    def __add__(self, other: Profile) -> Profile:
        """Return the profile of both parts."""
        none = TableProfile()
        names = [name for name in TABLES if name in self.tables or name in other.tables]
        tables = {name: self.tables.get(name, none) + other.tables.get(name, none) for name in names}
        return Profile(tables, self.skew + other.skew)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def profile_of(document: Mapping[str, Any]) -> Profile:
    """Read a profile back from `Profile.as_dict`, also after JSON has made texts of its keys."""
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
            {policy: tuple(Large(**large) for large in found) for policy, found in skew["policy_users"].items()},
        ),
    )
