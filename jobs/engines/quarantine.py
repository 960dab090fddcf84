"""Quarantine files: the original rows that a build rejected, with their reasons, file and row number."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from longbatch.jobs.commit.build_result import BuildResult
from longbatch.jobs.commit.table_files import write_frame
from longbatch.jobs.readers.chunks import Chunk
from longbatch.validation.rules import CONFLICTING_REQUEST, MALFORMED_ROW

from .conflicts import Conflicts
from .context import BuildContext
from .stages import canonicalize_chunk


def quarantine_rows(chunk: Chunk, rejected: pl.DataFrame) -> pl.DataFrame:
    """Return the rejected rows and malformed lines of one chunk with their reasons, file and row number.

    Args:
        chunk: The chunk; its frame is not used.
        rejected: Original columns of the rejected rows, with `_reasons` and `_row`.

    Returns:
        The rows of a quarantine file.
    """
    rows = rejected.rename({"_row": "_source_row"})
    rows = rows.with_columns(chunk.source_rows(rows["_source_row"]))
    # Malformed lines have no columns; they get one of their own beside the columns of the rejected rows.
    if chunk.malformed:
        row_numbers = chunk.malformed_rows or [None] * len(chunk.malformed)
        lines = pl.DataFrame({"_text": chunk.malformed, "_source_row": pl.Series(row_numbers, dtype=pl.Int64)})
        lines = lines.with_columns(_reasons=pl.lit([MALFORMED_ROW], dtype=pl.List(pl.String)))
        rows = pl.concat([rows, lines], how="diagonal")
    return rows.with_columns(_source_file=pl.lit(chunk.path))


def write_quarantine(context: BuildContext, name: str, rows: pl.DataFrame) -> BuildResult:
    """Write the rejected rows of one chunk.

    Args:
        context: The build.
        name: Name of the file, without its suffix.
        rows: What `quarantine_rows` returned.

    Returns:
        The quarantine file, unless there are no rows.

    Raises:
        MachineError: The disk is full.
    """
    if not rows.height:
        return BuildResult()
    return BuildResult(quarantine=(write_frame(context.store, f"quarantine/{name}.parquet", rows),))


def quarantine_conflicts(context: BuildContext, name: str, chunk: Chunk, conflicts: Conflicts) -> BuildResult:
    """Write the original rows of a chunk that are rejected only because several users share their request id.

    The other rejected rows were written when the chunk was canonicalized for the first time.

    Args:
        context: The build.
        name: Name of the file, without its suffix.
        chunk: Raw rows of the requests' source.
        conflicts: The request ids that several users share.

    Returns:
        The quarantine file, unless the chunk has no such row.

    Raises:
        MachineError: The disk is full.
    """
    parsed, source = replace(chunk, malformed=()), context.spec.requests.source
    # Rows with other faults have no canonical request id, and are not written here.
    request_users = canonicalize_chunk(context, source, parsed).request_users
    ids = None if request_users is None else conflicts.among(request_users["request_id"], context.store)
    if ids is None:
        return BuildResult()
    rejected = canonicalize_chunk(context, source, parsed, ids).rejected
    # Exactly this one reason: a row with other faults is in the quarantine already, and would be there twice.
    only_conflicts = rejected.filter(pl.col("_reasons") == [CONFLICTING_REQUEST])
    # Row numbers of the file still count the malformed lines, which are excluded here.
    return write_quarantine(context, name, quarantine_rows(parsed, only_conflicts))
