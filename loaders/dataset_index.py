"""What iteration needs to know about a dataset, read once: numbers and paths, which are cheap to send to workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from longbatch.schemas.errors import SpecError
from longbatch.schemas.format.dataset import Dataset, check_history_length
from longbatch.schemas.format.physical_schema import Fields
from longbatch.schemas.format.shard_reader import Block, ShardReader
from longbatch.schemas.ragged import offsets_of
from longbatch.schemas.types import Int64Array

from .blocks import BlockView, Selection, TimeRange, open_block
from .history_length import HistoryLength, block_lengths, longest

MAX_OPEN_SHARDS = 64  # readers that a process keeps open: each has mapped files and decoded dictionaries

Shards = Callable[[int], ShardReader]
"""Returns the reader of a shard, given the number of the shard."""

_NO_ROWS: Int64Array = np.zeros(0, dtype=np.int64)
ArrowTypes = dict[str, dict[str, pa.DataType]]
"""Role (history, targets, labels, requests) -> name of a feature or label -> its Arrow type."""


@dataclass(frozen=True)
class DatasetIndex:
    """A dataset, the columns to read from it, and its B blocks.

    What the snapshot lists of the blocks is not copied: the arrays below are views of its columns, which worker
    processes share.

    Args:
        dataset: The opened snapshot.
        selection: The columns to read.
        empty: A block without rows, with the columns of all others.
        history_length: How many of its newest events a history keeps.
        times: Range of request times to read.
        rows_in_range: Requests of each block inside the time range, (B,); None if that is all requests.
    """

    dataset: Dataset
    selection: Selection
    empty: BlockView
    history_length: HistoryLength
    times: TimeRange
    rows_in_range: Int64Array | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent to a worker, without the sums that it can compute."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def num_blocks(self) -> int:
        """B, the number of blocks."""
        return self.dataset.shards.num_blocks

    @property
    def block_rows(self) -> Int64Array:
        """Requests of each block, (B,)."""
        return self.dataset.shards.block_values("requests")

    @property
    def block_events(self) -> Int64Array:
        """History events of each block at the built history length, (B,)."""
        return self.dataset.shards.block_values("history_events")

    @property
    def selected_rows(self) -> Int64Array:
        """Requests of each block inside the time range, (B,)."""
        return self.block_rows if self.rows_in_range is None else self.rows_in_range

    @cached_property
    def first_row(self) -> Int64Array:
        """Requests in all blocks before each block, and of all, (B + 1,)."""
        return offsets_of(self.block_rows)

    @property
    def lists_costs(self) -> bool:
        """Whether the snapshot lists the costs of the histories: all requests are read, at the built history length."""
        # A StochasticLength never equals the built length, so drawn lengths always take the slow path.
        reads_all = bool((self.selected_rows == self.block_rows).all())
        return reads_all and self.history_length == self.dataset.spec.history_length

    def view(self, shards: Shards, number: int, seed: int, epoch: int) -> BlockView:
        """Read one block.

        Args:
            shards: Readers of the shards.
            number: Number of the block in the dataset.
            seed: Seed of the drawn history lengths.
            epoch: Epoch of the drawn history lengths.

        Returns:
            Views of the block.

        Raises:
            DatasetError: The block is damaged; the message names file and block.
        """
        shard, block = self._locate(shards, number)
        rows = int(self.first_row[number + 1] - self.first_row[number])
        # Lengths of all rows, because `times` selects rows after decoding: row numbers in a block stay those on disk.
        lengths = block_lengths(self.history_length, seed, epoch, number, rows)
        stored, where = shard.block(block), shard.where("requests", block)
        return open_block(stored, self.selection, lengths, int(self.first_row[number]), self.times, where)

    def request_times(self, shards: Shards, number: int) -> Int64Array:
        """Read the request times (N,) of a block, in microseconds since 1970 UTC; no other column is decoded."""
        return self._request_columns(shards, number, "request_time")[0]

    def request_costs(self, shards: Shards, seed: int, epoch: int, number: int) -> Int64Array:
        """Compute the costs of a block's requests inside the time range: history events in this epoch, plus 1 each.

        Args:
            shards: Readers of the shards.
            seed: Seed of the drawn history lengths.
            epoch: Epoch of the drawn history lengths.
            number: Number of the block in the dataset.

        Returns:
            Costs, (selected requests of the block,).
        """
        times, ends = self._request_columns(shards, number, "request_time", "history_end")
        lengths = block_lengths(self.history_length, seed, epoch, number, len(times))
        # `history_end` counts all events before the request. Must equal the length of the slice that `open_block`
        # makes: otherwise batches exceed `max_tokens`.
        return 1 + np.minimum(ends, lengths)[self.times.contains(times)]

    def column_types(self) -> dict[str, dict[str, str]]:
        """Look up the types of the columns that are read: role -> name -> Arrow type, as `str(type)`."""
        roles, selection = arrow_types(self.dataset), self.selection
        names = {
            "history": selection.history,
            "targets": selection.targets,
            "labels": selection.labels,
            "requests": selection.requests,
        }
        return {role: {name: str(roles[role][name]) for name in names[role]} for role in roles}

    def split_time_us(self, shards: Shards, share: float) -> int:
        """Compute a time that splits the requests inside the time range.

        Args:
            shards: Readers of the shards.
            share: Share of the requests before the time, between 0 and 1.

        Returns:
            The time, in microseconds since 1970 UTC.

        Raises:
            ValueError: The share is not between 0 and 1.
            SpecError: The time range contains no requests.
        """
        if not 0 < share < 1:
            raise ValueError(f"share is {share}; give a number between 0 and 1")
        times = np.concatenate([_NO_ROWS, *(self.request_times(shards, block) for block in range(self.num_blocks))])
        times = times[self.times.contains(times)]
        if not len(times):
            path = self.dataset.location
            raise SpecError(f"{path} has no requests in the time range, so it cannot be split; widen the range")
        position = int(share * len(times))
        return int(np.partition(times, position)[position])  # selection, cheaper than sorting

    def _locate(self, shards: Shards, number: int) -> tuple[ShardReader, int]:
        """The reader of a block's shard, and the number of the block in it."""
        table = self.dataset.shards
        shard = table.shard_of(number)
        return shards(shard), number - int(table.block_offsets[shard])

    def _request_columns(self, shards: Shards, number: int, *names: str) -> list[Int64Array]:
        reader, block = self._locate(shards, number)
        batch = reader.request_columns(block, names)
        return [batch[name].cast(pa.int64()).to_numpy() for name in names]


def open_shards(dataset: Dataset, fields: Fields | None = None) -> Shards:
    """Open the shards of a dataset for this process.

    Args:
        dataset: The opened snapshot.
        fields: Fields of events and targets to decode; None to read only columns of requests.

    Returns:
        A function from the number of a shard to its reader. The most recently used readers stay open.
    """
    files = dataset.open_files()

    # All readers share `files`, so that a remote dataset has one cache and one set of connections per process.
    def shard(number: int) -> ShardReader:
        if fields is None:
            return dataset.shard(number, files=files)
        return dataset.shard(number, fields, files)

    # LRU: two threads may open the same shard at once, which costs time but returns equal readers.
    return lru_cache(maxsize=MAX_OPEN_SHARDS)(shard)


def open_index(
    dataset: Dataset,
    shards: Shards,
    columns: Sequence[str] | None,
    history_length: HistoryLength | None,
    times: TimeRange,
) -> DatasetIndex:
    """Check the arguments against a dataset and count its requests.

    Only blocks with request times inside and outside the time range are read, and of them only the request times.

    Args:
        dataset: The opened snapshot.
        shards: Readers of the shards.
        columns: Names of features and labels to read; None for all but strings.
        history_length: How many of its newest events a history keeps; None for the built length.
        times: Range of request times to read.

    Returns:
        The index.

    Raises:
        SpecError: The history length is longer than the built one, or a column contains strings.
        KeyError: A column does not exist.
    """
    check_history_length(dataset.spec, longest(history_length) if history_length is not None else None)
    selection = _select(dataset, columns)
    index = DatasetIndex(
        dataset=dataset,
        selection=selection,
        empty=_empty_block(dataset, selection),
        history_length=dataset.spec.history_length if history_length is None else history_length,
        times=times,
    )
    return index if times == TimeRange() else replace(index, rows_in_range=_rows_in_range(index, shards))


def _rows_in_range(index: DatasetIndex, shards: Shards) -> Int64Array:
    """Count the requests of each block inside the time range, (B,)."""
    # The plan needs exact counts before the first batch. The manifest's bounds decide for blocks entirely inside or
    # outside the range; only blocks across one of its ends are read.
    table, times = index.dataset.shards, index.times
    first, last = table.block_values("first_request_time"), table.block_values("last_request_time")
    is_inside = times.contains(first) & times.contains(last)
    counts = np.where(is_inside, index.block_rows, 0)
    for number in np.flatnonzero(times.overlaps(first, last) & ~is_inside).tolist():
        counts[number] = times.contains(index.request_times(shards, number)).sum()
    return counts


def _empty_block(dataset: Dataset, selection: Selection) -> BlockView:
    # From the schemas, not from a block: a rank needs a padding batch also if the dataset has no blocks.
    schemas = dataset.timelines_schema, dataset.requests_schema
    timelines, requests = (pa.RecordBatch.from_pylist([], schema=schema) for schema in schemas)
    return open_block(Block(timelines, requests), selection, _NO_ROWS, 0, TimeRange(), dataset.location)


def _select(dataset: Dataset, columns: Sequence[str] | None) -> Selection:
    roles = arrow_types(dataset)
    types = {name: arrow_type for role in roles.values() for name, arrow_type in role.items()}
    if columns is not None:
        if unknown := sorted(set(columns) - set(types)):
            raise KeyError(f"columns {unknown} are not in {dataset.location}, which has {sorted(types)}")
        if strings := sorted(name for name in columns if pa.types.is_string(types[name])):
            raise SpecError(
                f"columns {strings} of {dataset.location} contain strings, which tensors cannot store; "
                "declare them as `id` in the build spec"
            )
    # A name in several roles is chosen in all of them. The order is that of the spec, equal for all blocks.
    chosen = set(types) if columns is None else set(columns)

    def of_role(role: str) -> tuple[str, ...]:
        return tuple(name for name, t in roles[role].items() if name in chosen and not pa.types.is_string(t))

    return Selection(
        history=of_role("history"),
        targets=of_role("targets"),
        labels=of_role("labels"),
        requests=of_role("requests"),
        ids_are_row_numbers=pa.types.is_string(dataset.requests_schema.field("request_id").type),
    )


def arrow_types(dataset: Dataset) -> ArrowTypes:
    """Look up the Arrow types of all features and labels of a dataset."""
    requests, spec = dataset.requests_schema, dataset.spec
    events = _struct(dataset.timelines_schema, "events")
    targets = _struct(requests, "targets")
    return {
        "history": {name: events.field(name).type for name in spec.history.features},
        "targets": {name: targets.field(name).type for name in spec.requests.target_features},
        "labels": {name: targets.field(name).type for name in spec.requests.labels},
        "requests": {name: requests.field(name).type for name in spec.requests.features},
    }


def _struct(schema: pa.Schema, name: str) -> pa.StructType:
    """The type of the records in a column of lists of records."""
    lists = schema.field(name).type
    if not isinstance(lists, pa.ListType) or not isinstance(lists.value_type, pa.StructType):
        raise TypeError(f"column {name!r} has type {lists}, not lists of records")
    return lists.value_type
