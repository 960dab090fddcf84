"""Checks of what a snapshot lists: its files, their checksums and rows, the bytes of each block, totals and counts."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from longbatch.schemas.errors import DataError, DatasetError
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.disk import check_file
from longbatch.schemas.format.manifest import BLOCK_TABLES, BlockTable
from longbatch.schemas.source_schema import role_schema
from longbatch.schemas.spec.build_spec import Role
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
    tables = [(shard, table) for shard in range(len(dataset.shards)) for table in BLOCK_TABLES]
    dictionaries = [shard.dictionaries for shard in dataset.shards if shard.dictionaries]
    others = (*dictionaries, *dataset.snapshot.vocabulary, *dataset.snapshot.quarantine, *dataset.snapshot.samples)
    entries = [*(dataset.shards[shard].file(table) for shard, table in tables), *others]
    total, done = sum(entry.size_bytes for entry in entries), 0
    for index, entry in enumerate(entries):
        progress("checksums", done, total)
        done += entry.size_bytes
        try:
            path = check_file(dataset.path, entry)
            if index < len(tables):
                yield from _byte_findings(dataset, path, *tables[index])
            check_file(dataset.path, entry, checksum=True)
            if entry.rows is not None and (rows := _row_count(path)) != entry.rows:
                yield f"{path} contains {rows:,} rows, but the snapshot lists {entry.rows:,}"
        except DatasetError as error:
            yield str(error)
    progress("checksums", total, total)


def _row_count(path: Path) -> int:
    if path.suffix == ".parquet":
        return pq.read_metadata(path).num_rows
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return sum(reader.get_batch(number).num_rows for number in range(reader.num_record_batches))


def _byte_findings(dataset: Dataset, path: Path, shard: int, table: BlockTable) -> Iterator[str]:
    """Check that blocks follow each other from byte 0, and that the bytes of each have its checksum."""
    end = 0
    with path.open("rb") as file:
        for index, block in enumerate(dataset.shards[shard].blocks):
            label = block_label(dataset, shard, index, table)
            listed = block.byte_range(table)
            offset, size = listed.offset, listed.size_bytes
            if offset != end:
                yield f"{label}: starts at byte {offset:,}, but the bytes before it end at {end:,}"
            file.seek(offset)
            checksum = zlib.crc32(file.read(size))
            if checksum != listed.crc32:
                yield f"{label}: was altered: its crc32 is {checksum:08x}, but the snapshot lists {listed.crc32:08x}"
            end = offset + size


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
