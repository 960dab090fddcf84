"""Structure checks of the audit: whether a dataset is consistent in itself, on whole columns, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.manifest import COUNT_NAMES, BlockEntry, CountName
from longbatch.schemas.format.shard_reader import Block
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.time import to_microseconds
from longbatch.schemas.types import ArrowArray, Int64Array, ProgressCallback

from .blocks import as_int64, block_label, first_finding, list_column, list_lengths, readable_blocks, request_label


@dataclass(frozen=True)
class StoredUsers:
    """All users of a dataset.

    Attributes:
        user_id: The users, (U,) ascending.
        events: How many events their segments store, (U,).
    """

    user_id: Int64Array
    events: Int64Array


@dataclass
class StructureState:
    """What the structure checks remember from block to block; about 50 bytes for each user.

    Attributes:
        user_runs: For each block of N users a (3, N) array: user, shard, stored events.
        totals: Sums over all blocks, by the names of `COUNT_NAMES`.
        blocks: Number of blocks that were read.
        last_row: User and segment of the last timeline row of the shard being read.
        last_requests: The last user and its request ids so far, because a user may continue in the next block.
        is_appended: Whether the dataset can grow by appends, so that a user may be in several shards of a bucket.
    """

    user_runs: list[Int64Array] = field(default_factory=list)
    totals: dict[CountName, int] = field(default_factory=lambda: dict.fromkeys(COUNT_NAMES, 0))
    blocks: int = 0
    last_row: tuple[int, int] | None = None
    last_requests: tuple[int, list[ArrowArray]] | None = None
    is_appended: bool = False

    def users(self) -> StoredUsers:
        """Return every user once, with the events of all its segments."""
        user_id, _, events = self.runs()
        distinct, index = np.unique(user_id, return_inverse=True)
        return StoredUsers(distinct, np.bincount(index, events, len(distinct)).astype(np.int64))

    def runs(self) -> Int64Array:
        """Return `user_runs` of all blocks as one (3, N) array."""
        return np.concatenate([np.empty((3, 0), dtype=np.int64), *self.user_runs], axis=1)


def structure_findings(dataset: Dataset, state: StructureState, progress: ProgressCallback) -> Iterator[str]:
    """Check every block by itself and against its neighbors.

    Args:
        dataset: The dataset.
        state: A new state; afterwards it has the dataset's users and totals.
        progress: Called before each shard.

    Yields:
        Findings.
    """
    state.is_appended = dataset.snapshot.until is not None
    for shard, entry in enumerate(dataset.shards):
        progress("structure", shard, len(dataset.shards))
        state.last_row = state.last_requests = None
        for index, block in readable_blocks(dataset, shard):
            if isinstance(block, str):
                yield block
                continue
            state.blocks += 1
            for finding in _block_findings(dataset.spec, block, entry.blocks[index], shard, state):
                yield f"{block_label(shard, entry, index)}: {finding}"
    progress("structure", len(dataset.shards), len(dataset.shards))
    home = dataset.shards.values("bucket") if state.is_appended else np.arange(len(dataset.shards))
    yield from _home_findings(state, home)


def _time_findings(first: datetime, last: datetime, entry: BlockEntry) -> Iterator[str]:
    """Compare the first and last request time of a block with those that the snapshot lists."""
    if first != entry.first_request_time:
        yield f"first_request_time is {first}, but the snapshot lists {entry.first_request_time}"
    if last != entry.last_request_time:
        yield f"last_request_time is {last}, but the snapshot lists {entry.last_request_time}"


def _home_findings(state: StructureState, home: Int64Array) -> Iterator[str]:
    """Check that all of a user is in one home: one shard, or with appends the shards of one bucket; (shards,)."""
    user_id, shard, _ = state.runs()
    order = np.argsort(user_id, kind="stable")
    user_id, shard = user_id[order], shard[order]
    is_split = (user_id[1:] == user_id[:-1]) & (home[shard[1:]] != home[shard[:-1]])
    yield from first_finding(
        is_split,
        lambda i: f"user {user_id[i]}: is in shard {shard[i]} and in shard {shard[i + 1]}, but may be in one only",
    )


# One block


def _block_findings(
    spec: BuildSpec, block: Block, entry: BlockEntry, shard: int, state: StructureState
) -> Iterator[str]:
    yield from _count_findings(spec, block, entry, state)
    yield from _timeline_order_findings(block, shard, state)
    yield from _event_findings(spec, block)
    yield from _request_order_findings(block)
    yield from _repeated_request_findings(block, state)
    yield from _history_findings(spec, block)
    yield from _target_findings(spec, block)


def _count_findings(spec: BuildSpec, block: Block, entry: BlockEntry, state: StructureState) -> Iterator[str]:
    """Compare what the block contains with what the snapshot lists."""
    lengths = np.minimum(as_int64(block.requests["history_end"]), spec.history_length)
    counts: dict[CountName, int] = {
        "segments": block.timelines.num_rows,
        "events": len(list_column(block.timelines, "events").flatten()),
        "requests": block.requests.num_rows,
        "targets": len(list_column(block.requests, "targets").flatten()),
        "history_events": int(lengths.sum()),
    }
    for name, value in counts.items():
        state.totals[name] += value
        if value != entry.count(name):
            yield f"{name} is {value}, but the snapshot lists {entry.count(name)}"
    times = pc.min_max(block.requests["request_time"])
    yield from _time_findings(times["min"].as_py(), times["max"].as_py(), entry)


def _timeline_order_findings(block: Block, shard: int, state: StructureState) -> Iterator[str]:
    """Check that timeline rows ascend by user, and each user's segments are 0, 1, 2, ... without gaps.

    In a shard of an appended day a user's first segment may have any number.

    Example:
        user     5  5  7  7        the last row is wrong: segment 1 of user 7 is missing
        segment  0  1  0  2
    """
    user_id, segment = as_int64(block.timelines["user_id"]), as_int64(block.timelines["segment"])
    if not len(user_id):
        return
    starts = np.flatnonzero(np.append(True, user_id[1:] != user_id[:-1]))
    stored_events = np.add.reduceat(list_lengths(list_column(block.timelines, "events")), starts)
    state.user_runs.append(np.stack([user_id[starts], np.full(len(starts), shard), stored_events]))
    # The last row of the previous block comes first; in the first block a smaller user takes its position.
    last_user, last_segment = state.last_row or (int(user_id[0]) - 1, 0)
    users, segments = np.append(last_user, user_id), np.append(last_segment, segment)
    is_first_segment = (segments[1:] == 0) | state.is_appended
    is_in_order = np.where(
        users[1:] == users[:-1], segments[1:] == segments[:-1] + 1, is_first_segment & (users[1:] > users[:-1])
    )
    state.last_row = int(user_id[-1]), int(segment[-1])
    yield from first_finding(
        ~is_in_order,
        lambda row: f"user {user_id[row]}: segment {segment[row]} does not follow the row before it (user, segment)",
    )


def _event_findings(spec: BuildSpec, block: Block) -> Iterator[str]:
    """Check the times of events, and their order (event_time, item_id).

    With arrival times events are ordered by visible time, which is not on disk, so the order is not checked.
    """
    time, item, row = _events(block)
    earliest, latest = map(to_microseconds, spec.time_range)
    user_id = as_int64(block.timelines["user_id"])
    yield from first_finding(
        (time < earliest) | (time > latest),
        lambda event: f"user {user_id[row[event]]}: an event at {time[event]} us is outside of time_range",
    )
    if spec.history.arrival_time is None:
        is_backward = (time[1:] < time[:-1]) | ((time[1:] == time[:-1]) & (item[1:] < item[:-1]))
        is_backward &= row[1:] == row[:-1]
        yield from first_finding(
            is_backward,
            lambda event: (
                f"user {user_id[row[event]]}: event {event + 1} of the block is out of order (event_time, item_id)"
            ),
        )


def _request_order_findings(block: Block) -> Iterator[str]:
    """Check that requests strictly ascend by (user_id, segment, request_time, request_id).

    Whether a request points to its own user's timeline is checked when the block is read.
    """
    requests = block.requests
    keys = [requests[name] for name in ("user_id", "segment", "request_time")]
    keys.append(pc.rank(requests["request_id"], tiebreaker="dense"))
    # From the last key to the first: ascending is a greater value, or an equal one and ascending in the later keys.
    is_ascending = np.zeros(max(0, requests.num_rows - 1), dtype=np.bool_)
    for key in map(as_int64, reversed(keys)):
        is_ascending = (key[1:] > key[:-1]) | ((key[1:] == key[:-1]) & is_ascending)
    yield from first_finding(
        ~is_ascending,
        lambda row: (
            f"{request_label(requests, row + 1)}: is out of order or a duplicate "
            "(user_id, segment, request_time, request_id)"
        ),
    )


def _repeated_request_findings(block: Block, state: StructureState) -> Iterator[str]:
    """Check that a user's request ids differ, also from one segment and block to the next."""
    requests = block.requests
    user_id = as_int64(requests["user_id"])
    id_rank = as_int64(pc.rank(requests["request_id"], tiebreaker="dense"))
    order = np.lexsort((id_rank, user_id))
    users, ids = user_id[order], id_rank[order]
    is_repeated = (users[1:] == users[:-1]) & (ids[1:] == ids[:-1])
    yield from first_finding(is_repeated, lambda i: f"{request_label(requests, order[i])}: is duplicated in the block")
    if not len(user_id):
        return
    earlier_user, earlier_ids = state.last_requests or (int(user_id[0]), [])
    if earlier_ids and earlier_user == user_id[0]:
        is_known = as_int64(pc.is_in(requests["request_id"], value_set=pa.concat_arrays(earlier_ids)))
        yield from first_finding(
            (is_known > 0) & (user_id == earlier_user),
            lambda row: f"{request_label(requests, row)}: is also in an earlier block",
        )
    last_ids = requests.filter(pa.array(user_id == user_id[-1]))["request_id"]
    state.last_requests = int(user_id[-1]), [*(earlier_ids if earlier_user == user_id[-1] else []), last_ids]


def _history_findings(spec: BuildSpec, block: Block) -> Iterator[str]:
    """Check that histories end before their requests, and that every stored event is in some history.

    Example, for one segment with event times 1 2 3 4, history_length 2, no delay:
        request at 3, history_end 3: its last event is at 3, which is not before the request
        request at 5, history_end 3: the event at 4 was visible, but is not in the history
        these two only: events 1..2 are in a history, so events 0 and 3 are stored without use

    All events before history_end are visible, so the latest event_time among them counts, even where a late event is
    ordered behind newer ones. Events at history_end or later may be hidden by arrival times, or because they belong
    to the request; only without both must the event at history_end be invisible.
    """
    requests = block.requests
    row, end = as_int64(requests["timeline_row"]), as_int64(requests["history_end"])
    request_time = as_int64(requests["request_time"])
    time, _, event_row = _events(block)
    lengths = list_lengths(list_column(block.timelines, "events"))
    starts = np.cumsum(lengths) - lengths
    visible_from = _running_maximum(time, event_row) + spec.history.delay_us
    last = np.maximum(starts[row] + end - 1, 0)
    if len(visible_from):
        is_leak = (end > 0) & (visible_from[last] >= request_time)
        yield from first_finding(
            is_leak,
            lambda i: f"{request_label(requests, i)}: its history has an event that was not visible before the request",
        )
    if spec.history.arrival_time is None and spec.history.request_id is None and len(time):
        following = np.minimum(starts[row] + end, len(time) - 1)
        is_lost = (end < lengths[row]) & (time[following] + spec.history.delay_us < request_time)
        yield from first_finding(
            is_lost,
            lambda i: f"{request_label(requests, i)}: its history lacks an event that was visible before the request",
        )
    first_used, last_used = lengths.copy(), np.full(len(lengths), -1)
    np.minimum.at(first_used, row, np.maximum(end - spec.history_length, 0))
    np.maximum.at(last_used, row, end)
    user_id = as_int64(block.timelines["user_id"])
    is_unused = (first_used > 0) | (last_used < lengths)
    yield from first_finding(is_unused, lambda i: f"user {user_id[i]}: a segment stores events that are in no history")


def _target_findings(spec: BuildSpec, block: Block) -> Iterator[str]:
    """Check that every request has targets, ordered by item, with all their labels."""
    requests = block.requests
    lists = list_column(requests, "targets")
    lengths, targets = list_lengths(lists), lists.flatten()
    yield from first_finding(lengths == 0, lambda row: f"{request_label(requests, row)}: has no targets")
    request_row = np.repeat(np.arange(len(lengths)), lengths)
    item = as_int64(pc.struct_field(targets, "item_id"))
    is_backward = (item[1:] < item[:-1]) & (request_row[1:] == request_row[:-1])
    yield from first_finding(
        is_backward, lambda i: f"{request_label(requests, request_row[i])}: its targets are out of order (item_id)"
    )
    for label in spec.requests.labels:
        is_null = pc.struct_field(targets, label).is_null().to_numpy(zero_copy_only=False)
        yield from first_finding(is_null, partial(_null_label_finding, requests, request_row, label))


def _null_label_finding(requests: pa.RecordBatch, request_row: Int64Array, label: str, target: int) -> str:
    return f"{request_label(requests, request_row[target])}: label {label!r} is null"


def _events(block: Block) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Return event times in microseconds, items, and the timeline row of all events of a block, (N,) each."""
    lists = list_column(block.timelines, "events")
    events, lengths = lists.flatten(), list_lengths(lists)
    return (
        as_int64(pc.struct_field(events, "event_time")),
        as_int64(pc.struct_field(events, "item_id")),
        np.repeat(np.arange(len(lengths)), lengths),
    )


def _running_maximum(values: Int64Array, group: Int64Array) -> Int64Array:
    """Return the largest value so far within each group, (N,); `group` is ascending.

    Example:
        values 5 3 6   2 1        ranks of the values are 3 2 4 1 0; adding 5 for each group before makes them
        group  0 0 0   1 1        3 2 4 6 5, so one running maximum, 3 3 4 6 6, never crosses into the next group
        result 5 5 6   2 2
    """
    distinct, rank = np.unique(values, return_inverse=True)
    return np.asarray(distinct[np.maximum.accumulate(group * len(distinct) + rank) - group * len(distinct)])
