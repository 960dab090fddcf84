"""Checks of what a snapshot lists: its files, their checksums and rows, the bytes of each block, totals and counts."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from longbatch.schemas.errors import DataError, DatasetError
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.disk import check_sha256, read_file
from longbatch.schemas.format.manifest import BLOCK_TABLES, COUNT_NAMES, SHARD_TABLES, BlockTable, FileEntry, ShardEntry
from longbatch.schemas.format.shards_table import ShardsTable
from longbatch.schemas.source_schema import role_schema
from longbatch.schemas.spec.build_spec import Role
from longbatch.schemas.time import from_microseconds
from longbatch.schemas.types import ProgressCallback

from .blocks import block_label
from .structure import StructureState


def file_findings(dataset: Dataset, progress: ProgressCallback) -> Iterator[str]:
    """Check the size, checksum and rows of every listed file, and the bytes of every block.

    Args:
        dataset: The dataset.
        progress: Called with bytes.

    Yields:
        Findings.
    """
    snapshot = dataset.snapshot
    small_files = (*snapshot.vocabulary, *snapshot.quarantine, *snapshot.samples)
    shard_bytes = sum(dataset.shards.file_bytes(table) for table in SHARD_TABLES)
    total, done = shard_bytes + sum(entry.size_bytes for entry in small_files), 0
    for entry, find_in_bytes in chain(_shard_files(dataset), ((entry, _no_findings) for entry in small_files)):
        progress("checksums", done, total)
        done += entry.size_bytes
        try:
            data = read_file(dataset.store, entry, checksum=False)
            yield from find_in_bytes(data)
            name = dataset.store.name(entry.path)
            check_sha256(data, entry, name)
            if entry.rows is not None and (rows := _row_count(entry.path, data)) != entry.rows:
                yield f"{name} contains {rows:,} rows, but the snapshot lists {entry.rows:,}"
        except DatasetError as error:
            yield str(error)
    progress("checksums", total, total)


def _shard_files(dataset: Dataset) -> Iterator[tuple[FileEntry, Callable[[pa.Buffer], Iterator[str]]]]:
    """The files of all shards, each with the check of its bytes."""
    for shard, entry in enumerate(dataset.shards):
        for table in BLOCK_TABLES:
            yield entry.file(table), partial(_byte_findings, shard, entry, table)
        if entry.dictionaries is not None:
            yield entry.dictionaries, _no_findings


def _no_findings(data: pa.Buffer) -> Iterator[str]:
    return iter(())


def _row_count(path: str, data: pa.Buffer) -> int:
    if path.endswith(".parquet"):
        return pq.read_metadata(pa.BufferReader(data)).num_rows
    reader = pa.ipc.open_file(data)
    return sum(reader.get_batch(number).num_rows for number in range(reader.num_record_batches))


def _byte_findings(shard: int, entry: ShardEntry, table: BlockTable, data: pa.Buffer) -> Iterator[str]:
    """Check that blocks follow each other from byte 0, and that the bytes of each have its checksum."""
    end, view = 0, memoryview(data)
    for index, block in enumerate(entry.blocks):
        label = block_label(shard, entry, index, table)
        listed = block.byte_range(table)
        offset, size = listed.offset, listed.size_bytes
        if offset != end:
            yield f"{label}: starts at byte {offset:,}, but the bytes before it end at {end:,}"
        checksum = zlib.crc32(view[max(0, offset) : max(0, offset + size)])
        if checksum != listed.crc32:
            yield f"{label}: was altered: its crc32 is {checksum:08x}, but the snapshot lists {listed.crc32:08x}"
        end = offset + size


def shard_findings(shards: ShardsTable) -> Iterator[str]:
    """Compare the totals and times that the snapshot lists of each shard with those that it lists of the blocks.

    Args:
        shards: The shards.

    Yields:
        Findings.
    """
    if not len(shards):
        return
    starts = shards.block_offsets[:-1]
    for name in COUNT_NAMES:
        sums, listed = np.add.reduceat(shards.block_values(name), starts), shards.values(f"total_{name}")
        for shard in np.flatnonzero(sums != listed).tolist():
            yield f"shard {shard}: its blocks contain {sums[shard]:,} {name}, but the snapshot lists {listed[shard]:,}"
    for key, extreme in (("first_request_time", np.minimum), ("last_request_time", np.maximum)):
        times, listed = extreme.reduceat(shards.block_values(key), starts), shards.values(key)
        for shard in np.flatnonzero(times != listed).tolist():
            time, listed_time = from_microseconds(int(times[shard])), from_microseconds(int(listed[shard]))
            yield f"shard {shard}, all blocks: {key} is {time}, but the snapshot lists {listed_time}"


def total_findings(dataset: Dataset, state: StructureState) -> Iterator[str]:
    """Compare the sums over all blocks with the snapshot's counts, and check its accounting identities.

    Args:
        dataset: The dataset.
        state: The state of the structure checks after the last block.

    Yields:
        Findings.
    """
    counts = dataset.counts
    totals: dict[str, int] = {name: total for name, total in state.totals.items() if name != "events"}
    totals |= {"users": len(state.users().user_id), "stored_with_overlap": state.totals["events"]}
    for name, total in totals.items():
        listed = getattr(counts, name)
        if total != listed:
            yield f"all shards together contain {total:,} {name}, but the snapshot lists {listed:,}"
    for source, accounting in dataset.snapshot.row_accounting.items():
        yield from _failed(partial(accounting.check, source))
    yield from _failed(partial(counts.check, _accepted_rows(dataset, "history"), _accepted_rows(dataset, "requests")))


def _accepted_rows(dataset: Dataset, role: Role) -> int | None:
    """Return the accepted rows of a role's source, or None if the source has other roles too."""
    schema = role_schema(dataset.spec, role)
    return dataset.snapshot.row_accounting[schema.source].accepted if schema.roles == (role,) else None


def _failed(check: Callable[[], None]) -> Iterator[str]:
    try:
        check()
    except DataError as error:
        yield f"the row accounting of the snapshot is inconsistent: {error}"
