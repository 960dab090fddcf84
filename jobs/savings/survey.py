"""The blocks of a dataset that are measured: how they are chosen, read, and concatenated in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import cast

import numpy as np
import pyarrow as pa

from longbatch.pipelines.expansion import HistorySlices, slice_histories
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.manifest import CountName
from longbatch.schemas.format.shard_reader import Block
from longbatch.schemas.ragged import list_offsets, owners_of
from longbatch.schemas.types import ArrowListArray, Int64Array

SURVEY_RECORDS = 12_000_000  # events and targets in memory at once: about 400 MB
BlockId = tuple[int, int]
"""Index of a shard, and of a block in it."""


@dataclass(frozen=True)
class Survey(HistorySlices):
    """Blocks of a dataset in memory, all of them or a random choice, concatenated into two tables.

    Attributes:
        timelines: T rows.
        requests: R rows, ordered by timeline; `timeline_row` counts over all timelines of these blocks.
        event_offsets: (T + 1,) int64. Offset of each timeline's first event.
        request_offsets: (T + 1,) int64. Offset of each timeline's first request.
        blocks: The sampled blocks.
        history_scale: History events of the dataset per history event of the sampled blocks.
        event_scale: Stored events of the dataset per stored event of the sampled blocks.
    """

    timelines: pa.Table
    requests: pa.Table
    event_offsets: Int64Array
    request_offsets: Int64Array
    blocks: list[BlockId]
    history_scale: float
    event_scale: float


def all_blocks(dataset: Dataset) -> list[BlockId]:
    """Return every block of a dataset, in order."""
    offsets = dataset.shards.block_offsets
    shard = owners_of(offsets)
    return list(zip(shard.tolist(), (np.arange(len(shard)) - offsets[shard]).tolist(), strict=True))


def block_values(dataset: Dataset, blocks: Sequence[BlockId], name: str) -> Int64Array:
    """Return a field of the manifest's `BlockEntry` for some blocks, (len(blocks),)."""
    shard, block = np.array(blocks, dtype=np.int64).reshape(-1, 2).T
    values: Int64Array = dataset.shards.block_values(name)[dataset.shards.block_offsets[shard] + block]
    return values


def block_total(dataset: Dataset, blocks: Sequence[BlockId], name: CountName) -> int:
    """Return a count of the manifest, summed over some blocks."""
    return int(block_values(dataset, blocks, name).sum())


def read_blocks(dataset: Dataset, blocks: Sequence[BlockId]) -> Iterator[Block]:
    """Read blocks as any reader of the dataset does, including the check of every offset.

    Args:
        dataset: The dataset to read.
        blocks: The blocks to read. Blocks of one shard should be adjacent: each change of shard opens its files.

    Yields:
        The blocks, in the given order.
    """
    for shard, group in groupby(blocks, key=itemgetter(0)):
        reader = dataset.shard(shard)
        yield from (reader.block(block) for _, block in group)


def choose_blocks(dataset: Dataset, rng: np.random.Generator) -> list[BlockId]:
    """Choose the sampled blocks: all of them, or at random about SURVEY_RECORDS events and targets.

    Args:
        dataset: The dataset to measure.
        rng: Source of the random choice.

    Returns:
        The chosen blocks, sorted.
    """
    blocks = all_blocks(dataset)
    order = rng.permutation(len(blocks))
    records = (dataset.shards.block_values("events") + dataset.shards.block_values("targets"))[order]
    chosen = np.cumsum(records) - records < SURVEY_RECORDS
    return sorted(blocks[k] for k in order[chosen])


def survey(dataset: Dataset, rng: np.random.Generator) -> Survey:
    """Read the sampled blocks and concatenate them.

    Args:
        dataset: The dataset to measure.
        rng: Source of the random choice of blocks.

    Returns:
        The sampled blocks in memory.
    """
    chosen = choose_blocks(dataset, rng)
    block = _concatenate(list(read_blocks(dataset, chosen)))
    counts = dataset.counts
    share = block_total(dataset, chosen, "targets") / counts.targets
    history_events = block_total(dataset, chosen, "history_events")
    stored_events = block_total(dataset, chosen, "events")
    rows = np.arange(block.timelines.num_rows + 1)
    return Survey(
        **vars(slice_histories(block, dataset.spec.history_length)),
        timelines=pa.Table.from_batches([block.timelines]),
        requests=pa.Table.from_batches([block.requests]),
        event_offsets=list_offsets(cast("ArrowListArray", block.timelines["events"])),
        request_offsets=np.searchsorted(block.requests["timeline_row"].to_numpy(), rows),
        blocks=chosen,
        history_scale=counts.history_events / history_events if history_events else 1 / share,
        event_scale=counts.stored_with_overlap / stored_events if stored_events else 1 / share,
    )


def _concatenate(blocks: Sequence[Block]) -> Block:
    """Concatenate several blocks; `timeline_row` is renumbered.

    Blocks with 2 and 3 timelines, whose requests have timeline_row [0, 1, 1] and [0, 2]:
    the first row of each block is [0, 2],
    so the concatenated requests have timeline_row [0, 1, 1, 2, 4].
    """
    timelines = _concatenate_batches([block.timelines for block in blocks])
    requests = _concatenate_batches([block.requests for block in blocks])
    first_row = np.cumsum([0, *(block.timelines.num_rows for block in blocks[:-1])])
    row = requests["timeline_row"].to_numpy() + np.repeat(first_row, [block.requests.num_rows for block in blocks])
    index = requests.schema.get_field_index("timeline_row")
    return Block(timelines, requests.set_column(index, requests.schema.field(index), pa.array(row.astype(np.int32))))


def _concatenate_batches(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    (batch,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return batch
