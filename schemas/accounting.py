"""Row accounting: the outcome of every row, event and target of a build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from typing import Any, ClassVar, Protocol, TypeVar

from .errors import DataError

# Why a valid row is left out of a dataset: its user has too many events and is rejected, or too few; the event is not
# among the newest that are kept of a heavy user; the label window of its request is still open at the end of the log.
POLICIES = ("rejected_user", "short_history", "heavy_user_cap", "pending_label")


class _Dataclass(Protocol):
    """Any instance of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


T = TypeVar("T", bound=_Dataclass)


def _sum_fields(first: T, second: T, add: Callable[[Any, Any], Any]) -> T:
    """Add two dataclass instances of one type field by field."""
    values = {f.name: add(getattr(first, f.name), getattr(second, f.name)) for f in fields(first)}
    return type(first)(**values)


def _add(first: int | Mapping[str, int], second: int | Mapping[str, int]) -> int | dict[str, int]:
    """Add two numbers, or two mappings by key; keys whose sum is 0 are left out."""
    if isinstance(first, int) and isinstance(second, int):
        return first + second
    if isinstance(first, int) or isinstance(second, int):
        raise TypeError(f"cannot add {first!r} and {second!r}")
    sums = {key: first.get(key, 0) + second.get(key, 0) for key in sorted({*first, *second})}
    return {key: value for key, value in sums.items() if value}


@dataclass(frozen=True)
class RowAccounting:
    """Outcomes of the rows of a source: `rows = filtered + rejected + duplicate + accepted + sum(policies)`.

    Attributes:
        rows: Rows that were read; an exploded row counts once per list element.
        filtered: Rows that no `where` selects.
        rejected: Rows with at least one error.
        duplicate: Copies of another row.
        accepted: Rows that became events, targets or actions.
        empty_list: Rows with an empty list to explode, which are not among `rows`.
        reasons: Rejected rows by reason; a row counts once for each of its reasons.
        policies: Valid rows that a policy left out of all of their roles, by policy (POLICIES).
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
        """Return the sum of two parts, field by field."""
        return _sum_fields(self, other, _add)

    def check(self, source: str) -> None:
        """Check that every row has exactly one outcome.

        Args:
            source: Name of the source, for the error.

        Raises:
            DataError: The outcomes do not add up to the rows.
        """
        outcomes = self.filtered + self.rejected + self.duplicate + self.accepted + sum(self.policies.values())
        if self.rows != outcomes:
            raise DataError(
                f"source {source}: {self.rows:,} rows in, but {outcomes:,} accounted for "
                f"({self.as_dict()}). Nothing was committed; please report this as a bug."
            )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Counts:
    """What a dataset contains, and which accepted events and targets it leaves out.

    Attributes:
        users: Users with a timeline.
        segments: Rows of the timelines table.
        requests: Rows of the requests table.
        targets: Targets of all requests.
        events: Accepted events that no policy left out; `stored + beyond_history + after_last_request`.
        stored: Distinct events in the timelines.
        stored_with_overlap: Events in the timelines; an event counts once for each segment that contains it.
        beyond_history: Events that are older than the history of every request.
        after_last_request: Events that no request can see because they are too late.
        history_events: Sum of the history lengths of all requests.
        capped_users: Heavy users whose newest events are kept.
        capped_events: Older events of these users.
        rejected_users: Users rejected because of too many events.
        rejected_events: Events of these users.
        rejected_targets: Targets of these users.
        short_users: Users rejected because of too few events.
        short_events: Events of these users.
        short_targets: Targets of these users.
        pending_requests: Requests whose label window is still open at the end of the log.
        pending_targets: Targets of these requests.
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
        """Return the sum of two parts, field by field."""
        return _sum_fields(self, other, _add)

    def check(self, accepted_events: int | None = None, accepted_targets: int | None = None) -> None:
        """Check that every accepted event and target is in the dataset or counted as left out.

        Args:
            accepted_events: Accepted rows of the log of events, or None if the log has other roles too.
            accepted_targets: Accepted rows of the log of targets, or None if the log has other roles too.

        Raises:
            DataError: Events or targets are missing.
        """
        in_dataset = self.stored + self.beyond_history + self.after_last_request
        if self.events != in_dataset:
            raise DataError(
                f"The kernel received {self.events:,} events, but {in_dataset:,} are in the dataset or counted as left "
                f"out: {self.stored:,} stored, {self.beyond_history:,} beyond every history, "
                f"{self.after_last_request:,} after the last request. Nothing was committed; please report this as a "
                "bug."
            )
        if accepted_events is not None and accepted_events != self.events:
            raise DataError(
                f"The log has {accepted_events:,} accepted events, but the kernel received {self.events:,}. "
                "Nothing was committed; please report this as a bug."
            )
        if accepted_targets is not None and accepted_targets != self.targets:
            raise DataError(
                f"The log has {accepted_targets:,} accepted targets, but the requests of the dataset have "
                f"{self.targets:,}. Nothing was committed; please report this as a bug."
            )

    def as_dict(self) -> dict[str, int]:
        """Return plain values for JSON."""
        return asdict(self)
