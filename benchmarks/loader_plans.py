"""The plan alone: what it costs for a billion requests, and how well it shuffles."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np

from longbatch.loaders.plan import BatchLocator, Plan, Shuffle, make_plan

from .checks import Check, Figure

BATCH = 64
# a dataset of 20,000 users with 40 requests each, 200 users in a block
USERS, REQUESTS, USERS_PER_BLOCK = 20_000, 40, 200


def planning() -> tuple[list[Check], list[Figure]]:
    """Plan a billion requests, and find the last batch; seconds, and the peak of what is allocated."""

    def plan() -> float:
        started = time.perf_counter()
        locator = BatchLocator(make_plan(np.full(200_000, 5_000), quota=BATCH, shuffle=Shuffle()))
        locator.positions(locator.plan.num_batches - 1)
        return time.perf_counter() - started

    seconds = plan()
    tracemalloc.start()
    plan()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return [
        Check("plan of a billion requests, seconds", seconds, 2.0),
        Check("plan of a billion requests, MB", peak / 1e6, 200.0),
    ], []


def shuffling() -> tuple[list[Check], list[Figure]]:
    """How an epoch mixes users, beside a permutation of all requests: users in a batch, and where a user's requests go."""
    figures = []
    counts = np.full(USERS // USERS_PER_BLOCK, USERS_PER_BLOCK * REQUESTS)
    for name, shuffle in {
        "sequential": None,
        "shuffled, 1 block a window": Shuffle(window_blocks=1),
        "shuffled, 8 blocks a window": Shuffle(),
        "shuffled, runs of 8 neighbors": Shuffle(run=8),
    }.items():
        figures += _mixed(name, _batches(make_plan(counts, quota=BATCH, shuffle=shuffle)))
    everything = np.random.default_rng(0).permutation(USERS * REQUESTS)
    figures += _mixed("a permutation of everything", np.split(everything, len(everything) // BATCH))
    return [], figures


def _batches(plan: Plan) -> list[np.ndarray]:
    """The requests of each batch, by their place in the dataset."""
    locator, requests = BatchLocator(plan), USERS_PER_BLOCK * REQUESTS
    return [block * requests + row for block, row in map(locator.rows, range(plan.num_batches))]


def _mixed(name: str, batches: list[np.ndarray]) -> list[Figure]:
    users = [rows // REQUESTS for rows in batches]
    different = np.mean([len(np.unique(those)) / len(those) for those in users])
    number = np.repeat(np.arange(len(batches)), [len(rows) for rows in batches])
    owner = np.concatenate(users)
    in_order = number[np.lexsort((number, owner))].reshape(USERS, REQUESTS)
    spread = np.mean(in_order[:, -1] - in_order[:, 0]) / len(batches)
    return [
        Figure(f"{name}: users over requests of a batch", float(different), ""),
        Figure(f"{name}: share of the epoch over which a user's requests lie", float(spread), ""),
    ]
