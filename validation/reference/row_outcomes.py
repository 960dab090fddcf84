"""The naive reference, first half: the outcome of every row of a source, one row at a time.

A row is filtered, rejected, a duplicate, or valid (docs/semantics.md, "Row outcomes"). Policies may later leave out
valid rows; `oracle.py` applies them.

Decisions where docs/semantics.md leaves room:
* `conflicting_request` looks only at rows that have no other reason to be rejected;
* for finding duplicates, in a column that none of the row's roles needs, a value that cannot be parsed or a time out
  of range counts as missing, and any other value counts as it is, even if the spec does not allow it;
* for finding duplicates, what an action adds to a label is null where the label's `where` does not select the row,
  whatever its column contains;
* a `where` on CSV or JSON lines sees mapped columns in their declared types (a column that is mapped more than once
  in the type of its first mapping), numeric times as floats, and everything else as strings; values that cannot be
  parsed are null;
* NaN equals NaN and -0.0 equals 0.0, for duplicates and in every order.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import polars as pl

from longbatch.schemas.accounting import POLICIES, RowAccounting
from longbatch.schemas.errors import DataError
from longbatch.schemas.source_schema import ActionValue, MappedColumn, SourceSchema, source_schema
from longbatch.schemas.spec.build_spec import ROLES, BuildSpec, Role
from longbatch.schemas.spec.columns import DURATION_US, Label, TimeColumn
from longbatch.schemas.spec.source import Explode

from .values import Faults, Row, RowReader, row_reader, sort_key, value_or_null

Key = tuple[object, ...]


@dataclass(frozen=True)
class ValidRow:
    """A row that is not filtered, not rejected, and not a duplicate.

    Attributes:
        values: For each role that the row plays, its values by the role's column names ("user_id", "label.click").
        key: All canonical values of the row and its roles. No two valid rows of a source have the same key, so it
            also breaks every tie.
        left_out: For each role that a policy took from the row, the policy. Empty until policies are applied.
    """

    values: Mapping[Role, Row]
    key: Key
    left_out: dict[Role, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClassifiedRows:
    """The valid rows of a source, and how many rows had each outcome.

    Attributes:
        rows: The valid rows.
        accounting: Row counts before any policy: every valid row counts as accepted.
        latest_action: The latest time of an action that has no reason of its own to be rejected, in microseconds UTC.
            None without such an action.
    """

    rows: list[ValidRow]
    accounting: RowAccounting
    latest_action: int | None

    def accounting_after_policies(self) -> RowAccounting:
        """Return the row counts after policies have filled `left_out` of the rows.

        A row that lost all of its roles counts under the policy that took the last one; policies run in the order of
        `POLICIES`.
        """
        lost = [row.left_out.values() for row in self.rows if len(row.left_out) == len(row.values)]
        last_policies = Counter(max(policies, key=POLICIES.index) for policies in lost)
        accepted = self.accounting.accepted - len(lost)
        return replace(self.accounting, accepted=accepted, policies=dict(sorted(last_policies.items())))


@dataclass(frozen=True)
class _Plan:
    """How to read one source: its schema, and a reader for each canonical column."""

    spec: BuildSpec
    schema: SourceSchema
    readers: dict[str, RowReader]


@dataclass(frozen=True)
class _CanonicalRow:
    """A typed row: its canonical values, the roles that selected it, and their reasons to reject it."""

    values: Row
    roles: tuple[Role, ...]
    reasons: frozenset[str]

    @property
    def key(self) -> Key:
        """What two duplicates have in common; also a total order."""
        return (*map(sort_key, self.values.values()), tuple(role in self.roles for role in ROLES))


def classify_rows(spec: BuildSpec, source: str, frame: pl.DataFrame) -> ClassifiedRows:
    """Determine the outcome of every row of a source, except for policies.

    Args:
        spec: The build spec.
        source: Name of the source.
        frame: The raw rows of the source.

    Returns:
        The valid rows and the row counts.
    """
    plan = _plan(spec, source)
    frame, empty_lists = _explode(spec.sources[source].explode, frame)
    rows = _canonical_rows(plan, source, frame)
    selected = [row for row in rows if row.roles]  # the others are filtered
    conflicts = _conflicting_requests(plan, selected)
    reason_counts: Counter[str] = Counter()
    distinct: dict[Key, _CanonicalRow] = {}
    rejected = 0
    for row in selected:
        reasons = row.reasons
        if not reasons and "requests" in row.roles and _request_id(plan, row) in conflicts:
            reasons = frozenset({"conflicting_request"})
        if reasons:
            rejected += 1
            reason_counts.update(reasons)
        else:
            distinct.setdefault(row.key, row)
    accounting = RowAccounting(
        rows=len(rows),
        filtered=len(rows) - len(selected),
        rejected=rejected,
        duplicate=len(selected) - rejected - len(distinct),
        accepted=len(distinct),
        empty_list=empty_lists,
        reasons=dict(sorted(reason_counts.items())),
    )
    valid = [
        ValidRow({role: _role_values(plan, role, row) for role in row.roles}, key) for key, row in distinct.items()
    ]
    return ClassifiedRows(valid, accounting, _latest_action(plan, selected))


def _plan(spec: BuildSpec, source: str) -> _Plan:
    schema = source_schema(spec, source)
    return _Plan(spec, schema, {name: row_reader(spec, mapped) for name, mapped in schema.columns.items()})


def _role_values(plan: _Plan, role: Role, row: _CanonicalRow) -> Row:
    return {name: row.values[canonical] for name, canonical in plan.schema.names[role].items()}


def _latest_action(plan: _Plan, rows: list[_CanonicalRow]) -> int | None:
    actions = [row for row in rows if "actions" in row.roles and not row.reasons]
    return max((row.values[plan.schema.names["actions"]["event_time"]] for row in actions), default=None)


# Values and reasons


def _canonical_rows(plan: _Plan, source: str, frame: pl.DataFrame) -> list[_CanonicalRow]:
    """Type every row, and list the roles that select it and the reasons why they cannot use it."""
    where_view = frame if _is_typed(plan.spec, source) else _typed(plan, frame)
    role_selects = {role: _where(plan.spec.section(role).where, where_view) for role in plan.schema.roles}
    action_values = {name: mapped for name, mapped in plan.schema.columns.items() if isinstance(mapped, ActionValue)}
    label_selects = {name: _where(mapped.where, where_view) for name, mapped in action_values.items()}
    rows = []
    for index, raw in enumerate(frame.to_dicts()):
        ignored = {name for name, selected in label_selects.items() if not selected[index]}
        values, faults = _read_row(plan, raw, ignored)
        roles = tuple(role for role, selected in role_selects.items() if selected[index])
        reasons = {reason for role in roles for reason in _role_reasons(plan, role, values, faults)}
        rows.append(_CanonicalRow(values, roles, frozenset(reasons)))
    return rows


def _read_row(plan: _Plan, raw: Row, ignored: set[str]) -> tuple[Row, dict[str, Faults]]:
    """Return a row's canonical values and the faults of those that have any; ignored columns are null."""
    values: Row = {}
    faults: dict[str, Faults] = {}
    for name, read in plan.readers.items():
        values[name], value_faults = (None, ()) if name in ignored else read(raw)
        if value_faults:
            faults[name] = value_faults
    return values, faults


def _role_reasons(plan: _Plan, role: Role, values: Row, faults: dict[str, Faults]) -> Iterable[str]:
    """Yield every reason why a role cannot use the row."""
    for name, canonical in plan.schema.names[role].items():
        if canonical in faults:
            yield from faults[canonical]
        elif values[canonical] is None and (reason := _missing_reason(role, name)):
            yield reason


def _missing_reason(role: Role, name: str) -> str | None:
    """Return the reason for a null in a role's column, or None where null is allowed."""
    if name in ("user_id", "item_id"):
        return f"missing_{name.removesuffix('_id')}"
    if name == "request_id":
        return "missing_request" if role == "requests" else None
    if name in ("event_time", "arrival_time", "request_time"):
        return "missing_time"
    return f"missing_label:{name.removeprefix('label.')}" if name.startswith("label.") else None


def _conflicting_requests(plan: _Plan, rows: list[_CanonicalRow]) -> set[int | str]:
    """Return the request ids for which rows without other faults have different users."""
    users: dict[int | str, set[int]] = defaultdict(set)
    user_column = plan.schema.user_id
    for row in rows:
        if "requests" in row.roles and not row.reasons:
            request_id = _request_id(plan, row)
            if request_id is not None:
                users[request_id].add(row.values[user_column])
    return {request_id for request_id, request_users in users.items() if len(request_users) > 1}


def _request_id(plan: _Plan, row: _CanonicalRow) -> int | str | None:
    """Return the request id of a target row, None where the spec maps no request id."""
    request_id: int | str | None = row.values.get(plan.schema.names["requests"].get("request_id", ""))
    return request_id


# Which rows a `where` selects


def _where(where: str | None, frame: pl.DataFrame) -> list[bool]:
    """Evaluate a `where` on every row; null counts as not true."""
    if where is None:
        return [True] * frame.height
    selected = frame.with_columns(pl.sql_expr(where).alias("#where"))["#where"].to_list()
    return [value is True for value in selected]


def _is_typed(spec: BuildSpec, source: str) -> bool:
    return spec.sources[source].file_format not in ("csv", "jsonl")


def _typed(plan: _Plan, frame: pl.DataFrame) -> pl.DataFrame:
    """Convert the mapped string columns of a frame to their declared types; unparsable values become null."""
    typed: dict[str, pl.Series] = {}
    for mapped in plan.schema.columns.values():
        if mapped.column is not None and mapped.column not in typed:
            dtype = _where_dtype(mapped)
            if dtype != pl.String():
                values = [value_or_null(value, mapped) for value in frame[mapped.column].to_list()]
                typed[mapped.column] = pl.Series(mapped.column, values, dtype=dtype)
    return frame.with_columns(*typed.values())


_DTYPES: dict[str, pl.DataType] = {
    "int8": pl.Int8(),
    "int16": pl.Int16(),
    "int32": pl.Int32(),
    "int64": pl.Int64(),
    "float32": pl.Float32(),
    "float64": pl.Float64(),
    "bool": pl.Boolean(),
    "string": pl.String(),
    "id": pl.String(),
}


def _where_dtype(mapped: MappedColumn) -> pl.DataType:
    """Return the type in which a `where` sees a mapped column of a text file."""
    if isinstance(mapped, TimeColumn):
        return pl.Float64() if mapped.unit in DURATION_US else pl.String()
    if isinstance(mapped, Label) and mapped.at_least is not None:
        return pl.Float64()
    return _DTYPES[mapped.type]


# One row per list element


def _explode(explode: Explode | None, frame: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Return a frame with one row per list element, and the number of rows whose list is empty or null.

    Example, for `explode = {lists = ["items"], position = "rank"}`:
        {user: 1, items: [7, 8]}, {user: 2, items: []}
        -> {user: 1, items: 7, rank: 0}, {user: 1, items: 8, rank: 1}; 1 empty list
    """
    if explode is None:
        return frame, 0
    rows: list[Row] = []
    empty_lists = 0
    for raw in frame.to_dicts():
        elements = _list_elements(explode, raw)
        empty_lists += not elements
        for position, element in enumerate(elements):
            rows.append(raw | element | ({explode.position: position} if explode.position else {}))
    schema: dict[str, pl.DataType] = dict(frame.schema)
    schema |= {name: getattr(frame.schema[name], "inner", pl.String()) for name in explode.lists}
    schema |= {name: pl.String() for name in (explode.string.fields if explode.string else ())}
    schema |= {explode.position: pl.Int64()} if explode.position else {}
    return pl.DataFrame(rows, schema=schema), empty_lists


def _list_elements(explode: Explode, raw: Row) -> list[Row]:
    """Return for each list element of one row the columns that it fills."""
    packed = explode.string
    if packed:
        pieces = [piece for piece in (raw[packed.column] or "").split(packed.separator) if piece]
        fields = [piece.split(packed.field_separator) if packed.field_separator else [piece] for piece in pieces]
        missing = [None] * len(packed.fields)
        return [dict(zip(packed.fields, values + missing, strict=False)) for values in fields]
    lists = {name: raw[name] or [] for name in explode.lists}
    if len({len(values) for values in lists.values()}) > 1:
        raise DataError(f"the lists {list(lists)} of one row have different lengths: {raw}. Repair the row.")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
