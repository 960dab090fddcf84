"""Raw rows of a source -> canonical rows, rejected rows, and row accounting.

The outcomes that depend on one row alone are decided here: filtered, out of the time window, rejected. Others follow
later (docs/semantics.md): `conflicting_requests` needs all rows of a request id; duplicates and user policies need all
rows of a user (`valid_rows`, `policies`). Malformed lines never get here, because they have no columns to check:
`stages.canonicalize_chunk` counts them.
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
from longbatch.schemas.time import to_microseconds
from longbatch.validation.rules import CONFLICTING_REQUEST

from .explode import PARTS, explode
from .incremental import IncrementWindow
from .parse import Reading, read_column
from .row_filters import Readings, select_rows, where_columns

REQUEST_ID = "request_id"
ROW, REASONS = "_row", "_reasons"
QUARANTINE_NAMES = frozenset({ROW, REASONS, "_source_file", "_source_row", "_text", PARTS})


@dataclass(frozen=True)
class Canonical:
    """One chunk of a source after typing.

    Attributes:
        rows: Canonical rows (`SourceSchema.arrow_schema`), with duplicates.
        request_users: Distinct (request_id, user_id) of the targets, to find request ids of several users; None if the
            source has no targets or no request ids.
        vocabulary: Distinct (id, string) of all hashed strings.
        rejected: The raw columns of rejected rows, with `_reasons` and `_row` (row of the chunk, before explode).
        latest_action: The latest time of an action in microseconds; None without actions.
        accounting: The outcomes so far; `accepted` includes duplicates, conflicts and what policies exclude.
    """

    rows: pl.DataFrame
    request_users: pl.DataFrame | None
    vocabulary: pl.DataFrame
    rejected: pl.DataFrame
    latest_action: int | None
    accounting: RowAccounting


@dataclass(frozen=True)
class LogFacts:
    """What is known of the whole log before any bucket is built.

    Attributes:
        conflicts: Request ids that several users share; None if there are none.
        log_end: Microseconds up to which the log of actions is complete; None if unknown.
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

    Args:
        raw: Raw rows.
        spec: The build spec.
        source: Name of the source.
        conflicts: Request ids that are known to be shared by several users: their target rows are rejected.
        window: Select only rows that belong to this increment; None for all rows.

    Returns:
        Canonical and rejected rows, and the accounting of all of them.

    Raises:
        SourceError: A column is missing, has a reserved name, or has a type that cannot be read as declared.
        SpecError: A `where` expression is invalid.
    """
    schema = source_schema(spec, source)
    exploded, empty = _exploded(raw, spec, source)
    readings = _readings(exploded.schema, spec, schema)
    typed = _with_typed_columns(exploded, readings)
    selected = select_rows(typed, spec, schema, readings)
    if window:
        selected |= _selected_in_window(typed, spec, readings, selected, window)
    faults = _faults(typed, readings, selected, conflicts)
    is_selected = exploded.select(pl.any_horizontal([selected[role] for role in readings])).to_series()
    is_faulty = _has_fault(faults, exploded.height)
    # A row has one outcome: filtered if no role selects it, rejected if any role that does has a fault, else kept.
    # The three masks are disjoint and cover all rows, which `RowAccounting.check` relies on.
    keep, reject = is_selected & ~is_faulty, is_selected & is_faulty
    values = _values(typed, selected, readings, keep, schema)
    rows, vocabulary = _hash_columns(values, _hashed_columns(schema, readings))
    rejected = _rejected(exploded.filter(reject), faults.filter(reject))
    accounting = RowAccounting(
        rows=exploded.height,
        filtered=int((~is_selected).sum()),
        rejected=rejected.height,
        accepted=rows.height,
        empty_list=empty,
        reasons=_reason_counts(faults.filter(reject)),
    )
    request_users, latest = _request_users(rows, spec, schema), _latest_action(rows, schema)
    return Canonical(rows, request_users, vocabulary, rejected, latest, accounting)


def needed_columns(spec: BuildSpec, source: str) -> list[str]:
    """Return the columns to read from a source's files: those mapped, filtered on, or exploded.

    Args:
        spec: The build spec.
        source: Name of the source.

    Returns:
        Column names, each once.

    Raises:
        SpecError: A `where` expression is invalid.
    """
    schema, synthetic_time = source_schema(spec, source), spec.sources[source].synthetic_time
    generated = schema.exploded_to | ({synthetic_time.column} if synthetic_time else set())
    # Columns that exist only after reading or exploding are not in the files.
    names = [name for name in (*schema.raw_columns, *where_columns(schema)) if name not in generated]
    return list(dict.fromkeys([*names, *schema.exploded_from]))


def rows_of(rows: pl.DataFrame, role: Role) -> pl.DataFrame:
    """Return the canonical rows that have a role: all rows of a source with one role."""
    return rows.filter(ROLE_COLUMN[role]) if ROLE_COLUMN[role] in rows.columns else rows


def conflicting_requests(request_users: pl.DataFrame) -> pl.Series:
    """Find request ids of several users.

    Args:
        request_users: All pairs (request_id, user_id) of the request ids in it.

    Returns:
        Request ids that more than one user has, ascending.
    """
    users = request_users.unique().group_by(REQUEST_ID).len()
    return users.filter(pl.col("len") > 1)[REQUEST_ID].sort()


def gather_log_facts(
    spec: BuildSpec,
    latest_actions: Iterable[int | None],
    conflicts: pl.Series | None,
    window: IncrementWindow | None = None,
) -> LogFacts:
    """Combine what the chunks found out about the whole log.

    Args:
        spec: The build spec.
        latest_actions: The latest action of each chunk in microseconds.
        conflicts: Request ids of several users.
        window: Window of the increment, if there is one.

    Returns:
        The facts. The log of actions ends with the window, at the declared `until`, or at its latest action.
    """
    until = to_microseconds(spec.actions.until) if spec.actions and spec.actions.until else None
    # An increment has all actions before the end of its window, so the log is complete up to there, even if the latest
    # action is earlier (docs/incremental.md).
    if window and spec.actions:
        return LogFacts(conflicts, window.until if until is None else min(window.until, until))
    latest = max((time for time in latest_actions if time is not None), default=None)
    return LogFacts(conflicts, latest if until is None else until)


# Steps of `canonicalize`


def _exploded(raw: pl.DataFrame, spec: BuildSpec, source: str) -> tuple[pl.DataFrame, int]:
    """Return one row per list element with the number of its raw row, and the number of rows without elements."""
    reserved = [name for name in raw.columns if name in QUARANTINE_NAMES]
    if reserved:
        raise SourceError(
            f"source {source}: the column name {reserved[0]!r} is reserved for quarantine files. Rename the column "
            "in the log."
        )
    numbered = raw.with_row_index(ROW)
    settings = spec.sources[source].explode
    if settings is None:
        return numbered, 0
    try:
        exploded = explode(numbered, settings)
    except SourceError as error:
        raise SourceError(f"source {source}: {error}") from None
    # A row without elements leaves no trace after exploding, except its missing number.
    return exploded, numbered.height - exploded[ROW].n_unique()


def _readings(raw_schema: pl.Schema, spec: BuildSpec, schema: SourceSchema) -> Readings:
    """Return role -> column -> reading; Polars computes the equal expressions of shared readings once."""
    try:
        return {
            role: {name: read_column(m, role, name, raw_schema, spec) for name, m in columns.items()}
            for role, columns in schema.role_columns.items()
        }
    except SourceError as error:
        raise SourceError(f"source {schema.source}: {error}") from None


def _with_typed_columns(exploded: pl.DataFrame, readings: Readings) -> pl.DataFrame:
    """Add the typed columns of all readings."""
    # Strings are parsed here, once; values, faults and filters all refer to the typed columns.
    columns = {
        name: column for of_role in readings.values() for r in of_role.values() for name, column in r.typed.items()
    }
    return exploded.with_columns(**columns)


def _selected_in_window(
    typed: pl.DataFrame,
    spec: BuildSpec,
    readings: Readings,
    selected: dict[str, pl.Series],
    window: IncrementWindow,
) -> dict[str, pl.Series]:
    """Return role -> which of its selected rows arrive within the window."""
    times = {role: _arrival(spec, role, columns) for role, columns in readings.items()}
    return {
        role: typed.select((pl.lit(selected[role]) & window.contains(time)).alias(role)).to_series()
        for role, time in times.items()
    }


def _arrival(spec: BuildSpec, role: Role, columns: dict[str, Reading]) -> pl.Expr:
    """Return when a row is known in a role: an event when it is visible, a target or an action at its own time."""
    if role == "requests":
        return columns["request_time"].value
    time = columns["event_time"].value
    if role == "actions":
        return time
    time += spec.history.delay_us
    return pl.max_horizontal(time, columns["arrival_time"].value) if "arrival_time" in columns else time


def _faults(
    typed: pl.DataFrame, readings: Readings, selected: dict[str, pl.Series], conflicts: pl.Series | None
) -> pl.DataFrame:
    """Return one boolean column per reason; a role's faults count only on rows that the role selects."""
    faults: dict[str, pl.Expr] = {}
    for role, columns in readings.items():
        for name, reading in columns.items():
            # The column of a label over the actions matters only on the actions that the label selects.
            mask = selected[role] & selected[name] if name in selected else selected[role]
            for reason, fault in reading.faults.items():
                has_fault = pl.lit(mask) & fault
                faults[reason] = faults[reason] | has_fault if reason in faults else has_fault
            # Only the second pass knows conflicts; it marks their rows for quarantine.
            if conflicts is not None and role == "requests" and name == REQUEST_ID:
                faults[CONFLICTING_REQUEST] = pl.lit(mask) & reading.value.is_in(conflicts.implode())
    return typed.select(**{reason: fault.fill_null(False) for reason, fault in faults.items()})


def _has_fault(faults: pl.DataFrame, rows: int) -> pl.Series:
    """Return which of the rows have any fault, (rows,)."""
    # A frame without columns has no height, so without any fault the number of rows comes from the caller.
    return (
        faults.select(pl.any_horizontal(pl.all())).to_series() if faults.width else pl.repeat(False, rows, eager=True)
    )


def _values(
    typed: pl.DataFrame, selected: dict[str, pl.Series], readings: Readings, keep: pl.Series, schema: SourceSchema
) -> pl.DataFrame:
    """Compute the canonical columns, and the marks of the roles if there are several, of the rows to keep."""
    values: dict[str, pl.Expr] = {}
    for role, columns in readings.items():
        for name, reading in columns.items():
            value = reading.value
            # The value of an action is null for the labels that do not select it, and `delayed_labels` drops nulls.
            if name in selected:
                value = pl.when(pl.lit(selected[name])).then(value)
            # Roles that share a reading share the canonical column.
            values.setdefault(schema.names[role][name], value)
    if len(readings) > 1:
        values |= {ROLE_COLUMN[role]: pl.lit(selected[role]) for role in readings}
    rows = typed.select(**values)
    # A filter copies all columns, even if it keeps every row.
    return rows if keep.all() else rows.filter(keep)


def _hashed_columns(schema: SourceSchema, readings: Readings) -> list[str]:
    """Return the canonical columns whose values are strings and are stored as ids."""
    names = [
        schema.names[role][name]
        for role, columns in readings.items()
        for name, reading in columns.items()
        if reading.is_hashed
    ]
    return list(dict.fromkeys(names))


def _hash_columns(rows: pl.DataFrame, columns: list[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Replace strings by their hashes; also return the distinct (id, string)."""
    vocabulary = [pl.DataFrame(schema={"id": pl.Int64, "string": pl.String})]
    ids = {}
    for name in columns:
        ids[name] = hash_string(rows[name])
        # Distinct pairs per column first: far fewer rows to concatenate.
        vocabulary.append(pl.DataFrame({"id": ids[name], "string": rows[name]}).drop_nulls().unique())
    return rows.with_columns(**ids), pl.concat(vocabulary).unique()


def _rejected(raw: pl.DataFrame, faults: pl.DataFrame) -> pl.DataFrame:
    """Add the list of reasons to rejected rows."""
    # Without rows there may be no fault columns either, and `concat_list` of nothing fails.
    if not raw.height:
        return raw.with_columns(pl.lit(None, dtype=pl.List(pl.String)).alias(REASONS))
    reasons = [pl.when(pl.col(name)).then(pl.lit(name)) for name in faults.columns]
    listed = faults.select(pl.concat_list(reasons).list.drop_nulls().alias(REASONS))
    return raw.with_columns(listed[REASONS])


def _reason_counts(faults: pl.DataFrame) -> dict[str, int]:
    """Return how many rows have each fault, by name; faults of no row are absent."""
    counts = faults.sum().row(0, named=True) if faults.height else {}
    return {reason: count for reason, count in sorted(counts.items()) if count}


def _request_users(rows: pl.DataFrame, spec: BuildSpec, schema: SourceSchema) -> pl.DataFrame | None:
    """Return the distinct (request_id, user_id) of a chunk's targets, or None if the log has no request ids."""
    if "requests" not in schema.roles or spec.requests.request_id is None:
        return None
    names = schema.names["requests"]
    pairs = rows_of(rows, "requests").select(request_id=names[REQUEST_ID], user_id=names["user_id"])
    # The rows of a request are mostly adjacent, so comparing neighbors removes most before the costly `unique`.
    changed = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift()) for name in pairs.columns)
    return pairs.filter(changed | (pl.int_range(pl.len()) == 0)).unique()


def _latest_action(rows: pl.DataFrame, schema: SourceSchema) -> int | None:
    if "actions" not in schema.roles:
        return None
    # `rows` has no rejected rows: a time out of range must not move the end of the log, or pending requests would turn
    # into negatives. Conflicts are not known yet and do not count here (docs/semantics.md, Delayed labels).
    latest = rows_of(rows, "actions")[schema.names["actions"]["event_time"]].max()
    return latest if isinstance(latest, int) else None
