"""Hive partitions, columns that are folder names: `dt=2026-11-26/hour=07/a.parquet` has the columns dt and hour."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote

import polars as pl

# What Hive and Spark write as the folder of a null.
NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"
INTEGER = r"^-?[0-9]{1,18}$"


def folder_values(path: str) -> dict[str, str | None]:
    """Read the partition values in the folders of a file.

    Args:
        path: Local path or URI.

    Returns:
        Values by name, URL-decoded; of a name that occurs twice the innermost.

    Example:
        >>> folder_values("log/dt=2026-11-26/city=S%C3%A3o%20Paulo/part-0.parquet")
        {'dt': '2026-11-26', 'city': 'São Paulo'}
    """
    folders = [folder.partition("=") for folder in path.split("/")[:-1]]
    named = {unquote(name): value for name, equals, value in folders if equals and name}
    return {name: None if value == NULL_FOLDER else unquote(value) for name, value in named.items()}


def partition_columns(paths: Sequence[str], needed: Sequence[str]) -> pl.DataFrame:
    """Return the partition columns of files that the build needs.

    Args:
        paths: The files of a source.
        needed: The columns that the build reads.

    Returns:
        One row per file. A column that not every file has in its folders is not a partition column. Its values are
        int64 if all of them are integers, else strings.
    """
    values = [folder_values(path) for path in paths]
    shared = [name for name in needed if values and all(name in of_file for of_file in values)]
    columns = {name: pl.Series(name, [of_file[name] for of_file in values], dtype=pl.String) for name in shared}
    return pl.DataFrame({name: _typed(column) for name, column in columns.items()})


def _typed(strings: pl.Series) -> pl.Series:
    present = strings.drop_nulls()
    is_integer = len(present) > 0 and all(re.fullmatch(INTEGER, value) for value in present.unique())
    return strings.cast(pl.Int64) if is_integer else strings
