"""Random logs and specs for property tests, and the check that the kernel yields what the naive reference yields.

The logs are small and crowded on purpose (three users, six requests, seven seconds), so that ties, late
arrivals, duplicates, conflicts and heavy_users of a few events are the rule, not the exception.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from itertools import groupby
from random import Random
from typing import Any

import polars as pl
import pyarrow as pa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from longbatch.pipelines.in_memory import InMemoryDataset, build_in_memory
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.time import to_microseconds
from longbatch.validation.reference.oracle import Reference, build_reference

T = 1_700_000_000  # seconds
Row = dict[str, Any]
Frames = dict[str, pl.DataFrame]

every_case = settings(
    settings.default,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


# What the kernel built, as plain rows


def plain(value: Any) -> Any:
    """Make values comparable: times as microseconds, NaN equal to itself."""
    if isinstance(value, datetime):
        return to_microseconds(value)
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return tuple(plain(part) for part in value)
    return value


def built_requests(spec: BuildSpec, blocks: list[tuple[pa.RecordBatch, pa.RecordBatch]]) -> Iterator[Row]:
    """Yield each request of a dataset with its history cut out of its timeline."""
    for timelines, requests in blocks:
        rows = timelines.to_pylist()
        for request in requests.to_pylist():
            timeline = rows[request["timeline_row"]]
            assert (timeline["user_id"], timeline["segment"]) == (request["user_id"], request["segment"])
            end = request["history_end"]
            assert 0 <= end <= len(timeline["events"])
            history = timeline["events"][max(0, end - spec.history_length) : end]
            yield plain(request | {"history": [tuple(event.values()) for event in history]})


def reference_requests(spec: BuildSpec, reference: Reference) -> list[Row]:
    """Return the same for the reference, in the same shape."""
    return [
        plain(
            {
                "request_id": request.request_id,
                "user_id": request.user_id,
                "request_time": request.request_time,
                **request.features,
                "targets": request.targets,
                "history": request.history,
            }
        )
        for request in reference.requests
    ]


def check(spec: BuildSpec, frames: Frames, buckets: int) -> None:
    """Hold everything the kernel says against everything the reference says."""
    reference = build_reference(spec, frames)
    built = build_in_memory(spec, frames, buckets=buckets)
    blocks = list(built.blocks)
    requests = list(built_requests(spec, blocks))
    order = [(row["user_id"], row["segment"], row["request_time"], row["request_id"]) for row in requests]
    for user, positions in groupby(order, key=lambda position: position[0]):
        listed = list(positions)
        assert listed == sorted(listed), f"the requests of user {user} are out of order"
    rows = sorted(requests, key=lambda row: (row["user_id"], row["request_time"], row["request_id"]))
    within = ("segment", "timeline_row", "history_end")
    assert [{k: v for k, v in row.items() if k not in within} for row in rows] == reference_requests(spec, reference)
    check_counts(spec, built, reference)
    check_segments(spec, blocks)


def check_counts(spec: BuildSpec, built: InMemoryDataset, reference: Reference) -> None:
    assert built.row_accounting == reference.row_accounting
    events = built.counts
    assert events.stored + events.beyond_history == reference.events.stored_or_beyond
    assert events.after_last_request == reference.events.after_last_request
    reached = {
        (request.user_id, position)
        for request in reference.requests
        for position in range(request.history_start, request.history_end)
    }
    assert len(reached) <= events.stored
    assert built.counts.targets == reference.targets
    assert events.requests == len(reference.requests)
    assert events.history_events == sum(len(request.history) for request in reference.requests)
    assert events.users == len({request.user_id for request in reference.requests})
    left_out = [
        name for name in reference.left_out.as_dict() if name.startswith(("capped", "rejected", "short", "pending"))
    ]
    assert {n: getattr(events, n) for n in left_out} == {n: getattr(reference.left_out, n) for n in left_out}


def check_segments(spec: BuildSpec, blocks: list[tuple[pa.RecordBatch, pa.RecordBatch]]) -> None:
    longest = 4 * max(spec.block_events, spec.history_length)
    segments = [(row["user_id"], row["segment"]) for timelines, _ in blocks for row in timelines.to_pylist()]
    lengths = [len(row["events"]) for timelines, _ in blocks for row in timelines.to_pylist()]
    assert all(length <= longest for length in lengths)
    assert max(Counter(segments).values(), default=1) == 1
    assert len({user for user, segment in segments if segment == 0}) == len({user for user, _ in segments})


# Random logs


small_specs = st.fixed_dictionaries(
    {
        "history_length": st.integers(1, 5),
        "block_events": st.integers(1, 6),
        "block_targets": st.integers(1, 6),
    }
)
buckets = st.sampled_from([1, 1, 1, 3])
COLUMNS: dict[str, tuple[Any, list[Any]]] = {
    "user": (pl.Int64, [-1, 0, 1]),
    "request": (pl.Int64, [1, 2, 3, 4, 5, 6]),
    "origin": (pl.Int64, [1, 2, 3, 4, 5, 6]),
    "item": (pl.Int64, [-(2**40), 1, 2, 3]),
    "time": (pl.Int64, [T + second for second in range(7)]),
    "arrival": (pl.Int64, [T + second for second in range(7)]),
    "asked": (pl.Int64, [T + second for second in range(7)]),
    "click": (pl.Int8, [0, 1]),
    "tab": (pl.Int32, [0, 1, 2]),
    "score": (pl.Float64, [0.0, -0.0, 1.5, math.nan, math.inf]),
    "word": (pl.String, ["", "a", "é", "😀", "ﬀ"]),
    "flag": (pl.Boolean, [False, True]),
}
IDS = ("user", "request", "origin", "item")


@st.composite
def frames(draw: st.DrawFn, names: list[str], string_ids: set[str]) -> pl.DataFrame:
    """Draw up to 30 rows, nulls in any column, some rows (almost) twice, some ids as strings.

    The values come from a generator that Hypothesis seeds, many times faster than one draw for each; failing
    examples still shrink by rows and by spec.
    """
    size, seed = draw(st.integers(0, 30)), draw(st.integers(0, 2**32))
    random = Random(seed)
    nulls = draw(st.sampled_from([(), (), *((name,) for name in names), tuple(names)]))
    rows = [[a_value(random, name, name in nulls) for name in names] for _ in range(size)]
    has_duplicates: bool = draw(st.booleans())
    if rows and has_duplicates:
        rows += random.choices(rows, k=random.randint(1, 3))
        rows += [almost(random, names, row) for row in random.choices(rows, k=random.randint(1, 3))]
    frame = pl.DataFrame(rows, schema={name: COLUMNS[name][0] for name in names}, orient="row")
    if draw(st.integers(0, 3)):  # most logs give each user request ids of its own; in the others most ids conflict
        user_offset = 10 * pl.col("user").fill_null(0)
        frame = frame.with_columns(pl.col(name) + user_offset for name in names if name in ("request", "origin"))
    as_string = (pl.lit("id ").add(pl.col(name).cast(pl.String)).alias(name) for name in names if name in string_ids)
    return frame.with_columns(as_string)


def almost(random: Random, names: list[str], row: list[Any]) -> list[Any]:
    """Return the row with one other value."""
    changed = random.randrange(len(names))
    return [a_value(random, name, False) if i == changed else row[i] for i, name in enumerate(names)]


def a_value(random: Random, name: str, may_be_null: bool) -> Any:
    return None if may_be_null and random.random() < 0.1 else random.choice(COLUMNS[name][1])


FEATURES = {"tab": "int8", "score": "float32", "word": "string", "flag": "bool"}


def features(draw: st.DrawFn, prefix: str = "") -> dict[str, Any]:
    """Choose some features, with and without defaults, as a section of a spec."""
    chosen = draw(st.lists(st.sampled_from(sorted(FEATURES)), unique=True, max_size=2))
    defaults = {"tab": 1, "score": 1.5, "word": "a", "flag": True}
    return {
        prefix + name: {"column": name, "type": FEATURES[name]}
        | ({"default": defaults[name]} if draw(st.booleans()) else {})
        for name in chosen
    }


def ids(names: tuple[str, ...], string_ids: set[str]) -> dict[str, Any]:
    return {name: {"column": name, "type": "string" if name in string_ids else "int64"} for name in names}


wheres = st.sampled_from([None, None, "click = 1", "tab > 0 or word = 'a'", "flag", "true", "item is not null"])
