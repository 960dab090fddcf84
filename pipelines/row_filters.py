"""`where` filters: which rows a role selects, and which actions a label counts, by Polars SQL over raw columns."""

from __future__ import annotations

import json

import polars as pl

from longbatch.schemas.errors import SpecError
from longbatch.schemas.source_schema import SourceSchema
from longbatch.schemas.spec.build_spec import BuildSpec, Role

from .parse import Reading

TEXT_FORMATS = frozenset({"csv", "jsonl"})
Readings = dict[Role, dict[str, Reading]]
"""Role -> the role's name of a column -> how to read it."""

JsonTree = dict[str, "JsonTree"] | list["JsonTree"] | str | float | None


def where_columns(schema: SourceSchema) -> list[str]:
    """Return the raw columns that the filters of a source read.

    Args:
        schema: Schema of the source.

    Returns:
        Column names, each once.

    Raises:
        SpecError: A filter is not an expression of Polars SQL, or looks at other rows.
    """
    names: dict[str, None] = {}
    for filters in schema.filters.values():
        for key, where in filters.items():
            names |= dict.fromkeys(_expression(where, key).meta.root_names() if where else [])
    return list(names)


def select_rows(typed: pl.DataFrame, spec: BuildSpec, schema: SourceSchema, readings: Readings) -> dict[str, pl.Series]:
    """Evaluate the filters of a source.

    Args:
        typed: N raw rows, with the columns that the readings add.
        spec: The build spec.
        schema: Schema of the source.
        readings: How to read the columns of each role.

    Returns:
        Role, or `value.<label>` for a label over the actions -> which rows it selects, (N,) without nulls.

    Raises:
        SpecError: A filter is invalid, or cannot be computed on the columns of the source.
    """
    # CSV and JSON lines arrive as strings; other formats already have types.
    is_text = spec.sources[schema.source].file_format in TEXT_FORMATS
    view = _typed_view(typed, schema, readings) if is_text else typed
    masks = {}
    for role in readings:
        for key, where in schema.filters[role].items():
            # A filter that is null, as in `rating > 3` without a rating, does not select the row (docs/semantics.md).
            mask = pl.lit(True) if where is None else _expression(where, key).fill_null(False)
            try:
                # `repeat` gives the mask the height of the frame where the expression is a constant.
                masks[key] = view.select(pl.repeat(True, pl.len()).and_(mask).alias(key)).to_series()
                if masks[key].dtype != pl.Boolean:  # Polars 1 computes a bitwise "and" of numbers
                    raise pl.exceptions.InvalidOperationError(f"its type is {masks[key].dtype}, not Boolean")
            except pl.exceptions.PolarsError as error:
                raise SpecError(
                    f"{key}.where cannot be computed on source {schema.source}: {where!r}: {_one_line(error)}"
                ) from None
    return {key.replace("requests.labels.", "value."): mask for key, mask in masks.items()}


def may_select(spec: BuildSpec, schema: SourceSchema, constants: pl.DataFrame) -> pl.Series:
    """Find the files of which a source's filters can select a row.

    `where = "dt >= '2026-11-01' AND dwell > 0"` cannot select a row of a file whose dt is 2026-10-31.

    Args:
        spec: The build spec.
        schema: Schema of the source.
        constants: One row per file: the columns that have one value in all of its rows.

    Returns:
        False where the parts of the filters that need no other column select no row for any role, (files,).

    Raises:
        SpecError: A filter is not an expression of Polars SQL.
    """
    any_role = pl.repeat(False, constants.height, eager=True, dtype=pl.Boolean)
    for role in schema.roles:
        where = spec.section(role).where
        selected = pl.repeat(True, constants.height, eager=True, dtype=pl.Boolean)
        for condition in _conjuncts(_expression(where, role)) if where else ():
            columns = condition.meta.root_names()
            if columns and all(name in constants.columns for name in columns):
                selected &= _is_true(condition, constants)
        any_role |= selected
    return any_role


def _conjuncts(expression: pl.Expr) -> list[pl.Expr]:
    """Split `a AND b AND c` into a, b and c."""
    tree = json.loads(expression.meta.serialize(format="json"))
    if not isinstance(tree, dict) or tree.get("BinaryExpr", {}).get("op") not in ("And", "LogicalAnd"):
        return [expression]
    return [part for side in expression.meta.pop() for part in _conjuncts(side)]


def _is_true(condition: pl.Expr, constants: pl.DataFrame) -> pl.Series:
    try:
        return constants.select(pl.repeat(True, pl.len()).and_(condition.fill_null(False)).alias("")).to_series()
    except pl.exceptions.PolarsError:
        # Text formats show a filter other types than the constants have. Reading the rows decides.
        return pl.repeat(True, constants.height, eager=True, dtype=pl.Boolean)


def _typed_view(typed: pl.DataFrame, schema: SourceSchema, readings: Readings) -> pl.DataFrame:
    """Show string columns in the types of the spec, so that `where` can compare numbers; numeric times as numbers."""
    views: dict[str, pl.Expr] = {}
    for role, columns in readings.items():
        for name, mapped in schema.role_columns[role].items():
            column = mapped.column
            if column is None or column in views or typed.schema[column] != pl.String:
                continue
            # In the raw unit, not in microseconds: the author of the spec compares with the numbers of the log.
            if getattr(mapped, "unit", None) in ("s", "ms", "us"):
                views[column] = pl.col(column).cast(pl.Float64, strict=False)
            elif not columns[name].is_hashed and getattr(mapped, "type", "string") != "string":
                views[column] = pl.col(next(iter(columns[name].typed))).alias(column)
    return typed.with_columns(**views)


def _expression(where: str, key: str) -> pl.Expr:
    try:
        expression = pl.sql_expr(where)
    except pl.exceptions.PolarsError as error:
        raise SpecError(f"{key}.where is not an expression of Polars SQL: {where!r}: {_one_line(error)}") from None
    if _looks_at_other_rows(json.loads(expression.meta.serialize(format="json"))):
        raise SpecError(
            f"{key}.where looks at other rows: {where!r}. Logs are read in chunks, so a filter may only use the "
            "columns of the row itself."
        )
    return expression


def _looks_at_other_rows(tree: JsonTree) -> bool:
    """Return whether an expression, as Polars serializes it, has an aggregate, a window, or the number of rows."""
    if isinstance(tree, dict):
        # Column names and literals may equal the names of operators.
        operators = {name: part for name, part in tree.items() if name not in ("Column", "Literal")}
        return any(name in ("Agg", "Over", "Window") or _looks_at_other_rows(part) for name, part in operators.items())
    return any(_looks_at_other_rows(part) for part in tree) if isinstance(tree, list) else tree == "Len"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
