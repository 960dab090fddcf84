"""What a build of a simulated log must count: the outcome of every row, derived from what was planted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from longbatch.schemas.accounting import POLICIES, RowAccounting

from .corrupt_rows import ACCEPTED

Planted = Mapping[str, Mapping[str, int]]
"""Planted rows by table of the spec, then by corruption or policy."""


def add_planted(parts: Iterable[Planted]) -> dict[str, dict[str, int]]:
    """Return the sum of the rows planted in all parts of a log, by table and corruption."""
    total: dict[str, dict[str, int]] = {}
    for part in parts:
        for table, counts in part.items():
            sums = total.setdefault(table, {})
            for corruption, rows in counts.items():
                sums[corruption] = sums.get(corruption, 0) + rows
    return total


def total_by_corruption(planted: Planted) -> dict[str, int]:
    """Return the rows planted in all tables, by corruption."""
    total: dict[str, int] = {}
    for counts in planted.values():
        for corruption, rows in counts.items():
            total[corruption] = total.get(corruption, 0) + rows
    return total


def expected_accounting(clean_rows: int, planted: Planted) -> RowAccounting:
    """Return the row accounting that a build must report: clean rows are accepted, planted ones have their outcome.

    Args:
        clean_rows: The number of clean rows.
        planted: The planted rows.

    Returns:
        The row accounting of the log.
    """
    outcomes = (_outcome(corruption, rows) for corruption, rows in total_by_corruption(planted).items())
    return sum(outcomes, RowAccounting(rows=clean_rows, accepted=clean_rows))


def _outcome(corruption: str, rows: int) -> RowAccounting:
    """The row accounting of the rows of one corruption."""
    if corruption in POLICIES:
        return RowAccounting(rows=rows, policies={corruption: rows})
    if corruption == "duplicate":
        return RowAccounting(rows=rows, duplicate=rows)
    if corruption == "filtered":
        return RowAccounting(rows=rows, filtered=rows)
    if corruption in ACCEPTED:
        return RowAccounting(rows=rows, accepted=rows)
    return RowAccounting(rows=rows, rejected=rows, reasons=dict.fromkeys(corruption.split("+"), rows))


def expected_counts(events: int, targets: int, planted: Planted) -> dict[str, int]:
    """Return the fields of `Counts` that are known: clean events, valid targets, and what the policies left out.

    Args:
        events: The clean events.
        targets: The valid targets.
        planted: The planted rows.

    Returns:
        The counts by name.
    """
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
