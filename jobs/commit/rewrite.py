"""Files of a dataset without some of their rows, and the hashed strings that the remaining rows still use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

import polars as pl
import pyarrow as pa

from longbatch.schemas.format.disk import check_file, file_entry
from longbatch.schemas.format.manifest import FileEntry
from longbatch.schemas.format.shard_reader import Block, ShardReader
from longbatch.schemas.format.snapshot import Snapshot
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import Feature
from longbatch.schemas.types import ArrowArray

from .disk_errors import writing

RowFilter = Callable[[pl.DataFrame], pl.DataFrame]
"""Returns the rows of a file to keep."""


def read_table(path: Path) -> pl.DataFrame:
    """Read a small file of a dataset.

    Args:
        path: A Parquet or Arrow IPC file.
    """
    return pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_ipc(path)


def rewrite_file(root: Path, entry: FileEntry, attempt: str, keep: RowFilter) -> FileEntry | None:
    """Write a file again without some of its rows.

    Args:
        root: The dataset's folder.
        entry: The file.
        attempt: Name of the attempt, which becomes part of the new file's name.
        keep: Selects the rows to keep.

    Returns:
        The entry of the new file; the same entry if every row is kept; None if no row is kept.

    Raises:
        DatasetError: The file is missing or has another length.
        MachineError: The disk is full.
    """
    path = check_file(root, entry)
    rows = read_table(path)
    kept = keep(rows)
    if kept.height == rows.height:
        return entry
    if not kept.height:
        return None
    # "name+attempt": a file that is rewritten again gets a new attempt instead of a longer and longer name.
    target = path.with_name(f"{path.stem.split('+')[0]}+{attempt}{path.suffix}")
    with writing(target):
        if path.suffix == ".parquet":
            kept.write_parquet(target, compression="zstd")
        else:
            kept.write_ipc(target, compression="zstd", compat_level=pl.CompatLevel.oldest())
    return file_entry(root, target, kept.height, table=entry.table, bucket=entry.bucket)


def hashed_ids_in_use(root: Path, snapshot: Snapshot) -> pl.Series:
    """Collect all hashed ids in the shards and the incremental state of a snapshot.

    Args:
        root: The dataset's folder.
        snapshot: The snapshot.

    Returns:
        Distinct ids, and possibly some integers of the state that are not hashed.

    Raises:
        DatasetError: A file is missing or damaged.
    """
    ids = pl.Series("id", [], dtype=pl.Int64)
    for shard in snapshot.shards:
        reader = ShardReader(root, shard, snapshot.spec)
        for number in range(len(shard.blocks)):
            columns = [column.drop_nulls().unique() for column in _hashed_columns(snapshot.spec, reader.block(number))]
            # Duplicates are dropped block by block, so that memory is bounded by the number of distinct ids.
            ids = pl.concat([ids, *columns]).unique()
    for entry in snapshot.state:
        rows = pl.read_ipc(check_file(root, entry))
        integers = [rows[name].rename("id").drop_nulls() for name in rows.columns if rows[name].dtype == pl.Int64]
        ids = pl.concat([ids, *integers]).unique()
    return ids


def _hashed_columns(spec: BuildSpec, block: Block) -> Iterator[pl.Series]:
    """The columns of a block that contain hashes of strings."""
    events, targets = (
        cast(pa.StructArray, cast("pa.ListArray[pa.StructScalar]", lists).flatten())
        for lists in (block.timelines["events"], block.requests["targets"])
    )
    if spec.requests.user_id.type == "string":
        yield _id_series(block.timelines["user_id"])
    for name in _string_ids(spec.history.features, spec.history.item_id.type):
        yield _id_series(events.field(name))
    for name in _string_ids(spec.requests.features):
        yield _id_series(block.requests[name])
    for name in _string_ids(spec.requests.target_features, spec.requests.item_id.type):
        yield _id_series(targets.field(name))


def _string_ids(features: Mapping[str, Feature], item_type: str | None = None) -> list[str]:
    """Names of the hashed columns: features of type id, and the item if it is a string."""
    names = [name for name, feature in features.items() if feature.type == "id"]
    return [*names, *(["item_id"] if item_type == "string" else [])]


def _id_series(values: object) -> pl.Series:
    return pl.Series(pl.from_arrow(cast(ArrowArray, values))).rename("id")
