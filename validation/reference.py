"""The naive reference: docs/meaning.md in the plainest Python, one row and one user at a time.

It exists to be compared with: it shares no code with the pipelines, only the spec. Polars appears in two
places: it reads files, and it evaluates a `where` (`pl.sql_expr` on the raw frame) to a list of booleans.
Memory and time grow with everything it is given; a log of 350,000 rows takes half a minute, so for bigger ones
choose some `users`.

Decisions where docs/meaning.md leaves room:
* `conflicting_request` looks only at rows that have no other reason to be rejected;
* a value that cannot be used, in a column that no role of the row needs, counts as missing for duplicates;
* a `where` on CSV or JSON lines sees mapped columns in their declared types (a column with several readings
  in the first), numeric times as floats, everything else as text; what does not parse is null;
* a number that float32 can only hold as infinity is out of the type's range;
* text such as 11.0 or 11.00 is an integer, 11. is not;
* ISO text is what `datetime.fromisoformat` of Python 3.11 reads; a float as text is what `str` makes of it;
* an infinite time is out of range, NaN as a time is unparsable; the bounds of `time_range` are within it;
* NaN equals NaN and -0.0 equals 0.0, in duplicates and in the order of a timeline.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from longbatch.schemas.errors import DataError
from longbatch.schemas.ledger import RowLedger
from longbatch.schemas.spec import DURATION_US, BuildSpec, Explode, TimeColumn
from longbatch.schemas.tables import (
    Mapped,
    canonical_columns,
    canonical_name,
    role_columns,
    source_roles,
)
from longbatch.validation.values import OutOfRange, Reader, Row, Unparsable, made_request_id, or_null, row_reader

Event = tuple[Any, ...]


@dataclass(frozen=True)
class ReferenceRequest:
    """One request; its history is a slice of `timeline`, its user's whole list of events, oldest first.

    An event is a tuple (item_id, event_time in us, history features in the spec's order); times are
    microseconds UTC; a target is a dict of item_id, target features and labels.
    """

    request_id: int | str
    user_id: int
    request_time: int
    features: dict[str, Any]
    timeline: list[Event]
    history_start: int
    history_end: int
    targets: list[dict[str, Any]]

    @property
    def history(self) -> list[Event]:
        """The newest L visible events, oldest first."""
        return self.timeline[self.history_start : self.history_end]


@dataclass(frozen=True)
class EventCounts:
    """Accepted events by what requests can reach; stored and beyond_history are one number here."""

    stored_or_beyond: int
    after_last_request: int


@dataclass(frozen=True)
class Reference:
    """What a build must yield; requests are ordered by (user_id, request_time, request_id)."""

    requests: list[ReferenceRequest]
    ledgers: dict[str, RowLedger]
    events: EventCounts
    targets: int


@dataclass(frozen=True)
class _Plan:
    """How to read one source: its canonical columns, each role's names for them, and how to read each."""

    spec: BuildSpec
    columns: dict[str, Mapped]
    roles: dict[str, dict[str, str]]
    readers: dict[str, Reader]


@dataclass(frozen=True)
class _Canonical:
    """A typed row: canonical values, the roles that selected it, and its reasons for rejection."""

    values: Row
    roles: tuple[str, ...]
    reasons: frozenset[str]


def build_reference(
    spec: BuildSpec, frames: Mapping[str, pl.DataFrame], users: Collection[int] | None = None
) -> Reference:
    """Work out requests, histories, targets and row counts from raw frames, one frame per source.

    `users` limits requests and event counts to some user ids; the ledgers count every row of the frames.
    """
    ledgers: dict[str, RowLedger] = {}
    played: dict[str, dict[int, list[Row]]] = {"history": defaultdict(list), "requests": defaultdict(list)}
    for source in spec.sources:
        plan = _plan(spec, source)
        accepted, ledgers[source] = _accepted_rows(plan, source, frames[source])
        for row in accepted:
            for role in row.roles:
                part = {name: row.values[canonical] for name, canonical in plan.roles[role].items()}
                played[role][part["user_id"]].append(part)
    events, targets = played["history"], played["requests"]
    chosen = sorted({*events, *targets} if users is None else users)
    parts = [_build_user(spec, user, events.get(user, []), targets.get(user, [])) for user in chosen]
    requests = [request for part, _ in parts for request in part]
    reached = sum(counts.stored_or_beyond for _, counts in parts)
    after = sum(counts.after_last_request for _, counts in parts)
    target_count = sum(len(request.targets) for request in requests)
    return Reference(requests, ledgers, EventCounts(reached, after), target_count)


# A row's fate


def _plan(spec: BuildSpec, source: str) -> _Plan:
    names = {
        role: {name: canonical_name(mapped) for name, mapped in role_columns(spec, role).items()}
        for role in source_roles(spec, source)
    }
    columns = canonical_columns(spec, source)
    return _Plan(spec, columns, names, {name: row_reader(spec, mapped) for name, mapped in columns.items()})


def _accepted_rows(plan: _Plan, source: str, frame: pl.DataFrame) -> tuple[list[_Canonical], RowLedger]:
    """Give every row of a source its fate; return the accepted rows and the counts."""
    frame, empty = _explode(plan.spec.sources[source].explode, frame)
    rows = _canonical_rows(plan, source, frame)
    selected = [row for row in rows if row.roles]
    conflicts = _conflicting_requests(plan, selected)
    reasons: Counter[str] = Counter()
    rejected = 0
    distinct: dict[Any, _Canonical] = {}
    for row in selected:
        found = row.reasons
        if not found and "requests" in row.roles and _request_id(plan, row) in conflicts:
            found = frozenset({"conflicting_request"})
        rejected += bool(found)
        reasons.update(found)
        if not found:
            distinct.setdefault((row.roles, *map(order, row.values.values())), row)
    ledger = RowLedger(
        rows=len(rows),
        filtered=len(rows) - len(selected),
        rejected=rejected,
        duplicate=len(selected) - rejected - len(distinct),
        accepted=len(distinct),
        empty_list=empty,
        reasons=dict(sorted(reasons.items())),
    )
    return list(distinct.values()), ledger


def _canonical_rows(plan: _Plan, source: str, frame: pl.DataFrame) -> list[_Canonical]:
    """Type every row and say which roles select it and what is wrong with it."""
    visible = frame if _is_typed(plan.spec, source) else _typed(plan, frame)
    selects = {role: _where(getattr(plan.spec, role).where, visible) for role in plan.roles}
    rows = []
    for index, raw in enumerate(frame.to_dicts()):
        values, faults = _read_row(plan, raw)
        roles = tuple(role for role, selected in selects.items() if selected[index])
        reasons = {reason for role in roles for reason in _role_reasons(plan, role, values, faults)}
        rows.append(_Canonical(values, roles, frozenset(reasons)))
    return rows


def _read_row(plan: _Plan, raw: Row) -> tuple[Row, dict[str, str]]:
    """Return a row's canonical values, null where unusable, and the fault of each unusable one."""
    values: Row = {}
    faults: dict[str, str] = {}
    for name, mapped in plan.columns.items():
        try:
            values[name] = plan.readers[name](raw)
        except Unparsable:
            values[name] = getattr(mapped, "default", None)
            faults[name] = f"unparsable:{mapped.column}"
        except OutOfRange:
            values[name] = None
            faults[name] = "time_out_of_range"
    return values, faults


def _role_reasons(plan: _Plan, role: str, values: Row, faults: dict[str, str]) -> Iterable[str]:
    """Yield every reason why one role cannot use the row."""
    for name, canonical in plan.roles[role].items():
        if canonical in faults:
            yield faults[canonical]
        elif values[canonical] is None and (missing := _missing(role, name)):
            yield missing


def _missing(role: str, name: str) -> str | None:
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
    user = canonical_name(plan.spec.requests.user_id)
    for row in rows:
        if "requests" in row.roles and not row.reasons and _request_id(plan, row) is not None:
            users[_request_id(plan, row)].add(row.values[user])
    return {request_id for request_id, carriers in users.items() if len(carriers) > 1}


def _request_id(plan: _Plan, row: _Canonical) -> Any:
    """Return the request id that a target row carries, None where the spec maps none."""
    return row.values.get(plan.roles["requests"].get("request_id", ""))


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
    for mapped in plan.columns.values():
        if mapped.column is not None and mapped.column not in typed:
            dtype = _where_type(mapped)
            if dtype != pl.String:
                values = [or_null(value, mapped) for value in frame[mapped.column].to_list()]
                typed[mapped.column] = pl.Series(mapped.column, values, dtype=dtype)
    return frame.with_columns(*typed.values())


def _where_type(mapped: Mapped) -> Any:
    if isinstance(mapped, TimeColumn):
        return pl.Float64 if mapped.unit in DURATION_US else pl.String
    names = {"bool": "Boolean", "string": "String", "id": "String"}
    return getattr(pl, names.get(mapped.type, mapped.type.capitalize()))


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
    schema |= {name: pl.String() for name in (explode.text.fields if explode.text else ())}
    schema |= {explode.position: pl.Int64()} if explode.position else {}
    return pl.DataFrame(rows, schema=schema), empty


def _elements(explode: Explode, raw: Row) -> list[Row]:
    """Return the columns that each list element of one row fills."""
    text = explode.text
    if text:
        pieces = [piece for piece in (raw[text.column] or "").split(text.separator) if piece]
        splits = [p.split(text.field_separator) if text.field_separator else [p] for p in pieces]
        return [dict(zip(text.fields, parts + [None] * len(text.fields), strict=False)) for parts in splits]
    lists = {name: raw[name] or [] for name in explode.lists}
    if len({len(values) for values in lists.values()}) > 1:
        raise DataError(f"the lists {list(lists)} of one row differ in length: {raw}; repair the row")
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]


# Requests and histories of one user


def _build_user(
    spec: BuildSpec, user: int, event_rows: list[Row], target_rows: list[Row]
) -> tuple[list[ReferenceRequest], EventCounts]:
    """Order a user's timeline, group the targets into requests and cut every history."""
    keyed = sorted(((_event_key(spec, row), row) for row in event_rows), key=lambda pair: pair[0])
    visible_times = [key[0] for key, _ in keyed]
    features = [f"history.{name}" for name in spec.history.features]
    timeline = [(row["item_id"], row["event_time"], *(row[f] for f in features)) for _, row in keyed]
    first_own: dict[Any, int] = {}
    for place, (_, row) in enumerate(keyed):
        if row.get("request_id") is not None:
            first_own.setdefault(row["request_id"], place)
    grouped: dict[Any, list[Row]] = defaultdict(list)
    for row in target_rows:
        grouped[row.get("request_id", (row["request_time"],))].append(row)
    requests = []
    for request_id, rows in grouped.items():
        request_time = min(row["request_time"] for row in rows)
        visible = bisect.bisect_left(visible_times, request_time)  # how many are < request_time
        end = min(visible, first_own.get(request_id, visible))
        if isinstance(request_id, tuple):
            request_id = made_request_id(user, request_time)
        start = max(0, end - spec.history_length)
        features_of_request, targets = _group(spec, rows)
        requests.append(
            ReferenceRequest(request_id, user, request_time, features_of_request, timeline, start, end, targets)
        )
    requests.sort(key=lambda request: (request.request_time, request.request_id))
    reached = max((request.history_end for request in requests), default=0)
    return requests, EventCounts(reached, len(timeline) - reached)


def _event_key(spec: BuildSpec, row: Row) -> tuple[Any, ...]:
    """Return what orders a timeline: visible time first, then the rest of the total order."""
    visible_time = row["event_time"] + spec.history.delay_us
    if "arrival_time" in row:
        visible_time = max(visible_time, row["arrival_time"])
    features = (row[f"history.{name}"] for name in spec.history.features)
    return (
        visible_time,
        row["event_time"],
        row["item_id"],
        *map(order, features),
        order(row.get("request_id")),
    )


def _group(spec: BuildSpec, rows: list[Row]) -> tuple[Row, list[Row]]:
    """Return the request features and the ordered targets of one request's rows."""
    labels = spec.requests.labels
    target_names = [*(f"target.{n}" for n in spec.requests.target_features), *(f"label.{n}" for n in labels)]
    request_names = [f"request.{name}" for name in spec.requests.features]

    def target_key(row: Row) -> list[Any]:
        return [order(row[name]) for name in ("item_id", *target_names)]

    def first_key(row: Row) -> list[Any]:
        return [row["request_time"], *target_key(row), *(order(row[name]) for name in request_names)]

    first = min(rows, key=first_key)
    features = {name.partition(".")[2]: first[name] for name in request_names}
    targets = [
        {"item_id": row["item_id"], **{name.partition(".")[2]: row[name] for name in target_names}}
        for row in sorted(rows, key=target_key)
    ]
    return features, targets


def order(value: Any) -> tuple[Any, ...]:
    """Return a sort key: nulls first, text by code point (as its UTF-8 bytes), false before true, NaN last."""
    if value is None:
        return (0,)
    if isinstance(value, float) and math.isnan(value):
        return (2,)
    return (1, value)
