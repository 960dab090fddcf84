"""What a build must pass before it commits: the laws of the books, the thresholds of rejects, and that there is data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from longbatch.jobs.engines.stages import Built
from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.errors import DataError
from longbatch.schemas.source_schema import role_schema, source_schema
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.validation.rules import exceeded_thresholds

EXAMPLES = 2
EXAMPLE_FILES = 50
EXAMPLE_LENGTH = 200


def check_built(spec: BuildSpec, built: Built, root: Path) -> None:
    """Raise DataError, saying what was found and why, if this must not be committed."""
    check_accounting(spec, built)
    for source, accounting in built.row_accounting.items():
        sound = accounting.accepted + sum(accounting.policies.values())
        may_be_empty = (
            source_schema(spec, source).roles == ("actions",) and not accounting.rejected
        )  # a day without actions
        if sound == 0 and not may_be_empty:
            raise DataError(
                f"source {source} has no valid row: {_described(accounting, built, root)}\nNothing was committed"
            )
    check_rejects(spec, built, root)
    accepted = {role: built.row_accounting[spec.section(role).source].accepted for role in spec.roles}
    alone = {role for role in spec.roles if len(role_schema(spec, role).roles) == 1}
    built.counts.check(
        accepted["history"] if "history" in alone else None, accepted["requests"] if "requests" in alone else None
    )
    if built.counts.requests == 0:
        raise DataError(f"no request is left: {_why_none(built)}; nothing was committed")


def check_accounting(spec: BuildSpec, built: Built) -> None:
    """Raise DataError unless every row and every event has one outcome."""
    for source in spec.sources:
        built.row_accounting[source].check(source)
    built.counts.check()


def check_rejects(spec: BuildSpec, built: Built, root: Path) -> None:
    """Raise DataError, with examples, if more rows were rejected than the spec allows."""
    for source, accounting in built.row_accounting.items():
        over = list(map(str, exceeded_thresholds(accounting, spec.max_rejected, spec.max_rejected_for)))
        if over:
            raise DataError(
                f"source {source}: {'; '.join(over)}: {_described(accounting, built, root)}\n"
                "Mend the log or raise the threshold; nothing was committed"
            )


def _why_none(built: Built) -> str:
    counts = built.counts
    if counts.pending_requests:
        return (
            f"{counts.pending_requests:,} requests were held back, for the window of a label was not over when the "
            "actions ended; set actions.until, or shorten `within`"
        )
    if counts.rejected_targets or counts.short_targets:
        return f"policies left out {counts.rejected_targets + counts.short_targets:,} targets; check [users]"
    return "no row became a target; check requests.where"


def _described(accounting: RowAccounting, built: Built, root: Path) -> str:
    """The outcomes of a source's rows, and below them each reason with its count and examples."""
    found = f"{accounting.rows:,} rows, {accounting.filtered:,} filtered, {accounting.rejected:,} rejected"
    if not accounting.reasons:
        return found
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in accounting.reasons.items())
    return f"{found} ({reasons})" + "".join(f"\n  {line}" for line in _examples(built, root, list(accounting.reasons)))


def _examples(built: Built, root: Path, reasons: list[str]) -> Iterator[str]:
    """Yield rejected rows, up to EXAMPLES of each reason, as they came: file, row and values."""
    wanted = dict.fromkeys(reasons, EXAMPLES)
    for entry in built.quarantine[:EXAMPLE_FILES]:
        if not any(wanted.values()):
            return
        rows = pl.read_parquet(root / entry["path"])
        for reason in [reason for reason, left in wanted.items() if left]:
            hit = rows.filter(pl.col("_reasons").list.contains(reason)).head(wanted[reason])
            wanted[reason] -= hit.height
            yield from (_example(reason, row) for row in hit.to_dicts())


def _example(reason: str, row: dict[str, object]) -> str:
    values = ", ".join(f"{name} = {value!r}" for name, value in row.items() if not name.startswith("_"))
    values = values or repr(row.get("_text"))
    place = "" if row.get("_source_row") is None else f", row {row['_source_row']}"
    short = values if len(values) <= EXAMPLE_LENGTH else values[:EXAMPLE_LENGTH] + " ..."
    return f"{reason}: {row['_source_file']}{place}: {short}"
