"""The storage layouts that `longbatch measure` compares, built slice by slice from sampled blocks of a dataset.

A layout is a virtual table: it is never built completely. Its rows are addressed by byte offset, each row being as long
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
TUNING_BYTES = 16_000_000  # of a tuning sample, on which file settings are chosen
ORDER_TITLES = {"log": "in log order", "user": "sorted by user"}
Tables = tuple[pa.Table, ...]


@dataclass(frozen=True)
class RowRuns:
    """Consecutive rows of a layout, as runs of rows that belong to one owner: a request, or a timeline (user level).

    Example at the sample level (one row per target), where request 7 has 3 targets and request 2 has 4:
        rows         (7, target 1) (7, target 2) (2, target 0)
        owners       [7, 2]
        first, count [1, 0], [2, 1]: two rows of request 7 from its target 1 on, one row of request 2 from its target 0

    Attributes:
        owners: (N,) int64. Row of each owner in the sampled blocks' table of requests or timelines.
        first: (N,) int64. Which of the owner's rows is the first of the run.
        count: (N,) int64. Rows of the run.
        row_bytes: (N,) int64. Bytes in memory of each row of the run.
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
        interleaves_users: Whether adjacent rows belong to many users. A sample of the users then has more rows of each
            user within a page than the full table has, so it compresses better.
        runs: All rows of the table.
        tables: Builds the Arrow tables of some rows.
        extrapolation_factor: Bytes of the full dataset in this layout per byte of the sampled blocks.
    """

    name: str
    title: str
    level: Level
    interleaves_users: bool
    runs: RowRuns
    tables: Callable[[RowRuns], Tables]
    extrapolation_factor: float

    @property
    def bytes(self) -> int:
        """Bytes in memory of all rows, those of the sampled blocks."""
        return self.runs.bytes

    @property
    def largest_row_bytes(self) -> int:
        """Bytes in memory of the largest row."""
        return int(self.runs.row_bytes.max())

    def rows_starting_in(self, start: int, stop: int) -> RowRuns:
        """Return the rows that start at byte offsets [start, stop): each row is in exactly one of adjacent slices.

        Example, owner 0 with 2 rows of 10 bytes and owner 1 with 3 rows of 4 bytes:
            rows start at the bytes 0 and 10 (owner 0), 20, 24 and 28 (owner 1)
            rows_starting_in(5, 25): the rows at 10, 20 and 24
            result: owners [0, 1], first [1, 0], count [1, 2]

        Args:
            start: First byte offset.
            stop: Byte offset after the last one.

        Returns:
            The rows, possibly none.
        """
        runs = self.runs
        run_ends = np.cumsum(runs.count * runs.row_bytes)
        # only runs that overlap the range: the first that ends after `start`, to the one that reaches `stop`
        low = np.searchsorted(run_ends, start, side="right")
        high = np.searchsorted(run_ends, stop, side="left") + 1
        row_bytes, rows = runs.row_bytes[low:high], runs.count[low:high]
        run_starts = run_ends[low:high] - row_bytes * rows
        # -(-a // b) is a / b rounded up: the first row that starts at or after the offset
        first = np.clip(-(-(start - run_starts) // row_bytes), 0, rows)
        end = np.clip(-(-(stop - run_starts) // row_bytes), 0, rows)
        has_rows = end > first
        return RowRuns(
            owners=runs.owners[low:high][has_rows],
            first=(runs.first[low:high] + first)[has_rows],
            count=(end - first)[has_rows],
            row_bytes=row_bytes[has_rows],
        )


def layouts(survey: Survey, rng: np.random.Generator) -> list[Layout]:
    """Return the layouts to compare.

    Args:
        survey: The sampled blocks.
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
    row_bytes = _rounded_up(survey.copy_bytes + survey.target_bytes)[order]
    return Layout(
        name=f"sample_level_by_{order_name}",
        title=f"sample level, {ORDER_TITLES[order_name]}",
        level="sample",
        interleaves_users=order_name == "log",
        runs=RowRuns(order, np.zeros_like(order), survey.target_counts[order], row_bytes),
        tables=partial(_sample_tables, survey),
        extrapolation_factor=survey.history_scale,
    )


def _ordered_requests(survey: Survey, order_name: str, order: Int64Array) -> Layout:
    row_bytes = _rounded_up(survey.copy_bytes + OFFSET_BYTES + survey.target_counts * survey.target_bytes)[order]
    return Layout(
        name=f"request_level_by_{order_name}",
        title=f"request level, {ORDER_TITLES[order_name]}",
        level="request",
        interleaves_users=order_name == "log",
        runs=RowRuns(order, np.zeros_like(order), np.ones_like(order), row_bytes),
        tables=partial(_request_tables, survey),
        extrapolation_factor=survey.history_scale,
    )


def _shuffled_samples(survey: Survey, rng: np.random.Generator) -> Layout:
    """The sample level in random order: each row is a run of its own, since adjacent rows have other owners."""
    targets = rng.permutation(len(survey.targets))
    owners = np.searchsorted(survey.target_offsets, targets, side="right") - 1
    row_bytes = _rounded_up(survey.copy_bytes + survey.target_bytes)[owners]
    return Layout(
        name="sample_level_shuffled",
        title="sample level, shuffled",
        level="sample",
        interleaves_users=True,
        runs=RowRuns(owners, targets - survey.target_offsets[owners], np.ones_like(owners), row_bytes),
        tables=partial(_sample_tables, survey),
        extrapolation_factor=survey.history_scale,
    )


def _timelines(survey: Survey) -> Layout:
    """The user level: each timeline once, and its requests. A row is a timeline together with its requests."""
    request_bytes = survey.request_bytes + OFFSET_BYTES * len(POINTER_COLUMNS)
    requests = np.diff(survey.request_offsets) * request_bytes
    targets = np.diff(survey.target_offsets[survey.request_offsets]) * survey.target_bytes
    timelines = TIMELINE_BYTES + np.diff(survey.event_offsets) * survey.event_bytes
    row_bytes = _rounded_up(timelines + requests + targets)
    rows = np.arange(len(row_bytes))
    return Layout(
        name="user_level",
        title="user level",
        level="user",
        interleaves_users=False,
        runs=RowRuns(rows, np.zeros_like(rows), np.ones_like(rows), row_bytes),
        tables=partial(_user_tables, survey),
        extrapolation_factor=survey.event_scale,
    )


def _rounded_up(sizes: npt.NDArray[np.float64]) -> Int64Array:
    """Round mean sizes up to integers, so that every row occupies at least one byte offset."""
    return np.ceil(sizes).astype(np.int64)


def _sample_tables(survey: Survey, rows: RowRuns) -> Tables:
    """One row per target, with the columns and the history of its request copied into it.

    Example, request 7 with targets 20 to 22 and request 2 with targets 5 to 8:
        owners [7, 2], first [1, 0], count [2, 1]
        targets [21, 22, 5] of the requests [7, 7, 2]
    """
    targets = concatenated_ranges(survey.target_offsets[rows.owners] + rows.first, rows.count)
    return (sample_level(survey, np.repeat(rows.owners, rows.count), targets),)


def _request_tables(survey: Survey, rows: RowRuns) -> Tables:
    """One row per request, with its history copied into it and its targets nested."""
    return (request_level(survey, rows.owners),)


def _user_tables(survey: Survey, rows: RowRuns) -> Tables:
    """A table of consecutive timelines, and a table of the requests that point into them.

    Example, the timelines 3 to 5, with requests at request_offsets[3] = 7 to request_offsets[6] = 12:
        requests 7 to 11 have timeline_row [3, 3, 4, 5, 5] in the sampled blocks
        and [0, 0, 1, 2, 2] in the result

    Raises:
        ValueError: The timelines are not consecutive.
    """
    first, end = int(rows.owners[0]), int(rows.owners[-1]) + 1
    # the tables are slices of adjacent rows, so timelines that are not among the owners would be in them too
    if not np.array_equal(rows.owners, np.arange(first, end)):
        raise ValueError(f"timelines must be consecutive, found {len(rows.owners)} of the rows {first} to {end - 1}")
    first_request, end_request = int(survey.request_offsets[first]), int(survey.request_offsets[end])
    requests = survey.requests.slice(first_request, end_request - first_request)
    timeline_row = pa.array((requests["timeline_row"].to_numpy() - first).astype(np.int32))
    index = requests.schema.get_field_index("timeline_row")
    return survey.timelines.slice(first, end - first), requests.set_column(index, "timeline_row", timeline_row)


def choose_slices(layout: Layout, budget_bytes: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Choose the slices of a layout to measure: all of it if the budget allows, else a stratified random sample.

    The sample divides the table into strata of equal size and takes one slice from a random offset in each.

    Example, a table of 1,000 bytes with a budget for 2 slices of 100:
        strata [0, 500) and [500, 1000)
        result, for example: [(130, 230), (740, 840)]

    Args:
        layout: The layout to sample.
        budget_bytes: Bytes in memory of all slices together.
        rng: Source of the offsets.

    Returns:
        Byte ranges (start, stop), ascending and disjoint.
    """
    # at least as long as the largest row, because a shorter slice may contain no row's start
    size = max(min(SLICE_BYTES, budget_bytes // LEAST_SLICES), layout.largest_row_bytes)
    if layout.bytes <= budget_bytes:
        edges = np.linspace(0, layout.bytes, -(-layout.bytes // size) + 1).astype(np.int64)
        return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    count = max(1, budget_bytes // size)
    stratum = layout.bytes / count
    starts = (np.arange(count) * stratum + rng.random(count) * max(0.0, stratum - size)).astype(np.int64)
    return [(start, start + size) for start in starts.tolist()]


def tuning_tables(layout: Layout, start: int) -> Tables:
    """Build the tuning sample of a layout from a byte offset on, about TUNING_BYTES: enough to choose file settings."""
    return layout.tables(layout.rows_starting_in(start, start + max(TUNING_BYTES, layout.largest_row_bytes)))
