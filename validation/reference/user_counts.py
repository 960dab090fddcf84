"""A census of a raw log: every user, and how many rows are theirs. Memory: some chunks, and a row per user."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from longbatch.schemas.source_schema import MappedColumn, source_schema
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import IdColumn, TimeColumn

from .raw_files import Advance, chunks
from .values import or_null, string_id

MERGE_ROWS = 1 << 20
Censuses = Mapping[str, pl.DataFrame]


def take_census(spec: BuildSpec, source: str, advance: Advance = lambda rows: None) -> pl.DataFrame:
    """Count the rows of each user of a source; a row per distinct raw user id, none where they stand in lists.

    Columns: `key`, the raw id as text; `user_id`, null where it is none; `rows`, each list element counted; `asked`,
    how many raw rows the `where` of the requests selects, as far as can be told in bulk: else all of them.
    """
    column = user_column(spec, source)
    total, parts = pl.DataFrame(schema={"key": pl.String, "rows": pl.Int64, "asked": pl.Int64}), []
    names = dict.fromkeys([column.column, *_asking_columns(spec, source), *_exploded_columns(spec, source)])
    for chunk in chunks(spec, source, list(names), advance) if column.column not in made_columns(spec, source) else ():
        frame = chunk.frame
        marks = {"#rows": _elements(spec, source, frame), "#asked": _asked(spec, source, frame)}
        users = frame.with_columns(**marks).group_by(column.column).agg(pl.col(*marks).sum())
        parts.append(_merged([users.select(key=key_of(users, column), rows="#rows", asked="#asked")]))
        if sum(part.height for part in parts) > max(MERGE_ROWS, total.height):
            total, parts = _merged([total, *parts]), []
    total = _merged([total, *parts])
    return total.with_columns(user_id=pl.Series(_user_ids(total["key"], column), dtype=pl.Int64))


def _merged(parts: list[pl.DataFrame]) -> pl.DataFrame:
    counts = pl.concat(part.with_columns(pl.col("rows", "asked").cast(pl.Int64)) for part in parts)
    return counts.drop_nulls("key").group_by("key").sum()


def _user_ids(keys: pl.Series, column: IdColumn) -> list[int | None]:
    if column.type == "string":
        return [string_id.__wrapped__(key) for key in keys]  # each comes once: not worth a place in the cache
    return [or_null(key, column) for key in keys]


def user_column(spec: BuildSpec, source: str) -> IdColumn:
    """Return the raw column of a source's users."""
    return source_schema(spec, source).user_column


def key_of(frame: pl.DataFrame, column: IdColumn) -> pl.Expr:
    """Return a raw id as text, the same wherever it stands; whole floats as integers."""
    raw = pl.col(column.column)
    if column.type == "int64" and frame.schema[column.column].is_float():
        raw = raw.cast(pl.Int64, strict=False)
    return raw.cast(pl.String)


def made_columns(spec: BuildSpec, source: str) -> set[str]:
    """Return the columns that rows have only after `explode`, and the lists that it takes apart."""
    schema = source_schema(spec, source)
    return {*schema.list_columns, *schema.exploded_to}


# What a row weighs


def _exploded_columns(spec: BuildSpec, source: str) -> list[str]:
    """Return a column that says how many rows `explode` makes of one."""
    entry = spec.sources[source].explode
    if entry is None:
        return []
    return [entry.string.column] if entry.string else [entry.lists[0]]


def _elements(spec: BuildSpec, source: str, frame: pl.DataFrame) -> pl.Series:
    """Return about how many rows `explode` makes of each, at least 1."""
    entry, ones = spec.sources[source].explode, pl.repeat(1, frame.height, eager=True)
    if entry is None:
        return ones
    lists = frame[_exploded_columns(spec, source)[0]]
    if isinstance(lists.dtype, pl.List | pl.Array):
        return lists.list.len().cast(pl.Int64).fill_null(1).clip(1)
    if lists.dtype != pl.String:
        return ones
    return lists.str.count_matches(entry.string.separator if entry.string else ",", literal=True).fill_null(0) + 1


def _asking_columns(spec: BuildSpec, source: str) -> list[str]:
    if source != spec.requests.source or spec.sources[source].explode or spec.requests.where is None:
        return []
    return list(dict.fromkeys(pl.sql_expr(spec.requests.where).meta.root_names()))


def _asked(spec: BuildSpec, source: str, frame: pl.DataFrame) -> pl.Series:
    """Return which rows the `where` of the requests selects, mapped columns of text files cast in bulk."""
    everywhere = pl.repeat(source == spec.requests.source, frame.height, eager=True)
    if not _asking_columns(spec, source):
        return everywhere
    texts = {name for name, dtype in frame.schema.items() if dtype == pl.String}
    mapped = {str(column.column): column for column in source_schema(spec, source).columns.values()}
    view = frame.with_columns(_cast(name, mapped[name]) for name in texts & set(mapped))
    try:
        return view.select(asked=pl.sql_expr(str(spec.requests.where)).fill_null(False)).to_series()
    except pl.exceptions.PolarsError:
        return everywhere


def _cast(name: str, mapped: MappedColumn) -> pl.Expr:
    text = pl.col(name)
    if isinstance(mapped, TimeColumn):
        return text if mapped.unit in (None, "iso") else text.cast(pl.Float64, strict=False)
    if mapped.type == "bool":
        return text.str.to_lowercase().is_in(["true", "1"])
    return text if mapped.type in ("string", "id") else text.cast(pl.Float64, strict=False)
