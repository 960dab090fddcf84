"""How many raw rows each user of a source has. Memory: some chunks, and a row for each user."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from longbatch.schemas.source_schema import MappedColumn, source_schema
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import IdColumn, TimeColumn

from .raw_files import Advance, read_chunks
from .values import hash_utf8, value_or_null

MERGE_ROWS = 1 << 20  # counts of chunks are added up when they have more rows together
UserCounts = Mapping[str, pl.DataFrame]  # by source; the columns are those of `count_user_rows`
_COUNTS = ("rows", "request_rows")


def count_user_rows(spec: BuildSpec, source: str, advance: Advance = lambda rows: None) -> pl.DataFrame:
    """Count the rows of each user of a source.

    Args:
        spec: The build spec.
        source: Name of the source.
        advance: Called with the number of rows of each chunk.

    Returns:
        A row for each distinct raw user id; empty if the user ids are elements of lists. Columns:
        `raw_id`: the raw user id as a string;
        `user_id`: the canonical user id, null where the raw one cannot be parsed;
        `rows`: number of rows, each list element counted;
        `request_rows`: number of raw rows that the `where` of the requests selects. Where it cannot be evaluated on
        whole columns, all rows of the source of requests count.
    """
    user = user_column(spec, source)
    counts = pl.DataFrame(schema={"raw_id": pl.String, **dict.fromkeys(_COUNTS, pl.Int64)})
    chunk_counts: list[pl.DataFrame] = []
    columns = dict.fromkeys([user.column, *_where_columns(spec, source), *_exploded_columns(spec, source)])
    is_exploded = user.column in columns_of_exploded_rows(spec, source)
    for chunk in () if is_exploded else read_chunks(spec, source, list(columns), advance):
        frame = chunk.frame
        weights = {"#rows": _element_counts(spec, source, frame), "#request_rows": _is_request(spec, source, frame)}
        sums = frame.with_columns(**weights).group_by(user.column).agg(pl.col(*weights).sum())
        sums = sums.select(raw_id=id_as_string(sums, user), rows="#rows", request_rows="#request_rows")
        chunk_counts.append(_add_up([sums]))
        if sum(part.height for part in chunk_counts) > max(MERGE_ROWS, counts.height):
            counts, chunk_counts = _add_up([counts, *chunk_counts]), []
    counts = _add_up([counts, *chunk_counts])
    return counts.with_columns(user_id=_user_ids(counts["raw_id"], user))


def _add_up(parts: list[pl.DataFrame]) -> pl.DataFrame:
    counts = pl.concat(part.with_columns(pl.col(*_COUNTS).cast(pl.Int64)) for part in parts)
    return counts.drop_nulls("raw_id").group_by("raw_id").sum()


def _user_ids(raw_ids: pl.Series, column: IdColumn) -> pl.Series:
    if column.type == "string":
        # Each string occurs once here, so the cache of `string_id` would only lose others.
        return pl.Series([hash_utf8(raw_id) for raw_id in raw_ids], dtype=pl.Int64)
    return pl.Series([value_or_null(raw_id, column) for raw_id in raw_ids], dtype=pl.Int64)


def user_column(spec: BuildSpec, source: str) -> IdColumn:
    """Return the raw column with a source's user ids."""
    return source_schema(spec, source).user_column


def id_as_string(frame: pl.DataFrame, column: IdColumn) -> pl.Expr:
    """Return an expression for raw ids as strings, equal for equal ids of all files; whole floats as integers.

    Args:
        frame: The raw rows, for the column's type in this file.
        column: The id column.
    """
    raw = pl.col(column.column)
    if column.type == "int64" and frame.schema[column.column].is_float():
        raw = raw.cast(pl.Int64, strict=False)
    return raw.cast(pl.String)


def columns_of_exploded_rows(spec: BuildSpec, source: str) -> set[str]:
    """Return the columns whose values exist only after `explode`: list columns, and those that it adds."""
    schema = source_schema(spec, source)
    return {*schema.list_columns, *schema.exploded_to}


# What a raw row counts


def _exploded_columns(spec: BuildSpec, source: str) -> list[str]:
    """Return a column whose lists have one element for each row after `explode`."""
    explode = spec.sources[source].explode
    if explode is None:
        return []
    return [explode.string.column] if explode.string else [explode.lists[0]]


def _element_counts(spec: BuildSpec, source: str, frame: pl.DataFrame) -> pl.Series:
    """Return how many rows `explode` makes of each raw row, at least 1; an estimate where lists are strings."""
    explode, ones = spec.sources[source].explode, pl.repeat(1, frame.height, eager=True)
    if explode is None:
        return ones
    lists = frame[_exploded_columns(spec, source)[0]]
    if isinstance(lists.dtype, pl.List | pl.Array):
        return lists.list.len().cast(pl.Int64).fill_null(1).clip(1)
    if lists.dtype != pl.String:
        return ones
    separator = explode.string.separator if explode.string else ","
    return lists.str.count_matches(separator, literal=True).fill_null(0) + 1


def _where_columns(spec: BuildSpec, source: str) -> list[str]:
    """Return the columns that the `where` of the requests reads, none if it cannot be evaluated on raw rows."""
    if source != spec.requests.source or spec.sources[source].explode or spec.requests.where is None:
        return []
    return list(dict.fromkeys(pl.sql_expr(spec.requests.where).meta.root_names()))


def _is_request(spec: BuildSpec, source: str, frame: pl.DataFrame) -> pl.Series:
    """Return which rows the `where` of the requests selects, evaluated on whole columns."""
    all_or_none = pl.repeat(source == spec.requests.source, frame.height, eager=True)
    if not _where_columns(spec, source):
        return all_or_none
    strings = {name for name, dtype in frame.schema.items() if dtype == pl.String}
    mapped = {str(column.column): column for column in source_schema(spec, source).columns.values()}
    view = frame.with_columns(_cast_string(name, mapped[name]) for name in strings & set(mapped))
    try:
        return view.select(is_request=pl.sql_expr(str(spec.requests.where)).fill_null(False)).to_series()
    except pl.exceptions.PolarsError:
        return all_or_none


def _cast_string(name: str, mapped: MappedColumn) -> pl.Expr:
    """Return an expression for a string column as a `where` sees it, nearly: numbers as floats."""
    string = pl.col(name)
    if isinstance(mapped, TimeColumn):
        return string if mapped.unit in (None, "iso") else string.cast(pl.Float64, strict=False)
    if mapped.type == "bool":
        return string.str.to_lowercase().is_in(["true", "1"])
    return string if mapped.type in ("string", "id") else string.cast(pl.Float64, strict=False)
