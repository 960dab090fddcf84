"""The storage layouts that `longbatch measure` compares, made in slices from a dataset in memory.

A layout is a table that never exists whole: its rows lie one after another on a line of decoded bytes, and a slice
of the table is the rows that start within an interval of that line. A slice is therefore exactly what the real
table holds at that place: in log order with the requests of all users around it, sorted by user with a user's
neighbouring requests side by side. Sizes here are bytes of the Arrow arrays in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from longbatch.pipelines.pack import ranges
from longbatch.schemas.dataset import Dataset
from longbatch.schemas.shard import Block

Longs = npt.NDArray[np.int64]
SURVEY_RECORDS = 12_000_000  # events and targets held in memory: some 400 MB
POINTERS = ("segment", "timeline_row", "history_end", "targets")
INT32_BYTES = 4
TIMELINE_BYTES = 8 + 2 * INT32_BYTES  # user_id, segment, offset of its list
SLICE_BYTES = 64_000_000  # a slice is written as one file with one row group, or record batch
LEAST_SLICES = 4
TRIAL_BYTES = 16_000_000
ZSTD_LEVEL = 3
PAGE_BYTES = (1 << 20, 8 << 20)


@dataclass(frozen=True)
class Survey:
    """Blocks of a dataset in memory, all of them or a random choice, as one timelines and one requests table.

    timelines: T rows, requests: R rows by timeline; timeline_row counts over all surveyed timelines.
    events: (S,) struct, targets: (G,) struct. history_start, history_end: (R,) into events.
    event_offsets, request_offsets: (T + 1,). target_offsets: (R + 1,). blocks: (shard, block) of each block.
    history_scale, event_scale: history events, and stored events, of the dataset for each surveyed one.
    """

    timelines: pa.Table
    requests: pa.Table
    events: pa.StructArray
    targets: pa.StructArray
    history_start: Longs
    history_end: Longs
    event_offsets: Longs
    request_offsets: Longs
    target_offsets: Longs
    blocks: list[tuple[int, int]]
    history_scale: float
    event_scale: float

    @property
    def history_sizes(self) -> Longs:
        """Events in the history of each request: (R,)."""
        return self.history_end - self.history_start

    @property
    def target_counts(self) -> Longs:
        """Targets of each request: (R,)."""
        return np.diff(self.target_offsets)

    @property
    def event_bytes(self) -> float:
        """Mean decoded bytes of an event."""
        return _mean_bytes(self.events)

    @property
    def target_bytes(self) -> float:
        """Mean decoded bytes of a target."""
        return _mean_bytes(self.targets)

    @property
    def request_bytes(self) -> float:
        """Mean decoded bytes of a request's own columns: id, user, time, request features."""
        return float(self.own_columns().nbytes / max(1, self.requests.num_rows))

    def own_columns(self) -> pa.Table:
        """The requests table without targets and without what points into timelines."""
        return self.requests.drop_columns(list(POINTERS))


def _mean_bytes(records: pa.StructArray) -> float:
    return float(sum(column.nbytes for column in records.flatten()) / max(1, len(records)))


def choose_blocks(dataset: Dataset, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return (shard, block) of all blocks, or of a random choice of about SURVEY_RECORDS events and targets."""
    blocks = [(shard, block) for shard, row in enumerate(dataset.shards) for block in range(len(row["blocks"]))]
    order = rng.permutation(len(blocks))
    records = [_count(dataset, [blocks[k]], "events") + _count(dataset, [blocks[k]], "targets") for k in order]
    kept = np.cumsum(records) - records < SURVEY_RECORDS
    return sorted(blocks[k] for k in order[kept])


def _count(dataset: Dataset, blocks: list[tuple[int, int]], what: str) -> int:
    return sum(int(dataset.shards[shard]["blocks"][block][what]) for shard, block in blocks)


def read_blocks(dataset: Dataset, blocks: list[tuple[int, int]]) -> Iterator[Block]:
    """Read the given blocks as a reader of the dataset does, every offset checked."""
    for shard, group in groupby(blocks, key=itemgetter(0)):
        reader = dataset.shard(shard)
        yield from (reader.block(block) for _, block in group)


def survey(dataset: Dataset, rng: np.random.Generator) -> Survey:
    """Read the chosen blocks and lay them side by side."""
    chosen = choose_blocks(dataset, rng)
    blocks = list(read_blocks(dataset, chosen))
    timelines = pa.Table.from_batches([b.timelines for b in blocks]).combine_chunks()
    requests = pa.Table.from_batches([b.requests for b in blocks]).combine_chunks()
    first_row = np.cumsum([0, *(b.timelines.num_rows for b in blocks[:-1])])
    shift = np.repeat(first_row, [b.requests.num_rows for b in blocks])
    row = requests["timeline_row"].to_numpy() + shift
    place = requests.schema.get_field_index("timeline_row")
    requests = requests.set_column(place, "timeline_row", pa.array(row.astype(np.int32)))
    event_offsets, events = _values(timelines["events"])
    target_offsets, targets = _values(requests["targets"])
    length = requests["history_end"].to_numpy().astype(np.int64)
    end = event_offsets[row] + length
    counts = dataset.counts
    share = _count(dataset, chosen, "targets") / counts.targets
    history_events, stored = (_count(dataset, chosen, what) for what in ("history_events", "events"))
    return Survey(
        timelines=timelines,
        requests=requests,
        events=events,
        targets=targets,
        history_start=end - np.minimum(length, dataset.spec.history_length),
        history_end=end,
        event_offsets=event_offsets,
        request_offsets=np.searchsorted(row, np.arange(timelines.num_rows + 1)),
        target_offsets=target_offsets,
        blocks=chosen,
        history_scale=counts.history_events / history_events if history_events else 1 / share,
        event_scale=counts.stored_with_overlap / stored if stored else 1 / share,
    )


def _values(column: pa.ChunkedArray) -> tuple[Longs, pa.Array]:
    """Offsets from zero, and the values, of a list column of one chunk."""
    lists = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], lists.flatten()


@dataclass(frozen=True)
class Slice:
    """Consecutive rows of a layout: the requests (or timelines) they come from, in order.

    owners: (N,) rows of the survey. first, count: (N,) which of the owner's rows are in the slice.
    row_bytes: (N,) decoded bytes of one of them.
    """

    owners: Longs
    first: Longs
    count: Longs
    row_bytes: Longs


@dataclass(frozen=True)
class Layout:
    """A table on its line of bytes.

    order: (N,) owners (requests or timelines of the survey) as they lie in the table. rows: (N,) rows each owner
    has there. row_bytes: (N,) decoded bytes of one of them. tables: makes the tables of a slice.
    scale: decoded bytes of the whole dataset in this layout for each of the survey.
    """

    name: str
    title: str
    order: Longs
    rows: Longs
    row_bytes: Longs
    tables: Callable[[Slice], tuple[pa.Table, ...]]
    scale: float

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
        kept = last > first
        return Slice(self.order[low:high][kept], first[kept], (last - first)[kept], size[kept])


def layouts(survey: Survey) -> list[Layout]:
    """The layouts to compare: sample and request level, in log order and by user, and the user level."""
    history, targets = survey.history_sizes, survey.target_counts
    lists = INT32_BYTES * survey.events.type.num_fields
    own = survey.request_bytes + lists + history * survey.event_bytes
    log = np.argsort(survey.requests["request_time"].cast(pa.int64()).to_numpy(), kind="stable")
    orders = {"log": log, "user": np.arange(len(log))}
    words = {"log": "in log order", "user": "sorted by user"}
    made = []
    for level, rows, row_bytes, tables in (
        ("sample", targets, own + survey.target_bytes, sample_level),
        ("request", np.ones_like(targets), own + INT32_BYTES + targets * survey.target_bytes, request_level),
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


def _user_layout(survey: Survey) -> Layout:
    """Timelines once, and their requests: the user level."""
    pointers = INT32_BYTES * len(POINTERS)
    requests = np.diff(survey.request_offsets) * (survey.request_bytes + pointers)
    targets = np.diff(survey.target_offsets[survey.request_offsets]) * survey.target_bytes
    timelines = TIMELINE_BYTES + np.diff(survey.event_offsets) * survey.event_bytes
    row_bytes = np.ceil(timelines + requests + targets).astype(np.int64)
    rows = np.ones_like(row_bytes)
    make = _bind(user_level, survey)
    return Layout("user_level", "user level", np.arange(len(rows)), rows, row_bytes, make, survey.event_scale)


def _history_columns(survey: Survey, requests: Longs) -> dict[str, pa.Array]:
    """One list column for each feature of the events, the history of each of the given requests copied out."""
    sizes = survey.history_sizes[requests]
    indices = pa.array(ranges(survey.history_start[requests], sizes))
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32))
    fields = zip(survey.events.type, survey.events.flatten(), strict=True)
    return {f"history_{f.name}": pa.ListArray.from_arrays(offsets, values.take(indices)) for f, values in fields}


def sample_level(survey: Survey, part: Slice) -> tuple[pa.Table, ...]:
    """One row per target: its request's columns and whole history copied into it."""
    requests = np.repeat(part.owners, part.count)
    own = survey.own_columns().take(pa.array(requests))
    chosen = pa.array(ranges(survey.target_offsets[part.owners] + part.first, part.count))
    fields = zip(survey.targets.type, survey.targets.flatten(), strict=True)
    targets = {f"target_{f.name}": values.take(chosen) for f, values in fields}
    columns = dict(zip(own.column_names, own.columns, strict=True))
    return (pa.table({**columns, **_history_columns(survey, requests), **targets}).combine_chunks(),)


def request_level(survey: Survey, part: Slice) -> tuple[pa.Table, ...]:
    """One row per request: its whole history copied into it, its targets nested."""
    own = survey.own_columns().take(pa.array(part.owners))
    targets = survey.requests["targets"].take(pa.array(part.owners))
    columns = dict(zip(own.column_names, own.columns, strict=True))
    return (pa.table({**columns, **_history_columns(survey, part.owners), "targets": targets}).combine_chunks(),)


def user_level(survey: Survey, part: Slice) -> tuple[pa.Table, ...]:
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


@dataclass(frozen=True)
class Storage:
    """A file format and its codec."""

    format: str
    codec: str

    @property
    def title(self) -> str:
        """As people call it."""
        return f"{self.format} {self.codec}"


@dataclass(frozen=True)
class ParquetSettings:
    """What is worth trying with Parquet: dictionaries for the lists, and how large a page is."""

    dictionary: bool
    page_bytes: int

    @property
    def title(self) -> str:
        """As people call it."""
        return f"lists {'with' if self.dictionary else 'without'} dictionary, pages of {self.page_bytes >> 20} MiB"


STORAGES = tuple(Storage("Arrow", c) for c in ("none", "lz4", "zstd")) + tuple(
    Storage("Parquet", c) for c in ("snappy", "zstd")
)
TRIALS = tuple(ParquetSettings(dictionary, size) for dictionary in (True, False) for size in PAGE_BYTES)


def write(tables: tuple[pa.Table, ...], storage: Storage, settings: ParquetSettings, folder: Path) -> list[Path]:
    """Write each table as one file of one record batch or row group."""
    paths = [folder / f"slice-{number}" for number in range(len(tables))]
    level = ZSTD_LEVEL if storage.codec == "zstd" else None
    for path, table in zip(paths, tables, strict=True):
        if storage.format == "Parquet":
            flat = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
            pq.write_table(
                table,
                path,
                row_group_size=max(1, table.num_rows),
                version="2.6",
                data_page_version="2.0",
                compression=storage.codec,
                compression_level=level,
                use_dictionary=True if settings.dictionary else flat,
                data_page_size=settings.page_bytes,
            )
        else:
            codec = None if storage.codec == "none" else pa.Codec(storage.codec, compression_level=level)
            options = pa.ipc.IpcWriteOptions(compression=codec, use_threads=False)
            with (
                pa.OSFile(str(path), "wb") as sink,
                pa.ipc.new_file(sink, table.schema, options=options) as writer,
            ):
                writer.write_table(table)
    return paths


def read(paths: Sequence[Path], storage: Storage) -> list[pa.Table]:
    """Read all columns of the files into memory, without memory-mapping."""
    if storage.format == "Parquet":
        return [pq.ParquetFile(path).read(use_threads=False) for path in paths]
    tables = []
    for path in paths:
        with pa.OSFile(str(path), "rb") as source:
            tables.append(pa.ipc.open_file(source).read_all())
    return tables


def choose_settings(layout: Layout, start: int, storage: Storage, folder: Path) -> ParquetSettings:
    """Return the settings that make the smallest Parquet file of some rows from `start`; Arrow has none to choose."""
    if storage.format == "Arrow":
        return TRIALS[0]
    tables = layout.tables(layout.between(start, start + max(TRIAL_BYTES, int(layout.row_bytes.max()))))
    sizes = [sum(path.stat().st_size for path in write(tables, storage, trial, folder)) for trial in TRIALS]
    return TRIALS[int(np.argmin(sizes))]
