"""List columns -> one row per list element."""

from __future__ import annotations

import polars as pl

from longbatch.schemas.errors import SourceError
from longbatch.schemas.spec.source import Explode

PARTS = "_parts"


def explode(raw: pl.DataFrame, settings: Explode) -> pl.DataFrame:
    """Make one row per list element; a row whose list is empty or null makes none.

    Rows (user 7, items [a, b]) and (user 8, items []) with position = "rank" become
    (7, a, 0) and (7, b, 1).

    Args:
        raw: Raw rows, with the row number as the first column.
        settings: Which columns are lists: parallel list columns, or one string column.

    Returns:
        The rows, all other columns repeated for each element.

    Raises:
        SourceError: A column is missing or is not a list, or the lists of a row differ in length.
    """
    frame = _with_lists(raw, settings)
    lists = list(settings.lists) or [PARTS]
    # Polars would explode an empty list to a row of nulls.
    frame = frame.filter(pl.any_horizontal(pl.col(name).list.len() > 0 for name in lists))
    # Positions are exploded as one more parallel list.
    if settings.position:
        frame = frame.with_columns(pl.int_ranges(0, pl.col(lists[0]).list.len()).alias(settings.position))
        lists.append(settings.position)
    try:
        frame = frame.explode(lists)
    except pl.exceptions.ShapeError:
        raise SourceError(
            f"the lists {list(settings.lists)} of a row differ in length, so their elements do not match"
        ) from None
    return _with_fields(frame, settings) if settings.string else frame


def _with_lists(raw: pl.DataFrame, settings: Explode) -> pl.DataFrame:
    """Check the columns to explode, and split a string column into the list column PARTS."""
    for column in [*settings.lists, *([settings.string.column] if settings.string else [])]:
        if column not in raw.columns:
            raise SourceError(f"explode names {column!r}, but the source's columns are {', '.join(raw.columns[1:])}")
    for column in settings.lists:
        if not isinstance(raw.schema[column], pl.List):
            raise SourceError(f"explode.lists names {column!r}, which has type {raw.schema[column]}, not List")
    if settings.string is None:
        return raw
    if raw.schema[settings.string.column] != pl.String:
        raise SourceError(
            f"explode.string names {settings.string.column!r}, which has type {raw.schema[settings.string.column]}, "
            "not String"
        )
    # Doubled separators, and those at an end, make empty parts, which are not elements.
    parts = pl.col(settings.string.column).str.split(settings.string.separator)
    return raw.with_columns(parts.list.eval(pl.element().filter(pl.element() != "")).alias(PARTS))


def _with_fields(frame: pl.DataFrame, settings: Explode) -> pl.DataFrame:
    """Split each part of a string list into its fields; a missing field is null."""
    string = settings.string
    if string is None or len(string.fields) == 1:
        return frame.rename({PARTS: string.fields[0]}) if string else frame
    pieces = pl.col(PARTS).str.split(str(string.field_separator))
    fields = [pieces.list.get(i, null_on_oob=True).alias(name) for i, name in enumerate(string.fields)]
    return frame.with_columns(fields).drop(PARTS)
