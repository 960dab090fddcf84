"""Raw rows for the naive reference: those of some users, or all. Memory: some chunks, and the rows asked for."""

from __future__ import annotations

from collections.abc import Collection

import polars as pl

from longbatch.schemas.source_schema import source_schema
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import IdColumn

from .raw_files import LINE, Advance, Chunk, chunks, parse_lines
from .user_counts import key_of, made_columns, take_census, user_column


def read_raw(spec: BuildSpec, source: str, users: Collection[int] | None = None) -> pl.DataFrame:
    """Read a source's raw rows; CSV and JSON lines as text.

    With `users` only the rows of these user ids, and those that share a request id with one of them, so that
    a request id of several users is still seen as such.
    """
    return read_rows(spec, source, users).frame


def read_rows(
    spec: BuildSpec,
    source: str,
    users: Collection[int] | None = None,
    census: pl.DataFrame | None = None,
    advance: Advance = lambda rows: None,
) -> Chunk:
    """Do what `read_raw` does, and count the lines that were no rows, whoever's they were.

    `census` of the source spares a pass over its files; `advance` is told of rows as they pass.
    A source whose ids stand in lists or packed text is read whole.
    """
    keys: list[tuple[IdColumn, pl.Series]] = []
    if users is not None:
        keys = _keys(spec, source, users, take_census(spec, source) if census is None else census, advance)
    columns, found, malformed = needed_columns(spec, source), [], 0
    for chunk in chunks(spec, source, keyed(spec, source, [column.column for column, _ in keys]), advance):
        frame = chunk.frame
        if keys:
            frame = _alone(frame.filter(pl.any_horizontal(_holds(frame, *key) for key in keys)))
        rows = rows_in(spec, source, frame)
        found.append(rows.frame)
        malformed += chunk.malformed + rows.malformed
    nothing = pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
    return Chunk(pl.concat(found or [nothing], how="vertical_relaxed"), malformed)


def keyed(spec: BuildSpec, source: str, keys: list[str]) -> list[str]:
    """Return the columns to ask of a chunk whose rows are to be chosen by `keys`: of JSON lines only these."""
    return keys if spec.sources[source].file_format == "jsonl" else needed_columns(spec, source)


def rows_in(spec: BuildSpec, source: str, frame: pl.DataFrame) -> Chunk:
    """Return the raw rows of (a part of) a chunk: its rows as they are, or what its JSON lines hold."""
    if LINE not in frame.columns:
        return Chunk(frame)
    made = [entry.column for entry in [spec.sources[source].synthetic_time] if entry]
    columns = [name for name in needed_columns(spec, source) if name not in made]
    parsed = parse_lines(frame[LINE], columns, source_schema(spec, source).list_columns)
    return Chunk(parsed.frame.with_columns(frame.select(made)), parsed.malformed)


def _keys(
    spec: BuildSpec, source: str, users: Collection[int], census: pl.DataFrame, advance: Advance
) -> list[tuple[IdColumn, pl.Series]]:
    """Return which id columns must hold one of which keys: those of the users, or of their requests."""
    user = user_column(spec, source)
    request = spec.requests.request_id if source == spec.requests.source else None
    if any(column.column in made_columns(spec, source) for column in (user, request) if column):
        return []
    wanted = pl.Series(sorted(users), dtype=pl.Int64)
    of_users = census.filter(pl.col("user_id").is_in(wanted.implode()))["key"]
    if request is None:
        return [(user, of_users)]
    shared = [pl.Series("key", dtype=pl.String)]
    for chunk in chunks(spec, source, [user.column, request.column], advance):
        mine = chunk.frame.filter(_holds(chunk.frame, user, of_users)).select(pl.col(request.column).unique())
        shared.append(mine.select(key=key_of(mine, request)).to_series())
    return [(user, of_users), (request, pl.concat(shared).unique().drop_nulls())]


def _holds(frame: pl.DataFrame, column: IdColumn, keys: pl.Series) -> pl.Expr:
    """Return where a raw id is one of these keys."""
    dtype = frame.schema[column.column]
    if dtype.is_numeric():
        return pl.col(column.column).is_in(keys.cast(dtype, strict=False).drop_nulls().implode())
    return key_of(frame, column).is_in(keys.implode())


def _alone(frame: pl.DataFrame) -> pl.DataFrame:
    """Copy the few rows that a filter left: their text would keep the memory of all the others."""
    return pl.DataFrame(pl.from_arrow(frame.to_arrow(compat_level=pl.CompatLevel.oldest())))


def needed_columns(spec: BuildSpec, source: str) -> list[str]:
    """Return the columns to read of a source's files: mapped, filtered on, or exploded."""
    schema = source_schema(spec, source)
    filters = [where for of_role in schema.filters.values() for where in of_role.values() if where]
    filtered = [name for where in filters for name in pl.sql_expr(where).meta.root_names()]
    wanted = [name for name in (*schema.raw_columns, *filtered) if name not in schema.exploded_to]
    return list(dict.fromkeys([*wanted, *schema.exploded_from]))
