"""The loader beside other loaders on the same requests: as they come in one process, and as a trainer with two workers gets them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from longbatch.loaders import RequestBatch, RequestDataset, RequestLoader

from . import loader_data, loader_peers
from .checks import Check, Figure, drain, medians
from .loader_data import Size

BATCH, WORKERS = 32, 2
LIMITS = {"sample": 20, "request": 3}
WAYS = ("one process", f"{WORKERS} workers")


def against_peers(root: Path, quick: bool, repeats: int) -> tuple[list[Check], list[Figure]]:
    """Targets per second from rows of samples and of requests, in the order of the dataset."""
    size = Size(users=8 if quick else 24, requests=16, targets=8)
    path = loader_data.write(root / "peers", size, "none")
    windows, shared = (
        RequestDataset(path, batch_size=BATCH, histories=histories) for histories in ("per_request", "shared")
    )
    batches = list(windows)
    wanted = {"request": loader_peers.checksum(map(_named, batches))}
    wanted["sample"] = loader_peers.checksum(_named(part) for batch in batches for part in _samples(batch))
    if loader_peers.checksum(_named(batch.to_per_request()) for batch in shared) != wanted["request"]:
        raise RuntimeError("the shared form holds other histories than the windows form")
    targets = sum(batch.num_targets for batch in batches)
    ours = {
        form: _rates(targets, data, RequestLoader(data, num_workers=WORKERS), repeats)
        for form, data in (("per_request", windows), ("shared", shared))
    }
    figures = [
        _figure(f"longbatch, {form} form", way, rate)
        for form, rates in ours.items()
        for way, rate in zip(WAYS, rates, strict=True)
    ]
    checks = []
    for level, limit in LIMITS.items():
        rows = loader_peers.rows_of(batches if level == "request" else (b.expand() for b in batches))
        found = {
            name: _peer_rates(root / f"{level}-{name}", peer, rows, wanted[level], targets, repeats)
            for name, peer in loader_peers.PEERS.items()
        }
        figures += [
            _figure(f"{name}, {level} level", way, rate)
            for name, rates in found.items()
            for way, rate in zip(WAYS, rates, strict=True)
        ]
        for place, way in enumerate(WAYS):
            best = max(rates[place] for rates in found.values())
            checks += [
                Check(
                    f"{form} form, {way}: targets/s over the best peer, {level} level",
                    ours[form][place] / best,
                    limit,
                    ">=",
                )
                for form in ours
            ]
    return checks, figures


def _rates(targets: int, here: Iterable[object], with_workers: Iterable[object], repeats: int) -> list[float]:
    """Targets per second of a pass in this process, and of one with workers that have started."""
    drain(with_workers)
    return [targets / seconds for seconds in medians([partial(drain, here), partial(drain, with_workers)], repeats)]


def _peer_rates(
    folder: Path, peer: loader_peers.Peer, rows: list[loader_peers.Row], wanted: int, targets: int, repeats: int
) -> list[float]:
    """The same of one peer; 0 where it is not installed, or takes no workers. RuntimeError where its tensors are others."""
    if find_spec(peer.package) is None:
        return [0.0, 0.0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = loader_peers.write_parts(folder / "whole", peer, rows, 1)
        here = loader_peers.Batches(peer, whole, BATCH)
        if (found := loader_peers.checksum(here)) != wanted:
            raise RuntimeError(f"{folder.name} yields other tensors: checksum {found}, expected {wanted}")
        if peer.shares is None:
            return [targets / medians([partial(drain, here)], repeats)[0], 0.0]
        parts = loader_peers.write_parts(folder / "parts", peer, rows, WORKERS)
        return _rates(targets, here, loader_peers.Batches(peer, parts, BATCH).loader(WORKERS), repeats)


def _figure(name: str, way: str, rate: float) -> Figure:
    return Figure(f"{name}, {way}", rate, "targets/s" if rate else "(not measured)")


def _samples(batch: RequestBatch) -> Iterable[RequestBatch]:
    """The sample-level batch in parts of BATCH rows, as peers yield it."""
    expanded = batch.expand()
    return (expanded[first : first + BATCH] for first in range(0, expanded.num_requests, BATCH))


def _named(batch: RequestBatch) -> dict[str, Tensor]:
    columns = {f"{role}__{n}": v for role in ("history", "targets", "labels") for n, v in getattr(batch, role).items()}
    return {**columns, "history_offsets": batch.history_offsets, "targets_offsets": batch.target_offsets}
