"""Writing and reading a layout slice by slice in every format, and scaling the results up to the whole dataset."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.types import ProgressCallback

from .layouts import Layout, RowRuns, Tables, tuning_tables
from .parquet_settings import STORAGES, ParquetSettings, Storage, choose_settings, read_tables, write_tables
from .results import FileSavings, LayoutSample

TUNING_SAMPLES = 3  # samples of a layout on which settings are tried, from its first slice to its last


@dataclass(frozen=True)
class SliceTiming:
    """A slice in one format: bytes of its files on disk, seconds to write and to read them."""

    disk_bytes: float
    write_seconds: float
    read_seconds: float


@dataclass(frozen=True)
class SliceContents:
    """Requests and targets of a slice, and the ids of its users."""

    requests: int
    targets: int
    users: set[int]


def time_layout(
    layout: Layout, slices: Sequence[tuple[int, int]], folder: Path, progress: ProgressCallback
) -> tuple[float, list[FileSavings], LayoutSample]:
    """Write and read each slice of a layout in every format.

    Args:
        layout: The layout to measure.
        slices: Byte ranges, as `choose_slices` returns them.
        folder: Folder for the files, which are removed again.
        progress: Called with the layout's title and the number of slices done.

    Returns:
        Bytes in memory of the whole dataset in this layout, its files, and what was measured.
    """
    settings = _choose_settings(layout, slices)
    timings: dict[Storage, list[SliceTiming]] = {storage: [] for storage in STORAGES}
    planned_bytes: list[int] = []
    memory_bytes: list[float] = []
    contents: list[SliceContents] = []
    for number, (start, stop) in enumerate(slices):
        rows = layout.rows_starting_in(start, stop)
        tables = layout.tables(rows)
        planned_bytes.append(rows.bytes)
        memory_bytes.append(float(sum(table.nbytes for table in tables)))
        contents.append(_contents(rows, tables))
        for storage in STORAGES:
            timings[storage].append(_time_slice(tables, storage, settings[storage], folder))
        progress(layout.title, number + 1, len(slices))
    total = layout.bytes * layout.extrapolation_factor
    sample = LayoutSample(
        slices=len(slices),
        slice_bytes=slices[0][1] - slices[0][0],
        bytes=sum(memory_bytes),
        share=sum(planned_bytes) / total,
        users=len(set().union(*(slice_.users for slice_ in contents))),
        requests=sum(slice_.requests for slice_ in contents),
        targets=sum(slice_.targets for slice_ in contents),
    )
    files = [_file_savings(storage, settings[storage], timings[storage], planned_bytes, total) for storage in STORAGES]
    return scale_up(memory_bytes, planned_bytes, total)[0], files, sample


def _choose_settings(layout: Layout, slices: Sequence[tuple[int, int]]) -> dict[Storage, ParquetSettings]:
    """Choose the settings of each format on tuning samples at the first, the middle and the last slice."""
    starts = sorted({slices[number * (len(slices) - 1) // (TUNING_SAMPLES - 1)][0] for number in range(TUNING_SAMPLES)})
    tables = [table for start in starts for table in tuning_tables(layout, start)]
    return {
        storage: choose_settings(tables, storage.codec) if storage.format == "Parquet" else ParquetSettings()
        for storage in STORAGES
    }


def _file_savings(
    storage: Storage,
    settings: ParquetSettings,
    timings: Sequence[SliceTiming],
    planned_bytes: Sequence[int],
    total: float,
) -> FileSavings:
    disk_bytes, standard_error = scale_up([timing.disk_bytes for timing in timings], planned_bytes, total)
    return FileSavings(
        format=storage.format,
        codec=storage.codec,
        disk_bytes=disk_bytes,
        standard_error=standard_error,
        write_seconds=scale_up([timing.write_seconds for timing in timings], planned_bytes, total)[0],
        read_seconds=scale_up([timing.read_seconds for timing in timings], planned_bytes, total)[0],
        settings=settings.title if storage.format == "Parquet" else "",
    )


def _contents(rows: RowRuns, tables: Tables) -> SliceContents:
    requests = tables[-1]
    users = set(cast("list[int]", pc.unique(requests["user_id"]).to_pylist()))
    if "targets" in requests.column_names:
        return SliceContents(requests.num_rows, len(pc.list_flatten(requests["targets"])), users)
    return SliceContents(len(np.unique(rows.owners)), requests.num_rows, users)


def _time_slice(tables: Sequence[pa.Table], storage: Storage, settings: ParquetSettings, folder: Path) -> SliceTiming:
    started = time.perf_counter()
    paths = write_tables(tables, storage, settings, folder)
    written = time.perf_counter()
    read_tables(paths, storage)
    finished = time.perf_counter()
    size = sum(path.stat().st_size for path in paths)
    for path in paths:
        path.unlink()
    return SliceTiming(float(size), written - started, finished - written)


def scale_up(measured: Sequence[float], sizes: Sequence[int], total: float) -> tuple[float, float | None]:
    """Estimate a total from a sample of slices by the ratio estimator (Cochran, Sampling Techniques, 6.3).

    Slices of sizes [100, 100] from a total of 1,000, measured [10, 14]: the ratio is 24 / 200 = 0.12, the total 120.
    The residuals [-2, 2] give the variance (1 - 0.2) * 2 / 1 * 8 / 200^2 = 0.00032 of the ratio,
    and the standard error 1,000 * sqrt(0.00032) = 17.9 of the total.

    Args:
        measured: (N,) what was measured of each slice.
        sizes: (N,) sizes of the slices.
        total: Size of everything.

    Returns:
        The estimated total and its standard error: 0 if the slices are everything, None if there is only one slice.
    """
    y, x = np.asarray(measured, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    ratio, share, n = y.sum() / x.sum(), x.sum() / total, len(x)
    if share > 1 - 1e-9:
        return float(total * ratio), 0.0
    if n < 2:
        return float(total * ratio), None
    variance = (1 - share) * n / (n - 1) * ((y - ratio * x) ** 2).sum() / x.sum() ** 2
    return float(total * ratio), float(total * np.sqrt(variance))
