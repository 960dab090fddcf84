"""Raw rows of a source -> canonical rows, rejected rows, and the books.

Each row gets exactly one outcome here but for duplicates and conflicting requests, which only show once all rows
of a user, or of a request id, are together (docs/meaning.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from longbatch.pipelines.arrays.hashing import hash_string
from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.errors import SourceError
from longbatch.schemas.source_schema import ROLE_COLUMN, SourceSchema, source_schema
from longbatch.schemas.spec.build_spec import BuildSpec, Role
from longbatch.schemas.spec.source import Explode
from longbatch.schemas.time import to_microseconds
from longbatch.validation.rules import CONFLICTING_REQUEST

from .incremental import IncrementWindow
from .parse import Reading, read_column
from .row_filters import Readings, select_rows, where_columns

REQUEST_ID = "request_id"
QUARANTINE_NAMES = frozenset({"_row", "_reasons", "_source_file", "_source_row", "_text", "_parts"})


@dataclass(frozen=True)
class Canonical:
    """One chunk of a source after typing.

    rows: canonical rows (`SourceSchema.arrow_schema`), duplicates still among them.
    owners: distinct (request_id, user_id) of the targets, to find ids that several users share; or None.
    vocabulary: distinct (id, text) of all hashed text.
    rejected: the raw columns of rejected rows, with `_reasons` and `_row` (row of the chunk, before explode).
    latest_action: the latest time of an action in microseconds; None without actions.
    accounting: the outcomes so far; `accepted` still counts duplicates, conflicts and what policies leave out.
    """

    rows: pl.DataFrame
    owners: pl.DataFrame | None
    vocabulary: pl.DataFrame
    rejected: pl.DataFrame
    latest_action: int | None
    accounting: RowAccounting


@dataclass(frozen=True)
class LogFacts:
    """What the kernel must know of all users' rows before it builds any user.

    conflicts: request ids that several users share. log_end: up to when the actions are complete, in microseconds.
    """

    conflicts: pl.Series | None = None
    log_end: int | None = None


def canonicalize(
    raw: pl.DataFrame,
    spec: BuildSpec,
    source: str,
    conflicts: pl.Series | None = None,
    window: IncrementWindow | None = None,
) -> Canonical:
    """Type, filter and check one chunk of a source's raw rows.

    `conflicts` are request ids known to be shared by several users: their target rows are rejected.
    Within a `window` a role selects only rows whose time in that role is inside.
    Raises SourceError for a missing column or one of a type that cannot mean what the spec says.
    """
    entry, schema = spec.sources[source], source_schema(spec, source)
    taken = [name for name in raw.columns if name in QUARANTINE_NAMES]
    if taken:
        raise SourceError(
            f"source {source}: a column is called {taken[0]!r}, a name that quarantine needs; rename it in the log"
        )
    arrived = raw.with_row_index("_row")
    try:
        exploded = explode(arrived, entry.explode) if entry.explode else arrived
    except SourceError as error:
        raise SourceError(f"source {source}: {error}") from None
    empty = arrived.height - exploded["_row"].n_unique() if entry.explode else 0
    readings = _readings(exploded.schema, spec, schema)
    typed = exploded.with_columns(
        **{name: column for of_role in readings.values() for r in of_role.values() for name, column in r.typed.items()}
    )
    selected = select_rows(typed, spec, schema, readings)
    if window:
        selected |= _within(typed, spec, readings, selected, window)
    faults = _faults(typed, spec, readings, selected, conflicts)
    in_any = pl.any_horizontal([selected[role] for role in readings])
    bad = faults.select(pl.any_horizontal(pl.all())).to_series() if faults.width else None
    verdict = exploded.select(in_any.alias("selected"), (pl.lit(False) if bad is None else bad).alias("bad"))
    keep = verdict["selected"] & ~verdict["bad"]
    reject = verdict["selected"] & verdict["bad"]
    hashed = _hashed_columns(schema, readings)
    rows, vocabulary = _hash(_values(typed, selected, readings, keep, schema), hashed)
    rejected = _rejected(exploded.filter(reject), faults.filter(reject))
    accounting = RowAccounting(
        rows=exploded.height,
        filtered=int((~verdict["selected"]).sum()),
        rejected=rejected.height,
        accepted=rows.height,
        empty_list=empty,
        reasons=_reason_counts(faults.filter(reject)),
    )
    owners, latest = _owners(rows, spec, schema), _latest_action(rows, schema)
    return Canonical(rows, owners, vocabulary, rejected, latest, accounting)


def _within(
    typed: pl.DataFrame, spec: BuildSpec, readings: Readings, selected: dict[str, pl.Series], window: IncrementWindow
) -> dict[str, pl.Series]:
    """What the roles select of the rows whose time in the role is within the window."""
    moments = {role: _moment(spec, role, columns) for role, columns in readings.items()}
    return {
        role: typed.select((pl.lit(selected[role]) & window.contains(moment)).alias(role)).to_series()
        for role, moment in moments.items()
    }


def _moment(spec: BuildSpec, role: Role, columns: dict[str, Reading]) -> pl.Expr:
    """When a row is known in a role: an event when it is visible, a target when it was asked for, an action at its time."""
    if role == "requests":
        return columns["request_time"].value
    moment = columns["event_time"].value
    if role == "actions":
        return moment
    moment += spec.history.delay_us
    return pl.max_horizontal(moment, columns["arrival_time"].value) if "arrival_time" in columns else moment


def explode(raw: pl.DataFrame, how: Explode) -> pl.DataFrame:
    """One row per list element; rows whose list is empty or null give none. Lists of a row are parallel."""
    columns = _list_columns(raw, how)
    lists = list(how.lists) or ["_parts"]
    frame = columns.filter(pl.any_horizontal(pl.col(name).list.len() > 0 for name in lists))
    if how.position:
        frame = frame.with_columns(pl.int_ranges(0, pl.col(lists[0]).list.len()).alias(how.position))
        lists.append(how.position)
    try:
        frame = frame.explode(lists)
    except pl.exceptions.ShapeError:
        raise SourceError(f"the lists {list(how.lists)} of a row differ in length, so they are not parallel") from None
    return _split_fields(frame, how) if how.string else frame


def _list_columns(raw: pl.DataFrame, how: Explode) -> pl.DataFrame:
    for column in [*how.lists, *([how.string.column] if how.string else [])]:
        if column not in raw.columns:
            raise SourceError(f"explode names {column!r}, but the source's columns are {', '.join(raw.columns[1:])}")
    for column in how.lists:
        if not isinstance(raw.schema[column], pl.List):
            raise SourceError(f"explode.lists names {column!r}, which holds {raw.schema[column]}, not lists")
    if how.string is None:
        return raw
    if raw.schema[how.string.column] != pl.String:
        raise SourceError(
            f"explode.string names {how.string.column!r}, which holds {raw.schema[how.string.column]}, not text"
        )
    parts = pl.col(how.string.column).str.split(how.string.separator)
    return raw.with_columns(_parts=parts.list.eval(pl.element().filter(pl.element() != "")))


def _split_fields(frame: pl.DataFrame, how: Explode) -> pl.DataFrame:
    text = how.string
    if text is None or len(text.fields) == 1:
        return frame.rename({"_parts": text.fields[0]}) if text else frame
    pieces = pl.col("_parts").str.split(str(text.field_separator))
    fields = [pieces.list.get(i, null_on_oob=True).alias(name) for i, name in enumerate(text.fields)]
    return frame.with_columns(fields).drop("_parts")


def needed_columns(spec: BuildSpec, source: str) -> list[str]:
    """Return the columns to read from a source's files: mapped, filtered on, or exploded; no others."""
    schema, synthetic_time = source_schema(spec, source), spec.sources[source].synthetic_time
    generated = schema.exploded_to | ({synthetic_time.column} if synthetic_time else set())
    wanted = [name for name in (*schema.raw_columns, *where_columns(schema)) if name not in generated]
    return list(dict.fromkeys([*wanted, *schema.exploded_from]))


def _readings(raw_schema: pl.Schema, spec: BuildSpec, schema: SourceSchema) -> Readings:
    """Role -> role column -> reading. Shared readings are equal expressions, computed once by Polars."""
    try:
        return {
            role: {name: read_column(m, role, name, raw_schema, spec) for name, m in columns.items()}
            for role, columns in schema.role_columns.items()
        }
    except SourceError as error:
        raise SourceError(f"source {schema.source}: {error}") from None


def _faults(
    typed: pl.DataFrame,
    spec: BuildSpec,
    readings: Readings,
    selected: dict[str, pl.Series],
    conflicts: pl.Series | None,
) -> pl.DataFrame:
    """One boolean column per reason; a role's faults count only on rows that the role selects."""
    faults: dict[str, pl.Expr] = {}
    for role, columns in readings.items():
        for name, reading in columns.items():
            mask = selected[role] & selected[name] if name in selected else selected[role]
            for reason, fault in reading.faults.items():
                hit = pl.lit(mask) & fault
                faults[reason] = faults[reason] | hit if reason in faults else hit
            if conflicts is not None and role == "requests" and name == REQUEST_ID:
                faults[CONFLICTING_REQUEST] = pl.lit(mask) & reading.value.is_in(conflicts.implode())
    return typed.select(**{reason: fault.fill_null(False) for reason, fault in faults.items()})


def _values(
    typed: pl.DataFrame, selected: dict[str, pl.Series], readings: Readings, keep: pl.Series, schema: SourceSchema
) -> pl.DataFrame:
    values: dict[str, pl.Expr] = {}
    for role, columns in readings.items():
        for name, reading in columns.items():
            value = reading.value
            if name in selected:
                value = pl.when(pl.lit(selected[name])).then(value)
            values.setdefault(schema.names[role][name], value)
    if len(readings) > 1:
        values |= {ROLE_COLUMN[role]: pl.lit(selected[role]) for role in readings}
    rows = typed.select(**values)
    return rows if keep.all() else rows.filter(keep)


def _hashed_columns(schema: SourceSchema, readings: Readings) -> list[str]:
    """Canonical columns that come out as text and are stored as ids."""
    return [
        schema.names[role][name]
        for role, columns in readings.items()
        for name, reading in columns.items()
        if reading.hashed
    ]


def _hash(rows: pl.DataFrame, text_columns: list[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Replace text by its hash; return the distinct (id, text) beside."""
    words = [pl.DataFrame({"id": [], "text": []}, schema={"id": pl.Int64, "text": pl.String})]
    hashed = {}
    for name in dict.fromkeys(text_columns):
        hashed[name] = hash_string(rows[name])
        words.append(pl.DataFrame({"id": hashed[name], "text": rows[name]}).drop_nulls().unique())
    return rows.with_columns(**hashed), pl.concat(words).unique()


def _rejected(raw: pl.DataFrame, faults: pl.DataFrame) -> pl.DataFrame:
    if not raw.height:
        return raw.with_columns(_reasons=pl.lit(None, dtype=pl.List(pl.String)))
    reasons = [pl.when(pl.col(name)).then(pl.lit(name)) for name in faults.columns]
    listed = faults.select(_reasons=pl.concat_list(reasons).list.drop_nulls())
    return raw.with_columns(listed["_reasons"])


def _reason_counts(faults: pl.DataFrame) -> dict[str, int]:
    """How many rows have each fault, by name, those that none has left out."""
    counts = faults.sum().row(0, named=True) if faults.height else {}
    return {reason: count for reason, count in sorted(counts.items()) if count}


def _owners(rows: pl.DataFrame, spec: BuildSpec, schema: SourceSchema) -> pl.DataFrame | None:
    """Distinct (request_id, user_id) of a chunk's targets, or None where the log names no requests."""
    if "requests" not in schema.roles or spec.requests.request_id is None:
        return None
    names = schema.names["requests"]
    targets = rows_of(rows, "requests")
    pairs = targets.select(request_id=names[REQUEST_ID], user_id=names["user_id"])
    changed = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in pairs.columns)
    return pairs.filter(changed | (pl.int_range(pl.len()) == 0)).unique()


def rows_of(rows: pl.DataFrame, role: Role) -> pl.DataFrame:
    """Return the canonical rows that play a role: all of a source that feeds no other."""
    return rows.filter(ROLE_COLUMN[role]) if ROLE_COLUMN[role] in rows.columns else rows


def _latest_action(rows: pl.DataFrame, schema: SourceSchema) -> int | None:
    if "actions" not in schema.roles:
        return None
    latest = rows_of(rows, "actions")[schema.names["actions"]["event_time"]].max()
    return latest if isinstance(latest, int) else None


def conflicting_requests(owners: pl.DataFrame) -> pl.Series:
    """Request ids that more than one user carries; `owners` holds all pairs of the ids it holds."""
    users = owners.unique().group_by("request_id").len()
    return users.filter(pl.col("len") > 1)["request_id"].sort()


def gather_log_facts(
    spec: BuildSpec,
    latest_actions: Iterable[int | None],
    conflicts: pl.Series | None,
    window: IncrementWindow | None = None,
) -> LogFacts:
    """Gather the facts: conflicting requests, and the end of the log of actions: of the window, declared, or seen."""
    until = spec.actions.until if spec.actions else None
    if window and spec.actions:
        return LogFacts(conflicts, window.until if until is None else min(window.until, to_microseconds(until)))
    latest = max((time for time in latest_actions if time is not None), default=None)
    return LogFacts(conflicts, latest if until is None else to_microseconds(until))
