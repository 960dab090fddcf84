"""The files of an expansion: which blocks go into which file, how files are written, and how they are read back.

Histories are copied one row group at a time, so row groups bound the memory, not blocks, requests or histories. Each
file holds consecutive blocks and is written by one thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longbatch.jobs.engines.worker_pool import WorkerPool
from longbatch.jobs.savings.parquet_settings import ParquetSettings, choose_settings, parquet_options
from longbatch.jobs.savings.survey import BlockId, all_blocks, read_blocks
from longbatch.pipelines.content_hash import SampleDigest, digest_block, digest_rows
from longbatch.pipelines.expansion import HistorySlices, sample_level, sample_schema, slice_histories
from longbatch.schemas.errors import DatasetError, SpecError
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.ragged import owners_of
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.storage.store import Store
from longbatch.schemas.tables import event_type

GROUP_BYTES = 64_000_000  # of a row group, in memory
PART_BYTES = 4_000_000_000  # of a file, in memory; on disk a tenth of it or less
HASHED_EVENTS = 1 << 18  # history events hashed at once
CODEC = "zstd"
LENGTH_KEY = b"longbatch.history_length"
FINGERPRINT_KEY = b"longbatch.fingerprint"
PART_NAME = re.compile(r"part-\d{5,}\.parquet$")
Blocks = list[BlockId]


@dataclass(frozen=True)
class Expander:
    """What every task of an expansion needs.

    Attributes:
        dataset: The dataset to expand.
        history_length: Newest events of each history.
        pool: The threads that run the tasks; they report their progress to it.
    """

    dataset: Dataset
    history_length: int
    pool: WorkerPool

    @property
    def schema(self) -> pa.Schema:
        """Columns of the files; the metadata names the dataset and the history length."""
        origin: dict[bytes | str, bytes | str] = {
            FINGERPRINT_KEY: self.dataset.fingerprint,
            LENGTH_KEY: str(self.history_length),
        }
        return sample_schema(self.dataset.spec).with_metadata(origin)


def plan_parts(dataset: Dataset, history_length: int) -> list[Blocks]:
    """Split the blocks into one run of consecutive blocks for each file.

    The size of an expanded block is estimated: all its requests have equally many targets, and each value takes 8
    bytes.

    Args:
        dataset: The dataset to expand.
        history_length: Newest events of each history.

    Returns:
        For each file its blocks: about PART_BYTES in memory, at least one block.
    """
    blocks = all_blocks(dataset)
    targets, requests, events = (
        dataset.shards.block_values(name).astype(np.float64) for name in ("targets", "requests", "history_events")
    )
    list_columns = event_type(dataset.spec).num_fields
    flat_columns = len(sample_schema(dataset.spec)) - list_columns
    mean_history = np.minimum(history_length, events / np.maximum(1, requests))
    sizes = 8 * targets * (flat_columns + list_columns * mean_history)
    return [blocks[run] for run in _runs(sizes, PART_BYTES)]


def is_part(store: Store, name: str) -> bool:
    """Whether `write_part` wrote a file, judged by its name and the metadata of its schema."""
    if not PART_NAME.match(name):
        return False
    try:
        with store.open_input(name) as file:
            return FINGERPRINT_KEY in (pq.read_schema(file).metadata or {})
    except (pa.ArrowException, OSError):
        return False


def _runs(sizes: npt.NDArray[np.float64], budget: int) -> Iterator[slice]:
    """Split consecutive items, (N,) sizes, into runs that exceed the budget by less than one item.

    sizes [3, 3, 5, 1], budget 5: the items begin at 0, 3, 6 and 11.
    Divided by the budget that is 0, 0, 1, 2; a run ends where the number changes.
    Result: slice(0, 2), slice(2, 3), slice(3, 4).
    """
    begins = np.cumsum(sizes) - sizes
    ends = (np.flatnonzero(np.diff(begins // budget)) + 1).tolist()
    return (slice(first, last) for first, last in pairwise([0, *ends, len(sizes)]))


def row_groups(dataset: Dataset, blocks: Blocks, history_length: int) -> Iterator[pa.Table]:
    """Yield the sample-level rows of some blocks, in tables of about GROUP_BYTES whatever the size of a block.

    Args:
        dataset: The dataset to expand.
        blocks: The blocks to expand.
        history_length: Newest events of each history.
    """
    waiting: list[pa.Table] = []
    size = 0
    for block in read_blocks(dataset, blocks):
        for table in _expand_block(slice_histories(block, history_length)):
            waiting.append(table)
            size += table.nbytes
            if size >= GROUP_BYTES:
                yield pa.concat_tables(waiting)
                waiting, size = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def _expand_block(requests: HistorySlices) -> Iterator[pa.Table]:
    """Sample-level rows of a block, in tables of about a quarter of a row group."""
    owners = owners_of(requests.target_offsets)
    for run in _runs(requests.copy_bytes[owners] + requests.target_bytes, GROUP_BYTES // 4):
        yield sample_level(requests, owners[run], np.arange(run.start, run.stop))


def settings_for(expander: Expander, parts: list[Blocks]) -> ParquetSettings:
    """Choose the Parquet settings by a row group from the middle of the dataset.

    Args:
        expander: The dataset and history length.
        parts: The blocks of each file, as `plan_parts` returns them.
    """
    blocks = [block for part in parts for block in part]
    groups = row_groups(expander.dataset, blocks[len(blocks) // 2 :], expander.history_length)
    table = next(groups, None)
    return ParquetSettings() if table is None else choose_settings([table], CODEC)


def write_part(
    expander: Expander, settings: ParquetSettings, store: Store, name: str, blocks: Blocks
) -> tuple[int, int, int]:
    """Write one file and sync it to disk, or upload it.

    Args:
        expander: The dataset and history length.
        settings: How the Parquet file is written.
        store: Where to write it.
        name: The file to create.
        blocks: The blocks to expand.

    Returns:
        Rows, history events in all rows together, bytes of the file.
    """
    rows = events = 0
    schema, dataset = expander.schema, expander.dataset
    options = parquet_options(schema, CODEC, settings)
    with _new_file(store, name) as file, pq.ParquetWriter(file, schema, **options) as writer:
        for table in row_groups(dataset, blocks, expander.history_length):
            writer.write_table(table, row_group_size=table.num_rows)
            rows += table.num_rows
            events += pc.sum(pc.list_value_length(table["history_item_id"])).as_py()
            expander.pool.advance("expand", table.num_rows, dataset.counts.targets)
    return rows, events, store.size(name)


@contextmanager
def _new_file(store: Store, name: str) -> Iterator[IO[bytes]]:
    """A file that is synced to the disk at the end; for an object store, a temporary one that is uploaded."""
    if not isinstance(store, LocalStore):
        with store.open_replacement(name) as file:
            yield file
        return
    with store.path(name).open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def samples_of_part(expander: Expander, blocks: Blocks) -> SampleDigest:
    """Hash what some blocks expand to, without expanding them."""
    samples = SampleDigest()
    for block in read_blocks(expander.dataset, blocks):
        part = digest_block(block, expander.history_length)
        expander.pool.advance("hash dataset", part.rows, expander.dataset.counts.targets)
        samples += part
    return samples


def samples_of_file(expander: Expander, store: Store, name: str) -> SampleDigest:
    """Hash what a file contains.

    Args:
        expander: The dataset and the history length it was expanded at.
        store: Where the file is.
        name: A Parquet file.

    Raises:
        DatasetError: The file is not part of an expansion of such a dataset.
        SpecError: The file was written at another history length.
    """
    schema, dataset, samples = expander.schema, expander.dataset, SampleDigest()
    path = store.name(name)
    try:
        with store.open_input(name) as source, pq.ParquetFile(source) as file:
            _check_origin(path, file.schema_arrow, schema)
            for batch in _batches(file):
                samples += digest_rows(batch.cast(schema), dataset.spec)
                expander.pool.advance("hash files", batch.num_rows, dataset.counts.targets)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}. Expand the dataset again.") from None
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read: {error}. Expand the dataset again.") from None
    return samples


def _check_origin(path: str, actual: pa.Schema, expected: pa.Schema) -> None:
    """Raise SpecError if the file has another history length, DatasetError if it has other columns."""
    length, expected_length = ((schema.metadata or {}).get(LENGTH_KEY) for schema in (actual, expected))
    if length not in (None, expected_length):
        raise SpecError(
            f"{path} was expanded at history length {length.decode()}. Pass --history-length {length.decode()}."
        )
    if actual.names != expected.names:
        raise DatasetError(f"the columns are {actual.names}, expected {expected.names}")
    flat = [field.name for field in actual if _is_list(expected.field(field.name).type) and not _is_list(field.type)]
    if flat:
        raise DatasetError(f"the columns {flat} are not lists")


def _is_list(arrow_type: pa.DataType) -> bool:
    return bool(pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type))


def _batches(file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Rows of a file, in batches of about HASHED_EVENTS history events."""
    paths = [file.metadata.schema.column(index).path for index in range(file.metadata.num_columns)]
    history_column = next(index for index, path in enumerate(paths) if path.startswith("history_item_id."))
    for number in range(file.metadata.num_row_groups):
        # The metadata gives the mean history of the row group, which sizes the reads; single rows may be far longer,
        # so each batch that was read is split again by its actual lengths.
        group = file.metadata.row_group(number)
        rows = max(1, HASHED_EVENTS * group.num_rows // max(1, group.column(history_column).num_values))
        for batch in file.iter_batches(rows, row_groups=[number], use_threads=False):
            lengths = pc.list_value_length(batch["history_item_id"]).fill_null(0).to_numpy()
            yield from (batch[run] for run in _runs(lengths.astype(np.float64), HASHED_EVENTS))
