"""What a build of a simulated log must count: the outcome of every row, worked out from what was planted."""

from collections.abc import Iterable, Mapping

from longbatch.schemas.accounting import POLICIES, RowAccounting

from .corrupt_rows import ACCEPTED

Planted = Mapping[str, Mapping[str, int]]  # table of the spec -> kind -> rows


def add_planted(parts: Iterable[Planted]) -> dict[str, dict[str, int]]:
    """Rows planted per table and kind in all parts of a log together."""
    total: dict[str, dict[str, int]] = {}
    for part in parts:
        for table, counts in part.items():
            kept = total.setdefault(table, {})
            for kind, rows in counts.items():
                kept[kind] = kept.get(kind, 0) + rows
    return total


def by_kind(planted: Planted) -> dict[str, int]:
    """Rows planted per kind in both tables together."""
    both: dict[str, int] = {}
    for counts in planted.values():
        for kind, rows in counts.items():
            both[kind] = both.get(kind, 0) + rows
    return both


def expected_accounting(clean_rows: int, planted: Planted) -> RowAccounting:
    """The outcomes of all rows: clean ones are accepted, each planted kind has its own."""
    outcomes = (outcome(kind, rows) for kind, rows in by_kind(planted).items())
    return sum(outcomes, RowAccounting(rows=clean_rows, accepted=clean_rows))


def outcome(kind: str, rows: int) -> RowAccounting:
    """The books of `rows` rows of one kind of dirt."""
    if kind in POLICIES:
        return RowAccounting(rows=rows, policies={kind: rows})
    if kind in ("duplicate", "filtered"):
        return RowAccounting(rows=rows, **{kind: rows})  # type: ignore[arg-type]
    if kind in ACCEPTED:
        return RowAccounting(rows=rows, accepted=rows)
    return RowAccounting(rows=rows, rejected=rows, reasons=dict.fromkeys(kind.split("+"), rows))


def expected_counts(events: int, targets: int, planted: Planted) -> dict[str, int]:
    """Fields of `Counts` by name: the clean events, the valid targets, and what the policies left out."""
    history, requests = (planted.get(table, {}) for table in ("history", "requests"))
    return {
        "events": events,
        "targets": targets,
        "rejected_events": history.get("rejected_user", 0),
        "rejected_targets": requests.get("rejected_user", 0),
        "short_events": history.get("short_history", 0),
        "short_targets": requests.get("short_history", 0),
        "pending_targets": requests.get("pending_label", 0),
    }
