"""What iteration needs to know of a dataset, read once: numbers and paths only, so that it travels to workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from longbatch.schemas.errors import SpecError
from longbatch.schemas.format.dataset import Dataset, check_history_length
from longbatch.schemas.format.manifest import BlockEntry
from longbatch.schemas.format.shard_reader import Block, ShardReader
from longbatch.schemas.time import to_microseconds

from .blocks import OpenBlock, Selection, open_block, within
from .history_length import StochasticLength, lengths_of, longest
from .plan import Costs, Order, Plan, make_plan, token_quota
from .rng import Ints

Roles = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Opened:
    """A dataset, what is read of it, and where its blocks lie.

    empty: a block without rows, of the columns that are read.
    block_shard, block_in_shard, block_rows, block_events: (B,) where each block lies, its requests and their history events
    at the built length.  first_row: (B,) the requests before it.  counts: (B,) its requests inside the time range.
    """

    dataset: Dataset
    selection: Selection
    empty: OpenBlock
    history_length: int | StochasticLength
    times_us: tuple[int | None, int | None]
    block_shard: Ints
    block_in_shard: Ints
    block_rows: Ints
    block_events: Ints
    first_row: Ints
    counts: Ints

    @property
    def costs_are_listed(self) -> bool:
        """Whether the snapshot lists what a block's histories cost: all of it is read, at the built length."""
        whole = bool((self.counts == self.block_rows).all())
        return whole and self.history_length == self.dataset.spec.history_length


Shards = Callable[[int], ShardReader]


def open_all(
    dataset: Dataset,
    shards: Shards,
    columns: Sequence[str] | None,
    history_length: int | StochasticLength | None,
    times_us: tuple[int | None, int | None],
) -> Opened:
    """Check the arguments against a dataset and count its requests; only blocks across an end of the time range are read."""
    check_history_length(dataset.spec, longest(history_length) if history_length is not None else None)
    blocks = [(s, b, entry) for s, shard in enumerate(dataset.shards) for b, entry in enumerate(shard.blocks)]
    rows = _ints([entry.requests for _, _, entry in blocks])
    selection = _select(dataset, columns)
    opened = Opened(
        dataset=dataset,
        selection=selection,
        empty=_empty(dataset, selection),
        history_length=dataset.spec.history_length if history_length is None else history_length,
        times_us=times_us,
        block_shard=_ints([shard for shard, _, _ in blocks]),
        block_in_shard=_ints([block for _, block, _ in blocks]),
        block_rows=rows,
        block_events=_ints([entry.history_events for _, _, entry in blocks]),
        first_row=np.cumsum(rows) - rows,
        counts=rows,
    )
    counts = _counts(opened, shards, [entry for _, _, entry in blocks])
    return Opened(**{**vars(opened), "counts": counts})


def _counts(opened: Opened, shards: Shards, entries: Sequence[BlockEntry]) -> Ints:
    """Requests of each block inside the time range."""
    counts = opened.block_rows.copy()
    for number, entry in enumerate(entries):
        ends = _ints([to_microseconds(entry.first_request_time), to_microseconds(entry.last_request_time)])
        inside = within(ends, opened.times_us)
        if not inside.all():
            counts[number] = int(within(request_times(opened, shards, number), opened.times_us).sum())
    return counts


def request_times(opened: Opened, shards: Shards, number: int) -> Ints:
    """Request times (N,) of a block, in microseconds; no other column is decoded."""
    return _column(opened, shards, number, "request_time")[0]


def costs(opened: Opened, shards: Shards, seed: int, epoch: int, number: int) -> Ints:
    """What each request of a block inside the time range costs: its history events in this epoch, and 1 for itself."""
    times, ends = _column(opened, shards, number, "request_time", "history_end")
    lengths = lengths_of(opened.history_length, seed, epoch, number, len(times))
    return 1 + np.minimum(ends, lengths)[within(times, opened.times_us)]


def _column(opened: Opened, shards: Shards, number: int, *names: str) -> list[Ints]:
    reader = shards(int(opened.block_shard[number]))
    batch = reader.request_columns(int(opened.block_in_shard[number]), names)
    columns = [batch[name] for name in names]
    return [(c.view(pa.int64()) if pa.types.is_timestamp(c.type) else c.cast(pa.int64())).to_numpy() for c in columns]


@dataclass(frozen=True)
class Timetable:
    """All requests inside the time range by time. rows: (N,) places among them in the order of the dataset; starts: (B + 1,)
    the place of each block's first."""

    rows: Ints
    starts: Ints

    def find(self, positions: Ints) -> tuple[Ints, Ints]:
        """Block numbers and rows within the block of these positions in the order by time."""
        places = self.rows[positions]
        blocks = np.searchsorted(self.starts, places, side="right") - 1
        return blocks, places - self.starts[blocks]


def timetable(opened: Opened, shards: Shards) -> Timetable:
    """Sort all requests by time; ties stay in the order of the dataset. Holds 16 bytes per request while it sorts."""
    times = [request_times(opened, shards, number) for number in range(len(opened.block_rows))]
    inside = [part[within(part, opened.times_us)] for part in times]
    rows = np.argsort(np.concatenate([np.zeros(0, dtype=np.int64), *inside]), kind="stable")
    return Timetable(rows, np.append(0, np.cumsum(opened.counts)))


@dataclass(frozen=True)
class Batching:
    """How requests are cut into batches, and in which order; what a state is checked against."""

    order: Order
    batch_size: int | None
    max_tokens: int | None
    drop_last: bool
    streams: int
    window_blocks: int
    shuffle_run: int


@dataclass(frozen=True)
class Schedule:
    """An epoch's plan, what its requests cost (None: 1 each), and their order by time where that is asked for."""

    plan: Plan
    costs: Costs | None
    timetable: Timetable | None


def schedule(opened: Opened, shards: Shards, batching: Batching, seed: int, epoch: int) -> Schedule:
    """Plan an epoch. By number of requests nothing is read; by tokens the snapshot's numbers are enough at the built length.

    At another length, or in a time range, one column of each block is read to add up costs; by time another to sort.
    """
    by_time = timetable(opened, shards) if batching.order == "time" else None
    of_block, quota, totals = None, batching.batch_size or 0, None
    if batching.max_tokens is not None:
        of_block = partial(costs, opened, shards, seed, epoch)
        quota = token_quota(batching.max_tokens, longest(opened.history_length))
        totals = None if by_time else _totals(opened, of_block)
    if by_time is not None:
        return _by_time(opened, by_time, of_block, quota, seed, epoch, batching.drop_last)
    plan = make_plan(
        opened.counts,
        quota=quota,
        block_costs=totals,
        shuffle=batching.order == "shuffled",
        seed=seed,
        epoch=epoch,
        drop_last=batching.drop_last,
        streams=batching.streams,
        window_blocks=batching.window_blocks,
        shuffle_run=batching.shuffle_run,
    )
    return Schedule(plan, of_block, None)


def _totals(opened: Opened, of_block: Costs) -> Ints:
    if opened.costs_are_listed:
        return opened.block_events + opened.block_rows
    return _ints([int(of_block(number).sum()) for number in range(len(opened.block_rows))])


def _by_time(
    opened: Opened, by_time: Timetable, of_block: Costs | None, quota: int, seed: int, epoch: int, drop_last: bool
) -> Schedule:
    """All requests are one block, in the order of their times."""
    count = _ints([len(by_time.rows)])
    total, in_order = count, None
    if of_block is not None:
        each = [of_block(number) for number in range(len(opened.block_rows))]
        sorted_costs = np.concatenate([np.zeros(0, dtype=np.int64), *each])[by_time.rows]
        total, in_order = _ints([int(sorted_costs.sum())]), {0: sorted_costs}.__getitem__
    plan = make_plan(count, quota=quota, block_costs=total, seed=seed, epoch=epoch, drop_last=drop_last)
    return Schedule(plan, in_order, by_time)


def _empty(dataset: Dataset, selection: Selection) -> OpenBlock:
    schemas = dataset.timelines_schema, dataset.requests_schema
    block = Block(*(pa.RecordBatch.from_pylist([], schema=schema) for schema in schemas))
    return open_block(block, selection, _ints([]), 0, (None, None), str(dataset.path))


def _select(dataset: Dataset, columns: Sequence[str] | None) -> Selection:
    types = role_types(dataset)
    known = {name: kind for role in types.values() for name, kind in role.items()}
    if columns is not None:
        if unknown := sorted(set(columns) - set(known)):
            raise KeyError(f"columns {unknown} are not in {dataset.path}, which has {sorted(known)}")
        if text := sorted(name for name in columns if pa.types.is_string(known[name])):
            raise SpecError(f"columns {text} are text, which no tensor holds; declare them as `id` in the build spec")
    wanted = set(known) if columns is None else set(columns)
    picked = {
        role: tuple(name for name, kind in entries.items() if name in wanted and not pa.types.is_string(kind))
        for role, entries in types.items()
    }
    return Selection(**picked, row_ids=pa.types.is_string(dataset.requests_schema.field("request_id").type))


def role_types(dataset: Dataset) -> Roles:
    """Arrow types of all features and labels: role -> name -> type."""
    spec = dataset.spec
    events = dataset.timelines_schema.field("events").type.value_type
    targets = dataset.requests_schema.field("targets").type.value_type
    names: dict[str, tuple[Sequence[str], Callable[[str], Any]]] = {
        "history": (list(spec.history.features), events.field),
        "targets": (list(spec.requests.target_features), targets.field),
        "labels": (list(spec.requests.labels), targets.field),
        "requests": (list(spec.requests.features), dataset.requests_schema.field),
    }
    return {role: {name: field(name).type for name in listed} for role, (listed, field) in names.items()}


def _ints(values: Sequence[int]) -> Ints:
    return np.array(values, dtype=np.int64)
