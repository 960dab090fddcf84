"""The batch plan alone: its cost for a billion requests, and how well it shuffles."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np

from longbatch.loaders.plan import BatchLocator, Plan, Shuffle, make_plan
from longbatch.schemas.types import Int64Array

from .checks import Check, Figure, Results

BATCH = 64
# a dataset of 20,000 users with 40 requests each, 200 users in a block
USERS, REQUESTS, USERS_PER_BLOCK = 20_000, 40, 200


def planning() -> Results:
    """Plan a billion requests and locate the last batch: seconds, and the peak of allocated memory."""

    def plan() -> float:
        started = time.perf_counter()
        locator = BatchLocator(make_plan(np.full(200_000, 5_000), batch_budget=BATCH, shuffle=Shuffle()))
        locator.positions(locator.plan.num_batches - 1)
        return time.perf_counter() - started

    seconds = plan()
    tracemalloc.start()
    plan()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Results(
        [
            Check("plan of a billion requests, seconds", seconds, 2.0),
            Check("plan of a billion requests, MB", peak / 1e6, 200.0),
        ],
        [],
    )


def shuffling() -> Results:
    """How well an epoch mixes users, compared with a permutation of all requests.

    Returns:
        As figures the users in a batch, and the share of an epoch over which the requests of a user are spread.
    """
    figures = []
    counts = np.full(USERS // USERS_PER_BLOCK, USERS_PER_BLOCK * REQUESTS)
    plans = {
        "sequential": make_plan(counts, batch_budget=BATCH, shuffle=None),
        "shuffled, 1 block a window": make_plan(counts, batch_budget=BATCH, shuffle=Shuffle(window_blocks=1)),
        "shuffled, 8 blocks a window": make_plan(counts, batch_budget=BATCH, shuffle=Shuffle()),
        "shuffled, groups of 8 adjacent requests": make_plan(counts, batch_budget=BATCH, shuffle=Shuffle(group=8)),
    }
    for name, plan in plans.items():
        figures += _mixed(name, _batches(plan))
    everything = np.random.default_rng(0).permutation(USERS * REQUESTS)
    figures += _mixed("a permutation of everything", np.split(everything, len(everything) // BATCH))
    return Results([], figures)


def _batches(plan: Plan) -> list[Int64Array]:
    """The requests of each batch, by their index in the dataset."""
    locator, requests = BatchLocator(plan), USERS_PER_BLOCK * REQUESTS
    return [block * requests + row for block, row in map(locator.rows, range(plan.num_batches))]


def _mixed(name: str, batches: list[Int64Array]) -> list[Figure]:
    users = [rows // REQUESTS for rows in batches]
    distinct = np.mean([len(np.unique(owners)) / len(owners) for owners in users])
    # for each user the batches of its requests in order: the last minus the first is the spread
    number = np.repeat(np.arange(len(batches)), [len(rows) for rows in batches])
    owner = np.concatenate(users)
    in_order = number[np.lexsort((number, owner))].reshape(USERS, REQUESTS)
    spread = np.mean(in_order[:, -1] - in_order[:, 0]) / len(batches)
    return [
        Figure(f"{name}: users over requests of a batch", float(distinct)),
        Figure(f"{name}: share of the epoch over which a user's requests are spread", float(spread)),
    ]
