"""The audit of a dataset: what its files say about themselves, and what the raw log says about them.

`audit` first streams every block and checks its structure on whole columns. Then, where the raw log is at hand,
the naive reference works out some users straight from it, and every request of theirs is compared: the exact
history, request time, features, targets and labels. Findings are sentences that name shard, block, user, request.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.dataset import Dataset
from longbatch.schemas.errors import DataError, DatasetError, SourceError, SpecError
from longbatch.schemas.shard import COUNTED, Block, check_file
from longbatch.schemas.snapshot import read_snapshot
from longbatch.schemas.spec import BuildSpec
from longbatch.validation.reference import (
    Event,
    Reference,
    ReferenceRequest,
    build_reference,
    order,
    read_raw,
)

Progress = Callable[[str, int, int | None], None]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Audit:
    """What an audit found. All blocks are checked for structure; users, requests and the events of their
    histories count as checked where they were compared with the raw log.
    """

    findings: list[str]
    blocks_checked: int = 0
    users_checked: int = 0
    requests_checked: int = 0
    events_checked: int = 0


@dataclass
class _Seen:
    """What the structure checks remember from block to block.

    user_id, events, bucket: per block (S,) of its timeline rows; totals: sums over all blocks;
    last_row: user and segment of the last timeline row of the shard being read.
    """

    user_id: list[Int64Array] = field(default_factory=list)
    events: list[Int64Array] = field(default_factory=list)
    bucket: list[Int64Array] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    last_row: tuple[int, int] | None = None
    blocks: int = 0


def audit(
    dataset_path: str | Path,
    spec: BuildSpec | None = None,
    users: int | None = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> Audit:
    """Check a dataset's structure, and `users` of its users (None: all) against the raw log.

    `spec` says where the raw log is; without it the dataset's own spec does, and if its files are gone only the
    structure is checked (`users_checked` is 0). Half of the users are drawn evenly, half in proportion to their
    events, so that long histories are among them. Raises DatasetError where there is no dataset, SpecError if
    `spec` means something else than the dataset's, SourceError if its files are not there.
    """
    report = progress or (lambda stage, done, total: None)
    root = Path(dataset_path)
    dataset = Dataset(root, read_snapshot(root))
    seen = _Seen()
    findings = [*_file_findings(dataset), *_structure_findings(dataset, seen, report)]
    findings += _total_findings(dataset, seen)
    raw = _raw_spec(dataset, spec)
    if raw is None:
        return Audit(findings, seen.blocks)
    sample = None if users is None else _sample(seen, users, seed)
    report("raw log", 0, None)
    frames = {source: read_raw(raw, source, sample) for source in raw.sources}
    reference = build_reference(raw, frames, sample)
    compared = compare(dataset, reference, sample, report)
    if users is None:
        findings += _book_findings(dataset, reference)
    return Audit(
        findings + compared.findings,
        seen.blocks,
        compared.users_checked,
        compared.requests_checked,
        compared.events_checked,
    )


def _raw_spec(dataset: Dataset, spec: BuildSpec | None) -> BuildSpec | None:
    """Return the spec to read the raw log with, or None if its files are not there."""
    if spec is not None:
        theirs, ours = _meaning(spec), _meaning(dataset.spec)
        different = [part for part in ours if theirs[part] != ours[part]]
        if different:
            raise SpecError(f"the spec is not the one {dataset.path} was built by: {different} differ; use that one")
        return spec
    try:
        for source in dataset.spec.sources:
            read_raw(dataset.spec, source, ())
    except (SourceError, OSError):
        return None
    return dataset.spec


def _meaning(spec: BuildSpec) -> dict[str, Any]:
    """Return all of a spec that the content of a dataset depends on."""
    meaning = spec.model_dump(exclude={"name", "compression", "block_events", "block_targets", "max_rejected"})
    for source in meaning["sources"].values():
        source["path"] = source["format"] = None
    return meaning


def _sample(seen: _Seen, users: int, seed: int) -> set[int]:
    """Draw users, half of them evenly, half in proportion to their stored events."""
    user_id, inverse = np.unique(_joined(seen.user_id), return_inverse=True)
    events = np.bincount(inverse, weights=_joined(seen.events)) + 1
    if not len(user_id):
        return set()
    random = np.random.default_rng(seed)
    count = min(users, len(user_id))
    long = random.choice(user_id, size=count // 2, replace=False, p=events / events.sum())
    others = np.setdiff1d(user_id, long)
    return {*long.tolist(), *random.choice(others, size=count - len(long), replace=False).tolist()}


# Structure


def _file_findings(dataset: Dataset) -> Iterator[str]:
    """Compare every listed file with its length and checksum."""
    entries = [row[table] for row in dataset.shards for table in ("timelines", "requests")]
    for entry in [*entries, *dataset.snapshot.vocabulary, *dataset.snapshot.quarantine]:
        try:
            check_file(dataset.path, entry, checksum=True)
        except DatasetError as error:
            yield str(error)


def _structure_findings(dataset: Dataset, seen: _Seen, report: Progress) -> Iterator[str]:
    for number, row in enumerate(dataset.shards):
        report("structure", number, len(dataset.shards))
        seen.last_row = None
        before = dict(seen.totals)
        for place, block in _blocks_of(dataset, number):
            if isinstance(block, str):
                yield block
                continue
            seen.blocks += 1
            for finding in _block_findings(dataset.spec, block, row["blocks"][place], row["bucket"], seen):
                yield f"shard {number} ({row['requests']['path']}), block {place}: {finding}"
        for name in COUNTED:
            found = seen.totals[name] - before[name]
            if found != row[f"total_{name}"]:
                yield f"shard {number}: {found:,} {name} in its blocks, the snapshot lists {row[f'total_{name}']:,}"


def _blocks_of(dataset: Dataset, number: int) -> Iterator[tuple[int, Block | str]]:
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


def _block_findings(spec: BuildSpec, block: Block, listed: dict[str, Any], bucket: int, seen: _Seen) -> Iterator[str]:
    missing = [*_null_findings(block)]
    yield from missing
    if missing:
        return
    yield from _count_findings(spec, block, listed, seen)
    yield from _timeline_row_findings(block, bucket, seen)
    yield from _event_order_findings(spec, block)
    yield from _request_order_findings(block)
    yield from _cut_findings(spec, block)
    yield from _target_findings(spec, block)


def _null_findings(block: Block) -> Iterator[str]:
    """Nulls may stand in features only."""
    parts = {"timelines": (block.timelines, "events"), "requests": (block.requests, "targets")}
    for table, (batch, nested) in parts.items():
        needed = [name for name in batch.schema.names if name in _NEEDED]
        yield from (f"{batch[name].null_count} nulls in {name} of {table}" for name in needed if batch[name].null_count)
        values = batch[nested].flatten()
        for name in ("item_id", "event_time"):
            if values.type.get_field_index(name) >= 0 and (nulls := pc.struct_field(values, name).null_count):
                yield f"{nulls} nulls in {name} of {nested}"


_NEEDED = frozenset(
    {"user_id", "segment", "events", "request_id", "timeline_row", "request_time", "history_end", "targets"}
)


def _count_findings(spec: BuildSpec, block: Block, listed: dict[str, Any], seen: _Seen) -> Iterator[str]:
    """Compare what the block holds with what the snapshot lists."""
    lengths = np.minimum(_numbers(block.requests["history_end"]), spec.history_length)
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


def _timeline_row_findings(block: Block, bucket: int, seen: _Seen) -> Iterator[str]:
    """Rows go up by user; the segments of a user count up from 0."""
    user_id, segment = _numbers(block.timelines["user_id"]), _numbers(block.timelines["segment"])
    if not len(user_id):
        return
    seen.user_id.append(user_id)
    seen.events.append(_numbers(pc.list_value_length(block.timelines["events"])))
    seen.bucket.append(np.full(len(user_id), bucket))
    first = seen.last_row or (int(user_id[0]) - 1, 0)
    users, segments = np.append(first[0], user_id), np.append(first[1], segment)
    same = users[1:] == users[:-1]
    fine = np.where(same, segments[1:] == segments[:-1] + 1, (segments[1:] == 0) & (users[1:] > users[:-1]))
    seen.last_row = int(user_id[-1]), int(segment[-1])
    yield from _first(~fine, lambda row: f"user {user_id[row]}: segment {segment[row]} is out of order")


def _event_order_findings(spec: BuildSpec, block: Block) -> Iterator[str]:
    """Without arrival times on disk, events go up by (event_time, item_id); with them no order is visible."""
    time, item, owner = _events(block)
    low, high = ((bound - _EPOCH) // timedelta(microseconds=1) for bound in spec.time_range)
    user_id = _numbers(block.timelines["user_id"])
    outside = (time < low) | (time > high)
    yield from _first(outside, lambda place: f"user {user_id[owner[place]]}: an event has the time {time[place]} us")
    if spec.history.arrival_time is None:
        backward = (time[1:] < time[:-1]) | ((time[1:] == time[:-1]) & (item[1:] < item[:-1]))
        backward &= owner[1:] == owner[:-1]
        yield from _first(backward, lambda place: f"user {user_id[owner[place]]}: event {place + 1} is out of order")


def _request_order_findings(block: Block) -> Iterator[str]:
    """Requests go up by (user, segment, request time, request id), each once (whose timeline: the reader checks)."""
    requests = block.requests
    request_id = pc.rank(requests["request_id"], tiebreaker="dense")
    keys = [*(requests[name] for name in ("user_id", "segment", "request_time")), request_id]
    upward = np.zeros(max(0, requests.num_rows - 1), dtype=np.bool_)
    for column in map(_numbers, reversed(keys)):
        upward = (column[1:] > column[:-1]) | ((column[1:] == column[:-1]) & upward)
    yield from _first(~upward, lambda i: f"{_named(requests, i + 1)}: out of order, or the same as the one before")
    order_by_id = np.lexsort((_numbers(request_id), _numbers(requests["user_id"])))
    user, ids = _numbers(requests["user_id"])[order_by_id], _numbers(request_id)[order_by_id]
    twice = (user[1:] == user[:-1]) & (ids[1:] == ids[:-1])
    yield from _first(twice, lambda i: f"{_named(requests, int(order_by_id[i]))}: stands twice in the block")


def _cut_findings(spec: BuildSpec, block: Block) -> Iterator[str]:
    """No history reaches its request's time; every stored event is within some request's reach.

    All events of a segment in front of history_end are visible, so the latest event_time among them counts, also
    where late events stand behind newer ones. Where neither arrival times nor own events can hide one, the event
    at history_end must not be visible.
    """
    requests = block.requests
    row, end = _numbers(requests["timeline_row"]), _numbers(requests["history_end"])
    time, _, owner = _events(block)
    offsets = _numbers(block.timelines["events"].offsets)
    offsets = offsets - offsets[0]
    ready = _running_maximum(time, owner) + spec.history.delay_us
    asked = _numbers(requests["request_time"])
    last = np.maximum(offsets[row] + end - 1, 0)
    leak = (end > 0) & (ready[last] >= asked) if len(ready) else np.zeros(len(end), dtype=np.bool_)
    yield from _first(leak, lambda i: f"{_named(requests, i)}: its history has events that it could not see")
    lengths = np.diff(offsets)
    if spec.history.arrival_time is None and spec.history.request_id is None and len(time):
        following = np.minimum(offsets[row] + end, len(time) - 1)
        lost = (end < lengths[row]) & (time[following] + spec.history.delay_us < asked)
        yield from _first(lost, lambda i: f"{_named(requests, i)}: its history lacks events that it could see")
    first, furthest = lengths.copy(), np.full(len(lengths), -1)
    np.minimum.at(first, row, np.maximum(end - spec.history_length, 0))
    np.maximum.at(furthest, row, end)
    user_id = _numbers(block.timelines["user_id"])
    unused = (first > 0) | (furthest < lengths)
    yield from _first(unused, lambda i: f"user {user_id[i]}: stores events that no request reaches")


def _target_findings(spec: BuildSpec, block: Block) -> Iterator[str]:
    """Every request has targets, ordered by item, with all their labels."""
    requests = block.requests
    sizes = _numbers(pc.list_value_length(requests["targets"]))
    yield from _first(sizes == 0, lambda i: f"{_named(requests, i)}: has no targets")
    owner = np.repeat(np.arange(len(sizes)), sizes)
    targets = requests["targets"].flatten()
    item = _numbers(pc.struct_field(targets, "item_id"))
    backward = (item[1:] < item[:-1]) & (owner[1:] == owner[:-1])
    yield from _first(backward, lambda i: f"{_named(requests, owner[i])}: its targets are out of order")
    for label in spec.requests.labels:
        nulls = pc.struct_field(targets, label).is_null().to_numpy(zero_copy_only=False)
        yield from _first(nulls, partial(_say_null, requests, owner, label))


def _say_null(requests: pa.RecordBatch, owner: Int64Array, label: str, place: int) -> str:
    return f"{_named(requests, owner[place])}: the label {label} is null"


def _total_findings(dataset: Dataset, seen: _Seen) -> Iterator[str]:
    """Compare the sums over all blocks with the snapshot's counts, and check its books."""
    counts = dataset.counts
    rows = np.unique(np.stack([_joined(seen.user_id), _joined(seen.bucket)]), axis=1)
    twice = rows[0, 1:] == rows[0, :-1]
    yield from _first(twice, lambda i: f"user {rows[0, i]}: is in bucket {rows[1, i]} and in bucket {rows[1, i + 1]}")
    found = seen.totals | {
        "users": rows.shape[1] - int(twice.sum()),
        "stored_with_overlap": seen.totals["events"],
    }
    del found["events"]
    for name, value in found.items():
        if value != getattr(counts, name):
            yield f"all shards hold {value:,} {name}, the snapshot says {getattr(counts, name):,}"
    for check in (counts.check, *(lambda s=s, e=e: e.check(s) for s, e in dataset.snapshot.ledgers.items())):
        try:
            check()
        except DataError as error:
            yield str(error)


def _book_findings(dataset: Dataset, reference: Reference) -> Iterator[str]:
    """Compare the snapshot's books with the reference's."""
    for source, ledger in reference.ledgers.items():
        listed = dataset.snapshot.ledgers[source]
        if listed != ledger:
            yield f"source {source}: the snapshot counts {listed}, the raw log gives {ledger}"
    counts, events = dataset.counts, reference.events
    listed_events = (counts.stored + counts.beyond_history, counts.after_last_request)
    if listed_events != (events.stored_or_beyond, events.after_last_request):
        yield f"the snapshot counts {listed_events} events within and after requests, the raw log gives {events}"


# Columns as arrays


def _numbers(column: pa.Array) -> Int64Array:
    """Integers or timestamps without nulls, (N,), as int64."""
    return np.asarray(column.cast(pa.int64()).to_numpy(zero_copy_only=False))


def _joined(parts: list[Int64Array]) -> Int64Array:
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])


def _events(block: Block) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Event times in us, items, and the timeline row of all events of a block, (N,) each."""
    events = block.timelines["events"].flatten()
    sizes = _numbers(pc.list_value_length(block.timelines["events"]))
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return (
        _numbers(pc.struct_field(events, "event_time")),
        _numbers(pc.struct_field(events, "item_id")),
        owner,
    )


def _running_maximum(values: Int64Array, group: Int64Array) -> Int64Array:
    """Return the largest value so far within each group, (N,); `group` goes up."""
    distinct, rank = np.unique(values, return_inverse=True)
    return np.asarray(distinct[np.maximum.accumulate(group * len(distinct) + rank) - group * len(distinct)])


def _named(requests: pa.RecordBatch, row: Any) -> str:
    return f"user {requests['user_id'][int(row)].as_py()}, request {requests['request_id'][int(row)].as_py()}"


def _first(wrong: BoolArray, say: Callable[[int], str]) -> Iterator[str]:
    """Say what is wrong at the first place, and at how many more."""
    places = np.flatnonzero(wrong)
    if len(places):
        yield say(int(places[0])) + (f" (and {len(places) - 1:,} more like it)" if len(places) > 1 else "")


# Content


def compare(
    dataset: Dataset,
    reference: Reference,
    users: Collection[int] | None = None,
    progress: Progress | None = None,
) -> Audit:
    """Compare every request of `users` (None: all of the dataset) with the reference's, histories event by event.

    Histories overlap, so they are not compared one by one. A request's history on disk is S[a:b] of its segment
    S; the reference's is T[c:d] of the user's timeline T. Only if b - a = d - c (checked for each) are the two
    compared, at the shift d - b. Requests of a segment with the same shift are taken together: if S and T, moved
    by the shift, are equal from the lowest a to the highest b, then S[a:b] = T[a+shift:b+shift] = T[c:d] for each
    of them, element by element. If they are not, each history is compared on its own, to name the requests.
    """
    expected = {(request.user_id, request.request_id): request for request in reference.requests}
    wanted = None if users is None else pa.array(sorted(users), pa.int64())
    found: set[tuple[int, Any]] = set()
    findings: list[str] = []
    events = 0
    for number, row in enumerate(dataset.shards):
        (progress or (lambda stage, done, total: None))("requests", number, len(dataset.shards))
        for place, block in _blocks_of(dataset, number):
            if isinstance(block, str):
                continue
            for finding, compared in _compare_block(dataset.spec, block, wanted, expected, found):
                events += compared
                if finding:
                    findings.append(f"shard {number} ({row['requests']['path']}), block {place}: {finding}")
    for user_id, request_id in sorted(set(expected) - found, key=str):
        findings.append(f"user {user_id}, request {request_id}: is in the raw log, but not in the dataset")
    return Audit(findings, 0, len({user_id for user_id, _ in found}), len(found), events)


def _compare_block(
    spec: BuildSpec,
    block: Block,
    users: pa.Array | None,
    expected: dict[tuple[int, Any], ReferenceRequest],
    found: set[tuple[int, Any]],
) -> Iterator[tuple[str, int]]:
    """Yield findings and the number of history events compared."""
    requests = block.requests
    if users is not None:
        requests = requests.filter(pc.is_in(requests["user_id"], value_set=users))
    segments: dict[int, list[tuple[dict[str, Any], ReferenceRequest]]] = defaultdict(list)
    for request in _request_rows(requests):
        key = request["user_id"], request["request_id"]
        if key in found:
            yield f"user {key[0]}, request {key[1]}: stands twice in the dataset", 0
        elif key not in expected:
            yield f"user {key[0]}, request {key[1]}: is in the dataset, but not in the raw log", 0
        else:
            yield from ((finding, 0) for finding in _field_findings(spec, request, expected[key]))
            segments[request["timeline_row"]].append((request, expected[key]))
        found.add(key)
    for row, pairs in segments.items():
        yield from ((finding, 0) for finding in _history_findings(spec, _segment(block, row), pairs))
        yield "", sum(min(request["history_end"], spec.history_length) for request, _ in pairs)


def _request_rows(requests: pa.RecordBatch) -> list[dict[str, Any]]:
    """Requests as dicts, times in microseconds."""
    place = requests.schema.get_field_index("request_time")
    times = requests["request_time"].cast(pa.int64())
    rows: list[dict[str, Any]] = requests.set_column(place, "request_time", times).to_pylist()
    return rows


def _segment(block: Block, row: int) -> list[Event]:
    """Return the events of one timeline row as tuples, times in microseconds."""
    events = block.timelines["events"]
    start, end = events.offsets[row].as_py(), events.offsets[row + 1].as_py()
    columns = events.values.slice(start, end - start).flatten()
    numbers = [column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column for column in columns]
    return list(zip(*(column.to_pylist() for column in numbers), strict=True))


def _field_findings(spec: BuildSpec, request: dict[str, Any], expected: ReferenceRequest) -> Iterator[str]:
    """Compare all of a request but its history."""
    theirs = {"request_time": expected.request_time, **expected.features, "targets": expected.targets}
    for name, value in theirs.items():
        if request[name] != value and _plain(request[name]) != _plain(value):
            yield f"{_of(expected)}: {name} is {request[name]}, the raw log gives {value}"


def _history_findings(
    spec: BuildSpec, segment: list[Event], pairs: Iterable[tuple[dict[str, Any], ReferenceRequest]]
) -> Iterator[str]:
    """Compare the histories of one segment's requests; see `compare` for why it is enough."""
    shifts: dict[int, list[tuple[int, int, ReferenceRequest]]] = defaultdict(list)
    for request, expected in pairs:
        end = request["history_end"]
        start = max(0, end - spec.history_length)
        if end - start != expected.history_end - expected.history_start:
            length = expected.history_end - expected.history_start
            yield f"{_of(expected)}: its history has {end - start} events, the raw log gives {length}"
        elif end > start:
            shifts[expected.history_end - end].append((start, end, expected))
    for shift, cuts in shifts.items():
        low, high = min(start for start, _, _ in cuts), max(end for _, end, _ in cuts)
        timeline = cuts[0][2].timeline
        if not _equal(segment[low:high], timeline[low + shift : high + shift]):
            yield from (_first_difference(segment[start:end], expected) for start, end, expected in cuts)


def _first_difference(history: list[Event], expected: ReferenceRequest) -> str:
    for place, (ours, theirs) in enumerate(zip(history, expected.history, strict=True)):
        if not _equal([ours], [theirs]):
            return f"{_of(expected)}: event {place} of its history is {ours}, the raw log gives {theirs}"
    return ""


def _of(request: ReferenceRequest) -> str:
    return f"user {request.user_id}, request {request.request_id}"


def _equal(ours: list[Event], theirs: list[Event]) -> bool:
    return ours == theirs or _plain(ours) == _plain(theirs)


def _plain(value: Any) -> Any:
    """Make NaN equal to itself, however deep it lies."""
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else order(value)
