"""Delta tables, read without a JVM: the log says which files are current, and they are read as Parquet.

Rows that a deletion vector removes are dropped by their positions. What would need the files to be read in another
way, such as column mapping, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

import numpy as np
import polars as pl
import pyarrow as pa

from longbatch.schemas.errors import MachineError, SourceError
from longbatch.schemas.types import BoolArray

from .chunks import plain_types
from .file_columns import FileSchema
from .files import SourceFile

if TYPE_CHECKING:
    from deltalake import DeltaTable

# Reader features of the protocol that change nothing for a reader of the listed Parquet files, and deletion vectors.
KNOWN_FEATURES = {"deletionVectors", "timestampNtz", "typeWidening", "v2Checkpoint", "vacuumProtocolCheck"}


@dataclass(frozen=True)
class DeltaFiles:
    """The current files of a version of a Delta table.

    Attributes:
        files: The files, sorted by path.
        partitions: One row per file: the values of the table's partition columns.
        schema: The columns of the table.
        deleted: Positions of deleted rows by path, as a mask that may end before the file does.
    """

    files: list[SourceFile]
    partitions: pl.DataFrame
    schema: FileSchema
    deleted: Mapping[str, BoolArray]


def current_version(path: str) -> int:
    """Return the newest version of a Delta table.

    Args:
        path: Folder or URI of the table.

    Raises:
        SourceError: There is no readable table.
        MachineError: The package deltalake is missing.
    """
    return _open(path, None).version()


def list_delta(path: str, version: int | None, needed: Sequence[str]) -> DeltaFiles:
    """List the current files of a Delta table.

    Args:
        path: Folder or URI of the table.
        version: Version of the table; None for the newest.
        needed: Columns whose types are wanted.

    Returns:
        The files.

    Raises:
        SourceError: There is no readable table, or it has a feature that cannot be read.
        MachineError: The package deltalake is missing.
    """
    table = _open(path, version)
    _check_features(path, table)
    actions = pl.DataFrame(pl.from_arrow(pa.table(table.get_add_actions(flatten=True)))).sort("path")
    root = path.removeprefix("file://").rstrip("/")
    paths = [_join(root, unquote(file)) for file in actions["path"]]
    files = [SourceFile(file, size) for file, size in zip(paths, actions["size_bytes"].to_list(), strict=True)]
    schema = pa.schema(cast(Any, table.schema().to_arrow()))  # arro3's schema, which the stubs do not know
    empty = plain_types(pl.DataFrame(pl.from_arrow(schema.empty_table())))
    # Without files the actions have no columns of partitions.
    partitions = [f"partition.{name}" for name in table.metadata().partition_columns]
    values = actions.select(name for name in partitions if name in actions.columns)
    types = {name: empty.schema[name] for name in needed if name in empty.columns}
    return DeltaFiles(
        files,
        plain_types(values.rename(lambda name: name.removeprefix("partition."))),
        FileSchema(path, types, schema.names),
        _deleted_rows(table) if "deletionVectors" in _features(table) else {},
    )


def _open(path: str, version: int | None) -> DeltaTable:
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError
    except ImportError:
        raise MachineError(
            "format = \"delta\" needs the package deltalake. Install it: pip install 'longbatch[delta]'."
        ) from None
    try:
        # http:// endpoints are of test servers and private networks; the user named them.
        return DeltaTable(path.removeprefix("file://"), version, {"allow_http": "true"})
    except (DeltaError, OSError) as error:
        of_version = "" if version is None else f"version {version} of "
        reason = " ".join(str(error).split())
        raise SourceError(f"cannot read {of_version}the Delta table {path!r}: {reason}") from None


def _features(table: DeltaTable) -> set[str]:
    return set(table.protocol().reader_features or ())


def _check_features(path: str, table: DeltaTable) -> None:
    mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    unknown = sorted(_features(table) - KNOWN_FEATURES - {"columnMapping"})
    problem = f"column mapping (mode {mapping!r})" if mapping != "none" else ", ".join(unknown)
    if problem:
        raise SourceError(
            f"the Delta table {path!r} has {problem}, which longbatch cannot read. Build on Spark from the table's "
            'name (format = "table"), or copy the rows to a table without it.'
        )


def _join(root: str, path: str) -> str:
    # A shallow clone lists files of other tables by their full names.
    return path if "://" in path or path.startswith("/") else f"{root}/{path}"


def _deleted_rows(table: DeltaTable) -> dict[str, BoolArray]:
    deleted: dict[str, BoolArray] = {}
    for batch in pa.RecordBatchReader.from_stream(table.deletion_vectors()):
        for path, keep in zip(batch["filepath"].to_pylist(), batch["selection_vector"], strict=True):
            mask = np.asarray(keep.values.to_numpy(zero_copy_only=False), dtype=np.bool_)
            deleted[str(path).removeprefix("file://")] = ~mask
    return deleted
