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
import glob
import gzip
import json
import math
import re
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl

from longbatch.schemas.errors import DataError, SourceError
from longbatch.schemas.ledger import RowLedger
from longbatch.schemas.spec import DURATION_US, BuildSpec, Explode, IdColumn, Label, TimeColumn
from longbatch.schemas.tables import (
    Mapped,
    RequestIdColumn,
    canonical_columns,
    canonical_name,
    role_columns,
    source_roles,
)

_WORD = 2**64
_INTEGER = re.compile(r"([+-]?[0-9]+)(\.0+)?")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Row = dict[str, Any]
Event = tuple[Any, ...]
Reader = Callable[[Any], Any]


class Unparsable(Exception):
    """A value that cannot be read as the declared type."""


class OutOfRange(Exception):
    """A time outside the spec's `time_range`."""


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
    return _Plan(spec, columns, names, {name: _row_reader(spec, mapped) for name, mapped in columns.items()})


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
                values = [_or_null(value, mapped) for value in frame[mapped.column].to_list()]
                typed[mapped.column] = pl.Series(mapped.column, values, dtype=dtype)
    return frame.with_columns(*typed.values())


def _where_type(mapped: Mapped) -> Any:
    if isinstance(mapped, TimeColumn):
        return pl.Float64 if mapped.unit in DURATION_US else pl.String
    names = {"bool": "Boolean", "string": "String", "id": "String"}
    return getattr(pl, names.get(mapped.type, mapped.type.capitalize()))


def _or_null(value: Any, mapped: Mapped) -> Any:
    """Read a value as a `where` sees it; a numeric time is the number that stands in the log."""
    try:
        if value is None or isinstance(mapped, TimeColumn):
            return None if value is None else _double(value)
        return value_reader(mapped)(value)
    except Unparsable:
        return None


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


# Ids


def mix(word: int) -> int:
    """Scramble 64 bits (the finaliser of SplitMix64, Steele, Lea and Flood 2014)."""
    word ^= word >> 30
    word = word * 0xBF58476D1CE4E5B9 % _WORD
    word ^= word >> 27
    word = word * 0x94D049BB133111EB % _WORD
    return word ^ word >> 31


@cache
def text_id(text: str) -> int:
    """Return the id of a text, below 2**63."""
    data = text.encode()
    state = len(data) * 0x9E3779B97F4A7C15 % _WORD
    for start in range(0, len(data), 8):
        state = mix(state ^ int.from_bytes(data[start : start + 8].ljust(8, b"\0"), "little"))
    return mix(state) >> 1


def made_request_id(user_id: int, request_time_us: int) -> int:
    """Return the id of a request in a log without request ids."""
    return mix(mix(user_id % _WORD) ^ request_time_us % _WORD) >> 1


# Values


def _row_reader(spec: BuildSpec, mapped: Mapped) -> Reader:
    """Return what reads a canonical value from a raw row: null or default where the raw value is missing."""
    column = str(mapped.column)
    default = getattr(mapped, "default", None)
    read = value_reader(mapped)
    earliest, latest = (_microseconds(bound, TimeColumn(column="")) for bound in spec.time_range)

    def read_column(raw: Row) -> Any:
        value = raw[column]
        return read(default if value is None else value)

    def read_membership(raw: Row) -> Any:
        value = _is_contained(spec, raw, column)
        return read(default if value is None else value)

    def read_time(raw: Row) -> Any:
        time_us = read(raw[column])
        if time_us is not None and not earliest <= time_us <= latest:
            raise OutOfRange
        return time_us

    if isinstance(mapped, Label) and mapped.contained_in:
        column = mapped.contained_in
        return read_membership
    return read_time if isinstance(mapped, TimeColumn) else read_column


def value_reader(mapped: Mapped) -> Reader:
    """Return what reads a raw value as the declared type, null as null; times become microseconds UTC."""
    read = _reader_of_type(mapped)
    return lambda value: None if value is None else read(value)


def _reader_of_type(mapped: Mapped) -> Reader:
    if isinstance(mapped, TimeColumn):
        return lambda value: _time(value, mapped)
    if mapped.type == "string":
        hashed = isinstance(mapped, IdColumn) and not isinstance(mapped, RequestIdColumn)
        return (lambda value: text_id(_text(value))) if hashed else _text
    if mapped.type == "id":
        return lambda value: text_id(value) if isinstance(value, str) else _integer(value, 64)
    if mapped.type == "bool":
        return _boolean
    if mapped.type in ("float32", "float64"):
        return _single if mapped.type == "float32" else _double
    bits = int(mapped.type.removeprefix("int"))
    return lambda value: _integer(value, bits)


def _is_contained(spec: BuildSpec, raw: Row, column: str) -> bool | None:
    """Whether the row's item is in the list; None where there is no list."""
    item, members = raw[spec.requests.item_id.column], raw[column]
    if members is not None and not isinstance(members, list):
        raise DataError(f"column {column} holds {members!r}, not a list; `contained_in` needs a list column")
    return None if members is None else item is not None and item in members


def _integer(value: Any, bits: int) -> int:
    if isinstance(value, str):
        digits = _INTEGER.fullmatch(value)
        if digits is None:
            raise Unparsable
        value = digits[1]
    elif not isinstance(value, int | float | Decimal) or not math.isfinite(value) or value != int(value):
        raise Unparsable
    number = int(value)
    if not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
        raise Unparsable
    return number


def _double(value: Any) -> float:
    if not (_NUMBER.fullmatch(value) if isinstance(value, str) else isinstance(value, int | float | Decimal)):
        raise Unparsable
    return float(value)


def _single(value: Any) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", _double(value)))[0])
    except OverflowError:
        raise Unparsable from None


def _boolean(value: Any) -> bool:
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.lower())
    if value is None or not isinstance(value, int | float | Decimal) or value not in (0, 1):
        raise Unparsable
    return bool(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _time(value: Any, mapped: TimeColumn) -> int:
    """Return microseconds UTC of a timestamp, a number with a unit, or text."""
    if isinstance(value, date):
        return _microseconds(value if isinstance(value, datetime) else datetime.combine(value, time()), mapped)
    if mapped.unit in DURATION_US:
        if isinstance(value, str):
            digits = _INTEGER.fullmatch(value)
            value = int(digits[1]) if digits else _double(value)
        if not isinstance(value, int | float | Decimal) or math.isnan(value):
            raise Unparsable
        if math.isinf(value):
            raise OutOfRange
        return round(value * DURATION_US[mapped.unit])
    if not isinstance(value, str):
        raise SourceError(f"column {mapped.column} holds the number {value!r}; say its unit: s, ms or us")
    try:
        parsed = datetime.strptime(value, mapped.format) if mapped.format else datetime.fromisoformat(value)
    except ValueError:
        raise Unparsable from None
    return _microseconds(parsed, mapped)


def _microseconds(moment: datetime, mapped: TimeColumn) -> int:
    """Naive times are local to the column's time zone (of an hour that comes twice, the first)."""
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=ZoneInfo(mapped.timezone))
        if moment.astimezone(UTC).astimezone(moment.tzinfo).replace(tzinfo=None) != moment.replace(tzinfo=None):
            raise Unparsable  # an hour that the clocks jumped over
    since = moment.astimezone(UTC) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


# Files


def read_raw(spec: BuildSpec, source: str, users: Collection[int] | None = None) -> pl.DataFrame:
    """Read a source's raw rows; CSV and JSON lines as text.

    With `users` only the rows of these user ids, and those that share a request id with one of them, so that
    a request id of several users is still seen as such.
    """
    rows = _scan(spec, source)
    if users is None:
        return rows.collect()
    requests = spec.requests if source == spec.requests.source else None
    role = requests or spec.history
    of_users = _among(rows, role.user_id, set(users))
    if requests is None or requests.request_id is None:
        return rows.filter(of_users).collect()
    request_id = pl.col(requests.request_id.column)
    shared = rows.filter(of_users).select(request_id.unique()).collect().to_series().drop_nulls()
    return rows.filter(of_users | request_id.is_in(shared.implode())).collect()


def _among(rows: pl.LazyFrame, column: IdColumn, ids: set[int]) -> pl.Expr:
    """Return the condition that a raw column holds one of the ids."""
    values = rows.select(pl.col(column.column).unique()).collect().to_series().drop_nulls()
    chosen = [value for value in values.to_list() if _or_null(value, column) in ids]
    return pl.col(column.column).is_in(pl.Series(chosen, dtype=values.dtype).implode())


def _scan(spec: BuildSpec, name: str) -> pl.LazyFrame:
    source = spec.sources[name]
    if source.file_format == "table":
        raise SourceError(f"source {name} is a table of Spark; the reference reads files only, so export it first")
    paths = [path for pattern in source.path for path in _files(pattern)]
    if source.file_format == "parquet":
        return pl.scan_parquet(paths)
    if source.file_format == "arrow":
        return pl.scan_ipc(paths)
    if source.file_format == "csv":
        return pl.scan_csv(
            paths,
            separator=source.field_separator,
            quote_char=source.quote or None,
            has_header=source.columns is None,
            new_columns=source.columns,
            infer_schema=False,
        )
    return pl.DataFrame([row for path in paths for row in _json_rows(path)], infer_schema_length=None).lazy()


def _files(pattern: str) -> list[str]:
    if "://" in pattern:
        return [pattern]
    found = sorted(glob.glob(pattern, recursive=True))
    if not found:
        raise SourceError(f"{pattern} matches no file; check the path of the source")
    return found


def _json_rows(path: str) -> Iterable[Row]:
    """Yield the lines of a file as rows of texts, numbers as they are written."""
    opening: Any = gzip.open if path.endswith(".gz") else open
    with opening(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                row = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
                yield {name: _json_text(value) for name, value in row.items()}


def _json_text(value: Any) -> Any:
    if isinstance(value, list):
        return [_json_text(element) for element in value]
    return value if value is None else json.dumps(value) if isinstance(value, dict) else _text(value)
