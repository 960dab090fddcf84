"""The comparison of a dataset with the naive reference: every request of some users, histories event by event.

Histories overlap, so they are not compared one by one. A request's history on disk is S[a:b] of its segment S; the
reference's is T[c:d] of the user's timeline T. Only if b - a = d - c (checked for each) are the two compared, at the
shift d - b. Requests of a segment with the same shift are taken together: if S and T, moved by the shift, are equal
from the lowest a to the highest b, then S[a:b] = T[a+shift:b+shift] = T[c:d] for each of them, element by element.
If they are not, each history is compared on its own, to name the requests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.shard import Block
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.validation.reference.oracle import Event, Reference, ReferenceRequest
from longbatch.validation.reference.values import order

from .structure import blocks_of

Key = tuple[int, Any]
_OF_POLICIES = ("capped_", "rejected_", "short_", "held_back_")  # what counts of policies begin with


@dataclass(frozen=True)
class Comparison:
    """What was compared, and what differs."""

    findings: list[str] = field(default_factory=list)
    users: int = 0
    requests: int = 0
    events: int = 0

    def __add__(self, other: Comparison) -> Comparison:
        """Return the comparisons of two groups of users as one."""
        return Comparison(
            self.findings + other.findings,
            self.users + other.users,
            self.requests + other.requests,
            self.events + other.events,
        )


def compare(
    dataset: Dataset, reference: Reference, users: Collection[int] | None, advance: Callable[[int], None]
) -> Comparison:
    """Compare every request of `users` (None: all of the dataset) with the reference's; `advance` counts shards."""
    expected = {(request.user_id, request.request_id): request for request in reference.requests}
    wanted = None if users is None else pa.array(sorted(users), pa.int64())
    found: set[Key] = set()
    findings: list[str] = []
    events = 0
    for number, row in enumerate(dataset.shards):
        for place, block in blocks_of(dataset, number):
            if isinstance(block, str):
                continue
            for finding, compared in _compare_block(dataset.spec, block, wanted, expected, found):
                events += compared
                if finding:
                    findings.append(f"shard {number} ({row['requests']['path']}), block {place}: {finding}")
        advance(1)
    for user_id, request_id in sorted(set(expected) - found, key=str):
        findings.append(f"user {user_id}, request {request_id}: is in the raw log, but not in the dataset")
    return Comparison(findings, len({user_id for user_id, _ in found}), len(found), events)


def book_findings(dataset: Dataset, reference: Reference) -> Iterator[str]:
    """Compare the snapshot's books with those of a reference of all users."""
    for source, accounting in reference.row_accounting.items():
        listed = dataset.snapshot.row_accounting[source]
        if listed != accounting:
            yield f"source {source}: the snapshot counts {listed}, the raw log gives {accounting}"
    counts, events = dataset.counts, reference.events
    listed_events = (counts.stored + counts.beyond_history, counts.after_last_request)
    if listed_events != (events.stored_or_beyond, events.after_last_request):
        yield f"the snapshot counts {listed_events} events within and after requests, the raw log gives {events}"
    left_out = {name: n for name, n in reference.left_out.as_dict().items() if name.startswith(_OF_POLICIES)}
    listed_left_out = {name: getattr(counts, name) for name in left_out}
    if listed_left_out != left_out:
        yield f"the snapshot counts {listed_left_out} as left out by policies, the raw log gives {left_out}"


def _compare_block(
    spec: BuildSpec, block: Block, users: pa.Array | None, expected: dict[Key, ReferenceRequest], found: set[Key]
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
            yield from ((finding, 0) for finding in _field_findings(request, expected[key]))
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


def _field_findings(request: dict[str, Any], expected: ReferenceRequest) -> Iterator[str]:
    """Compare all of a request but its history."""
    theirs = {"request_time": expected.request_time, **expected.features, "targets": expected.targets}
    for name, value in theirs.items():
        if request[name] != value and _plain(request[name]) != _plain(value):
            yield f"{_of(expected)}: {name} is {request[name]}, the raw log gives {value}"


def _history_findings(
    spec: BuildSpec, segment: list[Event], pairs: Iterable[tuple[dict[str, Any], ReferenceRequest]]
) -> Iterator[str]:
    """Compare the histories of one segment's requests; see the top of this file for why it is enough."""
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
