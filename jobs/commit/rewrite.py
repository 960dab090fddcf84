"""Files of a dataset without some of their rows, and which hashed texts what remains still uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from longbatch.schemas.errors import MachineError
from longbatch.schemas.format.disk import check_file, disk_message, file_entry
from longbatch.schemas.format.manifest import FileEntry
from longbatch.schemas.format.shard_reader import ShardReader
from longbatch.schemas.format.snapshot import Snapshot
from longbatch.schemas.spec.build_spec import BuildSpec


def without_rows(
    root: Path, entry: FileEntry, attempt: str | None, left: Callable[[Path, pl.DataFrame], pl.DataFrame]
) -> FileEntry | None:
    """The entry of the file with the rows that `left` leaves, written anew; the same entry if it leaves all.

    None if no row is left, or without an `attempt` to name a new file by.
    """
    path = check_file(root, entry)
    parquet = path.suffix == ".parquet"
    rows = pl.read_parquet(path) if parquet else pl.read_ipc(path)
    kept = left(path, rows)
    if kept.height == rows.height:
        return entry
    if not kept.height or attempt is None:
        return None
    target = path.with_name(f"{path.stem.split('+')[0]}+{attempt}{path.suffix}")
    try:
        if parquet:
            kept.write_parquet(target, compression="zstd")
        else:
            kept.write_ipc(target, compression="zstd", compat_level=pl.CompatLevel.oldest())
    except OSError as error:
        raise MachineError(disk_message(error, target)) from None
    return file_entry(root, target, kept.height, table=entry.table, bucket=entry.bucket)


def keep_words(words: pl.DataFrame, in_use: pl.Series) -> pl.DataFrame:
    """The words whose id something still uses."""
    return words.filter(pl.col("id").is_in(in_use.implode()))


def hashed_ids_in_use(root: Path, snapshot: Snapshot) -> pl.Series:
    """All hashed ids, distinct, in the shards and the state of a snapshot."""
    spec = snapshot.spec
    parts = [pl.Series("id", [], dtype=pl.Int64)]
    for shard in snapshot.shards:
        reader = ShardReader(root, shard, spec)
        for number in range(len(shard.blocks)):
            block = reader.block(number)
            parts += [part.drop_nulls().unique() for part in _hashed_columns(spec, block.timelines, block.requests)]
        parts = [pl.concat(parts).unique()]
    for entry in snapshot.state:
        rows = pl.read_ipc(check_file(root, entry))
        parts += [
            rows[name].rename("id").drop_nulls().unique() for name in rows.columns if rows[name].dtype == pl.Int64
        ]
    return pl.concat(parts).unique()


def _hashed_columns(spec: BuildSpec, timelines: pa.RecordBatch, requests: pa.RecordBatch) -> Iterator[pl.Series]:
    """The columns of a block that hold hashes of text."""
    events, targets = timelines["events"].flatten(), requests["targets"].flatten()
    tables = (
        (timelines, {"user_id": spec.requests.user_id.type == "string"}),
        (events, {"item_id": spec.history.item_id.type == "string", **_ids(spec.history.features)}),
        (requests, _ids(spec.requests.features)),
        (targets, {"item_id": spec.requests.item_id.type == "string", **_ids(spec.requests.target_features)}),
    )
    for table, hashed in tables:
        for name, wanted in hashed.items():
            if wanted:
                array = table.field(name) if isinstance(table, pa.StructArray) else table[name]
                yield pl.Series(pl.from_arrow(array)).rename("id")


def _ids(features: Any) -> dict[str, bool]:
    return {name: feature.type == "id" for name, feature in features.items()}
