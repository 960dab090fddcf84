"""`longbatch measure`: what storing each user's timeline once saves, against the layouts people use instead.

OUT/savings.json, all sizes in bytes, all times in seconds of one thread with files in the page cache, all of the
whole dataset (scaled up from slices of each table; `standard_error` says how far that may be off, 0 if measured whole):
    version, dataset {path, name, fingerprint, snapshot, history_length, users, requests, targets, events,
             history_events}
    formula {event_bytes, request_bytes, target_bytes, targets_per_request, history_per_request, history_per_target,
             targets_per_history (mean targets beside one copy of a history event),
             requests_per_event (overlap: mean histories that a stored event lies in),
             stored_per_target, timelines_per_target}
    sampling {seed, budget_bytes, blocks, blocks_in_dataset, column_blocks (those that `columns` is scaled up from)}
    settings {arrow, parquet, reading, machine}: words
    layouts [{name, title, decoded_bytes, decoded_per_target, predicted_per_target, copies_of_event,
              at_least (bytes at rest are a lower bound: users were mixed, and only some of them surveyed),
              sample {slices, slice_bytes, bytes, share, users, requests, targets},
              files [{format, codec, bytes, standard_error, write_seconds, read_seconds, settings}]}]
    on_disk {bytes, per_target, decoded_bytes, decoded_per_target, read_seconds, codec}: the dataset as it is
    columns [{name, stored, arrow, parquet}]: bytes at rest of each column, as the dataset stores it, plainly in Arrow with its
             codec, and in Parquet zstd in the better of dictionary and plain; null where there is no such column
    rates {event_at_rest, request_at_rest, target_at_rest, parquet_event_at_rest (an event in plain Parquet zstd), event_fields,
             log_rows, row_bytes, row_shuffle_bytes, copied_bytes_per_second}: what `longbatch plan` multiplies
    headline {decoded, shuffled, log_order, sorted_by_user, smallest, smallest_title}: times as many bytes as on_disk
OUT/savings.html says the same in words and pictures; OUT/*.png are the pictures.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.errors import MachineError, SpecError
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.disk import disk_message
from longbatch.schemas.types import ProgressCallback, no_progress

from .column_sizes import breakdown, sampled_blocks
from .cost_model import means, predict, rates
from .html_report import charts, savings_page
from .layouts import (
    SLICE_BYTES,
    TRIAL_BYTES,
    Layout,
    Slice,
    Survey,
    cut_slices,
    layouts,
    read_blocks,
    survey,
    trial,
)
from .parquet_settings import STORAGES, ZSTD_LEVEL, ParquetSettings, Storage, choose_settings, read, write
from .png_charts import write_pngs
from .results import File, LayoutSavings, Savings

VERSION = 2
BUDGET_BYTES = 600_000_000
LEAST_BUDGET_BYTES = 1_000_000
COPIED_BYTES = 1 << 26
TRIALS = 3  # places of a layout at which settings are tried, from its first slice to its last


def measure(
    dataset: Dataset,
    out: str | Path,
    *,
    budget_bytes: int = BUDGET_BYTES,
    seed: int = 0,
    progress: ProgressCallback = no_progress,
) -> Savings:
    """Measure every layout and write savings.json, savings.html and PNGs into `out`, over those of an earlier run.

    `budget_bytes` bounds the decoded bytes written of each layout in each format; a layout that is larger is
    measured in slices spread over it at random, by `seed`. The pictures are written as PNG too where matplotlib is installed. Takes some 200 MB of disk and 2 GB of memory at most.
    Raises SpecError (budget too small) and MachineError (disk full).
    """
    if budget_bytes < LEAST_BUDGET_BYTES:
        raise SpecError(f"budget_bytes is {budget_bytes:,}; measuring needs at least {LEAST_BUDGET_BYTES:,}")
    root, rng = Path(out), np.random.default_rng(seed)
    if (taken := next((path for path in (root, *root.parents) if path.exists()), root)).is_file():
        raise SpecError(f"{taken} is a file, and the report is a folder; choose another output")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".measure-") as folder, one_thread():
            savings = _measure(dataset, Path(folder), budget_bytes, seed, rng, progress)
        (root / "savings.json").write_text(json.dumps(savings.as_dict(), indent=2) + "\n", encoding="utf-8")
        (root / "savings.html").write_text(savings_page(savings), encoding="utf-8")
        write_pngs(charts(savings), root, "savings")
    except OSError as error:
        raise MachineError(disk_message(error, root)) from None
    return savings


@contextmanager
def one_thread() -> Iterator[None]:
    """Let Arrow use one thread, so that times do not depend on how well a format happens to use many."""
    before = pa.cpu_count()
    pa.set_cpu_count(1)
    try:
        yield
    finally:
        pa.set_cpu_count(before)


def _measure(
    dataset: Dataset, folder: Path, budget: int, seed: int, rng: np.random.Generator, progress: ProgressCallback
) -> Savings:
    surveyed = survey(dataset, rng)
    formula = means(dataset, surveyed)
    predicted = predict(formula, surveyed.events.type.num_fields)
    on_disk = _on_disk(dataset, surveyed)
    sampled = sampled_blocks(dataset, surveyed.blocks)
    columns = breakdown(dataset, sampled)
    blocks, found = sum(len(shard.blocks) for shard in dataset.shards), []
    for layout in layouts(surveyed, rng):
        slices = cut_slices(layout, budget, rng)
        decoded, files, sample = measure_layout(layout, slices, folder, progress)
        per_target, copies = predicted[layout.name.split("_")[0]]
        found.append(
            LayoutSavings(
                name=layout.name,
                title=layout.title,
                decoded_bytes=decoded,
                decoded_per_target=decoded / dataset.counts.targets,
                predicted_per_target=per_target,
                copies_of_event=copies,
                sample=sample,
                files=files,
                at_least=layout.mixes_users and len(surveyed.blocks) < blocks,
            )
        )
    return Savings(
        version=VERSION,
        dataset=_described(dataset),
        formula=formula,
        sampling={
            "seed": seed,
            "budget_bytes": budget,
            "blocks": len(surveyed.blocks),
            "blocks_in_dataset": blocks,
            "column_blocks": len(sampled),
        },
        settings=_settings(),
        layouts=found,
        on_disk=on_disk,
        columns=columns,
        rates={**rates(dataset, columns), "copied_bytes_per_second": copy_rate()},
        headline=_headline(found, on_disk),
    )


def _described(dataset: Dataset) -> dict[str, Any]:
    counts = dataset.counts
    return {
        "path": str(dataset.path),
        "name": dataset.spec.name,
        "fingerprint": dataset.fingerprint,
        "snapshot": dataset.snapshot.number,
        "history_length": dataset.spec.history_length,
        "users": counts.users,
        "requests": counts.requests,
        "targets": counts.targets,
        "events": counts.stored,
        "history_events": counts.history_events,
    }


def _settings() -> dict[str, str]:
    group = f"one of {SLICE_BYTES // 1_000_000} MB decoded per file at most"
    return {
        "arrow": f"Arrow IPC file, record batches: {group}; zstd level {ZSTD_LEVEL}; the user level like the others",
        "parquet": f"Parquet 2.6, data pages version 1 of 8 MiB, row groups: {group}; zstd level {ZSTD_LEVEL}; each column "
        f"with or without a dictionary, whichever was smaller in {TRIALS} trials of {TRIAL_BYTES // 1_000_000} MB over each layout; ± does not "
        "hold what another choice would change",
        "reading": "all columns of every file into memory, by one thread; the files lie in the page cache, so disk and "
        "network are not in the times; files are not memory-mapped, but for the dataset as it is",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, "
        f"pyarrow {pa.__version__}",
    }


def _on_disk(dataset: Dataset, surveyed: Survey) -> dict[str, Any]:
    """The dataset as it lies there: bytes from its books, decoded and read by reading the surveyed blocks again."""
    size = float(sum(entry.size_bytes for shard in dataset.shards for entry in shard.files))
    started, decoded = time.perf_counter(), 0
    for block in read_blocks(dataset, surveyed.blocks):
        decoded += block.timelines.nbytes + block.requests.nbytes
    seconds = time.perf_counter() - started
    targets = dataset.counts.targets
    return {
        "codec": dataset.spec.compression,
        "bytes": size,
        "per_target": size / targets,
        "decoded_bytes": decoded * surveyed.event_scale,
        "decoded_per_target": decoded * surveyed.event_scale / targets,
        "read_seconds": seconds * surveyed.event_scale,
    }


def _headline(found: Sequence[LayoutSavings], on_disk: dict[str, Any]) -> dict[str, Any]:
    """How many times the bytes of the dataset as it is: to decode, and at rest of the baselines that people know."""
    by_name = {layout.name: layout for layout in found}
    log, by_user = by_name["sample_level_by_log"], by_name["sample_level_by_user"]
    shuffled = by_name["sample_level_shuffled"]
    copied = [(file.bytes, f"{layout.title}, {file.title}") for layout in found[:-1] for file in layout.files]
    smallest, title = min(copied)
    return {
        "decoded": log.decoded_bytes / on_disk["decoded_bytes"],
        "shuffled": shuffled.file("Parquet zstd").bytes / on_disk["bytes"],
        "log_order": log.file("Parquet zstd").bytes / on_disk["bytes"],
        "sorted_by_user": by_user.file("Parquet zstd").bytes / on_disk["bytes"],
        "smallest": smallest / on_disk["bytes"],
        "smallest_title": title,
    }


def copy_rate() -> float:
    """Bytes per second that one thread of this machine copies: the floor of any loader."""
    source = np.ones(COPIED_BYTES, dtype=np.uint8)
    target = np.empty_like(source)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started)
    return COPIED_BYTES / sorted(seconds)[2]


def measure_layout(
    layout: Layout, slices: Sequence[tuple[int, int]], folder: Path, progress: ProgressCallback
) -> tuple[float, list[File], dict[str, float]]:
    """Write and read each slice in every format; return decoded bytes, files, and what the sample was."""
    places = sorted({slices[number * (len(slices) - 1) // (TRIALS - 1)][0] for number in range(TRIALS)})
    tried = [table for place in places for table in trial(layout, place)]
    parquet = [storage for storage in STORAGES if storage.format == "Parquet"]
    settings = dict.fromkeys(STORAGES, ParquetSettings()) | {s: choose_settings(tried, s.codec) for s in parquet}
    taken: dict[Storage, list[tuple[float, float, float]]] = {storage: [] for storage in STORAGES}
    line, decoded, contents = [], [], []
    for number, (start, stop) in enumerate(slices):
        part = layout.between(start, stop)
        tables = layout.tables(part)
        line.append(layout.bytes_of(part))
        decoded.append(float(sum(table.nbytes for table in tables)))
        contents.append(_contents(part, tables))
        for storage in STORAGES:
            taken[storage].append(measure_slice(tables, storage, settings[storage], folder))
        progress(layout.title, number + 1, len(slices))
    whole = layout.bytes * layout.scale
    requests, targets, users = zip(*contents, strict=True)
    sample = {
        "slices": len(slices),
        "slice_bytes": slices[0][1] - slices[0][0],
        "bytes": sum(decoded),
        "share": sum(line) / whole,
        "users": len(set().union(*users)),
        "requests": sum(requests),
        "targets": sum(targets),
    }
    files = [_file(storage, settings[storage], taken[storage], line, whole) for storage in STORAGES]
    return scale_up(decoded, line, whole)[0], files, sample


def _file(
    storage: Storage,
    settings: ParquetSettings,
    taken: Sequence[tuple[float, float, float]],
    line: Sequence[int],
    whole: float,
) -> File:
    size, written, read = (scale_up(values, line, whole) for values in zip(*taken, strict=True))
    note = settings.title if storage.format == "Parquet" else ""
    return File(storage.format, storage.codec, *size, written[0], read[0], note)


def _contents(part: Slice, tables: tuple[pa.Table, ...]) -> tuple[int, int, set[int]]:
    """Requests, targets and users of a slice."""
    last = tables[-1]
    users = set(pc.unique(last["user_id"]).to_pylist())
    if "targets" in last.column_names:
        return last.num_rows, len(pc.list_flatten(last["targets"])), users
    return len(np.unique(part.owners)), last.num_rows, users


def measure_slice(
    tables: tuple[pa.Table, ...], storage: Storage, settings: ParquetSettings, folder: Path
) -> tuple[float, float, float]:
    """Write and read one slice: bytes of its files, seconds to write, seconds to read."""
    started = time.perf_counter()
    paths = write(tables, storage, settings, folder)
    written = time.perf_counter()
    read(paths, storage)
    finished = time.perf_counter()
    size = sum(path.stat().st_size for path in paths)
    for path in paths:
        path.unlink()
    return float(size), written - started, finished - written


def scale_up(taken: Sequence[float], line: Sequence[int], whole: float) -> tuple[float, float | None]:
    """Ratio estimate of a total from slices, and its standard error (Cochran, Sampling Techniques, 6.3).

    taken: what was measured of each of n slices; line: their sizes; whole: the size of everything. The total is
    `whole * sum(taken) / sum(line)`; the error comes from the residuals `taken - ratio * line`, and is 0 where the
    slices are the whole, None where a single slice is not.
    """
    y, x = np.asarray(taken, dtype=np.float64), np.asarray(line, dtype=np.float64)
    ratio, share, n = y.sum() / x.sum(), x.sum() / whole, len(x)
    if share > 1 - 1e-9:
        return float(whole * ratio), 0.0
    if n < 2:
        return float(whole * ratio), None
    variance = (1 - share) * n / (n - 1) * ((y - ratio * x) ** 2).sum() / x.sum() ** 2
    return float(whole * ratio), float(whole * np.sqrt(variance))
