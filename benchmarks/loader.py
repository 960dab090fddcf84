"""`longbatch bench loader`: the loader beside a plain copy of the same bytes, and beside other loaders on the same requests."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch

from longbatch.loaders import RequestBatch, RequestDataset, RequestLoader
from longbatch.schemas.types import ProgressCallback

from . import loader_data, loader_plans, loader_race
from .checks import Check, Figure, all_of, drain, medians, timed
from .loader_data import Size
from .loader_plans import BATCH

STEP_SECONDS, EPOCHS = 0.05, 10
PASSES = 5  # in one timing of the shared form: one pass takes a hundredth of a second


def bench_loader(*, quick: bool, repeats: int, progress: ProgressCallback) -> tuple[list[Check], list[Figure]]:
    """Measure speed against memory, sharing, resuming with workers, planning, and peers; page cache warm."""
    with tempfile.TemporaryDirectory(prefix="longbatch-") as folder:
        root = Path(folder)
        size = Size(users=24 if quick else 96, requests=16, targets=8)
        paths = {c: loader_data.write(root / c, size, c) for c in ("none", "zstd")}
        steps = (
            lambda: _against_memory(paths, repeats),
            lambda: _shared_form(paths["none"], repeats),
            lambda: _with_workers(paths["none"], repeats),
            lambda: _over_epochs(paths["zstd"]),
            loader_plans.planning,
            loader_plans.shuffling,
            lambda: loader_race.against_peers(root, quick, repeats),
        )
        return all_of("loader", steps, progress)


def _history_bytes(batches: Iterable[RequestBatch]) -> int:
    return sum(values.nbytes for batch in batches for values in batch.history.values())


def _copy(batches: list[RequestBatch]) -> None:
    """The floor: each history column of each batch copied into new memory by torch."""
    for batch in batches:
        _ = {name: torch.empty(v.shape, dtype=v.dtype).copy_(v) for name, v in batch.history.items()}


def _copy_over(batches: list[RequestBatch]) -> None:
    """The same into memory that is there already, each batch over the one before."""
    places = {name: torch.empty_like(values) for name, values in batches[0].history.items()}
    for batch in batches:
        for name, values in batch.history.items():
            places[name][: len(values)].copy_(values[: len(places[name])])


def _against_memory(paths: dict[str, Path], repeats: int) -> tuple[list[Check], list[Figure]]:
    checks, figures = [], []
    for compression, limit in (("none", 0.7), ("zstd", 0.25)):
        dataset = RequestDataset(paths[compression], batch_size=BATCH, shuffle=True)
        first_epoch = timed(lambda: drain(dataset))  # noqa: B023
        batches = list(dataset)
        size = _history_bytes(batches)
        floor, over, ours = medians(
            [partial(_copy, batches), partial(_copy_over, batches), partial(drain, dataset)], repeats
        )
        name = f"{compression}: history GB/s"
        figures += [
            Figure(f"{name}, a plain copy", size / floor / 1e9, "GB/s"),
            Figure(f"{name}, a copy into memory that is there", size / over / 1e9, "GB/s"),
            Figure(f"{name}, windows form", size / ours / 1e9, "GB/s"),
            Figure(f"{name}, first pass, with checksums", size / first_epoch / 1e9, "GB/s"),
        ]
        checks.append(Check(f"{compression}: windows form, share of a plain copy", floor / ours, limit, ">="))
    return checks, figures


def _shared_form(path: Path, repeats: int) -> tuple[list[Check], list[Figure]]:
    """Requests in the order of the dataset: 16 of a user in a batch, at two sizes of batches."""
    figures, times = [], {}
    for size in (BATCH, 4 * BATCH):
        datasets = [
            RequestDataset(path, batch_size=size, histories=histories) for histories in ("per_request", "shared")
        ]
        requests = sum(batch.num_requests for batch in datasets[1])
        times[size] = medians([partial(_drain_several, dataset) for dataset in datasets], repeats)
        rates = zip(("per_request", "shared"), times[size], strict=True)
        figures += [Figure(f"{form} form, batches of {size}", PASSES * requests / t, "requests/s") for form, t in rates]
    windows, shared = times[4 * BATCH]
    figures.append(Figure(f"shared form over windows form, batches of {BATCH}", times[BATCH][0] / times[BATCH][1], "x"))
    return [Check("shared form, requests/s over windows form", windows / shared, 3, ">=")], figures


def _drain_several(dataset: RequestDataset) -> None:
    for _ in range(PASSES):
        drain(dataset)


def _with_workers(path: Path, repeats: int) -> tuple[list[Check], list[Figure]]:
    """How long the main process waits for a batch while each step takes 50 ms, with two workers of either kind."""
    checks, figures = [], []
    for workers in ("threads", "processes"):
        firsts, shares = [], []
        for _ in range(repeats):
            dataset = RequestDataset(path, batch_size=BATCH, shuffle=True)
            started = time.perf_counter()
            loader = RequestLoader(dataset, num_workers=2, workers=workers)
            waits = _waits(loader, started)
            firsts.append(waits[0])
            shares.append(statistics.mean(waits[2:]) / (STEP_SECONDS + statistics.mean(waits[2:])))
        figures.append(Figure(f"{workers}: first batch", statistics.median(firsts), "s"))
        share = statistics.median(shares)
        checks.append(Check(f"2 {workers}: share of a 50 ms step spent on the loader", share, 0.10, "<="))
        checks.append(Check(f"2 {workers}: seconds to the first batch", statistics.median(firsts), 1.0, "<="))
    return checks, figures


def _waits(loader: RequestLoader, started: float) -> list[float]:
    waits = []
    for _ in loader:
        waits.append(time.perf_counter() - started)
        time.sleep(STEP_SECONDS)
        started = time.perf_counter()
    return waits


def _over_epochs(path: Path) -> tuple[list[Check], list[Figure]]:
    """Memory of this process that no file backs, after the second and after the tenth epoch."""
    loader = RequestLoader(RequestDataset(path, batch_size=BATCH, shuffle=True), num_workers=2)
    after = []
    for _ in range(EPOCHS):
        drain(loader)
        after.append(_resident_bytes())
    figures = [Figure("resident memory after 2 epochs", after[1] / 1e6, "MB")]
    return [Check(f"resident memory after {EPOCHS} epochs, over that after 2", after[-1] / after[1], 1.05)], figures


def _resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024
