"""A log of some days with everything that crosses the border of a day, for tests of appending."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import polars as pl

from longbatch.pipelines.content_hash import content_hash
from longbatch.schemas.format.dataset import open_dataset

T = 1_700_000_000
DAY = 100
DAYS_SPEC = """
history_length = 5
block_events = 8
max_rejected = 0.5
[sources.log]
path = "log-*.parquet"
[sources.actions]
path = "actions.parquet"
[history]
source = "log"
where = "seen"
user_id = { column = "user", type = "string" }
item_id = "item"
event_time = { column = "time", unit = "s" }
arrival_time = { column = "arrival", unit = "s" }
request_id = "request"
features = { word = "id" }
[requests]
source = "log"
where = "shown"
user_id = { column = "user", type = "string" }
item_id = "item"
request_time = { column = "asked", unit = "s" }
request_id = "request"
[requests.labels]
click = "int8"
liked = { aggregate = "any", within = "30s" }
spent = { aggregate = "sum", column = "value", within = "70s", type = "int64" }
[actions]
source = "actions"
user_id = { column = "user", type = "string" }
item_id = "item"
event_time = { column = "time", unit = "s" }
"""


def a_log(seed: int, days: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A random log of some days: late arrivals, duplicates, users of some days only, requests at every border."""
    random, rows = Random(seed), []
    for request in range(40 * days):
        user, asked = f"u{random.randrange(6)}", T + random.choice([random.randrange(DAY * days), DAY, DAY - 1])
        if user == "u5" and asked < T + DAY:
            continue
        for item in random.sample(range(20), random.randint(1, 3)):
            time = asked + random.choice([-3, 0, 0, 1, 40])
            arrival = time + random.choice([0, 0, 5, DAY])
            row = (user, request, item, time, arrival, asked, random.random() < 0.8, random.random() < 0.6)
            rows += [(*row, f"w{item % 3}", item % 2)] * random.choice([1, 1, 1, 2])
    names = ["user", "request", "item", "time", "arrival", "asked", "seen", "shown", "word", "click"]
    log = pl.DataFrame(rows, schema=names, orient="row")
    actions = log.select("user", "item", time=pl.col("time") + random.randrange(50), value=pl.col("item") - 3)
    return log, actions


def write(folder: Path, log: pl.DataFrame, actions: pl.DataFrame) -> None:
    log[: log.height // 2].write_parquet(folder / "log-0.parquet")
    log[log.height // 2 :].write_parquet(folder / "log-1.parquet")
    actions.write_parquet(folder / "actions.parquet")


def end_of(day: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=T + DAY * day)


def content(dataset: Path, snapshot: int | None = None) -> str:
    opened = open_dataset(dataset, snapshot)
    return content_hash(opened.blocks(), opened.spec.history_length)
