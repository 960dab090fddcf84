"""Row rules: why rows are rejected, what a spec allows in its columns, and how many rejected rows are too many.

A reason is a word, or a word and a column or label: "missing_user", "unparsable:dwell_ms". docs/semantics.md lists
all reasons.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.errors import SpecError
from longbatch.schemas.source_schema import MappedColumn, source_schema
from longbatch.schemas.spec.build_spec import BuildSpec, Role
from longbatch.schemas.spec.columns import Declared, TimeColumn

MISSING_TIME = "missing_time"
TIME_OUT_OF_RANGE = "time_out_of_range"
MALFORMED_ROW = "malformed_row"
CONFLICTING_REQUEST = "conflicting_request"


def unparsable(column: str) -> str:
    """Return the reason for values that cannot be read as the declared type.

    Args:
        column: The raw column.
    """
    return f"unparsable:{column}"


def missing(role: Role, name: str) -> str | None:
    """Return the reason for nulls in a role's column.

    Args:
        role: The role that needs the column.
        name: The role's name for the column, such as "user_id" or "label.click".

    Returns:
        The reason, or None where null is allowed.
    """
    if name in ("user_id", "item_id"):
        return f"missing_{name.removesuffix('_id')}"
    if name == "request_id":
        return "missing_request" if role == "requests" else None
    if name in ("event_time", "arrival_time", "request_time"):
        return MISSING_TIME
    return f"missing_label:{name.removeprefix('label.')}" if name.startswith("label.") else None


def declared_faults(declared: Declared, column: str, value: pl.Expr, *, as_string: bool) -> dict[str, pl.Expr]:
    """Return expressions that find values outside of the declared range or set.

    Args:
        declared: The feature or label with its `min`, `max` and `values`.
        column: The raw column, for the reason.
        value: The typed column, without its default.
        as_string: Whether the column contains strings; an id is compared before it is hashed.

    Returns:
        For each reason, whether a row has it. Null never has one; NaN is out of any range.
    """
    faults = {}
    if declared.min is not None or declared.max is not None:
        is_inside = pl.lit(True)
        if declared.min is not None:
            is_inside = is_inside & (value >= declared.min)
        if declared.max is not None:
            is_inside = is_inside & (value <= declared.max)
        faults[f"out_of_range:{column}"] = value.is_not_null() & (~is_inside | value.is_nan())
    if declared.values is not None:
        allowed = [str(v) if as_string else v for v in declared.values]
        faults[f"unknown:{column}"] = value.is_not_null() & ~value.is_in(allowed)
    return faults


def possible_reasons(spec: BuildSpec, source: str) -> list[str]:
    """Return every reason for which a row of a source can be rejected.

    Args:
        spec: The build spec.
        source: Name of the source.
    """
    reasons = dict.fromkeys([MALFORMED_ROW])
    for role, columns in source_schema(spec, source).role_columns.items():
        for name, mapped in columns.items():
            reasons |= dict.fromkeys(_column_reasons(role, name, mapped))
    if spec.requests.source == source and spec.requests.request_id:
        reasons[CONFLICTING_REQUEST] = None
    return list(reasons)


def _column_reasons(role: Role, name: str, mapped: MappedColumn) -> list[str]:
    reasons = [reason for reason in [missing(role, name)] if reason]
    if mapped.column is not None:
        reasons.append(unparsable(mapped.column))
    if isinstance(mapped, TimeColumn):
        reasons.append(TIME_OUT_OF_RANGE)
    if isinstance(mapped, Declared):
        reasons += declared_faults(mapped, str(mapped.column), pl.lit(None), as_string=True)
    return reasons


def check_threshold_names(spec: BuildSpec) -> None:
    """Check that `max_rejected_for` names reasons that can occur.

    Args:
        spec: The build spec.

    Raises:
        SpecError: No row can be rejected for one of the names.
    """
    known = list(dict.fromkeys(reason for source in spec.sources for reason in possible_reasons(spec, source)))
    for reason in spec.max_rejected_for:
        if reason not in known:
            similar = difflib.get_close_matches(reason, known, n=1, cutoff=0.5)
            hint = f"Did you mean {similar[0]!r}?" if similar else f"The reasons of this spec are {', '.join(known)}."
            raise SpecError(f"max_rejected_for: {reason!r} is not a reason of this spec. {hint}")


@dataclass(frozen=True)
class ExceededThreshold:
    """A threshold that the rejected rows of a source exceed.

    Attributes:
        reason: The reason that the threshold is for, None for all reasons together.
        rejected: Number of rejected rows.
        rows: Number of rows that some `where` selects.
        allowed: The allowed share of these rows.
    """

    reason: str | None
    rejected: int
    rows: int
    allowed: float

    def __str__(self) -> str:
        """Return a sentence with the counts, the share, and the key of the spec that sets the threshold."""
        reason = "" if self.reason is None else f" for {self.reason}"
        key = "max_rejected" if self.reason is None else f"max_rejected_for.{self.reason!r}"
        share = self.rejected / self.rows
        return (
            f"{self.rejected:,} of {self.rows:,} rows ({share:.2%}) were rejected{reason}, "
            f"more than {key} = {self.allowed:.2%}"
        )


def exceeded_thresholds(
    accounting: RowAccounting, allowed: float, allowed_for: Mapping[str, float]
) -> list[ExceededThreshold]:
    """Return every threshold that a source's rejected rows exceed.

    Args:
        accounting: Row counts of the source.
        allowed: Allowed share of rejected rows, of the rows that some `where` selects.
        allowed_for: Allowed share by reason.
    """
    rows = accounting.rows - accounting.filtered
    thresholds = [ExceededThreshold(None, accounting.rejected, rows, allowed)]
    for reason, share in allowed_for.items():
        thresholds.append(ExceededThreshold(reason, accounting.reasons.get(reason, 0), rows, share))
    return [threshold for threshold in thresholds if threshold.rejected > threshold.allowed * rows]
