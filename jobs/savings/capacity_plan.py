"""`longbatch plan`: sizes of a dataset, its build and its reading at any scale, extrapolated from measured rates.

docs/planning.md derives every formula, with the same letters.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from longbatch.jobs.engines.stages import ROWS_PER_BUCKET, bucket_count

from .cost_model import predict
from .results import Level, Means, Rates, Savings

TASK_COPIES = 7  # peak memory of a task, in copies of its bucket's canonical rows; measured: docs/planning.md
TASK_BYTES = 230_000_000  # of a Python worker with Polars and Arrow before it reads a row
DAY_SECONDS = 86_400
FAR_FROM_SAMPLE = 1.5  # caution where a mean is this many times larger or smaller than in the sample
FEW_USERS = 1_000  # caution where the sample has fewer users
LARGE_BUCKETS = 4  # caution where a bucket has this many times the usual number of rows


@dataclass(frozen=True)
class Volume:
    """Numbers of records.

    Attributes:
        users: Users with requests.
        requests: Requests.
        targets: Targets of all requests.
        stored_events: Events of all timelines, each counted once.
        history_events: Events of all histories, each counted once per history that contains it.
        day_records: Events and targets that one more day adds.
    """

    users: float
    requests: float
    targets: float
    stored_events: float
    history_events: float
    day_records: float = 0.0


@dataclass(frozen=True)
class Demand:
    """The load on storage and loaders.

    Attributes:
        trainers: Training processes.
        requests_per_second: Requests that each of them consumes.
        cores_per_host: Cores of a host that runs loaders.
    """

    trainers: int = 8
    requests_per_second: float = 1_000.0
    cores_per_host: int = 32


@dataclass(frozen=True)
class PlannedLayout:
    """Size of a layout.

    Attributes:
        name: Identifier, such as "sample_level_by_user", or "dataset" for longbatch's own format.
        title: The same in words.
        disk_bytes: Bytes on disk.
        memory_bytes: Bytes in memory.
    """

    name: str
    title: str
    disk_bytes: float
    memory_bytes: float


@dataclass(frozen=True)
class BuildPlan:
    """Cost of the build.

    Attributes:
        log_rows: Rows of the raw log.
        shuffle_bytes: Bytes that the build shuffles.
        day_rows: Rows that one more day adds.
        day_shuffle_bytes: Bytes that appending one more day shuffles.
        buckets: Buckets, one task each.
        rows_per_bucket: Rows of a bucket.
        task_memory_bytes: Peak memory of a task.
    """

    log_rows: float
    shuffle_bytes: float
    day_rows: float
    day_shuffle_bytes: float
    buckets: int
    rows_per_bucket: float
    task_memory_bytes: float


@dataclass(frozen=True)
class ReadingPlan:
    """Cost of reading for training.

    Attributes:
        requests_per_second: Requests of all trainers together.
        read_bytes_per_second: Bandwidth from storage.
        batch_bytes_per_second: Bandwidth to the trainers.
        decode_seconds_per_request: Processor time to read and decode a request.
        copy_seconds_per_request: Processor time to copy a request's history into a batch.
        cores: Cores that loaders need.
        hosts: Hosts that have so many cores.
        epoch_days: Duration of one epoch.
    """

    requests_per_second: float
    read_bytes_per_second: float
    batch_bytes_per_second: float
    decode_seconds_per_request: float
    copy_seconds_per_request: float
    cores: float
    hosts: int
    epoch_days: float


@dataclass(frozen=True)
class CapacityPlan:
    """A complete plan.

    Attributes:
        volume: The volume that is planned for.
        demand: The demand that is planned for.
        sample: The volume of the measured dataset.
        sample_history_length: Its history length.
        cautions: Where the plan is far from the sample, in words.
        layouts: Storage of each layout; the dataset's own is the last.
        build: Cost of the build.
        reading: Cost of reading.
    """

    volume: Volume
    demand: Demand
    sample: Volume
    sample_history_length: int
    cautions: list[str]
    layouts: list[PlannedLayout]
    build: BuildPlan
    reading: ReadingPlan

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def layout(self, name: str) -> PlannedLayout:
        """Return a layout by its name, such as "dataset"."""
        return next(layout for layout in self.layouts if layout.name == name)


def steady_volume(
    *,
    users: float,
    requests_per_user_day: float,
    targets: float,
    length: float,
    days: float,
    events_per_user_day: float,
) -> Volume:
    """Return the volume of users whose histories are complete before the first day.

    U users with q requests a day of m targets over D days, histories of L events and e new events a day give
    U q D requests, U (L + e D) stored events, and U q D L events in histories.

    Args:
        users: Users with requests, U.
        requests_per_user_day: Requests per user and day, q.
        targets: Targets per request, m.
        length: Mean events of a history, L.
        days: Days of requests, D.
        events_per_user_day: New events per user and day, e.
    """
    requests = users * requests_per_user_day * days
    stored = users * (length + events_per_user_day * days)
    day = users * (events_per_user_day + requests_per_user_day * targets)
    return Volume(users, requests, requests * targets, stored, requests * length, day)


def plan_capacity(savings: Savings, volume: Volume, demand: Demand) -> CapacityPlan:
    """Extrapolate measured rates to a volume and a demand.

    Args:
        savings: Results of `longbatch measure` for a sample of the log.
        volume: The volume to plan for.
        demand: The load to plan for.

    Returns:
        Storage of each layout, cost of the build and of reading, and cautions.

    Example:
        volume = steady_volume(users=1e9, requests_per_user_day=30, targets=8, length=10_000, days=30,
        events_per_user_day=240) plan = plan_capacity(read_savings("savings/savings.json"), volume, Demand())
        print(plan.layout("dataset").disk_bytes)
    """
    layouts, build = _plan_layouts(savings, volume), _plan_build(savings, volume)
    return CapacityPlan(
        volume=volume,
        demand=demand,
        sample=_sample_volume(savings),
        sample_history_length=savings.dataset.history_length,
        cautions=_cautions(savings, volume, build),
        layouts=layouts,
        build=build,
        reading=_plan_reading(savings, volume, demand, layouts[-1]),
    )


def _means_at(savings: Savings, volume: Volume) -> Means:
    """The measured record sizes with the means of another volume; targets are spread evenly over requests."""
    per_request = volume.targets / volume.requests
    history = volume.history_events / volume.requests
    return replace(
        savings.means,
        targets_per_request=per_request,
        history_per_request=history,
        history_per_target=history,
        targets_per_history=per_request,
        requests_per_event=volume.history_events / volume.stored_events,
        stored_per_target=volume.stored_events / volume.targets,
        timelines_per_target=volume.users / volume.targets,
    )


def _plan_layouts(savings: Savings, volume: Volume) -> list[PlannedLayout]:
    """Size of each layout as Parquet zstd, and last of the dataset itself.

    Shuffled, no copy of a history is close to another one, so each copied event costs as much as an event stored once.
    Sorted by user, each event costs that once, and every copy costs what the sample measured. Log order is between the
    two and depends on how many users are active at once, so it is not predicted. The rows' own columns are added to
    all.
    """
    predicted = predict(_means_at(savings, volume), savings.rates.event_fields)
    memory_bytes = {level: prediction.bytes_per_target * volume.targets for level, prediction in predicted.items()}
    rates = savings.rates
    layouts: list[PlannedLayout] = []
    levels: tuple[Level, ...] = ("sample", "request")
    for level in levels:
        copied_events, own_bytes = _copied_events(volume, level), _own_bytes(rates, volume, level)
        shuffled = copied_events * rates.parquet_event_bytes + own_bytes
        share, copy_bytes = _fit_sorted(savings, level)
        once = volume.stored_events * rates.parquet_event_bytes + own_bytes
        by_user = share * once + copied_events * copy_bytes
        for name, title, disk_bytes in (("shuffled", "shuffled", shuffled), ("by_user", "sorted by user", by_user)):
            title = f"{level} level, {title}, Parquet zstd"
            layouts.append(PlannedLayout(f"{level}_level_{name}", title, disk_bytes, memory_bytes[level]))
    dataset_bytes = volume.stored_events * rates.event_disk_bytes + _own_bytes(rates, volume, "request")
    title = f"longbatch, Arrow {savings.stored.codec}"
    return [*layouts, PlannedLayout("dataset", title, dataset_bytes, memory_bytes["user"])]


def _copied_events(volume: Volume, level: Level) -> float:
    """History events of all rows of a level."""
    return volume.history_events * (volume.targets / volume.requests if level == "sample" else 1.0)


def _own_bytes(rates: Rates, volume: Volume, level: Level) -> float:
    """Bytes on disk of the columns of requests, in each row of a level, and of targets."""
    rows = volume.targets if level == "sample" else volume.requests
    return rows * rates.request_disk_bytes + volume.targets * rates.target_disk_bytes


def _fit_sorted(savings: Savings, level: Level) -> tuple[float, float]:
    """Fit the layout sorted by user: size = share * (events once and own columns) + copied events * bytes per copy.

    If the measured size is larger than every event once, the share is 1 and the rest is spread over the copies.
    If it is smaller, copies cost nothing and the share is below 1. For example, measured 120 with 100 for events once
    and 10 copies gives (1, 2); measured 80 gives (0.8, 0).
    """
    sample, rates = _sample_volume(savings), savings.rates
    measured = savings.layout(f"{level}_level_by_user").file("Parquet zstd").disk_bytes
    once = sample.stored_events * rates.parquet_event_bytes + _own_bytes(rates, sample, level)
    return min(1.0, measured / once), max(0.0, measured - once) / max(1.0, _copied_events(sample, level))


def _sample_volume(savings: Savings) -> Volume:
    measured = savings.dataset
    return Volume(
        users=float(measured.users),
        requests=float(measured.requests),
        targets=float(measured.targets),
        stored_events=float(measured.stored_events),
        history_events=float(measured.history_events),
    )


def _plan_build(savings: Savings, volume: Volume) -> BuildPlan:
    rates, sample = savings.rates, savings.dataset
    # a log row may be an event, a target or both; the sample gives how many rows a record takes on average
    rows_per_record = rates.log_rows / (sample.stored_events + sample.targets)
    rows, day_rows = (rows_per_record * n for n in (volume.stored_events + volume.targets, volume.day_records))
    buckets = bucket_count(math.ceil(rows))
    return BuildPlan(
        log_rows=rows,
        shuffle_bytes=rows * rates.row_shuffle_bytes,
        day_rows=day_rows,
        day_shuffle_bytes=day_rows * rates.row_shuffle_bytes,
        buckets=buckets,
        rows_per_bucket=rows / buckets,
        task_memory_bytes=TASK_BYTES + TASK_COPIES * rates.row_bytes * rows / buckets,
    )


def _cautions(savings: Savings, volume: Volume, build: BuildPlan) -> list[str]:
    """Where the plan is far from the sample, or exceeds what the engines are designed for."""
    sample, cautions = _sample_volume(savings), []
    means = {
        "history events per request": [v.history_events / v.requests for v in (sample, volume)],
        "targets per request": [v.targets / v.requests for v in (sample, volume)],
    }
    for name, (measured, planned) in means.items():
        if not 1 / FAR_FROM_SAMPLE <= planned / max(measured, 1e-9) <= FAR_FROM_SAMPLE:
            cautions.append(
                f"{name}: {_number(planned)} planned, {_number(measured)} in the sample. The sizes of layouts sorted "
                "by user are fitted to the sample; measure a sample that is closer to the plan"
            )
    if sample.users < FEW_USERS:
        cautions.append(f"the sample has {sample.users:,.0f} users; rates of fewer than {FEW_USERS:,} users vary")
    if build.rows_per_bucket > LARGE_BUCKETS * ROWS_PER_BUCKET:
        cautions.append(
            f"{build.buckets:,} buckets is the maximum, so tasks are large; build day by day, or parts of the users"
        )
    return cautions


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _plan_reading(savings: Savings, volume: Volume, demand: Demand, dataset: PlannedLayout) -> ReadingPlan:
    """Bandwidth and cores that training needs, if each block is read once an epoch."""
    rate = demand.trainers * demand.requests_per_second
    history_bytes = volume.history_events / volume.requests * savings.means.event_bytes
    decode_seconds_per_event = savings.stored.read_seconds / max(1, savings.dataset.stored_events)
    decode_seconds = decode_seconds_per_event * volume.stored_events / volume.requests
    copy_seconds = history_bytes / savings.rates.copied_bytes_per_second
    cores = rate * (decode_seconds + copy_seconds)
    return ReadingPlan(
        requests_per_second=rate,
        read_bytes_per_second=rate * dataset.disk_bytes / volume.requests,
        batch_bytes_per_second=rate * history_bytes,
        decode_seconds_per_request=decode_seconds,
        copy_seconds_per_request=copy_seconds,
        cores=cores,
        hosts=math.ceil(cores / demand.cores_per_host),
        epoch_days=volume.requests / rate / DAY_SECONDS,
    )
