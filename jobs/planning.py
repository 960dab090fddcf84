"""`longbatch plan`: sizes of a dataset, its build and its reading at a scale nobody can try, from rates that were measured.

Every formula is in docs/planning.md, with the same letters. A `Volume` is what there would be; `project` multiplies.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longbatch.jobs.formula import predict
from longbatch.jobs.tasks import bucket_count
from longbatch.schemas.errors import SpecError

SAVINGS_VERSION = 2
TASK_COPIES = 7  # of a bucket's typed rows in memory while it is built, measured: docs/planning.md
TASK_BYTES = 230_000_000  # of a Python worker with Polars and Arrow, before it holds a row
DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Volume:
    """How much there would be: of records, and of events in all histories together (each as often as it is in one)."""

    users: float
    requests: float
    targets: float
    stored_events: float
    history_events: float


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
    """U users who come with full histories: R = U q D requests of m targets, U (L + e D) stored events, R L in histories."""
    requests = users * requests_per_user_day * days
    stored = users * (length + events_per_user_day * days)
    return Volume(users, requests, requests * targets, stored, requests * length)


def read_savings(path: str | Path) -> dict[str, Any]:
    """Read a savings.json. Raises SpecError if it is not one of this version."""
    try:
        document: dict[str, Any] = json.loads(Path(path).read_bytes())
        version = document["version"]
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}; make one with `longbatch measure`") from None
    except (ValueError, KeyError, TypeError):
        raise SpecError(f"{path} is no savings.json; make one with `longbatch measure`") from None
    if version != SAVINGS_VERSION:
        raise SpecError(f"{path} is of version {version}, this longbatch reads {SAVINGS_VERSION}; measure again")
    return document


def project(savings: dict[str, Any], volume: Volume, demand: Demand) -> dict[str, Any]:
    """All sizes and rates for a volume and a demand; bytes, rows, seconds. See docs/planning.md for each formula."""
    formula = _formula_at(savings, volume)
    decoded = {
        level: per_target for level, (per_target, _) in predict(formula, savings["rates"]["event_fields"]).items()
    }
    layouts = _layouts(savings, volume, decoded)
    return {
        "volume": asdict(volume),
        "layouts": layouts,
        "build": _build(savings, volume),
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

    Shuffled, a history is alone in its page, and costs what its events cost once. Sorted by user the rates are those
    measured. Log order lies between the two, and where depends on how many users are active at once.
    """
    rates, codec = savings["rates"], savings["on_disk"]["codec"]
    copies = {
        "sample": volume.history_events * volume.targets / volume.requests,
        "request": volume.history_events,
    }
    found = []
    for level, copied in copies.items():
        size = decoded[level] * volume.targets
        alone = copied * rates["parquet_event_at_rest"]
        found.append(_layout(f"{level}_level_shuffled", f"{level} level, shuffled, Parquet zstd", alone, size))
        name = f"{level}_level_by_user"
        beside = copied * _bytes_per_copy(savings, name, level)
        found.append(_layout(name, f"{level} level, sorted by user, Parquet zstd", beside, size))
    mine = (
        volume.stored_events * rates["event_at_rest"]
        + volume.requests * rates["request_at_rest"]
        + volume.targets * rates["target_at_rest"]
    )
    return [*found, _layout("dataset", f"longbatch, Arrow {codec}", mine, decoded["user"] * volume.targets)]


def _bytes_per_copy(savings: dict[str, Any], name: str, level: str) -> float:
    """Measured bytes of a layout as Parquet zstd for each history event in its rows."""
    (layout,) = (layout for layout in savings["layouts"] if layout["name"] == name)
    (size,) = (file["bytes"] for file in layout["files"] if (file["format"], file["codec"]) == ("Parquet", "zstd"))
    measured = savings["dataset"]
    rows = measured["targets"] / measured["requests"] if level == "sample" else 1.0
    return float(size / max(1.0, measured["history_events"] * rows))


def _layout(name: str, title: str, at_rest: float, decoded: float) -> dict[str, Any]:
    return {"name": name, "title": title, "bytes": at_rest, "decoded_bytes": decoded}


def _build(savings: dict[str, Any], volume: Volume) -> dict[str, float]:
    """Rows that are shuffled, their bytes, the buckets, and the memory of a task that builds one."""
    rates, measured = savings["rates"], savings["dataset"]
    rows_per_record = rates["log_rows"] / (measured["events"] + measured["targets"])
    rows = rows_per_record * (volume.stored_events + volume.targets)
    shuffled = rows * rates["row_shuffle_bytes"]
    buckets = bucket_count(math.ceil(rows))
    return {
        "log_rows": rows,
        "shuffle_bytes": shuffled,
        "buckets": float(buckets),
        "rows_per_bucket": rows / buckets,
        "task_memory_bytes": TASK_BYTES + TASK_COPIES * rates["row_bytes"] * rows / buckets,
    }


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
