"""Structure checks of the audit: what a dataset's files say about themselves, on whole columns, block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.shard import COUNTED, Block
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.time import to_microseconds
from longbatch.schemas.types import BoolArray, Int64Array, ProgressCallback


@dataclass(frozen=True)
class Users:
    """All users of a dataset, (U,) ascending, and how many events their segments store, (U,)."""

    user_id: Int64Array
    events: Int64Array


@dataclass
class Seen:
    """What the structure checks remember from block to block; about 50 bytes for each user.

    runs: per block (3, N) of its N users: user, shard, stored events. totals: sums over all blocks.
    last_row: user and segment of the last timeline row of the shard being read.
    last_requests: the last user's id and requests so far, for a user that goes on in the next block.
    appended: whether days may have been appended, so that a user goes on in other shards of the bucket.
    """

    runs: list[Int64Array] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    blocks: int = 0
    last_row: tuple[int, int] | None = None
    last_requests: tuple[int, list[pa.Array]] | None = None
    appended: bool = False

    def users(self) -> Users:
        """Return every user once."""
        user_id, _, events = np.concatenate([np.empty((3, 0), dtype=np.int64), *self.runs], axis=1)
        distinct, place = np.unique(user_id, return_inverse=True)
        return Users(distinct, np.bincount(place, events, len(distinct)).astype(np.int64))


def structure_findings(dataset: Dataset, seen: Seen, report: ProgressCallback) -> Iterator[str]:
    """Check every block by itself and beside its neighbours, and each shard's totals."""
    seen.appended = dataset.snapshot.until is not None
    for number, row in enumerate(dataset.shards):
        report("structure", number, len(dataset.shards))
        seen.last_row = seen.last_requests = None
        before = dict(seen.totals)
        for place, block in blocks_of(dataset, number):
            if isinstance(block, str):
                yield block
                continue
            seen.blocks += 1
            for finding in _block_findings(dataset.spec, block, row["blocks"][place], number, seen):
                yield f"shard {number} ({row['requests']['path']}), block {place}: {finding}"
        yield from _shard_findings(number, row, {name: seen.totals[name] - before[name] for name in COUNTED})
    report("structure", len(dataset.shards), len(dataset.shards))
    home = [row["bucket"] if seen.appended else number for number, row in enumerate(dataset.shards)]
    yield from _home_findings(seen, np.array(home, dtype=np.int64))


def _shard_findings(number: int, row: dict[str, Any], found: dict[str, int]) -> Iterator[str]:
    """Compare a shard's totals with what is in its blocks, and its times with those listed for them."""
    for name, value in found.items():
        if value != row[f"total_{name}"]:
            yield f"shard {number}: {value:,} {name} in its blocks, the snapshot lists {row[f'total_{name}']:,}"
    for name, extreme in (("first_request_time", min), ("last_request_time", max)):
        time = extreme(block[name] for block in row["blocks"])
        if time != row[name]:
            yield f"shard {number}: {name} is {row[name]}, that of its blocks is {time}"


def _home_findings(seen: Seen, home: Int64Array) -> Iterator[str]:
    """Check that all of a user is in one home: of each shard, (shards,), its own number, or its bucket where days were appended."""
    user_id, shard, _ = np.concatenate([np.empty((3, 0), dtype=np.int64), *seen.runs], axis=1)
    order = np.argsort(user_id, kind="stable")
    user_id, shard = user_id[order], shard[order]
    strays = (user_id[1:] == user_id[:-1]) & (home[shard[1:]] != home[shard[:-1]])
    yield from first_finding(strays, lambda i: f"user {user_id[i]}: is in shard {shard[i]} and in shard {shard[i + 1]}")


def blocks_of(dataset: Dataset, number: int) -> Iterator[tuple[int, Block | str]]:
    """Yield the blocks of a shard, or what makes them unreadable."""
    try:
        reader = dataset.shard(number)
    except DatasetError as error:
        yield 0, f"shard {number}: {error}"
        return
    for place in range(len(dataset.shards[number]["blocks"])):
        try:
            yield place, reader.block(place)
        except DatasetError as error:
            yield place, f"shard {number}: {error}"


def _block_findings(spec: BuildSpec, block: Block, listed: dict[str, Any], shard: int, seen: Seen) -> Iterator[str]:
    yield from _count_findings(spec, block, listed, seen)
    yield from _timeline_row_findings(block, shard, seen)
    yield from _event_order_findings(spec, block)
    yield from _request_order_findings(block)
    yield from _repeated_request_findings(block, seen)
    yield from _cut_findings(spec, block)
    yield from _target_findings(spec, block)


def _count_findings(spec: BuildSpec, block: Block, listed: dict[str, Any], seen: Seen) -> Iterator[str]:
    """Compare what the block holds with what the snapshot lists."""
    lengths = np.minimum(numbers(block.requests["history_end"]), spec.history_length)
    found: dict[str, Any] = {
        "segments": block.timelines.num_rows,
        "events": len(block.timelines["events"].flatten()),
        "requests": block.requests.num_rows,
        "targets": len(block.requests["targets"].flatten()),
        "history_events": int(lengths.sum()),
    }
    for name in COUNTED:
        seen.totals[name] += found[name]
    times = pc.min_max(block.requests["request_time"]).as_py()
    found |= {"first_request_time": times["min"], "last_request_time": times["max"]}
    for name, value in found.items():
        if value != listed[name]:
            yield f"{name} is {value}, the snapshot lists {listed[name]}"


def _timeline_row_findings(block: Block, shard: int, seen: Seen) -> Iterator[str]:
    """Rows go up by user; the segments of a user count up from 0, or in a shard of an appended day from where they were."""
    user_id, segment = numbers(block.timelines["user_id"]), numbers(block.timelines["segment"])
    if not len(user_id):
        return
    starts = np.flatnonzero(np.append(True, user_id[1:] != user_id[:-1]))
    stored = np.add.reduceat(numbers(pc.list_value_length(block.timelines["events"])), starts)
    seen.runs.append(np.stack([user_id[starts], np.full(len(starts), shard), stored]))
    first = seen.last_row or (int(user_id[0]) - 1, 0)
    users, segments = np.append(first[0], user_id), np.append(first[1], segment)
    same = users[1:] == users[:-1]
    fine = np.where(
        same, segments[1:] == segments[:-1] + 1, ((segments[1:] == 0) | seen.appended) & (users[1:] > users[:-1])
    )
    seen.last_row = int(user_id[-1]), int(segment[-1])
    yield from first_finding(~fine, lambda row: f"user {user_id[row]}: segment {segment[row]} is out of order")


def _event_order_findings(spec: BuildSpec, block: Block) -> Iterator[str]:
    """Without arrival times on disk, events go up by (event_time, item_id); with them no order is visible."""
    time, item, owner = _events(block)
    low, high = (to_microseconds(bound) for bound in spec.time_range)
    user_id = numbers(block.timelines["user_id"])
    outside = (time < low) | (time > high)
    yield from first_finding(
        outside, lambda place: f"user {user_id[owner[place]]}: an event has the time {time[place]} us"
    )
    if spec.history.arrival_time is None:
        backward = (time[1:] < time[:-1]) | ((time[1:] == time[:-1]) & (item[1:] < item[:-1]))
        backward &= owner[1:] == owner[:-1]
        yield from first_finding(
            backward, lambda place: f"user {user_id[owner[place]]}: event {place + 1} is out of order"
        )


def _request_order_findings(block: Block) -> Iterator[str]:
    """Requests go up by (user, segment, request time, request id), each once (whose timeline: the reader checks)."""
    requests = block.requests
    request_id = pc.rank(requests["request_id"], tiebreaker="dense")
    keys = [*(requests[name] for name in ("user_id", "segment", "request_time")), request_id]
    upward = np.zeros(max(0, requests.num_rows - 1), dtype=np.bool_)
    for column in map(numbers, reversed(keys)):
        upward = (column[1:] > column[:-1]) | ((column[1:] == column[:-1]) & upward)
    yield from first_finding(
        ~upward, lambda i: f"{named(requests, i + 1)}: out of order, or the same as the one before"
    )


def _repeated_request_findings(block: Block, seen: Seen) -> Iterator[str]:
    """A user's request ids differ, also from one segment and block to the next."""
    requests, request_id = block.requests, pc.rank(block.requests["request_id"], tiebreaker="dense")
    order = np.lexsort((numbers(request_id), numbers(requests["user_id"])))
    user, ids = numbers(requests["user_id"])[order], numbers(request_id)[order]
    twice = (user[1:] == user[:-1]) & (ids[1:] == ids[:-1])
    yield from first_finding(twice, lambda i: f"{named(requests, int(order[i]))}: stands twice in the block")
    if not len(user):
        return
    earlier_user, earlier = seen.last_requests or (int(user[0]), [])
    if earlier and earlier_user == user[0]:
        known = pc.is_in(requests["request_id"], value_set=pa.concat_arrays(earlier))
        again = numbers(known) * (numbers(requests["user_id"]) == earlier_user)
        yield from first_finding(again > 0, lambda i: f"{named(requests, i)}: stands in an earlier block too")
    last = requests.filter(pc.equal(requests["user_id"], int(user[-1])))["request_id"]
    seen.last_requests = int(user[-1]), [*(earlier if earlier_user == user[-1] else []), last]


def _cut_findings(spec: BuildSpec, block: Block) -> Iterator[str]:
    """No history reaches its request's time; every stored event is within some request's reach.

    All events of a segment in front of history_end are visible, so the latest event_time among them counts, also
    where late events stand behind newer ones. Where neither arrival times nor own events can hide one, the event
    at history_end must not be visible.
    """
    requests = block.requests
    row, end = numbers(requests["timeline_row"]), numbers(requests["history_end"])
    time, _, owner = _events(block)
    offsets = numbers(block.timelines["events"].offsets)
    offsets = offsets - offsets[0]
    ready = _running_maximum(time, owner) + spec.history.delay_us
    asked = numbers(requests["request_time"])
    last = np.maximum(offsets[row] + end - 1, 0)
    leak = (end > 0) & (ready[last] >= asked) if len(ready) else np.zeros(len(end), dtype=np.bool_)
    yield from first_finding(leak, lambda i: f"{named(requests, i)}: its history has events that it could not see")
    lengths = np.diff(offsets)
    if spec.history.arrival_time is None and spec.history.request_id is None and len(time):
        following = np.minimum(offsets[row] + end, len(time) - 1)
        lost = (end < lengths[row]) & (time[following] + spec.history.delay_us < asked)
        yield from first_finding(lost, lambda i: f"{named(requests, i)}: its history lacks events that it could see")
    first, furthest = lengths.copy(), np.full(len(lengths), -1)
    np.minimum.at(first, row, np.maximum(end - spec.history_length, 0))
    np.maximum.at(furthest, row, end)
    user_id = numbers(block.timelines["user_id"])
    unused = (first > 0) | (furthest < lengths)
    yield from first_finding(unused, lambda i: f"user {user_id[i]}: stores events that no request reaches")


def _target_findings(spec: BuildSpec, block: Block) -> Iterator[str]:
    """Every request has targets, ordered by item, with all their labels."""
    requests = block.requests
    sizes = numbers(pc.list_value_length(requests["targets"]))
    yield from first_finding(sizes == 0, lambda i: f"{named(requests, i)}: has no targets")
    owner = np.repeat(np.arange(len(sizes)), sizes)
    targets = requests["targets"].flatten()
    item = numbers(pc.struct_field(targets, "item_id"))
    backward = (item[1:] < item[:-1]) & (owner[1:] == owner[:-1])
    yield from first_finding(backward, lambda i: f"{named(requests, owner[i])}: its targets are out of order")
    for label in spec.requests.labels:
        nulls = pc.struct_field(targets, label).is_null().to_numpy(zero_copy_only=False)
        yield from first_finding(nulls, partial(_say_null, requests, owner, label))


def _say_null(requests: pa.RecordBatch, owner: Int64Array, label: str, place: int) -> str:
    return f"{named(requests, owner[place])}: the label {label} is null"


def numbers(column: pa.Array) -> Int64Array:
    """Integers or timestamps without nulls, (N,), as int64."""
    return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False))


def _events(block: Block) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Event times in us, items, and the timeline row of all events of a block, (N,) each."""
    events = block.timelines["events"].flatten()
    sizes = numbers(pc.list_value_length(block.timelines["events"]))
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return (
        numbers(pc.struct_field(events, "event_time")),
        numbers(pc.struct_field(events, "item_id")),
        owner,
    )


def _running_maximum(values: Int64Array, group: Int64Array) -> Int64Array:
    """Return the largest value so far within each group, (N,); `group` goes up."""
    distinct, rank = np.unique(values, return_inverse=True)
    return np.asarray(distinct[np.maximum.accumulate(group * len(distinct) + rank) - group * len(distinct)])


def named(requests: pa.RecordBatch, row: Any) -> str:
    return f"user {requests['user_id'][int(row)].as_py()}, request {requests['request_id'][int(row)].as_py()}"


def first_finding(wrong: BoolArray, say: Callable[[int], str]) -> Iterator[str]:
    """Say what is wrong at the first place, and at how many more."""
    places = np.flatnonzero(wrong)
    if len(places):
        yield say(int(places[0])) + (f" (and {len(places) - 1:,} more like it)" if len(places) > 1 else "")
