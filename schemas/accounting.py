"""The books of a build: what became of every row, every event and every target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from .errors import DataError

# Why a sound row is left out: its user has too many events, too few; it is older than the newest that are kept;
# the window of a label of its request was not over when the log ended.
POLICIES = ("rejected_user", "short_history", "heavy_user_cap", "pending_label")


@dataclass(frozen=True)
class RowAccounting:
    """The outcome of a source's rows: `rows = filtered + rejected + duplicate + accepted + sum(policies)`.

    `reasons` counts a rejected row under each of its reasons; `policies` counts sound rows that a policy of the
    spec left out of every role they play, by the policy (POLICIES); `empty_list` counts rows that an `explode`
    turned into none (they are not among `rows`).
    """

    rows: int = 0
    filtered: int = 0
    rejected: int = 0
    duplicate: int = 0
    accepted: int = 0
    empty_list: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    policies: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: RowAccounting) -> RowAccounting:
        """Return the books of both parts."""
        return RowAccounting(
            self.rows + other.rows,
            self.filtered + other.filtered,
            self.rejected + other.rejected,
            self.duplicate + other.duplicate,
            self.accepted + other.accepted,
            self.empty_list + other.empty_list,
            _sum(self.reasons, other.reasons),
            _sum(self.policies, other.policies),
        )

    def check(self, source: str) -> None:
        """Raise DataError unless every row has exactly one outcome."""
        accounted = self.filtered + self.rejected + self.duplicate + self.accepted + sum(self.policies.values())
        if self.rows != accounted:
            raise DataError(
                f"source {source}: {self.rows:,} rows in, but {accounted:,} accounted for "
                f"({self.as_dict()}); nothing is committed; please report this as a bug"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def _sum(mine: Mapping[str, int], others: Mapping[str, int]) -> dict[str, int]:
    """Return the counts of both by name, those that are not zero."""
    counts = {name: mine.get(name, 0) + others.get(name, 0) for name in sorted({*mine, *others})}
    return {name: count for name, count in counts.items() if count}


@dataclass(frozen=True)
class Counts:
    """What a dataset holds, and which accepted events and targets it had no use for.

    `stored` counts distinct events; `stored_with_overlap` counts those again that overlapping segments
    of heavy_users repeat. `history_events` is the sum of the history lengths of all requests. Left out by a policy:
    `capped_events` of `capped_users` (heavy_users, whose newest are kept), events and targets of `rejected_users` and of
    `short_users`, and the `pending_targets` of `pending_requests`.
    """

    users: int = 0
    segments: int = 0
    requests: int = 0
    targets: int = 0
    events: int = 0
    stored: int = 0
    stored_with_overlap: int = 0
    beyond_history: int = 0
    after_last_request: int = 0
    history_events: int = 0
    capped_users: int = 0
    capped_events: int = 0
    rejected_users: int = 0
    rejected_events: int = 0
    rejected_targets: int = 0
    short_users: int = 0
    short_events: int = 0
    short_targets: int = 0
    pending_requests: int = 0
    pending_targets: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Return the counts of both parts."""
        mine, others = asdict(self), asdict(other)
        return Counts(**{name: mine[name] + others[name] for name in mine})

    def check(self, accepted_events: int | None = None, accepted_targets: int | None = None) -> None:
        """Raise DataError unless every accepted event is stored or out of every request's reach, every target there.

        Given are the accepted rows of the logs of events and of targets, where a log feeds nothing else.
        """
        accounted = self.stored + self.beyond_history + self.after_last_request
        if self.events != accounted or (accepted_events is not None and accepted_events != self.events):
            raise DataError(
                f"{accepted_events} events accepted, {self.events:,} arrived, {accounted:,} accounted for; "
                "nothing is committed; please report this as a bug"
            )
        if accepted_targets is not None and accepted_targets != self.targets:
            raise DataError(
                f"{accepted_targets:,} targets accepted, {self.targets:,} in requests; "
                "nothing is committed; please report this as a bug"
            )

    def as_dict(self) -> dict[str, int]:
        """Plain values for JSON."""
        return asdict(self)
