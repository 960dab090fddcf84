"""The naive reference, first half: what becomes of every row of a source (docs/meaning.md, A row's outcome).

Decisions where docs/meaning.md leaves room:
* `conflicting_request` looks only at rows that have no other reason to be rejected;
* in a column that no role of the row needs, a value that cannot be read, or a time out of range, counts as missing
  for duplicates; one that can be read counts as it is, whatever is declared;
* what an action adds to a label is, for duplicates, null where the label's `where` does not select the row, whatever
  its column holds there;
* a `where` on CSV or JSON lines sees mapped columns in their declared types (a column with several readings
  in the first), numeric times as floats, everything else as text; what does not parse is null;
* NaN equals NaN and -0.0 equals 0.0, in duplicates and in every order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from longbatch.schemas.accounting import POLICIES, RowAccounting
from longbatch.schemas.errors import DataError
from longbatch.schemas.source_schema import ActionValue, MappedColumn, SourceSchema, source_schema
from longbatch.schemas.spec.build_spec import ROLES, BuildSpec, Role
from longbatch.schemas.spec.columns import DURATION_US, Label, TimeColumn
from longbatch.schemas.spec.source import Explode

from .values import Faults, Row, RowReader, or_null, order, row_reader

Key = tuple[Any, ...]


@dataclass(frozen=True)
class SoundRow:
    """A row that is neither filtered nor rejected nor a duplicate.

    `values` holds, for each role that it plays, the role's names for its values; `left_out` fills with the policy that
    took it out of a role. `key` holds all of its canonical values, and its roles: no two rows of a source share it.
    """

    values: Mapping[Role, Row]
    key: Key
    left_out: dict[Role, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceRows:
    """The sound rows of a source, its books before any policy, and the latest time of an action in microseconds.

    The latest action is one without a reason of its own to be rejected; None where there is none.
    """

    rows: list[SoundRow]
    accounting: RowAccounting
    latest_action: int | None

    def accounting_after_policies(self) -> RowAccounting:
        """Return the books once the policies have said what they leave out."""
        gone = [row.left_out.values() for row in self.rows if len(row.left_out) == len(row.values)]
        last = Counter(max(policies, key=POLICIES.index) for policies in gone)
        return replace(
            self.accounting, accepted=self.accounting.accepted - len(gone), policies=dict(sorted(last.items()))
        )


@dataclass(frozen=True)
class _Plan:
    """How to read one source: its schema, and a reader per canonical column."""

    spec: BuildSpec
    schema: SourceSchema
    readers: dict[str, RowReader]


@dataclass(frozen=True)
class _Canonical:
    """A typed row: canonical values, the roles that selected it, and their reasons to reject it."""

    values: Row
    roles: tuple[Role, ...]
    reasons: frozenset[str]

    @property
    def key(self) -> Key:
        """What two duplicates have in common; also a total order."""
        return (*map(order, self.values.values()), tuple(role in self.roles for role in ROLES))


def source_rows(spec: BuildSpec, source: str, frame: pl.DataFrame) -> SourceRows:
    """Give every row of a source its outcome, as far as it does not depend on policies."""
    plan = _plan(spec, source)
    frame, empty = _explode(spec.sources[source].explode, frame)
    rows = _canonical_rows(plan, source, frame)
    selected = [row for row in rows if row.roles]
    conflicts = _conflicting_requests(plan, selected)
    reasons: Counter[str] = Counter()
    distinct: dict[Key, _Canonical] = {}
    rejected = 0
    for row in selected:
        found = row.reasons
        if not found and "requests" in row.roles and _request_id(plan, row) in conflicts:
            found = frozenset({"conflicting_request"})
        rejected += bool(found)
        reasons.update(found)
        if not found:
            distinct.setdefault(row.key, row)
    accounting = RowAccounting(
        rows=len(rows),
        filtered=len(rows) - len(selected),
        rejected=rejected,
        duplicate=len(selected) - rejected - len(distinct),
        accepted=len(distinct),
        empty_list=empty,
        reasons=dict(sorted(reasons.items())),
    )
    sound = [SoundRow({role: _part(plan, role, row) for role in row.roles}, key) for key, row in distinct.items()]
    return SourceRows(sound, accounting, _latest_action(plan, selected))


def _plan(spec: BuildSpec, source: str) -> _Plan:
    schema = source_schema(spec, source)
    return _Plan(spec, schema, {name: row_reader(spec, mapped) for name, mapped in schema.columns.items()})


def _part(plan: _Plan, role: Role, row: _Canonical) -> Row:
    return {name: row.values[canonical] for name, canonical in plan.schema.names[role].items()}


def _latest_action(plan: _Plan, rows: list[_Canonical]) -> int | None:
    actions = [row for row in rows if "actions" in row.roles and not row.reasons]
    return max((row.values[plan.schema.names["actions"]["event_time"]] for row in actions), default=None)


# Values and reasons


def _canonical_rows(plan: _Plan, source: str, frame: pl.DataFrame) -> list[_Canonical]:
    """Type every row and say which roles select it and what is wrong with it."""
    visible = frame if _is_typed(plan.spec, source) else _typed(plan, frame)
    selects = {role: _where(plan.spec.section(role).where, visible) for role in plan.schema.roles}
    action_values = {name: mapped for name, mapped in plan.schema.columns.items() if isinstance(mapped, ActionValue)}
    adds = {name: _where(mapped.where, visible) for name, mapped in action_values.items()}
    rows = []
    for index, raw in enumerate(frame.to_dicts()):
        values, faults = _read_row(plan, raw, {name for name, selected in adds.items() if not selected[index]})
        roles = tuple(role for role, selected in selects.items() if selected[index])
        reasons = {reason for role in roles for reason in _role_reasons(plan, role, values, faults)}
        rows.append(_Canonical(values, roles, frozenset(reasons)))
    return rows


def _read_row(plan: _Plan, raw: Row, unseen: set[str]) -> tuple[Row, dict[str, Faults]]:
    """Return a row's canonical values, as if missing where unreadable, and their faults; null those not to be seen."""
    values: Row = {}
    faults: dict[str, Faults] = {}
    for name, read in plan.readers.items():
        values[name], found = (None, ()) if name in unseen else read(raw)
        if found:
            faults[name] = found
    return values, faults


def _role_reasons(plan: _Plan, role: Role, values: Row, faults: dict[str, Faults]) -> Iterable[str]:
    """Yield every reason why one role cannot use the row."""
    for name, canonical in plan.schema.names[role].items():
        if canonical in faults:
            yield from faults[canonical]
        elif values[canonical] is None and (missing := _missing(role, name)):
            yield missing


def _missing(role: Role, name: str) -> str | None:
    """Return the reason for a null in a role's column, or None where a null is no fault."""
    if name in ("user_id", "item_id"):
        return f"missing_{name.removesuffix('_id')}"
    if name == "request_id":
        return "missing_request" if role == "requests" else None
    if name in ("event_time", "arrival_time", "request_time"):
        return "missing_time"
    return f"missing_label:{name.removeprefix('label.')}" if name.startswith("label.") else None


def _conflicting_requests(plan: _Plan, rows: list[_Canonical]) -> set[Any]:
    """Return the request ids that sound rows of different users carry."""
    users: dict[Any, set[int]] = defaultdict(set)
    user = plan.schema.user_id
    for row in rows:
        if "requests" in row.roles and not row.reasons and _request_id(plan, row) is not None:
            users[_request_id(plan, row)].add(row.values[user])
    return {request_id for request_id, carriers in users.items() if len(carriers) > 1}


def _request_id(plan: _Plan, row: _Canonical) -> Any:
    """Return the request id that a target row carries, None where the spec maps none."""
    return row.values.get(plan.schema.names["requests"].get("request_id", ""))


# Which rows a `where` selects


def _where(where: str | None, frame: pl.DataFrame) -> list[bool]:
    """Evaluate a `where` on every row; null is not true."""
    if where is None:
        return [True] * frame.height
    selected = frame.with_columns(pl.sql_expr(where).alias("#where"))["#where"].to_list()
    return [value is True for value in selected]


def _is_typed(spec: BuildSpec, source: str) -> bool:
    return spec.sources[source].file_format not in ("csv", "jsonl")


def _typed(plan: _Plan, frame: pl.DataFrame) -> pl.DataFrame:
    """Convert the mapped columns of a frame of texts to their declared types; unparsable becomes null."""
    typed: dict[str, pl.Series] = {}
    for mapped in plan.schema.columns.values():
        if mapped.column is not None and mapped.column not in typed:
            dtype = _where_type(mapped)
            if dtype != pl.String:
                values = [or_null(value, mapped) for value in frame[mapped.column].to_list()]
                typed[mapped.column] = pl.Series(mapped.column, values, dtype=dtype)
    return frame.with_columns(*typed.values())


def _where_type(mapped: MappedColumn) -> Any:
    if isinstance(mapped, TimeColumn):
        return pl.Float64 if mapped.unit in DURATION_US else pl.String
    if isinstance(mapped, Label) and mapped.at_least is not None:
        return pl.Float64
    names = {"bool": "Boolean", "string": "String", "id": "String"}
    return getattr(pl, names.get(mapped.type, mapped.type.capitalize()))


# One row per list element


def _explode(explode: Explode | None, frame: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Return one row per list element, and how many rows had none."""
    if explode is None:
        return frame, 0
    rows: list[Row] = []
    empty = 0
    for raw in frame.to_dicts():
        elements = _elements(explode, raw)
        empty += not elements
        for position, element in enumerate(elements):
            rows.append(raw | element | ({explode.position: position} if explode.position else {}))
    schema = dict(frame.schema)
    schema |= {name: getattr(frame.schema[name], "inner", pl.String()) for name in explode.lists}
    schema |= {name: pl.String() for name in (explode.string.fields if explode.string else ())}
    schema |= {explode.position: pl.Int64()} if explode.position else {}
    return pl.DataFrame(rows, schema=schema), empty


def _elements(explode: Explode, raw: Row) -> list[Row]:
    """Return the columns that each list element of one row fills."""
    text = explode.string
    if text:
        pieces = [piece for piece in (raw[text.column] or "").split(text.separator) if piece]
        splits = [p.split(text.field_separator) if text.field_separator else [p] for p in pieces]
        return [dict(zip(text.fields, parts + [None] * len(text.fields), strict=False)) for parts in splits]
    lists = {name: raw[name] or [] for name in explode.lists}
    if len({len(values) for values in lists.values()}) > 1:
        raise DataError(f"the lists {list(lists)} of one row differ in length: {raw}; repair the row")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
