"""`longbatch bench loader`: the loader beside a plain copy of the same bytes, and beside other loaders on the same requests."""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longbatch.benchmarks import loader_data, loader_peers, loader_plans
from longbatch.benchmarks.checks import Check, Figure
from longbatch.benchmarks.loader_data import Size
from longbatch.benchmarks.loader_plans import BATCH
from longbatch.loaders import RequestBatch, RequestDataset, RequestLoader

STEP_SECONDS, EPOCHS = 0.05, 10


def bench_loader(
    *, quick: bool, repeats: int, progress: Callable[[str, float, float], None]
) -> tuple[list[Check], list[Figure]]:
    """Measure speed against memory, sharing, resuming with workers, planning, and peers; page cache warm."""
    with tempfile.TemporaryDirectory(prefix="longbatch-") as folder:
        root = Path(folder)
        size = Size(users=24 if quick else 48, requests=16, targets=8)
        paths = {c: loader_data.write(root / c, size, c) for c in ("none", "zstd")}
        steps: tuple[Callable[[], tuple[list[Check], list[Figure]]], ...] = (
            lambda: _against_memory(paths, repeats),
            lambda: _shared_form(paths["none"], repeats),
            lambda: _with_workers(paths["none"], repeats),
            lambda: _over_epochs(paths["zstd"]),
            loader_plans.planning,
            loader_plans.shuffling,
            lambda: _against_peers(root, quick, repeats),
        )
        checks: list[Check] = []
        figures: list[Figure] = []
        for done, step in enumerate(steps, start=1):
            found, shown = step()
            checks += found
            figures += shown
            progress("loader", done, len(steps))
    return checks, figures


def _median(measure: Callable[[], float], repeats: int) -> float:
    return statistics.median(measure() for _ in range(repeats))


def _timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _drain(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass


def _history_bytes(batches: Iterable[RequestBatch]) -> int:
    return sum(values.nbytes for batch in batches for values in batch.history.values())


def _copy(batches: list[RequestBatch]) -> None:
    """The floor: each history column of each batch copied into new memory by torch."""
    for batch in batches:
        _ = {name: torch.empty(v.shape, dtype=v.dtype).copy_(v) for name, v in batch.history.items()}


def _against_memory(paths: dict[str, Path], repeats: int) -> tuple[list[Check], list[Figure]]:
    checks, figures = [], []
    for compression, limit in (("none", 0.7), ("zstd", 0.25)):
        dataset = RequestDataset(paths[compression], batch_size=BATCH, shuffle=True)
        first_epoch = _timed(lambda: _drain(dataset))  # noqa: B023
        batches = list(dataset)
        size = _history_bytes(batches)
        pairs = [(_timed(lambda: _copy(batches)), _timed(lambda: _drain(dataset))) for _ in range(repeats)]  # noqa: B023
        floor, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        name = f"{compression}: history GB/s"
        figures += [
            Figure(f"{name}, a plain copy", size / floor / 1e9, "GB/s"),
            Figure(f"{name}, windows form", size / ours / 1e9, "GB/s"),
            Figure(f"{name}, first pass, with checksums", size / first_epoch / 1e9, "GB/s"),
        ]
        checks.append(Check(f"{compression}: windows form, share of a plain copy", floor / ours, limit, ">="))
    return checks, figures


def _shared_form(path: Path, repeats: int) -> tuple[list[Check], list[Figure]]:
    """Requests in the order of the dataset: 16 of a user in a batch."""
    rates = {}
    for form in ("windows", "shared"):
        dataset = RequestDataset(path, batch_size=4 * BATCH, form=form)
        requests = sum(batch.num_requests for batch in dataset)
        rates[form] = requests / _median(lambda: _timed(lambda: _drain(dataset)), repeats)  # noqa: B023
    figures = [Figure(f"{form} form", rate, "requests/s") for form, rate in rates.items()]
    return [Check("shared form, requests/s over windows form", rates["shared"] / rates["windows"], 3, ">=")], figures


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
        _drain(loader)
        after.append(_resident_bytes())
    figures = [Figure("resident memory after 2 epochs", after[1] / 1e6, "MB")]
    return [Check(f"resident memory after {EPOCHS} epochs, over that after 2", after[-1] / after[1], 1.05)], figures


def _resident_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def _against_peers(root: Path, quick: bool, repeats: int) -> tuple[list[Check], list[Figure]]:
    """Targets per second from rows of samples and of requests, in order, in one process."""
    size = Size(users=8, requests=8 if quick else 16, targets=8)
    dataset = RequestDataset(loader_data.write(root / "peers", size, "none"), batch_size=32)
    batches = list(dataset)
    wanted = {"request": loader_peers.checksum(map(_named, batches))}
    wanted["sample"] = loader_peers.checksum(_named(part) for batch in batches for part in _samples(batch))
    targets = sum(batch.num_targets for batch in batches)
    ours = targets / _median(lambda: _timed(lambda: _drain(dataset)), repeats)
    figures = [Figure("longbatch, windows form", ours, "targets/s")]
    best = {"sample": 0.0, "request": 0.0}
    for level in best:
        rows = loader_peers.rows_of(batches if level == "request" else (b.expand() for b in batches))
        for name, peer in loader_peers.PEERS.items():
            rate = _peer_rate(root / f"{level}-{name}", peer, rows, wanted[level], targets, repeats)
            figures.append(Figure(f"{name}, {level} level", rate, "targets/s" if rate else "(not installed)"))
            best[level] = max(best[level], rate)
    limits = {"sample": 20, "request": 3}
    return [
        Check(f"targets/s over the best peer at {level} level", ours / best[level], limits[level], ">=")
        for level in best
    ], figures


def _peer_rate(
    folder: Path, peer: loader_peers.Peer, rows: list[loader_peers.Row], wanted: int, targets: int, repeats: int
) -> float:
    """Targets per second of one peer; 0 where it is not installed. RuntimeError where its tensors are others."""
    if find_spec(peer.package) is None:
        return 0.0
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer.write(folder, rows)

        def read() -> Iterable[dict[str, Tensor]]:
            return map(loader_peers.joined, peer.read(folder, 32))

        found = loader_peers.checksum(read())
        if found != wanted:
            raise RuntimeError(f"{folder.name} yields other tensors: checksum {found}, expected {wanted}")
        return targets / _median(lambda: _timed(lambda: _drain(read())), repeats)


def _samples(batch: RequestBatch) -> Iterable[RequestBatch]:
    """The sample-level batch in parts of 32 rows, as peers yield it."""
    expanded = batch.expand()
    return (expanded[first : first + 32] for first in range(0, expanded.num_requests, 32))


def _named(batch: RequestBatch) -> dict[str, Tensor]:
    columns = {f"{role}__{n}": v for role in ("history", "targets", "labels") for n, v in getattr(batch, role).items()}
    return {**columns, "history_offsets": batch.history_offsets, "targets_offsets": batch.target_offsets}
