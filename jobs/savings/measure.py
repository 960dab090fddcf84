"""`longbatch measure`: what storing each user's timeline once saves, compared with the layouts in common use.

OUT/savings.json    the results; `results.py` defines every key
OUT/savings.html    the same as a page with charts
OUT/savings-*.png   the charts, if matplotlib is installed
"""

from __future__ import annotations

import logging
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from longbatch.schemas.errors import MachineError, SpecError
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.manifest import SHARD_TABLES
from longbatch.schemas.stage_log import logged_stage
from longbatch.schemas.storage.local_folders import disk_message
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.storage.open_store import Location, open_store
from longbatch.schemas.storage.output_folder import output_folder
from longbatch.schemas.types import ProgressCallback, no_progress

from .column_sizes import measure_columns, sampled_blocks
from .cost_model import dataset_means, dataset_rates, predict
from .html_report import charts, savings_page
from .layout_timing import TUNING_SAMPLES, time_layout
from .layouts import SLICE_BYTES, TUNING_BYTES, choose_slices, layouts
from .parquet_settings import ZSTD_LEVEL
from .png_charts import write_pngs
from .results import (
    SAVINGS_VERSION,
    Headline,
    LayoutSavings,
    MeasuredDataset,
    Sampling,
    Savings,
    StoredDataset,
    write_savings,
)
from .survey import Survey, all_blocks, read_blocks, survey

BUDGET_BYTES = 600_000_000
LEAST_BUDGET_BYTES = 1_000_000
COPIED_BYTES = 1 << 26
logger = logging.getLogger(__name__)


def measure(
    dataset: Dataset,
    out: Location,
    *,
    budget_bytes: int = BUDGET_BYTES,
    seed: int = 0,
    progress: ProgressCallback = no_progress,
) -> Savings:
    """Measure every layout; write savings.json, savings.html and charts, and replace those of an earlier run.

    Takes about 200 MB of disk and at most 2 GB of memory.

    Args:
        dataset: The dataset to measure.
        out: Folder or URL of the report.
        budget_bytes: Bytes in memory to write of each layout in each format. A larger layout is sampled.
        seed: Seed of the choice of blocks and slices.
        progress: Called with a layout's title, the slices done and all slices.

    Returns:
        The results, as savings.json contains them.

    Raises:
        SpecError: The budget is too small, or `out` is a file.
        MachineError: The disk is full, or the store cannot be written.

    Example:
        savings = measure(open_dataset("dataset"), "savings")
        print(savings.headline.sorted_by_user)
    """
    if budget_bytes < LEAST_BUDGET_BYTES:
        raise SpecError(f"budget_bytes is {budget_bytes:,}, the minimum is {LEAST_BUDGET_BYTES:,}")
    store = open_store(out)
    if isinstance(store, LocalStore):
        existing = next((path for path in (store.root, *store.root.parents) if path.exists()), store.root)
        if existing.is_file():
            raise SpecError(f"{existing} is a file, but the report needs a folder. Choose another output.")
    else:
        store.check_writable()
    with output_folder(store, keep_others=True) as root:
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=root, prefix=".measure-") as folder, _one_thread():
                savings = _measure(dataset, Path(folder), budget_bytes, seed, progress)
            write_savings(savings, root / "savings.json")
            (root / "savings.html").write_text(savings_page(savings), encoding="utf-8")
            write_pngs(charts(savings), root, "savings")
        except OSError as error:
            raise MachineError(disk_message(error, root)) from None
    return savings


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit Arrow to one thread, so that times do not depend on how well a format is parallelized."""
    before = pa.cpu_count()
    pa.set_cpu_count(1)
    try:
        yield
    finally:
        pa.set_cpu_count(before)


def _measure(dataset: Dataset, folder: Path, budget_bytes: int, seed: int, progress: ProgressCallback) -> Savings:
    rng = np.random.default_rng(seed)
    with logged_stage(logger, "survey"):
        sampled = survey(dataset, rng)
    logger.info("surveyed %d of %d blocks", len(sampled.blocks), len(all_blocks(dataset)))
    means = dataset_means(dataset, sampled)
    predicted = predict(means, sampled.events.type.num_fields)
    stored = _stored_dataset(dataset, sampled)
    column_blocks = sampled_blocks(dataset, sampled.blocks)
    columns = measure_columns(dataset, column_blocks)
    sampling = Sampling(seed, budget_bytes, len(sampled.blocks), len(all_blocks(dataset)), len(column_blocks))
    results: list[LayoutSavings] = []
    for layout in layouts(sampled, rng):
        with logged_stage(logger, layout.title) as stage:
            slices = choose_slices(layout, budget_bytes, rng)
            memory_bytes, files, sample = time_layout(layout, slices, folder, progress)
            stage.size_bytes = round(sample.bytes)
        results.append(
            LayoutSavings(
                name=layout.name,
                title=layout.title,
                level=layout.level,
                memory_bytes=memory_bytes,
                memory_per_target=memory_bytes / dataset.counts.targets,
                predicted_per_target=predicted[layout.level].bytes_per_target,
                copies_per_event=predicted[layout.level].copies_per_event,
                is_lower_bound=layout.interleaves_users and sampling.blocks < sampling.blocks_in_dataset,
                sample=sample,
                files=files,
            )
        )
    return Savings(
        version=SAVINGS_VERSION,
        dataset=_measured_dataset(dataset),
        means=means,
        sampling=sampling,
        settings=_settings(),
        layouts=results,
        stored=stored,
        columns=columns,
        rates=dataset_rates(dataset, columns, copy_rate()),
        headline=_headline(results, stored),
    )


def _measured_dataset(dataset: Dataset) -> MeasuredDataset:
    counts = dataset.counts
    return MeasuredDataset(
        path=dataset.location,
        name=dataset.spec.name,
        fingerprint=dataset.fingerprint,
        snapshot=dataset.snapshot.number,
        history_length=dataset.spec.history_length,
        users=counts.users,
        requests=counts.requests,
        targets=counts.targets,
        stored_events=counts.stored,
        history_events=counts.history_events,
    )


def _settings() -> dict[str, str]:
    """How files are written and read, and on which machine, in words for the report."""
    unit = f"one per file, of at most {SLICE_BYTES // 1_000_000} MB in memory"
    return {
        "arrow": f"Arrow IPC files; record batches: {unit}; zstd level {ZSTD_LEVEL}; the user level is written like "
        "the other layouts",
        "parquet": f"Parquet 2.6 with data pages of version 1 and 8 MiB; row groups: {unit}; zstd level {ZSTD_LEVEL}; "
        f"each column with or without a dictionary, whichever was smaller in {TUNING_SAMPLES} samples "
        f"of {TUNING_BYTES // 1_000_000} MB per layout; the standard error does not cover what another choice would "
        "change",
        "reading": "all columns of every file into memory, by one thread; files are in the page cache, so times do not "
        "include disk or network; files are not memory-mapped, except for the dataset as stored",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"pyarrow {pa.__version__}",
    }


def _stored_dataset(dataset: Dataset, sampled: Survey) -> StoredDataset:
    """Size on disk from the manifest; size in memory and read time from reading the sampled blocks."""
    disk_bytes = float(sum(dataset.shards.file_bytes(table) for table in SHARD_TABLES))
    started, sampled_bytes = time.perf_counter(), 0
    for block in read_blocks(dataset, sampled.blocks):
        sampled_bytes += block.timelines.nbytes + block.requests.nbytes
    seconds = time.perf_counter() - started
    memory_bytes = sampled_bytes * sampled.event_scale
    targets = dataset.counts.targets
    return StoredDataset(
        codec=dataset.spec.compression,
        disk_bytes=disk_bytes,
        disk_per_target=disk_bytes / targets,
        memory_bytes=memory_bytes,
        memory_per_target=memory_bytes / targets,
        read_seconds=seconds * sampled.event_scale,
    )


def _headline(results: Sequence[LayoutSavings], stored: StoredDataset) -> Headline:
    by_name = {layout.name: layout for layout in results}

    def ratio(name: str) -> float:
        return by_name[name].file("Parquet zstd").disk_bytes / stored.disk_bytes

    others = [layout for layout in results if layout.level != "user"]
    smallest, title = min(
        (file.disk_bytes, f"{layout.title}, {file.title}") for layout in others for file in layout.files
    )
    return Headline(
        memory=by_name["sample_level_by_log"].memory_bytes / stored.memory_bytes,
        shuffled=ratio("sample_level_shuffled"),
        log_order=ratio("sample_level_by_log"),
        sorted_by_user=ratio("sample_level_by_user"),
        smallest=smallest / stored.disk_bytes,
        smallest_title=title,
    )


def copy_rate() -> float:
    """Measure the memory copy bandwidth of one thread, in bytes per second: the upper bound of any loader."""
    source = np.ones(COPIED_BYTES, dtype=np.uint8)
    target = np.empty_like(source)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started)
    return COPIED_BYTES / sorted(seconds)[2]
