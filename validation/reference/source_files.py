"""The files of a source for the naive reference: what paths name, folder names as columns, and files to skip."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import polars as pl
import pyarrow as pa

from longbatch.schemas.errors import MachineError, SourceError, SpecError
from longbatch.schemas.source_schema import source_schema
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.source import TABLE_FORMATS
from longbatch.schemas.storage.open_store import open_store
from longbatch.schemas.storage.store import Store

FolderValue = int | str | None


@dataclass(frozen=True)
class File:
    """A file of a source, and the columns that its folders name."""

    source: str
    store: Store
    path: str
    folders: dict[str, FolderValue] = field(default_factory=dict)

    def open(self) -> pa.NativeFile:
        """Open the file for random access."""
        return self.store.open_input(self.path)


def source_files(spec: BuildSpec, source: str) -> list[File]:
    """Return the files of a source, those of each pattern sorted by path; none of a Delta or Iceberg table.

    Args:
        spec: The build spec.
        source: Name of the source.

    Raises:
        SourceError: A pattern matches no file, its place cannot be reached, or the source is a Spark table.
    """
    entry = spec.sources[source]
    if entry.file_format == "table":
        raise SourceError(
            f"source {source} is a Spark table, but the naive reference reads files only. Export the table to files."
        )
    if entry.file_format in TABLE_FORMATS:
        return []
    files: dict[str, File] = {}
    for pattern in entry.path:
        matches = {file.store.name(file.path): file for file in _matching_files(source, pattern)}
        if not matches:
            raise SourceError(f"source {source}: no file matches {pattern}. Check the path of the source.")
        files |= dict(sorted(matches.items()))
    return _with_folder_values(list(files.values())) if entry.hive_partitions else list(files.values())


def _matching_files(source: str, pattern: str) -> Iterator[File]:
    """Yield the files of a path, folder, glob or URI; not those below names that start with "_" or "."."""
    local = pattern.removeprefix("file://")
    is_glob = glob.has_magic(pattern) and not os.path.exists(local)
    base = re.split(r"[*?\[]", pattern)[0].rpartition("/")[0] if is_glob else pattern
    if "://" in local:
        scheme, _, rest = pattern.partition("://")
        host, _, inner = rest.partition("/")
        try:
            store = open_store(f"{scheme}://{host}")
            folder = "" if base == f"{scheme}://{host}" else base.removeprefix(f"{scheme}://{host}/")
            paths = [file.path for file in store.list_files(folder)] or [folder]
        except (SpecError, MachineError) as error:
            raise SourceError(f"cannot access {pattern!r}: {error}") from None
        files = [File(source, store, path) for path in paths if _matches(path, inner)]
    else:
        base = base.removeprefix("file://")
        # Python's glob does not know `**` within a name; listing all files and matching their paths does.
        local = local if is_glob else glob.escape(local)
        tops = [base] if "**" in local else glob.glob(local)
        paths = [path for top in tops for path in _files_below(top) if _matches(path, local)]
        files = [File(source, open_store(Path(path).parent), Path(path).name) for path in paths]
    yield from (file for file in files if not _is_left_behind(file.store.name(file.path), base))


def _files_below(top: str) -> list[str]:
    if os.path.isfile(top):
        return [top]
    return [os.path.join(folder, name) for folder, _, names in os.walk(top, followlinks=True) for name in names]


def _matches(path: str, pattern: str) -> bool:
    """Return whether a pattern matches a file, or a folder above it."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]*\])", pattern.rstrip("/"))
    regexes = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    regex = "".join(
        regexes.get(part) or (part.replace("[[", r"[\[") if part.startswith("[") else re.escape(part)) for part in parts
    )
    return re.fullmatch(f"{regex}(/.*)?", path) is not None


def _is_left_behind(name: str, base: str) -> bool:
    below = name[name.find(base) + len(base) :].strip("/").split("/") if name != base else []
    return any(part.startswith(("_", ".")) and "=" not in part for part in below)


# Folder names


def _with_folder_values(files: list[File]) -> list[File]:
    """Read `name=value` folders; a name that all files have is a column, of integers if all values are integers."""
    values = [_folder_values(file.store.name(file.path)) for file in files]
    shared = set.intersection(*(set(of_file) for of_file in values))
    integers = {
        name
        for name in shared
        if any(of_file[name] is not None for of_file in values)
        and all(re.fullmatch(r"-?\d{1,18}", str(of_file[name])) for of_file in values if of_file[name] is not None)
    }
    return [
        File(
            file.source,
            file.store,
            file.path,
            {
                name: int(value) if name in integers and value is not None else value
                for name, value in of_file.items()
                if name in shared
            },
        )
        for file, of_file in zip(files, values, strict=True)
    ]


def _folder_values(name: str) -> dict[str, str | None]:
    values: dict[str, str | None] = {}
    for folder in name.split("/")[:-1]:
        key, equals, value = folder.partition("=")
        if key and equals:
            values[unquote(key)] = None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
    return values


def folder_columns(file: File, height: int) -> pl.DataFrame:
    """Return the columns that a file's folders name.

    Args:
        file: The file.
        height: Number of rows.
    """
    return pl.DataFrame(
        {
            name: pl.Series([value] * height, dtype=pl.Int64 if isinstance(value, int) else pl.String)
            for name, value in file.folders.items()
        }
    )


def skipped_rows(spec: BuildSpec, source: str, constants: pl.DataFrame) -> pl.Series:
    """Find rows that a build does not read, because a `where` of every role excludes the values of their folders.

    Args:
        spec: The build spec.
        source: Name of the source.
        constants: Rows with the columns that all rows of a file share.

    Returns:
        True for such rows.
    """
    skipped = pl.repeat(True, constants.height, eager=True, dtype=pl.Boolean)
    for role in source_schema(spec, source).roles:
        where = spec.section(role).where
        role_skips = pl.repeat(False, constants.height, eager=True, dtype=pl.Boolean)
        for condition in _and_parts(pl.sql_expr(where)) if where else []:
            names = condition.meta.root_names()
            if names and set(names) <= set(constants.columns):
                try:
                    role_skips |= ~constants.with_columns(condition.fill_null(False).alias("#kept"))["#kept"]
                except pl.exceptions.PolarsError:
                    continue
        skipped &= role_skips
    return skipped


def _and_parts(condition: pl.Expr) -> list[pl.Expr]:
    """Split `a AND b` into a and b."""
    sides = condition.meta.pop()
    if len(sides) != 2 or str(condition) != f"[({sides[1]}) & ({sides[0]})]":
        return [condition]
    return [part for side in sides for part in _and_parts(side)]
