"""What a build must pass before it commits: accounting identities, shares of rejected rows, and that there is data."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.errors import DataError
from longbatch.schemas.source_schema import role_schema, source_schema
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.storage.store import Store
from longbatch.validation.rules import exceeded_thresholds

from .build_result import BuildResult
from .table_files import read_frame

# Bounds of the examples in a message, in rows per reason, quarantine files and characters.
EXAMPLES = 2
EXAMPLE_FILES = 50
EXAMPLE_LENGTH = 200


def check_result(spec: BuildSpec, result: BuildResult, store: Store) -> None:
    """Check a build of a whole log.

    Args:
        spec: The build spec.
        result: What the build wrote and counted.
        store: The dataset, which examples of rejected rows are read from.

    Raises:
        DataError: The result must not be committed; the message has counts and examples.
    """
    check_accounting(spec, result)
    for source, accounting in result.row_accounting.items():
        valid = accounting.accepted + sum(accounting.policies.values())
        # The log of actions may be empty, for example on a day without actions.
        may_be_empty = source_schema(spec, source).roles == ("actions",) and not accounting.rejected
        if valid == 0 and not may_be_empty:
            raise DataError(
                f"source {source} has no valid row: {_described(accounting, result, store)}\nNothing was committed."
            )
    check_rejects(spec, result, store)
    accepted = {role: result.row_accounting[spec.section(role).source].accepted for role in spec.roles}
    single = {role for role in spec.roles if len(role_schema(spec, role).roles) == 1}
    result.counts.check(
        accepted["history"] if "history" in single else None, accepted["requests"] if "requests" in single else None
    )
    if result.counts.requests == 0:
        raise DataError(f"The dataset would have no requests: {_reason_for_none(result)}. Nothing was committed.")


def check_accounting(spec: BuildSpec, result: BuildResult) -> None:
    """Check the accounting identities: every row and every event has exactly one outcome.

    Args:
        spec: The build spec.
        result: What the build counted.

    Raises:
        DataError: An identity does not hold, which is a bug.
    """
    for source in spec.sources:
        result.row_accounting[source].check(source)
    result.counts.check()


def check_rejects(spec: BuildSpec, result: BuildResult, store: Store) -> None:
    """Check the shares of rejected rows.

    Args:
        spec: The build spec, with the thresholds.
        result: What the build counted.
        store: The dataset, which examples of rejected rows are read from.

    Raises:
        DataError: A share is over its threshold; the message has examples.
    """
    for source, accounting in result.row_accounting.items():
        over = list(map(str, exceeded_thresholds(accounting, spec.max_rejected, spec.max_rejected_for)))
        if over:
            raise DataError(
                f"source {source}: {'; '.join(over)}: {_described(accounting, result, store)}\n"
                "Fix the log or raise the threshold. Nothing was committed."
            )


def _reason_for_none(result: BuildResult) -> str:
    counts = result.counts
    if counts.pending_requests:
        return (
            f"{counts.pending_requests:,} requests are pending because a label window was still open when the log of "
            "actions ended. Set actions.until, or shorten `within`"
        )
    left_out = counts.rejected_targets + counts.short_targets
    if left_out:
        return f"policies left out {left_out:,} targets. Check [users]"
    return "not one row is a target. Check requests.where"


def _described(accounting: RowAccounting, result: BuildResult, store: Store) -> str:
    """The outcomes of a source's rows, then each reason with its count and examples."""
    totals = f"{accounting.rows:,} rows, {accounting.filtered:,} filtered, {accounting.rejected:,} rejected"
    if not accounting.reasons:
        return totals
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in accounting.reasons.items())
    examples = (f"\n  {line}" for line in _examples(result, store, list(accounting.reasons)))
    return f"{totals} ({reasons})" + "".join(examples)


def _examples(result: BuildResult, store: Store, reasons: list[str]) -> Iterator[str]:
    """Yield original rejected rows, up to EXAMPLES of each reason: file, row number and values."""
    wanted = dict.fromkeys(reasons, EXAMPLES)
    for entry in result.quarantine[:EXAMPLE_FILES]:
        if not any(wanted.values()):
            return
        rows = read_frame(store, entry)
        for reason in [reason for reason, count in wanted.items() if count]:
            matches = rows.filter(pl.col("_reasons").list.contains(reason)).head(wanted[reason])
            wanted[reason] -= matches.height
            yield from (_example(reason, row) for row in matches.to_dicts())


def _example(reason: str, row: dict[str, object]) -> str:
    values = ", ".join(f"{name} = {value!r}" for name, value in row.items() if not name.startswith("_"))
    values = values or repr(row.get("_text"))
    row_number = "" if row.get("_source_row") is None else f", row {row['_source_row']}"
    short = values if len(values) <= EXAMPLE_LENGTH else values[:EXAMPLE_LENGTH] + " ..."
    return f"{reason}: {row['_source_file']}{row_number}: {short}"
