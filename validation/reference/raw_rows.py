"""Raw rows for the naive reference: those of some users, or all. Memory: some chunks, and the rows returned."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import polars as pl

from longbatch.schemas.source_schema import source_schema
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import IdColumn

from .raw_files import FOLDER, LINE, Advance, Chunk, parse_json_lines, read_chunks
from .user_counts import columns_of_exploded_rows, count_user_rows, id_as_string, user_column


@dataclass(frozen=True)
class _IdFilter:
    """Selects the raw rows whose id is one of some raw ids."""

    column: IdColumn
    raw_ids: pl.Series

    def matches(self, frame: pl.DataFrame) -> pl.Expr:
        """Return an expression for the rows of a frame that match."""
        dtype = frame.schema[self.column.column]
        if dtype.is_numeric():
            numbers = self.raw_ids.cast(dtype, strict=False).drop_nulls()
            return pl.col(self.column.column).is_in(numbers.implode())
        return id_as_string(frame, self.column).is_in(self.raw_ids.implode())


def read_raw(spec: BuildSpec, source: str, users: Collection[int] | None = None) -> pl.DataFrame:
    """Read a source's raw rows; values of CSV and JSON lines are strings.

    Args:
        spec: The build spec.
        source: Name of the source.
        users: Canonical user ids, None for all. The rows of other users that share a request id with one of them are
            returned too, so that the reference still sees conflicting requests.

    Returns:
        The rows in file order.
    """
    return read_rows(spec, source, users).frame


def read_rows(
    spec: BuildSpec,
    source: str,
    users: Collection[int] | None = None,
    counts: pl.DataFrame | None = None,
    advance: Advance = lambda rows: None,
) -> Chunk:
    """Read raw rows as `read_raw` does, and count malformed lines, of all users.

    A source whose user or request ids are elements of lists or of packed strings is read completely.

    Args:
        spec: The build spec.
        source: Name of the source.
        users: Canonical user ids, None for all.
        counts: The result of `count_user_rows` for the source; without it the files are read once more.
        advance: Called with the number of rows of each chunk.

    Returns:
        All rows as one chunk.
    """
    filters: list[_IdFilter] = []
    if users is not None:
        filters = _filters(spec, source, users, count_user_rows(spec, source) if counts is None else counts, advance)
    frames, malformed = [], 0
    columns = selection_columns(spec, source, [id_filter.column.column for id_filter in filters])
    for chunk in read_chunks(spec, source, columns, advance):
        frame = chunk.frame
        if filters:
            frame = _copy(frame.filter(pl.any_horizontal(id_filter.matches(frame) for id_filter in filters)))
        rows = parse_chunk_rows(spec, source, frame)
        frames.append(rows.frame)
        malformed += chunk.malformed + rows.malformed
    empty = pl.DataFrame(schema=dict.fromkeys(needed_columns(spec, source), pl.String))
    return Chunk(pl.concat(frames or [empty], how="vertical_relaxed"), malformed)


def selection_columns(spec: BuildSpec, source: str, selectors: list[str]) -> list[str]:
    """Return the columns to read of a chunk before its rows are selected.

    Args:
        spec: The build spec.
        source: Name of the source.
        selectors: The columns that decide which rows are selected.

    Returns:
        All needed columns; of JSON lines only the selectors, because selected lines are parsed afterwards.
    """
    return selectors if spec.sources[source].file_format == "jsonl" else needed_columns(spec, source)


def parse_chunk_rows(spec: BuildSpec, source: str, frame: pl.DataFrame) -> Chunk:
    """Return the raw rows of a chunk, or a part of it: JSON lines are parsed, other rows are returned as they are.

    Args:
        spec: The build spec.
        source: Name of the source.
        frame: Rows from `read_chunks`.

    Returns:
        The rows, and how many JSON lines are malformed.
    """
    if LINE not in frame.columns:
        return Chunk(frame)
    synthetic = [entry.column for entry in [spec.sources[source].synthetic_time] if entry]
    folders = {name: name.removeprefix(FOLDER) for name in frame.columns if name.startswith(FOLDER)}
    needed = needed_columns(spec, source)
    columns = [name for name in needed if name not in synthetic and name not in folders.values()]
    parsed = parse_json_lines(frame[LINE], columns, source_schema(spec, source).list_columns)
    if not synthetic and not folders:
        return parsed
    # Synthetic times number the valid lines only; folder names belong to every line, and malformed ones are dropped.
    lines = frame if synthetic else frame.head(parsed.frame.height)
    added = lines.select(*synthetic, *(pl.col(name).alias(column) for name, column in folders.items()))
    return Chunk(parsed.frame.with_columns(added.select(set(added.columns) & set(needed))), parsed.malformed)


def _filters(
    spec: BuildSpec, source: str, users: Collection[int], counts: pl.DataFrame, advance: Advance
) -> list[_IdFilter]:
    """Return filters of which a row must match one: the ids of the users, or of their requests."""
    user = user_column(spec, source)
    request = spec.requests.request_id if source == spec.requests.source else None
    if any(column.column in columns_of_exploded_rows(spec, source) for column in (user, request) if column):
        return []
    wanted = pl.Series(sorted(users), dtype=pl.Int64)
    user_filter = _IdFilter(user, counts.filter(pl.col("user_id").is_in(wanted.implode()))["raw_id"])
    if request is None:
        return [user_filter]
    request_ids = [pl.Series(dtype=pl.String)]
    for chunk in read_chunks(spec, source, [user.column, request.column], advance):
        rows = chunk.frame.filter(user_filter.matches(chunk.frame)).select(pl.col(request.column).unique())
        request_ids.append(rows.select(id_as_string(rows, request)).to_series())
    return [user_filter, _IdFilter(request, pl.concat(request_ids).unique().drop_nulls())]


def _copy(frame: pl.DataFrame) -> pl.DataFrame:
    """Copy the few rows that a filter left: their strings would keep the memory of the complete chunk."""
    return pl.DataFrame(pl.from_arrow(frame.to_arrow(compat_level=pl.CompatLevel.oldest())))


def needed_columns(spec: BuildSpec, source: str) -> list[str]:
    """Return the columns to read from a source's files: mapped ones, and those of a `where` or an `explode`."""
    schema = source_schema(spec, source)
    filters = [where for role_filters in schema.filters.values() for where in role_filters.values() if where]
    filtered_on = [name for where in filters for name in pl.sql_expr(where).meta.root_names()]
    in_files = [name for name in (*schema.raw_columns, *filtered_on) if name not in schema.exploded_to]
    return list(dict.fromkeys([*in_files, *schema.exploded_from]))
