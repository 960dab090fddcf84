"""Iceberg tables, read without a JVM: pyiceberg plans which files are current, and reads each with its deletes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import polars as pl
import pyarrow as pa

from longbatch.schemas.errors import DataError, MachineError, SourceError

from . import chunks
from .chunks import Chunk, Piece, plain_types
from .file_columns import FileSchema

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import FileScanTask, Table
    from pyiceberg.types import PrimitiveType


@dataclass(frozen=True)
class IcebergTask:
    """A data file with the files of its deletes.

    Attributes:
        path: URI of the data file.
        size_bytes: Its length.
        rows: Its number of rows, deleted ones included.
        scan_task: The task as JSON, for `Piece.scan_task`.
    """

    path: str
    size_bytes: int
    rows: int
    scan_task: str


def current_snapshot(path: str) -> int:
    """Return the id of the current snapshot of an Iceberg table.

    Args:
        path: Name of the table with its catalog, or its metadata file.

    Raises:
        SourceError: There is no readable table, or it has no snapshot.
        MachineError: The package pyiceberg is missing.
    """
    snapshot = _reopen(path).current_snapshot()
    if snapshot is None:
        raise SourceError(f"the Iceberg table {path!r} has no snapshot, so it has no rows.")
    return snapshot.snapshot_id


def plan_iceberg(path: str, snapshot: int | None, needed: Sequence[str]) -> tuple[list[IcebergTask], FileSchema]:
    """Plan the current files of an Iceberg table.

    Args:
        path: Name of the table with its catalog, or its metadata file.
        snapshot: Snapshot id; None for the current one.
        needed: Columns whose types are wanted.

    Returns:
        The files, sorted by path, and the columns of the table at the snapshot.

    Raises:
        SourceError: There is no readable table, or it has deletes that cannot be read.
        MachineError: The package pyiceberg is missing.
    """
    table = _reopen(path)
    _check_snapshot(path, table, snapshot)
    scan = table.scan(snapshot_id=snapshot)
    try:
        tasks = sorted(scan.plan_files(), key=lambda task: task.file.file_path)
    except (ValueError, NotImplementedError) as error:
        raise SourceError(
            f"cannot plan the Iceberg table {path!r}: {error}. If it has equality deletes, rewrite its data files "
            '(compaction) first, or build on Spark from the table\'s name (format = "table").'
        ) from None
    schema = scan.projection().as_arrow()
    fields = [schema.field(name) for name in needed if name in schema.names]
    types = plain_types(pl.DataFrame(pl.from_arrow(pa.schema(fields).empty_table()))).schema
    planned = [
        IcebergTask(task.file.file_path, task.file.file_size_in_bytes, task.file.record_count, _encode(table, task))
        for task in tasks
    ]
    return planned, FileSchema(path, dict(types), schema.names)


def read_iceberg(path: str, snapshot: int | None, piece: Piece, columns: list[str]) -> Iterator[Chunk]:
    """Read the rows of a data file that are not deleted, with the columns of the table's schema at the snapshot.

    Args:
        path: Name of the table with its catalog, or its metadata file.
        snapshot: Snapshot id.
        piece: The file and its deletes.
        columns: Columns to read.

    Yields:
        Chunks of at most CHUNK_ROWS rows in file order. Rows are numbered without the deleted ones.

    Raises:
        DataError: The file is not readable.
        SourceError: There is no readable table.
    """
    from pyiceberg.expressions import AlwaysTrue
    from pyiceberg.io.pyarrow import ArrowScan

    table = _open_at(path, snapshot)
    projection = table.scan(snapshot_id=snapshot, selected_fields=tuple(columns)).projection()
    scan = ArrowScan(table.metadata, table.io, projection, AlwaysTrue())
    first_row = piece.first_row
    try:
        for batch in scan.to_record_batches([_decode(table, piece.scan_task)]):
            for start in range(0, batch.num_rows, chunks.CHUNK_ROWS):
                part = pl.DataFrame(pl.from_arrow(batch.slice(start, chunks.CHUNK_ROWS)))
                yield Chunk(piece.path, first_row + start, part.select(columns))
            first_row += batch.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{piece.path}: cannot read this file of the Iceberg table {path!r}: {error}") from None


def _reopen(path: str) -> Table:
    _open.cache_clear()  # this process may have loaded an older state of the table
    return _open(path)


def _open_at(path: str, snapshot: int | None) -> Table:
    table = _open(path)
    if snapshot is not None and table.snapshot_by_id(snapshot) is None:
        table = _reopen(path)
    _check_snapshot(path, table, snapshot)
    return table


def _check_snapshot(path: str, table: Table, snapshot: int | None) -> None:
    if snapshot is not None and table.snapshot_by_id(snapshot) is None:
        raise SourceError(
            f"the Iceberg table {path!r} has no snapshot {snapshot}. It may have expired: remove `snapshot` to read "
            "the current one."
        )


@lru_cache(maxsize=16)
def _open(path: str) -> Table:
    """Load a table, once per process: tasks of one table share it."""
    try:
        from pyiceberg.catalog import load_catalog
        from pyiceberg.exceptions import NoSuchTableError
        from pyiceberg.table import StaticTable
    except ImportError:
        raise MachineError(
            "format = \"iceberg\" needs the package pyiceberg. Install it: pip install 'longbatch[iceberg]'."
        ) from None
    try:
        if path.endswith(".metadata.json"):
            return StaticTable.from_metadata(path)
        catalog, _, table = path.partition(".")
        return load_catalog(catalog).load_table(table)
    except NoSuchTableError:
        raise SourceError(f"there is no Iceberg table {path!r} in its catalog. Check the name.") from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SourceError(
            f"cannot read the Iceberg table {path!r}: {reason}. Write the name of a catalog of ~/.pyiceberg.yaml "
            'and of the table ("prod.db.events"), or the path of its newest .metadata.json file.'
        ) from None


# Tasks as JSON. Values of partitions are encoded by Iceberg's own binary form.


def _encode(table: Table, task: FileScanTask) -> str:
    document = {
        "file": _file_as_dict(table, task.file),
        "deletes": [_file_as_dict(table, f) for f in task.delete_files],
    }
    return json.dumps(document)


def _file_as_dict(table: Table, file: DataFile) -> dict[str, Any]:
    from pyiceberg.conversions import to_bytes

    values = [
        None if file.partition[n] is None else base64.b64encode(to_bytes(dtype, file.partition[n])).decode()
        for n, dtype in enumerate(_partition_types(table, file.spec_id))
    ]
    return {
        "spec_id": file.spec_id,
        "content": int(file.content),
        "file_path": file.file_path,
        "file_format": file.file_format.value,
        "partition": values,
        "record_count": file.record_count,
        "file_size_in_bytes": file.file_size_in_bytes,
    }


def _partition_types(table: Table, spec_id: int) -> list[PrimitiveType]:
    fields = table.metadata.specs()[spec_id].partition_type(table.schema()).fields
    return [cast("PrimitiveType", field.field_type) for field in fields]


def _decode(table: Table, document: str) -> FileScanTask:
    from pyiceberg.table import FileScanTask

    task = json.loads(document)
    deletes = {_file_of(table, entry) for entry in task["deletes"]}
    return FileScanTask(_file_of(table, task["file"]), deletes)


def _file_of(table: Table, entry: dict[str, Any]) -> DataFile:
    from pyiceberg.conversions import from_bytes
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
    from pyiceberg.typedef import Record

    values = [
        None if value is None else from_bytes(dtype, base64.b64decode(value))
        for dtype, value in zip(_partition_types(table, entry["spec_id"]), entry["partition"], strict=True)
    ]
    arguments = entry | {
        "content": DataFileContent(entry["content"]),
        "file_format": FileFormat(entry["file_format"]),
        "partition": Record(*values),
    }
    spec_id = arguments.pop("spec_id")  # a manifest has it once for all of its files
    file = DataFile.from_args(**arguments)
    file.spec_id = spec_id
    return file
