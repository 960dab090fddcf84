"""Row rules: the reason codes of rejected rows, what a spec declares of its columns, and how many rejects are too many.

A reason is a kind, or a kind and what it is about: "missing_user", "unparsable:dwell_ms". docs/meaning.md lists them.
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
    """Reason: the value cannot be read as the declared type."""
    return f"unparsable:{column}"


def missing(role: Role, name: str) -> str | None:
    """Reason for a null in a role's column, or None where a null is no fault."""
    if name in ("user_id", "item_id"):
        return f"missing_{name.removesuffix('_id')}"
    if name == "request_id":
        return "missing_request" if role == "requests" else None
    if name in ("event_time", "arrival_time", "request_time"):
        return MISSING_TIME
    return f"missing_label:{name.removeprefix('label.')}" if name.startswith("label.") else None


def declared_faults(declared: Declared, column: str, value: pl.Expr, *, as_string: bool) -> dict[str, pl.Expr]:
    """Reason -> whether a row's value is outside of what is declared; never true of a null.

    `value` is the column as typed, without default; `as_string` says that it is text (yet to be hashed, if an id).
    """
    faults = {}
    if declared.min is not None or declared.max is not None:
        inside = pl.lit(True)
        if declared.min is not None:
            inside = inside & (value >= declared.min)
        if declared.max is not None:
            inside = inside & (value <= declared.max)
        faults[f"out_of_range:{column}"] = value.is_not_null() & (~inside | value.is_nan())
    if declared.values is not None:
        known = [str(v) if as_string else v for v in declared.values]
        faults[f"unknown:{column}"] = value.is_not_null() & ~value.is_in(known)
    return faults


def possible_reasons(spec: BuildSpec, source: str) -> list[str]:
    """Return every reason that a row of a source can be rejected for."""
    found = dict.fromkeys([MALFORMED_ROW])
    for role, columns in source_schema(spec, source).role_columns.items():
        for name, mapped in columns.items():
            found |= dict.fromkeys(_reasons_of(role, name, mapped))
    if spec.requests.source == source and spec.requests.request_id:
        found[CONFLICTING_REQUEST] = None
    return list(found)


def _reasons_of(role: Role, name: str, mapped: MappedColumn) -> list[str]:
    reasons = [reason for reason in [missing(role, name)] if reason]
    if mapped.column is not None:
        reasons.append(unparsable(mapped.column))
    if isinstance(mapped, TimeColumn):
        reasons.append(TIME_OUT_OF_RANGE)
    if isinstance(mapped, Declared):
        reasons += declared_faults(mapped, str(mapped.column), pl.lit(None), as_string=True)
    return reasons


def check_threshold_names(spec: BuildSpec) -> None:
    """Raise SpecError if `max_rejected_for` names a reason that no row can be rejected for."""
    known = list(dict.fromkeys(reason for source in spec.sources for reason in possible_reasons(spec, source)))
    for reason in spec.max_rejected_for:
        if reason not in known:
            near = difflib.get_close_matches(reason, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"the reasons are {', '.join(known)}"
            raise SpecError(f"max_rejected_for names {reason!r}, which is no reason of this spec; {hint}")


@dataclass(frozen=True)
class Excess:
    """More rejected rows than a threshold allows: `rejected` of `rows`; reason is None for all reasons together."""

    reason: str | None
    rejected: int
    rows: int
    allowed: float

    def __str__(self) -> str:
        """Say what is too many, of what, and which key of the spec allows how much."""
        what = "" if self.reason is None else f" for {self.reason}"
        key = "max_rejected" if self.reason is None else f"max_rejected_for.{self.reason!r}"
        share = self.rejected / self.rows
        return (
            f"{self.rejected:,} of {self.rows:,} rows ({share:.2%}) were rejected{what}, "
            f"more than {key} = {self.allowed:.2%}"
        )


def excesses(accounting: RowAccounting, allowed: float, allowed_for: Mapping[str, float]) -> list[Excess]:
    """Return every threshold that a source's rejects exceed; shares are of the rows that no `where` filtered out."""
    rows = accounting.rows - accounting.filtered
    found = [Excess(None, accounting.rejected, rows, allowed)]
    found += [Excess(reason, accounting.reasons.get(reason, 0), rows, share) for reason, share in allowed_for.items()]
    return [excess for excess in found if excess.rejected > excess.allowed * rows]
