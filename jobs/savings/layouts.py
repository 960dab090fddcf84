"""The storage layouts that `longbatch measure` compares, built slice by slice from a surveyed dataset.

A layout is a virtual table: it is never built as a whole. Its rows are addressed by byte offset, each row being as long
as its Arrow arrays are in memory, and a slice of the table is the rows that start in a range of bytes. A slice
therefore contains exactly what the real table contains at that offset: in log order the requests of all users around
it, sorted by user the adjacent requests of one user. All sizes in this module are bytes in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from longbatch.pipelines.expansion import OFFSET_BYTES, POINTER_COLUMNS, request_level, sample_level
from longbatch.schemas.ragged import concatenated_ranges
from longbatch.schemas.types import Int64Array

from .results import Level
from .survey import Survey

TIMELINE_BYTES = 8 + 2 * OFFSET_BYTES  # user_id, segment, offset of the list of events
SLICE_BYTES = 64_000_000  # a slice is written as one file of one row group, or record batch
LEAST_SLICES = 4  # fewer would not give a standard error worth printing
TRIAL_BYTES = 16_000_000
ORDER_TITLES = {"log": "in log order", "user": "sorted by user"}
Tables = tuple[pa.Table, ...]


@dataclass(frozen=True)
class Slice:
    """Consecutive rows of a layout, as runs of rows of one owner: a request, or at the user level a timeline.

    Attributes:
        owners: (N,) int64. Row of each owner in the survey.
        first: (N,) int64. Index of the owner's first row in the slice.
        count: (N,) int64. Rows of the owner in the slice.
        row_bytes: (N,) int64. Bytes in memory of one of them.
    """

    owners: Int64Array
    first: Int64Array
    count: Int64Array
    row_bytes: Int64Array

    @property
    def bytes(self) -> int:
        """Bytes in memory of all rows."""
        return int((self.count * self.row_bytes).sum())


@dataclass(frozen=True)
class Layout:
    """A virtual table, addressed by byte offset.

    Attributes:
        name: Identifier, such as "sample_level_by_log".
        title: The same in words.
        level: What a row is: a sample (one target), a request, or a timeline.
        mixes_users: Whether adjacent rows belong to many users. A survey of some of the users then has more rows of
            each user within a page than the full table has, so it compresses better.
        runs: The whole table as one slice.
        tables: Builds the Arrow tables of a slice.
        scale: Bytes of the whole dataset in this layout per surveyed byte.
    """

    name: str
    title: str
    level: Level
    mixes_users: bool
    runs: Slice
    tables: Callable[[Slice], Tables]
    scale: float

    @property
    def bytes(self) -> int:
        """Bytes in memory of the surveyed table."""
        return self.runs.bytes

    @property
    def largest_row_bytes(self) -> int:
        """Bytes in memory of the largest row."""
        return int(self.runs.row_bytes.max())

    def between(self, start: int, stop: int) -> Slice:
        """Return the rows that start at byte offsets [start, stop): each row is in exactly one of adjacent slices.

        Owners with rows [2, 3] of row_bytes [10, 4]: rows start at 0 and 10 (owner 0), 20, 24 and 28 (owner 1).
        between(5, 25) starts at row ceil((5 - 0) / 10) = 1 of owner 0, and ends before row ceil((25 - 20) / 4) = 2 of
        owner 1, so: owners [0, 1], first [1, 0], count [1, 2].

        Args:
            start: First byte offset.
            stop: Byte offset after the last one.

        Returns:
            The rows, possibly none.
        """
        runs = self.runs
        ends = np.cumsum(runs.count * runs.row_bytes)
        # only owners that overlap the range: the first that ends after `start`, to the one that reaches `stop`
        low, high = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop, side="left") + 1
        size, rows = runs.row_bytes[low:high], runs.count[low:high]
        begins = ends[low:high] - size * rows
        # -(-a // b) is a / b rounded up: the first row that starts at or after the offset
        first = np.clip(-(-(start - begins) // size), 0, rows)
        last = np.clip(-(-(stop - begins) // size), 0, rows)
        kept = last > first
        return Slice(
            owners=runs.owners[low:high][kept],
            first=(runs.first[low:high] + first)[kept],
            count=(last - first)[kept],
            row_bytes=size[kept],
        )


def layouts(survey: Survey, rng: np.random.Generator) -> list[Layout]:
    """Return the layouts to compare.

    Args:
        survey: The surveyed blocks.
        rng: Source of the order of the shuffled layout.

    Returns:
        The sample level shuffled, sample and request level in log order and sorted by user, and last the user level.
    """
    log_order = np.argsort(survey.requests["request_time"].cast(pa.int64()).to_numpy(), kind="stable")
    orders = {"log": log_order, "user": np.arange(len(log_order))}
    samples = [_ordered_samples(survey, name, order) for name, order in orders.items()]
    requests = [_ordered_requests(survey, name, order) for name, order in orders.items()]
    return [_shuffled_samples(survey, rng), *samples, *requests, _timelines(survey)]


def _ordered_samples(survey: Survey, order_name: str, order: Int64Array) -> Layout:
    """The sample level, the targets of each request adjacent."""
    row_bytes = _whole_bytes(survey.copy_bytes + survey.target_bytes)[order]
    return Layout(
        name=f"sample_level_by_{order_name}",
        title=f"sample level, {ORDER_TITLES[order_name]}",
        level="sample",
        mixes_users=order_name == "log",
        runs=Slice(order, np.zeros_like(order), survey.target_counts[order], row_bytes),
        tables=partial(_sample_tables, survey),
        scale=survey.history_scale,
    )


def _ordered_requests(survey: Survey, order_name: str, order: Int64Array) -> Layout:
    row_bytes = _whole_bytes(survey.copy_bytes + OFFSET_BYTES + survey.target_counts * survey.target_bytes)[order]
    return Layout(
        name=f"request_level_by_{order_name}",
        title=f"request level, {ORDER_TITLES[order_name]}",
        level="request",
        mixes_users=order_name == "log",
        runs=Slice(order, np.zeros_like(order), np.ones_like(order), row_bytes),
        tables=partial(_request_tables, survey),
        scale=survey.history_scale,
    )


def _shuffled_samples(survey: Survey, rng: np.random.Generator) -> Layout:
    """The sample level in random order: each row is a run of its own, since adjacent rows have other owners."""
    targets = rng.permutation(len(survey.targets))
    owners = np.searchsorted(survey.target_offsets, targets, side="right") - 1
    row_bytes = _whole_bytes(survey.copy_bytes + survey.target_bytes)[owners]
    return Layout(
        name="sample_level_shuffled",
        title="sample level, shuffled",
        level="sample",
        mixes_users=True,
        runs=Slice(owners, targets - survey.target_offsets[owners], np.ones_like(owners), row_bytes),
        tables=partial(_sample_tables, survey),
        scale=survey.history_scale,
    )


def _timelines(survey: Survey) -> Layout:
    """The user level: each timeline once, and its requests. A row is a timeline together with its requests."""
    request_bytes = survey.request_bytes + OFFSET_BYTES * len(POINTER_COLUMNS)
    requests = np.diff(survey.request_offsets) * request_bytes
    targets = np.diff(survey.target_offsets[survey.request_offsets]) * survey.target_bytes
    timelines = TIMELINE_BYTES + np.diff(survey.event_offsets) * survey.event_bytes
    row_bytes = _whole_bytes(timelines + requests + targets)
    rows = np.arange(len(row_bytes))
    return Layout(
        name="user_level",
        title="user level",
        level="user",
        mixes_users=False,
        runs=Slice(rows, np.zeros_like(rows), np.ones_like(rows), row_bytes),
        tables=partial(_user_tables, survey),
        scale=survey.event_scale,
    )


def _whole_bytes(sizes: npt.NDArray[np.float64]) -> Int64Array:
    """Round mean sizes up to whole bytes, so that every row occupies at least one byte offset."""
    return np.ceil(sizes).astype(np.int64)


def _sample_tables(survey: Survey, part: Slice) -> Tables:
    """One row per target, with the columns and the history of its request copied into it."""
    targets = concatenated_ranges(survey.target_offsets[part.owners] + part.first, part.count)
    return (sample_level(survey, np.repeat(part.owners, part.count), targets),)


def _request_tables(survey: Survey, part: Slice) -> Tables:
    """One row per request, with its history copied into it and its targets nested."""
    return (request_level(survey, part.owners),)


def _user_tables(survey: Survey, part: Slice) -> Tables:
    """A table of timelines, and a table of the requests that point into them.

    Timelines 3 to 5 of the survey, with requests at request_offsets[3] = 7 to request_offsets[6] = 12:
    requests 7 to 11 have timeline_row [3, 3, 4, 5, 5] in the survey,
    and [0, 0, 1, 2, 2] in the slice.
    """
    first, last = int(part.owners[0]), int(part.owners[-1]) + 1
    begin, end = int(survey.request_offsets[first]), int(survey.request_offsets[last])
    requests = survey.requests.slice(begin, end - begin)
    row = pa.array((requests["timeline_row"].to_numpy() - first).astype(np.int32))
    index = requests.schema.get_field_index("timeline_row")
    return survey.timelines.slice(first, last - first), requests.set_column(index, "timeline_row", row)


def choose_slices(layout: Layout, budget_bytes: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Choose the slices of a layout to measure: all of it if the budget allows, else a stratified random sample.

    The sample divides the table into strata of equal size and takes one slice from a random offset in each:
    a table of 1,000 bytes with a budget for 2 slices of 100 has the strata [0, 500) and [500, 1000), and gives
    for example [(130, 230), (740, 840)].

    Args:
        layout: The layout to sample.
        budget_bytes: Bytes in memory of all slices together.
        rng: Source of the offsets.

    Returns:
        Byte ranges (start, stop), ascending and disjoint.
    """
    size = max(min(SLICE_BYTES, budget_bytes // LEAST_SLICES), layout.largest_row_bytes)
    if layout.bytes <= budget_bytes:
        edges = np.linspace(0, layout.bytes, -(-layout.bytes // size) + 1).astype(np.int64)
        return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    count = max(1, budget_bytes // size)
    stratum = layout.bytes / count
    starts = (np.arange(count) * stratum + rng.random(count) * max(0.0, stratum - size)).astype(np.int64)
    return [(start, start + size) for start in starts.tolist()]


def trial_tables(layout: Layout, start: int) -> Tables:
    """Build about TRIAL_BYTES of a layout from a byte offset on: enough to choose file settings."""
    return layout.tables(layout.between(start, start + max(TRIAL_BYTES, layout.largest_row_bytes)))
