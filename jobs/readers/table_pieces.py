"""Planning Delta and Iceberg tables: one fixed version of each for the whole build, split into pieces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import polars as pl

from longbatch.pipelines.canonicalize import needed_columns
from longbatch.pipelines.row_filters import may_select
from longbatch.schemas.errors import SourceError
from longbatch.schemas.source_schema import source_schema
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.source import Source
from longbatch.schemas.types import BoolArray

from .chunks import Piece, encode_mask
from .columnar import ParquetFooter, read_footer
from .delta import current_version, list_delta
from .file_columns import FileSchema, check_columns
from .file_pieces import PlannedFile, row_group_pieces, whole_file
from .file_threads import in_threads
from .iceberg import current_snapshot, plan_iceberg


def pin_tables(spec: BuildSpec) -> BuildSpec:
    """Fix the version of every Delta and Iceberg table, so that all tasks read the same rows.

    Args:
        spec: The build spec.

    Returns:
        The spec with the current `version` or `snapshot` where it has none.

    Raises:
        SourceError: A table cannot be read.
        MachineError: The package for its format is missing.
    """
    sources = {name: _pinned(name, source) for name, source in spec.sources.items()}
    return spec if sources == spec.sources else spec.model_copy(update={"sources": sources})


def _pinned(name: str, source: Source) -> Source:
    try:
        if source.format == "delta" and source.version is None:
            return source.model_copy(update={"version": current_version(source.path[0])})
        if source.format == "iceberg" and source.snapshot is None:
            return source.model_copy(update={"snapshot": current_snapshot(source.path[0])})
    except SourceError as error:
        raise SourceError(f"source {name}: {error}") from None
    return source


def plan_delta(spec: BuildSpec, source: str) -> list[Piece]:
    """Split the current files of a Delta table into pieces.

    A column of the table that a file lacks is null in its rows, and partition columns have one value per file.

    Args:
        spec: The build spec.
        source: Name of the source.

    Returns:
        The pieces in the order of the files' names.

    Raises:
        SourceError: The table cannot be read, or it lacks a column.
        DataError: A file is not readable.
    """
    entry, needed = spec.sources[source], needed_columns(spec, source)
    table = list_delta(entry.path[0], entry.version, needed)
    check_columns(spec, source, [table.schema], needed)
    partitions = table.partitions.select(name for name in needed if name in table.partitions.columns)
    numbers = may_select(spec, source_schema(spec, source), partitions).arg_true() if partitions.width else None
    files = [
        PlannedFile(number, table.files[number], partitions[number : number + 1])
        for number in (range(len(table.files)) if numbers is None else numbers)
    ]
    in_files = [name for name in needed if name not in partitions.columns]
    footers = in_threads(lambda file: read_footer(file.file, in_files), files)
    pieces: list[Piece] = []
    for file, footer in zip(files, footers, strict=True):
        absent = [name for name in in_files if name not in footer.schema.types]
        nulls = pl.DataFrame({name: pl.Series([None], dtype=table.schema.types[name]) for name in absent})
        constants = pl.concat([file.constants, nulls], how="horizontal") if absent else file.constants
        whole = whole_file(source, replace(file, constants=constants))
        whole = replace(whole, as_utc=_utc_columns(table.schema, footer.schema))
        pieces += _without_deleted(row_group_pieces(whole, footer.group_rows), footer, table.deleted)
    return pieces


def _utc_columns(table: FileSchema, file: FileSchema) -> tuple[str, ...]:
    """Return the timestamps that are instants in the table, but that Spark wrote as INT96, which has no time zone."""
    aware = [name for name, dtype in table.types.items() if getattr(dtype, "time_zone", None)]
    return tuple(name for name in aware if name in file.types and getattr(file.types[name], "time_zone", "") is None)


def _without_deleted(pieces: list[Piece], footer: ParquetFooter, deleted: Mapping[str, BoolArray]) -> list[Piece]:
    if footer.schema.path not in deleted:
        return pieces
    mask = np.zeros(sum(footer.group_rows), dtype=np.bool_)
    marked = deleted[footer.schema.path]
    mask[: len(marked)] = marked
    return [
        replace(piece, deleted=encode_mask(mask[piece.first_row : piece.first_row + piece.rows])) for piece in pieces
    ]


def plan_iceberg_pieces(spec: BuildSpec, source: str) -> list[Piece]:
    """Return one piece per data file of an Iceberg table.

    Args:
        spec: The build spec.
        source: Name of the source.

    Returns:
        The pieces in the order of the files' names.

    Raises:
        SourceError: The table cannot be read, or it lacks a column.
    """
    entry, needed = spec.sources[source], needed_columns(spec, source)
    tasks, schema = plan_iceberg(entry.path[0], entry.snapshot, needed)
    check_columns(spec, source, [schema], needed)
    return [
        Piece(source, task.path, task.size_bytes, task.rows, file=number, scan_task=task.scan_task)
        for number, task in enumerate(tasks)
    ]
