"""`longbatch plan`: sizes of a dataset, its build and its reading at a scale nobody can try, from rates that were measured.

Every formula is in docs/planning.md, with the same letters. A `Volume` is what there would be; `project` multiplies.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from longbatch.jobs.engines.stages import ROWS_PER_BUCKET, bucket_count

from .cost_model import predict

TASK_COPIES = 7  # of a bucket's typed rows in memory while it is built, measured: docs/planning.md
TASK_BYTES = 230_000_000  # of a Python worker with Polars and Arrow, before it holds a row
DAY_SECONDS = 86_400
FAR, FEW_USERS, LARGE_BUCKETS = (
    1.5,
    1_000,
    4,
)  # what a plan cautions about: times the sample's, users, times a bucket's rows


@dataclass(frozen=True)
class Volume:
    """How much there would be: of records, and of events in all histories together (each as often as it is in one).

    day_records: events and targets that a day adds.
    """

    users: float
    requests: float
    targets: float
    stored_events: float
    history_events: float
    day_records: float = 0.0


@dataclass(frozen=True)
class Demand:
    """Who reads: trainers, requests per second of each, and cores of a host that loads for them."""

    trainers: int = 8
    requests_per_second: float = 1_000.0
    cores_per_host: int = 32


def steady_volume(
    *,
    users: float,
    requests_per_user_day: float,
    targets: float,
    length: float,
    days: float,
    events_per_user_day: float,
) -> Volume:
    """U users who come with histories of L: R = U q D requests of m targets, U (L + e D) stored events, R L in histories."""
    requests = users * requests_per_user_day * days
    stored = users * (length + events_per_user_day * days)
    day = users * (events_per_user_day + requests_per_user_day * targets)
    return Volume(users, requests, requests * targets, stored, requests * length, day)


def project(savings: dict[str, Any], volume: Volume, demand: Demand) -> dict[str, Any]:
    """All sizes and rates for a volume and a demand; bytes, rows, seconds. See docs/planning.md for each formula."""
    formula = _formula_at(savings, volume)
    decoded = {
        level: per_target for level, (per_target, _) in predict(formula, savings["rates"]["event_fields"]).items()
    }
    layouts, build = _layouts(savings, volume, decoded), _build(savings, volume)
    return {
        "volume": asdict(volume),
        "sample": {**asdict(_sample(savings)), "history_length": savings["dataset"]["history_length"]},
        "cautions": _cautions(savings, volume, build),
        "layouts": layouts,
        "build": build,
        "reading": _reading(savings, volume, demand, layouts[-1]),
        "demand": asdict(demand),
    }


def _formula_at(savings: dict[str, Any], volume: Volume) -> dict[str, float]:
    """The measured widths with the means of another volume; targets spread evenly over requests."""
    per_request = volume.targets / volume.requests
    history = volume.history_events / volume.requests
    measured = savings["formula"]
    return {
        **measured,
        "targets_per_request": per_request,
        "history_per_request": history,
        "history_per_target": history,
        "targets_per_history": per_request,
        "requests_per_event": volume.history_events / volume.stored_events,
        "stored_per_target": volume.stored_events / volume.targets,
        "timelines_per_target": volume.users / volume.targets,
    }


def _layouts(savings: dict[str, Any], volume: Volume, decoded: dict[str, float]) -> list[dict[str, Any]]:
    """Bytes at rest of each layout as Parquet zstd; the dataset's own last.

    Shuffled, a history is alone in its page, and costs what its events cost once. Sorted by user, each event costs that
    once, and each copy of it what was measured. Log order lies between the two, and where depends on how many users
    are active at once. All have the columns of their requests and targets beside.
    """
    rates, codec = savings["rates"], savings["on_disk"]["codec"]
    found = []
    for level in ("sample", "request"):
        size = decoded[level] * volume.targets
        copied, own = _copies(volume, level), _own_bytes(rates, volume, level)
        alone = copied * rates["parquet_event_at_rest"] + own
        found.append(_layout(f"{level}_level_shuffled", f"{level} level, shuffled, Parquet zstd", alone, size))
        once, per_copy = _fitted(savings, level)
        beside = once * (volume.stored_events * rates["parquet_event_at_rest"] + own) + copied * per_copy
        found.append(_layout(f"{level}_level_by_user", f"{level} level, sorted by user, Parquet zstd", beside, size))
    mine = volume.stored_events * rates["event_at_rest"] + _own_bytes(rates, volume, "request")
    return [*found, _layout("dataset", f"longbatch, Arrow {codec}", mine, decoded["user"] * volume.targets)]


def _copies(volume: Volume, level: str) -> float:
    """Events in the histories of all rows of a level."""
    return volume.history_events * (volume.targets / volume.requests if level == "sample" else 1.0)


def _own_bytes(rates: dict[str, float], volume: Volume, level: str) -> float:
    """Bytes at rest of the columns of requests, in each row of a level, and of targets."""
    rows = volume.targets if level == "sample" else volume.requests
    return rows * rates["request_at_rest"] + volume.targets * rates["target_at_rest"]


def _fitted(savings: dict[str, Any], level: str) -> tuple[float, float]:
    """Sorted by user: by what each event once and the rows' own columns are multiplied, and the bytes of a copied event.

    1, and what is left of the measured bytes for each copy; where nothing is left, the share that was measured, and 0.
    """
    rates, sample = savings["rates"], _sample(savings)
    (layout,) = (layout for layout in savings["layouts"] if layout["name"] == f"{level}_level_by_user")
    (size,) = (file["bytes"] for file in layout["files"] if (file["format"], file["codec"]) == ("Parquet", "zstd"))
    once = sample.stored_events * rates["parquet_event_at_rest"] + _own_bytes(rates, sample, level)
    return min(1.0, size / once), max(0.0, size - once) / max(1.0, _copies(sample, level))


def _sample(savings: dict[str, Any]) -> Volume:
    """The volume that was measured."""
    measured = savings["dataset"]
    names = ("users", "requests", "targets", "events", "history_events")
    return Volume(*(float(measured[name]) for name in names))


def _layout(name: str, title: str, at_rest: float, decoded: float) -> dict[str, Any]:
    return {"name": name, "title": title, "bytes": at_rest, "decoded_bytes": decoded}


def _build(savings: dict[str, Any], volume: Volume) -> dict[str, float]:
    """Rows that are shuffled, their bytes, those of one day's append, the buckets, and the memory of a task."""
    rates, measured = savings["rates"], savings["dataset"]
    rows_per_record = rates["log_rows"] / (measured["events"] + measured["targets"])
    rows, day = (rows_per_record * n for n in (volume.stored_events + volume.targets, volume.day_records))
    buckets = bucket_count(math.ceil(rows))
    return {
        "log_rows": rows,
        "shuffle_bytes": rows * rates["row_shuffle_bytes"],
        "day_rows": day,
        "day_shuffle_bytes": day * rates["row_shuffle_bytes"],
        "buckets": float(buckets),
        "rows_per_bucket": rows / buckets,
        "task_memory_bytes": TASK_BYTES + TASK_COPIES * rates["row_bytes"] * rows / buckets,
    }


def _cautions(savings: dict[str, Any], volume: Volume, build: dict[str, float]) -> list[str]:
    """Where the plan is far from the sample that it was made from, or past what the engines do."""
    sample, found = _sample(savings), []
    pairs = {
        "history events per request": [v.history_events / v.requests for v in (sample, volume)],
        "targets per request": [v.targets / v.requests for v in (sample, volume)],
    }
    for what, (measured, planned) in pairs.items():
        if not 1 / FAR <= planned / max(measured, 1e-9) <= FAR:
            found.append(
                f"{what}: {_number(planned)}, the sample has {_number(measured)}; the bytes of the other layouts, sorted by user, were "
                "fitted to the sample: measure one that is nearer"
            )
    if sample.users < FEW_USERS:
        found.append(f"the sample has {sample.users:,.0f} users; rates of fewer than {FEW_USERS:,} vary")
    if build["rows_per_bucket"] > LARGE_BUCKETS * ROWS_PER_BUCKET:
        found.append(
            f"{build['buckets']:,.0f} buckets is the most there are, so tasks are large: build day by day, or parts of the users"
        )
    return found


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _reading(savings: dict[str, Any], volume: Volume, demand: Demand, mine: dict[str, Any]) -> dict[str, float]:
    """What trainers ask of storage and of the hosts that load for them: each block is read once an epoch."""
    rates, on_disk, measured = savings["rates"], savings["on_disk"], savings["dataset"]
    asked = demand.trainers * demand.requests_per_second
    batch_bytes = volume.history_events / volume.requests * savings["formula"]["event_bytes"]
    decode_seconds = on_disk["read_seconds"] / max(1, measured["events"]) * volume.stored_events / volume.requests
    copy_seconds = batch_bytes / rates["copied_bytes_per_second"]
    cores = asked * (decode_seconds + copy_seconds)
    return {
        "requests_per_second": asked,
        "read_bytes_per_second": asked * mine["bytes"] / volume.requests,
        "batch_bytes_per_second": asked * batch_bytes,
        "decode_seconds_per_request": decode_seconds,
        "copy_seconds_per_request": copy_seconds,
        "cores": cores,
        "hosts": float(math.ceil(cores / demand.cores_per_host)),
        "epoch_days": volume.requests / asked / DAY_SECONDS,
    }
