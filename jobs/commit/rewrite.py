"""Files of a dataset without some of their rows, and the hashed strings that the remaining rows still use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import cast

import polars as pl
import pyarrow as pa

from longbatch.schemas.format.manifest import FileEntry
from longbatch.schemas.format.shard_reader import Block, ShardReader
from longbatch.schemas.format.snapshot import Snapshot
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import Feature
from longbatch.schemas.storage.store import Store
from longbatch.schemas.types import ArrowArray

from .table_files import read_frame, write_frame

RowFilter = Callable[[pl.DataFrame], pl.DataFrame]
"""Returns the rows of a file to keep."""


def rewrite_file(store: Store, entry: FileEntry, attempt: str, keep: RowFilter) -> FileEntry | None:
    """Write a file again without some of its rows.

    Args:
        store: The dataset.
        entry: The file.
        attempt: Name of the attempt, which becomes part of the new file's name.
        keep: Selects the rows to keep.

    Returns:
        The entry of the new file; the same entry if every row is kept; None if no row is kept.

    Raises:
        DatasetError: The file is missing or has another length.
        MachineError: The disk is full.
    """
    rows = read_frame(store, entry)
    kept = keep(rows)
    if kept.height == rows.height:
        return entry
    if not kept.height:
        return None
    # "name+attempt": a file that is rewritten again gets a new attempt instead of a longer and longer name.
    stem, _, suffix = entry.path.rpartition(".")
    target = f"{stem.partition('+')[0]}+{attempt}.{suffix}"
    return write_frame(store, target, kept, table=entry.table, bucket=entry.bucket)


def hashed_ids_in_use(store: Store, snapshot: Snapshot) -> pl.Series:
    """Collect all hashed ids in the shards and the incremental state of a snapshot.

    Args:
        store: The dataset.
        snapshot: The snapshot.

    Returns:
        Distinct ids, and possibly some integers of the state that are not hashed.

    Raises:
        DatasetError: A file is missing or damaged.
    """
    ids = pl.Series("id", [], dtype=pl.Int64)
    for shard in snapshot.shards:
        reader = ShardReader(store, shard, snapshot.spec)
        for number in range(len(shard.blocks)):
            columns = [column.drop_nulls().unique() for column in _hashed_columns(snapshot.spec, reader.block(number))]
            # Duplicates are dropped block by block, so that memory is bounded by the number of distinct ids.
            ids = pl.concat([ids, *columns]).unique()
    for entry in snapshot.state:
        rows = read_frame(store, entry)
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
