"""Requests to an object store, and what they cost, for one day of training and one day of building.

docs/planning.md derives every formula, with the same letters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from .capacity_plan import DAY_SECONDS, CapacityPlan, PlannedLayout
from .results import Savings

RANGES_PER_BLOCK = 2  # a block is one range of the timelines file and one of the requests file
FILES_PER_SHARD = 2
OBJECTS_PER_LIST = 1_000  # of one answer to LIST


@dataclass(frozen=True)
class ObjectStore:
    """Prices of a store and how it is used.

    The default prices are the list prices of S3 Standard in us-east-1 as of 2024. Pass those of your store.

    Attributes:
        put_price: Dollars for 1,000 PUT requests; each part of a multipart upload is one.
        get_price: Dollars for 1,000 GET requests.
        list_price: Dollars for 1,000 LIST requests.
        read_bytes: Bytes of one range that a reader of other layouts, or of the log, requests.
        part_bytes: Bytes of a part of a multipart upload; smaller objects are written by one request.
        file_bytes: Bytes of a file of other layouts.
        block_events: `block_events` of the build spec.
        block_targets: `block_targets` of the build spec.
    """

    put_price: float = 0.005
    get_price: float = 0.0004
    list_price: float = 0.005
    read_bytes: float = 8e6
    part_bytes: float = 8e6
    file_bytes: float = 256e6
    block_events: int = 65_536
    block_targets: int = 65_536


@dataclass(frozen=True)
class Requests:
    """Requests of one day.

    Attributes:
        gets: GET requests.
        puts: PUT requests, and those that start and complete a multipart upload.
        lists: LIST requests.
        dollars: What they cost together.
    """

    gets: float
    puts: float
    lists: float
    dollars: float


@dataclass(frozen=True)
class LayoutRequests:
    """Requests of a layout.

    Attributes:
        name: Identifier of the layout, as in `CapacityPlan.layouts`.
        title: The same in words.
        training_day: Requests of all trainers in one day.
        building_day: Requests to add one day of the log.
    """

    name: str
    title: str
    training_day: Requests
    building_day: Requests

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Day:
    """One day of the log: users with requests, their history events, and what is new.

    A day of U users, q requests a day of m targets, e new events a day, and histories of L events.
    """

    users: float  # U min(1, q)
    history_events: float  # U min(1, q) L
    events: float  # U e
    requests: float  # U q
    targets: float  # U q m


def plan_requests(savings: Savings, plan: CapacityPlan, days: float, store: ObjectStore) -> list[LayoutRequests]:
    """Count and price the requests of each layout.

    Args:
        savings: Results of `longbatch measure`, which the plan was made from.
        plan: The plan.
        days: Days of requests in the planned volume.
        store: Prices and sizes.

    Returns:
        One record per layout, in the order of the plan; the dataset's own is the last.

    Example:
        plan = plan_capacity(savings, volume, Demand())
        dataset = plan_requests(savings, plan, days=30, store=ObjectStore())[-1]
        print(dataset.training_day.dollars)
    """
    day, priced = _day_of(plan, days), _pricing(store)
    log_bytes = plan.build.day_rows * savings.rates.row_bytes
    results = []
    for layout in plan.layouts:
        if layout.name == "dataset":
            training, building = _dataset_training(plan, store), _dataset_building(savings, plan, day, store)
        else:
            training = _other_training(plan, layout, store)
            # The histories of the day's requests are read in order to copy them.
            history_bytes = day.history_events * savings.rates.parquet_event_bytes
            files = max(1.0, layout.disk_bytes / days / store.file_bytes)
            writes = _puts(layout.disk_bytes / days, files, store)
            building = (history_bytes / store.read_bytes, writes, 1.0)
        gets, puts, lists = building
        building = (gets + log_bytes / store.read_bytes, puts, lists)
        results.append(LayoutRequests(layout.name, layout.title, priced(*training), priced(*building)))
    return results


def _day_of(plan: CapacityPlan, days: float) -> _Day:
    volume = plan.volume
    requests, targets = volume.requests / days, volume.targets / days
    users = min(volume.users, requests)
    return _Day(
        users=users,
        history_events=users * volume.history_events / volume.requests,
        events=max(0.0, volume.day_records - targets),
        requests=requests,
        targets=targets,
    )


def _pricing(store: ObjectStore) -> Callable[[float, float, float], Requests]:
    def price(gets: float, puts: float, lists: float) -> Requests:
        gets, puts, lists = (float(math.ceil(number - 1e-6)) for number in (gets, puts, lists))
        dollars = (gets * store.get_price + puts * store.put_price + lists * store.list_price) / 1_000
        return Requests(gets, puts, lists, dollars)

    return price


def _epochs_per_day(plan: CapacityPlan) -> float:
    return plan.reading.requests_per_second * DAY_SECONDS / plan.volume.requests


def _dataset_training(plan: CapacityPlan, store: ObjectStore) -> tuple[float, float, float]:
    """Every block once an epoch; each trainer lists the snapshots once a day."""
    blocks = max(plan.volume.stored_events / store.block_events, plan.volume.targets / store.block_targets)
    return _epochs_per_day(plan) * RANGES_PER_BLOCK * blocks, 0.0, float(plan.demand.trainers)


def _other_training(plan: CapacityPlan, layout: PlannedLayout, store: ObjectStore) -> tuple[float, float, float]:
    """Every byte once an epoch; each trainer lists the files once a day."""
    files = math.ceil(layout.disk_bytes / store.file_bytes)
    gets = _epochs_per_day(plan) * layout.disk_bytes / store.read_bytes
    return gets, 0.0, plan.demand.trainers * math.ceil(files / OBJECTS_PER_LIST)


def _dataset_building(
    savings: Savings, plan: CapacityPlan, day: _Day, store: ObjectStore
) -> tuple[float, float, float]:
    """One append: read and write the state of each bucket, write a shard of each bucket.

    The new shards begin with the histories of the day's requests. The state has about as many events.
    """
    rates, buckets = savings.rates, plan.build.buckets
    state_bytes = plan.volume.users * day.history_events / max(1.0, day.users) * rates.event_disk_bytes
    shard_bytes = (
        (day.history_events + day.events) * rates.event_disk_bytes
        + day.requests * rates.request_disk_bytes
        + day.targets * rates.target_disk_bytes
    )
    gets = max(float(buckets), state_bytes / store.read_bytes)
    puts = _puts(state_bytes, buckets, store) + _puts(shard_bytes, FILES_PER_SHARD * buckets, store)
    return gets, puts, 1.0


def _puts(size_bytes: float, objects: float, store: ObjectStore) -> float:
    """Requests that write objects of equal size: one each, or one per part and two more to start and complete."""
    parts = math.ceil(size_bytes / objects / store.part_bytes)
    return objects if parts <= 1 else objects * (parts + 2)
