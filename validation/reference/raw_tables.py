"""Rows of Delta and Iceberg tables for the naive reference: read by the table's own library, all files at once."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl
import pyarrow as pa

from longbatch.schemas.errors import MachineError, SourceError
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.source import Source

from .source_files import skipped_rows


def check_table(spec: BuildSpec, source: str) -> None:
    """Open a table, to find out whether its rows can be compared.

    Args:
        spec: The build spec.
        source: Name of a source whose format is "delta" or "iceberg".

    Raises:
        SourceError: The table does not exist, or does not have the version that was built.
        MachineError: The package of the format is missing.
    """
    _batches(spec.sources[source], source, [])


def table_rows(spec: BuildSpec, source: str, columns: list[str]) -> Iterator[pl.DataFrame]:
    """Read the current rows of a table, at the version that the spec names.

    Args:
        spec: The build spec.
        source: Name of a source whose format is "delta" or "iceberg".
        columns: The columns to read.

    Yields:
        The rows, without those of Delta partitions that a build skips.

    Raises:
        SourceError: The table does not exist, or lacks a column.
        MachineError: The package of the format is missing.
    """
    partitions, batches = _batches(spec.sources[source], source, columns)
    yield _frame(batches.schema.empty_table()).select(columns)
    for batch in batches:
        frame = _frame(pa.Table.from_batches([batch]))
        if partitions:
            frame = frame.filter(~skipped_rows(spec, source, frame.select(partitions)))
        yield frame.select(columns)


def _frame(table: pa.Table) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(table))


def _batches(entry: Source, source: str, columns: list[str]) -> tuple[list[str], pa.RecordBatchReader]:
    """Return the partition columns of a Delta table, and the rows with these and the wanted columns."""
    try:
        return _delta(entry, columns) if entry.format == "delta" else _iceberg(entry, columns)
    except ImportError as error:
        raise MachineError(f"format = {entry.format!r} needs a package that is missing: {error}.") from None
    except (KeyError, OSError, ValueError) as error:
        raise SourceError(f"source {source}: cannot read the table {entry.path[0]!r}: {error}") from None


def _delta(entry: Source, columns: list[str]) -> tuple[list[str], pa.RecordBatchReader]:
    from deltalake import DeltaTable, QueryBuilder
    from deltalake.exceptions import DeltaError

    try:
        table = DeltaTable(entry.path[0].removeprefix("file://"), entry.version, {"allow_http": "true"})
        partitions = list(table.metadata().partition_columns)
        wanted = ", ".join(f'"{name}"' for name in dict.fromkeys([*columns, *partitions])) or "1"
        rows = QueryBuilder().register("log", table).execute(f"select {wanted} from log")
    except DeltaError as error:
        raise ValueError(error) from None
    return partitions, pa.RecordBatchReader.from_stream(rows)


def _iceberg(entry: Source, columns: list[str]) -> tuple[list[str], pa.RecordBatchReader]:
    from pyiceberg.catalog import load_catalog
    from pyiceberg.exceptions import NoSuchTableError
    from pyiceberg.table import StaticTable, Table

    path = entry.path[0]
    catalog, _, name = path.partition(".")
    try:
        table: Table = (
            StaticTable.from_metadata(path)
            if path.endswith(".metadata.json")
            else load_catalog(catalog).load_table(name)
        )
    except NoSuchTableError as error:
        raise ValueError(error) from None
    scan = table.scan(snapshot_id=entry.snapshot, selected_fields=tuple(columns) or ("*",))
    return [], scan.to_arrow_batch_reader()
