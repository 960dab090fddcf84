"""Raw rows for the naive reference, read from a source's files the simple way: whole, and text as text."""

from __future__ import annotations

import glob
import gzip
import json
from collections.abc import Collection, Iterable
from typing import Any

import polars as pl

from longbatch.schemas.errors import SourceError
from longbatch.schemas.spec import BuildSpec, IdColumn
from longbatch.validation.values import Row, as_text, or_null


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
    chosen = [value for value in values.to_list() if or_null(value, column) in ids]
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
    return value if value is None else json.dumps(value) if isinstance(value, dict) else as_text(value)
