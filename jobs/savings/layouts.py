"""The storage layouts that `longbatch measure` compares, made in slices from a dataset in memory.

A layout is a table that never exists whole: its rows lie one after another on a line of decoded bytes, and a slice
of the table is the rows that start within an interval of that line. A slice is therefore exactly what the real
table holds at that place: in log order with the requests of all users around it, sorted by user with a user's
neighbouring requests side by side. Sizes here are bytes of the Arrow arrays in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
import pyarrow as pa

from longbatch.pipelines.expansion import (
    OFFSET_BYTES,
    POINTER_COLUMNS,
    HistorySlices,
    request_level,
    sample_level,
    slice_histories,
)
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.manifest import CountName
from longbatch.schemas.format.shard_reader import Block
from longbatch.schemas.ragged import concatenated_ranges, list_offsets
from longbatch.schemas.types import Int64Array

SURVEY_RECORDS = 12_000_000  # events and targets held in memory: some 400 MB
TIMELINE_BYTES = 8 + 2 * OFFSET_BYTES  # user_id, segment, offset of its list
SLICE_BYTES = 64_000_000  # a slice is written as one file with one row group, or record batch
LEAST_SLICES = 4
TRIAL_BYTES = 16_000_000


@dataclass(frozen=True)
class Survey(HistorySlices):
    """Blocks of a dataset in memory, all of them or a random choice, as one timelines and one requests table.

    timelines: T rows, requests: R rows by timeline; timeline_row counts over all surveyed timelines.
    event_offsets, request_offsets: (T + 1,). blocks: (shard, block) of each block.
    history_scale, event_scale: history events, and stored events, of the dataset for each surveyed one.
    """

    timelines: pa.Table
    requests: pa.Table
    event_offsets: Int64Array
    request_offsets: Int64Array
    blocks: list[tuple[int, int]]
    history_scale: float
    event_scale: float


def choose_blocks(dataset: Dataset, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return (shard, block) of all blocks, or of a random choice of about SURVEY_RECORDS events and targets."""
    blocks = [(shard, block) for shard, entry in enumerate(dataset.shards) for block in range(len(entry.blocks))]
    order = rng.permutation(len(blocks))
    records = [_count(dataset, [blocks[k]], "events") + _count(dataset, [blocks[k]], "targets") for k in order]
    kept = np.cumsum(records) - records < SURVEY_RECORDS
    return sorted(blocks[k] for k in order[kept])


def _count(dataset: Dataset, blocks: list[tuple[int, int]], what: CountName) -> int:
    return sum(dataset.shards[shard].blocks[block].count(what) for shard, block in blocks)


def read_blocks(dataset: Dataset, blocks: list[tuple[int, int]]) -> Iterator[Block]:
    """Read the given blocks as a reader of the dataset does, every offset checked."""
    for shard, group in groupby(blocks, key=itemgetter(0)):
        reader = dataset.shard(shard)
        yield from (reader.block(block) for _, block in group)


def survey(dataset: Dataset, rng: np.random.Generator) -> Survey:
    """Read the chosen blocks and lay them side by side."""
    chosen = choose_blocks(dataset, rng)
    block = _side_by_side(list(read_blocks(dataset, chosen)))
    counts = dataset.counts
    share = _count(dataset, chosen, "targets") / counts.targets
    history_events, stored = (_count(dataset, chosen, what) for what in ("history_events", "events"))
    rows = np.arange(block.timelines.num_rows + 1)
    return Survey(
        **vars(slice_histories(block, dataset.spec.history_length)),
        timelines=pa.Table.from_batches([block.timelines]),
        requests=pa.Table.from_batches([block.requests]),
        event_offsets=list_offsets(block.timelines["events"]),
        request_offsets=np.searchsorted(block.requests["timeline_row"].to_numpy(), rows),
        blocks=chosen,
        history_scale=counts.history_events / history_events if history_events else 1 / share,
        event_scale=counts.stored_with_overlap / stored if stored else 1 / share,
    )


def _side_by_side(blocks: list[Block]) -> Block:
    """Make one block of several."""
    timelines = pa.concat_batches([block.timelines for block in blocks])
    requests = pa.concat_batches([block.requests for block in blocks])
    first_row = np.cumsum([0, *(block.timelines.num_rows for block in blocks[:-1])])
    row = requests["timeline_row"].to_numpy() + np.repeat(first_row, [block.requests.num_rows for block in blocks])
    place = requests.schema.get_field_index("timeline_row")
    return Block(timelines, requests.set_column(place, requests.schema.field(place), pa.array(row.astype(np.int32))))


@dataclass(frozen=True)
class Slice:
    """Consecutive rows of a layout: the requests (or timelines) they come from, in order.

    owners: (N,) rows of the survey. first, count: (N,) which of the owner's rows are in the slice.
    row_bytes: (N,) decoded bytes of one of them.
    """

    owners: Int64Array
    first: Int64Array
    count: Int64Array
    row_bytes: Int64Array


@dataclass(frozen=True)
class Layout:
    """A table on its line of bytes.

    order: (N,) owners (requests or timelines of the survey) as they lie in the table. rows: (N,) rows each owner
    has there, from its row `first` (N,) on, the first of all if None. row_bytes: (N,) decoded bytes of one of them.
    tables: makes the tables of a slice. scale: decoded bytes of the whole dataset in this layout for each of the survey.
    """

    name: str
    title: str
    order: Int64Array
    rows: Int64Array
    row_bytes: Int64Array
    tables: Callable[[Slice], tuple[pa.Table, ...]]
    scale: float
    first: Int64Array | None = None

    @property
    def mixes_users(self) -> bool:
        """Whether rows of many users lie side by side.

        Then a table of some of the users holds more rows of each within a page than the table of all does, and compresses better.
        """
        return self.name.endswith(("_by_log", "_shuffled"))

    @property
    def bytes(self) -> int:
        """Decoded bytes of the surveyed table."""
        return int((self.rows * self.row_bytes).sum())

    def bytes_of(self, part: Slice) -> int:
        """Decoded bytes of a slice, by the line."""
        return int((part.count * part.row_bytes).sum())

    def between(self, start: int, stop: int) -> Slice:
        """Rows that start at bytes [start, stop) of the line: every row lies in exactly one of adjoining slices."""
        ends = np.cumsum(self.rows * self.row_bytes)
        low, high = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop, side="left") + 1
        size, rows = self.row_bytes[low:high], self.rows[low:high]
        begins = ends[low:high] - size * rows
        first = np.clip(-(-(start - begins) // size), 0, rows)
        last = np.clip(-(-(stop - begins) // size), 0, rows)
        kept, base = last > first, 0 if self.first is None else self.first[low:high]
        return Slice(self.order[low:high][kept], (base + first)[kept], (last - first)[kept], size[kept])


def layouts(survey: Survey, rng: np.random.Generator) -> list[Layout]:
    """The layouts to compare: samples shuffled, sample and request level in log order and by user, and the user level."""
    targets, own = survey.target_counts, survey.copy_bytes
    log = np.argsort(survey.requests["request_time"].cast(pa.int64()).to_numpy(), kind="stable")
    orders = {"log": log, "user": np.arange(len(log))}
    words = {"log": "in log order", "user": "sorted by user"}
    made = [_shuffled_layout(survey, rng)]
    for level, rows, row_bytes, tables in (
        ("sample", targets, own + survey.target_bytes, _sample_level),
        ("request", np.ones_like(targets), own + OFFSET_BYTES + targets * survey.target_bytes, _request_level),
    ):
        for name, order in orders.items():
            made.append(
                Layout(
                    f"{level}_level_by_{name}",
                    f"{level} level, {words[name]}",
                    order,
                    rows[order],
                    np.ceil(row_bytes[order]).astype(np.int64),
                    _bind(tables, survey),
                    survey.history_scale,
                )
            )
    return [*made, _user_layout(survey)]


def _bind(
    tables: Callable[[Survey, Slice], tuple[pa.Table, ...]], survey: Survey
) -> Callable[[Slice], tuple[pa.Table, ...]]:
    return lambda part: tables(survey, part)


def _shuffled_layout(survey: Survey, rng: np.random.Generator) -> Layout:
    """The sample level with no two rows of a request near each other but by chance."""
    targets = rng.permutation(len(survey.targets))
    owners = np.searchsorted(survey.target_offsets, targets, side="right") - 1
    return Layout(
        "sample_level_shuffled",
        "sample level, shuffled",
        owners,
        np.ones_like(owners),
        np.ceil((survey.copy_bytes + survey.target_bytes)[owners]).astype(np.int64),
        _bind(_sample_level, survey),
        survey.history_scale,
        first=targets - survey.target_offsets[owners],
    )


def _user_layout(survey: Survey) -> Layout:
    """Timelines once, and their requests: the user level."""
    pointers = OFFSET_BYTES * len(POINTER_COLUMNS)
    requests = np.diff(survey.request_offsets) * (survey.request_bytes + pointers)
    targets = np.diff(survey.target_offsets[survey.request_offsets]) * survey.target_bytes
    timelines = TIMELINE_BYTES + np.diff(survey.event_offsets) * survey.event_bytes
    row_bytes = np.ceil(timelines + requests + targets).astype(np.int64)
    rows = np.ones_like(row_bytes)
    make = _bind(_user_level, survey)
    return Layout("user_level", "user level", np.arange(len(rows)), rows, row_bytes, make, survey.event_scale)


def _sample_level(survey: Survey, part: Slice) -> tuple[pa.Table, ...]:
    """One row per target: its request's columns and whole history copied into it."""
    targets = concatenated_ranges(survey.target_offsets[part.owners] + part.first, part.count)
    return (sample_level(survey, np.repeat(part.owners, part.count), targets),)


def _request_level(survey: Survey, part: Slice) -> tuple[pa.Table, ...]:
    """One row per request: its whole history copied into it, its targets nested."""
    return (request_level(survey, part.owners),)


def _user_level(survey: Survey, part: Slice) -> tuple[pa.Table, ...]:
    """Timelines, and the requests that point into them."""
    first, last = int(part.owners[0]), int(part.owners[-1]) + 1
    begin, end = int(survey.request_offsets[first]), int(survey.request_offsets[last])
    requests = survey.requests.slice(begin, end - begin)
    row = pa.array((requests["timeline_row"].to_numpy() - first).astype(np.int32))
    place = requests.schema.get_field_index("timeline_row")
    return survey.timelines.slice(first, last - first), requests.set_column(place, "timeline_row", row)


def cut_slices(layout: Layout, budget: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Intervals of a layout's line of bytes: adjoining ones over all of it if the budget allows, else spread over it.

    Spread: the line is cut into equal strata, and each gives one slice from a random place in it.
    """
    size = max(min(SLICE_BYTES, budget // LEAST_SLICES), int(layout.row_bytes.max()))
    count = max(1, budget // size)
    if layout.bytes <= budget:
        edges = np.linspace(0, layout.bytes, -(-layout.bytes // size) + 1).astype(np.int64)
        return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    stratum = layout.bytes / count
    starts = (np.arange(count) * stratum + rng.random(count) * max(0.0, stratum - size)).astype(np.int64)
    return [(start, start + size) for start in starts.tolist()]


def trial(layout: Layout, start: int) -> tuple[pa.Table, ...]:
    """Tables of some rows from `start`, enough to choose settings by."""
    return layout.tables(layout.between(start, start + max(TRIAL_BYTES, int(layout.row_bytes.max()))))
