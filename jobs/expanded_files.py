"""The files of an expansion: which blocks go into which, how one is written, and what is in it when read back.

Histories are copied a row group at a time, so memory is bounded by row groups, not by blocks, requests or histories. A
file holds neighbouring blocks, and is made by one thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from longbatch.jobs.engines.worker_pool import WorkerPool
from longbatch.jobs.savings.layouts import read_blocks
from longbatch.jobs.savings.parquet_settings import ParquetSettings, choose_settings, parquet_options
from longbatch.pipelines.content_hash import Samples, samples_of_block, samples_of_rows
from longbatch.pipelines.expansion import Cuts, cut_requests, sample_level, sample_schema
from longbatch.schemas.errors import DatasetError, SpecError
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.tables import event_type

GROUP_BYTES = 64_000_000  # decoded, of a row group
PART_BYTES = 4_000_000_000  # decoded, of a file; on disk a tenth of it or less
HASHED_EVENTS = 1 << 18  # hashed at once
CODEC = "zstd"
LENGTH_KEY = b"longbatch.history_length"
FINGERPRINT_KEY = b"longbatch.fingerprint"
PART_NAME = re.compile(r"part-\d{5,}\.parquet$")
Blocks = list[tuple[int, int]]


def plan_parts(dataset: Dataset, history_length: int) -> list[Blocks]:
    """Neighbouring blocks, as (shard, block), for each file: about PART_BYTES decoded, and always at least one block.

    What a block expands to is estimated: all its requests have equally many targets, and a value has 8 bytes.
    """
    blocks = [(shard, block) for shard, row in enumerate(dataset.shards) for block in range(len(row["blocks"]))]
    listed = [dataset.shards[shard]["blocks"][block] for shard, block in blocks]
    targets, requests, events = (
        np.array([block[name] for block in listed], dtype=np.float64)
        for name in ("targets", "requests", "history_events")
    )
    lists = event_type(dataset.spec).num_fields
    flat = len(sample_schema(dataset.spec)) - lists
    history = np.minimum(history_length, events / np.maximum(1, requests))
    return [blocks[run] for run in _runs(8 * targets * (flat + lists * history), PART_BYTES)]


def is_part(path: Path) -> bool:
    """Whether a file is one that `write_part` wrote: by its name, and by what its schema says it was made of."""
    if not PART_NAME.match(path.name):
        return False
    try:
        return FINGERPRINT_KEY in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False


def _runs(sizes: npt.NDArray[np.float64], budget: int) -> Iterator[slice]:
    """Cut neighbours, (N,) sizes, into runs that are over the budget by less than one of them."""
    begins = np.cumsum(sizes) - sizes
    cuts = (np.flatnonzero(np.diff(begins // budget)) + 1).tolist()
    return (slice(first, last) for first, last in pairwise([0, *cuts, len(sizes)]))


def row_groups(dataset: Dataset, blocks: Blocks, history_length: int) -> Iterator[pa.Table]:
    """Sample-level rows of some blocks, in tables of about GROUP_BYTES, whatever the sizes of blocks and requests."""
    waiting, size = [], 0
    for block in read_blocks(dataset, blocks):
        for table in _expand_block(cut_requests(block, history_length)):
            waiting.append(table)
            size += table.nbytes
            if size >= GROUP_BYTES:
                yield pa.concat_tables(waiting)
                waiting, size = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def _expand_block(cuts: Cuts) -> Iterator[pa.Table]:
    """Sample-level rows of a block, in tables that are parts of a row group."""
    owners = np.repeat(np.arange(cuts.own.num_rows), cuts.target_counts)
    for run in _runs(cuts.copy_bytes[owners] + cuts.target_bytes, GROUP_BYTES // 4):
        yield sample_level(cuts, owners[run], np.arange(run.start, run.stop))


def settings_for(dataset: Dataset, length: int) -> ParquetSettings:
    """Parquet settings that suit a row group from the middle of the dataset."""
    blocks = [block for part in plan_parts(dataset, length) for block in part]
    table = next(row_groups(dataset, blocks[len(blocks) // 2 :], length), None)
    return ParquetSettings() if table is None else choose_settings([table], CODEC)


def write_part(
    dataset: Dataset, length: int, settings: ParquetSettings, pool: WorkerPool, path: Path, blocks: Blocks
) -> tuple[int, int, int]:
    """Write one file and sync it to disk; return its rows, the events in them, its bytes."""
    rows = events = 0
    schema = _schema(dataset, length)
    with path.open("xb") as file:
        with pq.ParquetWriter(file, schema, **parquet_options(schema, CODEC, settings)) as writer:
            for table in row_groups(dataset, blocks, length):
                writer.write_table(table, row_group_size=table.num_rows)
                rows += table.num_rows
                events += pc.sum(pc.list_value_length(table["history_item_id"])).as_py()
                pool.tell("expand", table.num_rows, dataset.counts.targets)
        file.flush()
        os.fsync(file.fileno())
    return rows, events, path.stat().st_size


def samples_of_part(dataset: Dataset, length: int, pool: WorkerPool, blocks: Blocks) -> Samples:
    """What some blocks expand to, without expanding them."""
    samples = Samples()
    for block in read_blocks(dataset, blocks):
        part = samples_of_block(block, length)
        pool.tell("hash dataset", part.rows, dataset.counts.targets)
        samples += part
    return samples


def samples_of_file(dataset: Dataset, length: int, pool: WorkerPool, path: Path) -> Samples:
    """What is in a file. Raises DatasetError naming the file if it is not one of an expansion of such a dataset."""
    schema, samples = _schema(dataset, length), Samples()
    try:
        with pq.ParquetFile(path) as file:
            _check_made_of(path, file.schema_arrow, schema)
            for batch in _batches(file):
                samples += samples_of_rows(batch.cast(schema), dataset.spec)
                pool.tell("hash files", batch.num_rows, dataset.counts.targets)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}; expand the dataset again") from None
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read: {error}; expand the dataset again") from None
    return samples


def _check_made_of(path: Path, found: pa.Schema, wanted: pa.Schema) -> None:
    """Raise SpecError if the file was made at another history length, DatasetError if its columns are others."""
    length, asked = ((schema.metadata or {}).get(LENGTH_KEY) for schema in (found, wanted))
    if length not in (None, asked):
        raise SpecError(
            f"{path} was expanded at history length {length.decode()}; pass --history-length {length.decode()}"
        )
    if found.names != wanted.names:
        raise DatasetError(f"its columns are {found.names}, those of the dataset's expansion {wanted.names}")
    flat = [field.name for field in found if _is_list(wanted.field(field.name).type) and not _is_list(field.type)]
    if flat:
        raise DatasetError(f"its columns {flat} are no lists")


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _batches(file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Rows of a file, in batches of about HASHED_EVENTS events."""
    paths = [file.metadata.schema.column(place).path for place in range(file.metadata.num_columns)]
    history = next(place for place, path in enumerate(paths) if path.startswith("history_item_id."))
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        rows = max(1, HASHED_EVENTS * group.num_rows // max(1, group.column(history).num_values))
        for batch in file.iter_batches(rows, row_groups=[number], use_threads=False):
            lengths = pc.list_value_length(batch["history_item_id"]).fill_null(0).to_numpy()
            yield from (batch[run] for run in _runs(lengths, HASHED_EVENTS))


def _schema(dataset: Dataset, length: int) -> pa.Schema:
    """Columns of the files, which also know what they were made of."""
    made_of = {FINGERPRINT_KEY: dataset.fingerprint, LENGTH_KEY: str(length)}
    return sample_schema(dataset.spec).with_metadata(made_of)
