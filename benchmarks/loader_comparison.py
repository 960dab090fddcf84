"""The loader compared with other loaders on the same requests, in one process and with two workers."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from longbatch.loaders import RequestBatch, RequestDataset, RequestLoader

from . import loader_data, loader_peers
from .checks import Check, Figure, Results, drain, medians
from .loader_data import Size
from .loader_peers import Batches, Peer, Row

BATCH, WORKERS = 32, 2
LIMITS = {"sample": 20, "request": 3}
PROCESSES = ("one process", f"{WORKERS} workers")


@dataclass(frozen=True)
class _Rows:
    """Rows for the peers, the checksum of the tensors they must yield, and the number of targets in all of them."""

    rows: list[Row]
    checksum: int
    targets: int


def against_peers(root: Path, quick: bool, repeats: int) -> Results:
    """Measure targets per second, in the order of the dataset.

    Args:
        root: Folder for the data of all loaders.
        quick: Use a smaller dataset.
        repeats: Timings of each pass.

    Returns:
        Throughput relative to the fastest peer, which reads rows of samples or of requests.
    """
    size = Size(users=8 if quick else 24, requests=16, targets=8)
    path = loader_data.write(root / "peers", size, "none")
    per_request = RequestDataset(path, batch_size=BATCH, histories="per_request")
    shared = RequestDataset(path, batch_size=BATCH, histories="shared")
    batches = list(per_request)
    levels = _rows_of_levels(batches)
    if loader_peers.checksum(_named(batch.to_per_request()) for batch in shared) != levels["request"].checksum:
        raise RuntimeError("shared timelines and per-request histories contain different histories")
    targets = levels["request"].targets
    longbatch = {
        f"histories {dataset.histories}": _rates(targets, dataset, RequestLoader(dataset, num_workers=WORKERS), repeats)
        for dataset in (per_request, shared)
    }
    figures = [figure for name, rates in longbatch.items() for figure in _figures(f"longbatch, {name}", rates)]
    checks = []
    for level, rows in levels.items():
        peers = {
            name: _peer_rates(root / f"{level}-{name}", peer, rows, repeats)
            for name, peer in loader_peers.PEERS.items()
        }
        figures += [figure for name, rates in peers.items() for figure in _figures(f"{name}, {level} level", rates)]
        for index, processes in enumerate(PROCESSES):
            best = max(rates[index] for rates in peers.values())
            for name, rates in longbatch.items():
                title = f"{name}, {processes}: targets/s over the best peer, {level} level"
                checks.append(Check(title, rates[index] / best, LIMITS[level], ">="))
    return Results(checks, figures)


def _rows_of_levels(batches: Sequence[RequestBatch]) -> dict[str, _Rows]:
    """The same targets as rows of requests, and as rows of samples in batches of BATCH, as peers yield them."""
    targets = sum(batch.num_targets for batch in batches)
    samples = [batch.expand() for batch in batches]
    parts = (s[first : first + BATCH] for s in samples for first in range(0, s.num_requests, BATCH))
    return {
        "request": _Rows(loader_peers.rows_of(batches), loader_peers.checksum(map(_named, batches)), targets),
        "sample": _Rows(loader_peers.rows_of(samples), loader_peers.checksum(map(_named, parts)), targets),
    }


def _rates(
    targets: int, in_process: Iterable[object], with_workers: Iterable[object], repeats: int
) -> tuple[float, float]:
    """Targets per second in this process, and with workers that have started already."""
    drain(with_workers)
    seconds = medians([partial(drain, in_process), partial(drain, with_workers)], repeats)
    return targets / seconds[0], targets / seconds[1]


def _peer_rates(folder: Path, peer: Peer, rows: _Rows, repeats: int) -> tuple[float, float]:
    """The same for a peer: 0 if it is not installed or cannot use workers.

    Raises RuntimeError if its tensors differ from longbatch's.
    """
    if find_spec(peer.package) is None:
        return 0.0, 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        in_process = Batches(peer, loader_peers.write_parts(folder / "all", peer, rows.rows, 1), BATCH)
        actual = loader_peers.checksum(in_process)
        if actual != rows.checksum:
            raise RuntimeError(f"{folder.name} yields other tensors: checksum {actual}, expected {rows.checksum}")
        if peer.shares is None:
            return rows.targets / medians([partial(drain, in_process)], repeats)[0], 0.0
        parts = loader_peers.write_parts(folder / "parts", peer, rows.rows, WORKERS)
        return _rates(rows.targets, in_process, Batches(peer, parts, BATCH).loader(WORKERS), repeats)


def _figures(name: str, rates: tuple[float, float]) -> list[Figure]:
    return [
        Figure(f"{name}, {processes}", rate, "targets/s" if rate else "(not measured)")
        for processes, rate in zip(PROCESSES, rates, strict=True)
    ]


def _named(batch: RequestBatch) -> dict[str, Tensor]:
    """All tensors of a batch by the names that peers use."""
    columns = {f"{role}__{n}": v for role in ("history", "targets", "labels") for n, v in getattr(batch, role).items()}
    return {**columns, "history_offsets": batch.history_offsets, "targets_offsets": batch.target_offsets}
