"""Which rows a role selects, and a label over the actions: `where`, an expression of Polars SQL over raw columns."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from longbatch.schemas.errors import SpecError
from longbatch.schemas.source_schema import SourceSchema
from longbatch.schemas.spec.build_spec import BuildSpec, Role

from .parse import Reading

TEXT_FORMATS = frozenset({"csv", "jsonl"})
Readings = dict[Role, dict[str, Reading]]


def where_columns(schema: SourceSchema) -> list[str]:
    """Return the raw columns that the `where` filters of a source read."""
    found: dict[str, None] = {}
    for filters in schema.filters.values():
        for name, where in filters.items():
            found |= dict.fromkeys(_expression(where, name).meta.root_names() if where else [])
    return list(found)


def select_rows(typed: pl.DataFrame, spec: BuildSpec, schema: SourceSchema, readings: Readings) -> dict[str, pl.Series]:
    """Return which rows each role of the source selects, and each label over the actions ("value.<label>").

    `typed` holds the raw columns, and those that the readings add.
    """
    view = _with_types(typed, schema, readings) if spec.sources[schema.source].file_format in TEXT_FORMATS else typed
    masks = {}
    for role in readings:
        for name, where in schema.filters[role].items():
            mask = pl.lit(True) if where is None else _expression(where, name).fill_null(False)
            try:
                masks[name] = view.select(pl.repeat(True, pl.len()).and_(mask).alias(name)).to_series()
            except pl.exceptions.PolarsError as error:
                raise SpecError(
                    f"{name}.where cannot be computed on source {schema.source}: {where!r}: {_one_line(error)}"
                ) from None
    return {name.replace("requests.labels.", "value."): mask for name, mask in masks.items()}


def _with_types(typed: pl.DataFrame, schema: SourceSchema, readings: Readings) -> pl.DataFrame:
    """Text columns as the spec types them, so that `where` can compare numbers; numeric times as they stand there."""
    views: dict[str, pl.Expr] = {}
    for role, columns in readings.items():
        for name, mapped in schema.role_columns[role].items():
            column = mapped.column
            if column is None or column in views or typed.schema[column] != pl.String:
                continue
            if getattr(mapped, "unit", None) in ("s", "ms", "us"):
                views[column] = pl.col(column).cast(pl.Float64, strict=False)
            elif not columns[name].hashed and getattr(mapped, "type", "string") != "string":
                views[column] = pl.col(next(iter(columns[name].typed))).alias(column)
    return typed.with_columns(**views)


def _expression(where: str, role: str) -> pl.Expr:
    try:
        expression = pl.sql_expr(where)
    except pl.exceptions.PolarsError as error:
        raise SpecError(f"{role}.where is not an expression of Polars SQL: {where!r}: {_one_line(error)}") from None
    if _looks_at_other_rows(json.loads(expression.meta.serialize(format="json"))):
        raise SpecError(
            f"{role}.where looks at other rows: {where!r}; logs are read in parts, so it may only look at the row's own columns"
        )
    return expression


def _looks_at_other_rows(tree: Any) -> bool:
    """Whether an expression, as the tree that Polars writes, holds an aggregate, a window, or the number of rows."""
    if isinstance(tree, dict):
        own = {name: part for name, part in tree.items() if name not in ("Column", "Literal")}
        return any(name in ("Agg", "Over", "Window") or _looks_at_other_rows(part) for name, part in own.items())
    return any(_looks_at_other_rows(part) for part in tree) if isinstance(tree, list) else tree == "Len"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
