"""Comparison of a dataset with the naive reference: every request of some users, histories event by event.

Histories overlap, so comparing them one by one would compare most events many times. A request's history on disk is
S[a:b] of its segment S; the reference's is T[c:d] of the user's timeline T. Only if b - a = d - c, which is checked
for each request, are the two compared, at the shift d - b. Requests of a segment with the same shift are compared
together: if S and T, moved by the shift, are equal from the lowest a to the highest b, then
S[a:b] = T[a+shift:b+shift] = T[c:d] for each of them, element by element. If they are not equal, each history is
compared on its own, to name the requests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import pyarrow as pa

from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.format.shard_reader import Block
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.types import Int64Array
from longbatch.validation.reference.oracle import Event, Reference, ReferenceRequest
from longbatch.validation.reference.values import Row, sort_key

from .blocks import as_int64, block_label, list_column, readable_blocks

Key = tuple[int, int | str]  # user id, request id
_POLICY_PREFIXES = ("capped_", "rejected_", "short_", "pending_")  # of the counts of what policies left out


@dataclass(frozen=True)
class Comparison:
    """What was compared with the raw log, and what differs.

    Attributes:
        findings: The differences.
        users: Number of users with a request in the dataset.
        requests: Number of requests compared.
        events: Number of events of their histories.
    """

    findings: list[str] = field(default_factory=list)
    users: int = 0
    requests: int = 0
    events: int = 0

    def __add__(self, other: Comparison) -> Comparison:
        """Return the comparisons of two groups of users as one."""
        return Comparison(
            findings=self.findings + other.findings,
            users=self.users + other.users,
            requests=self.requests + other.requests,
            events=self.events + other.events,
        )


def compare(
    dataset: Dataset, reference: Reference, users: Collection[int] | None, advance: Callable[[int], None]
) -> Comparison:
    """Compare requests of a dataset with those of the reference.

    Args:
        dataset: The dataset.
        reference: The reference of these users.
        users: Ids of the users to compare, None for all users of the dataset.
        advance: Called with 1 after each shard.

    Returns:
        Counts and findings.
    """
    expected = {(request.user_id, request.request_id): request for request in reference.requests}
    wanted = None if users is None else np.array(sorted(users), dtype=np.int64)
    seen: set[Key] = set()
    findings: list[str] = []
    events = 0
    for shard, entry in enumerate(dataset.shards):
        for index, block in readable_blocks(dataset, shard):
            if isinstance(block, str):
                continue  # the structure checks report it
            for finding, events_compared in _compare_block(dataset.spec, block, wanted, expected, seen):
                events += events_compared
                if finding:
                    findings.append(f"{block_label(shard, entry, index)}: {finding}")
        advance(1)
    for user_id, request_id in sorted(set(expected) - seen, key=str):
        findings.append(f"user {user_id}, request {request_id}: is in the raw log, but not in the dataset")
    return Comparison(findings, len({user_id for user_id, _ in seen}), len(seen), events)


def accounting_findings(dataset: Dataset, reference: Reference) -> Iterator[str]:
    """Compare the row accounting and the counts of a snapshot with a reference of all users.

    Args:
        dataset: The dataset.
        reference: The reference of all users.

    Yields:
        Findings.
    """
    for source, accounting in reference.row_accounting.items():
        listed = dataset.snapshot.row_accounting[source]
        if listed != accounting:
            yield f"source {source}: the snapshot counts {listed}, but the raw log yields {accounting}"
    counts, events = dataset.counts, reference.events
    before, after = counts.stored + counts.beyond_history, counts.after_last_request
    if (before, after) != (events.stored_or_beyond, events.after_last_request):
        yield (
            f"the snapshot counts {before:,} events before the last request of their user and {after:,} after it, but "
            f"the raw log yields {events.stored_or_beyond:,} and {events.after_last_request:,}"
        )
    left_out = {name: n for name, n in reference.left_out.as_dict().items() if name.startswith(_POLICY_PREFIXES)}
    listed_left_out = {name: getattr(counts, name) for name in left_out}
    if listed_left_out != left_out:
        yield f"the snapshot counts {listed_left_out} as left out by policies, but the raw log yields {left_out}"


def _compare_block(
    spec: BuildSpec, block: Block, users: Int64Array | None, expected: dict[Key, ReferenceRequest], seen: set[Key]
) -> Iterator[tuple[str, int]]:
    """Yield findings ("" for none) with the number of history events compared."""
    requests = block.requests
    if users is not None:
        requests = requests.filter(pa.array(np.isin(as_int64(requests["user_id"]), users)))
    pairs_by_segment: dict[int, list[tuple[Row, ReferenceRequest]]] = defaultdict(list)
    for request in _request_rows(requests):
        key = request["user_id"], request["request_id"]
        if key in seen:
            yield f"user {key[0]}, request {key[1]}: is duplicated in the dataset", 0
        elif key not in expected:
            yield f"user {key[0]}, request {key[1]}: is in the dataset, but not in the raw log", 0
        else:
            yield from ((finding, 0) for finding in _field_findings(request, expected[key]))
            pairs_by_segment[request["timeline_row"]].append((request, expected[key]))
        seen.add(key)
    for row, pairs in pairs_by_segment.items():
        yield from ((finding, 0) for finding in _history_findings(spec, _segment_events(block, row), pairs))
        yield "", sum(min(request["history_end"], spec.history_length) for request, _ in pairs)


def _request_rows(requests: pa.RecordBatch) -> list[Row]:
    """Return requests as dicts, times in microseconds."""
    index = requests.schema.get_field_index("request_time")
    times = requests["request_time"].cast(pa.int64())
    rows: list[Row] = requests.set_column(index, "request_time", times).to_pylist()
    return rows


def _segment_events(block: Block, row: int) -> list[Event]:
    """Return the events of one timeline row as tuples, times in microseconds."""
    events = cast(pa.StructArray, list_column(block.timelines, "events").slice(row, 1).flatten())
    columns = events.flatten()  # one array for each field
    plain = [column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column for column in columns]
    return list(zip(*(column.to_pylist() for column in plain), strict=True))


def _field_findings(request: Row, expected: ReferenceRequest) -> Iterator[str]:
    """Compare everything of a request except its history."""
    fields = {"request_time": expected.request_time, **expected.features, "targets": expected.targets}
    for name, value in fields.items():
        if request[name] != value and _comparable(request[name]) != _comparable(value):
            yield f"{_label(expected)}: {name} is {request[name]}, but {value} according to the raw log"


def _history_findings(
    spec: BuildSpec, segment: list[Event], pairs: Iterable[tuple[Row, ReferenceRequest]]
) -> Iterator[str]:
    """Compare the histories of one segment's requests; the top of this file explains why ranges suffice.

    Example, with history_length 2:
        segment   [e3 e4 e5]        request at history_end 2: S[0:2], in the reference T[3:5]: shift 3
        timeline  [e0 .. e9]        request at history_end 3: S[1:3], in the reference T[4:6]: shift 3
        both are equal if S[0:3] = T[3:6]
    """
    slices_by_shift: dict[int, list[tuple[int, int, ReferenceRequest]]] = defaultdict(list)
    for request, expected in pairs:
        end = request["history_end"]
        start = max(0, end - spec.history_length)
        expected_length = expected.history_end - expected.history_start
        if end - start != expected_length:
            lengths = f"{end - start} events, but {expected_length} according to the raw log"
            yield f"{_label(expected)}: its history has {lengths}"
        elif end > start:
            slices_by_shift[expected.history_end - end].append((start, end, expected))
    for shift, slices in slices_by_shift.items():
        low, high = min(start for start, _, _ in slices), max(end for _, end, _ in slices)
        timeline = slices[0][2].timeline
        if not _are_equal(segment[low:high], timeline[low + shift : high + shift]):
            yield from (_first_difference(segment[start:end], expected) for start, end, expected in slices)


def _first_difference(history: list[Event], expected: ReferenceRequest) -> str:
    for index, (stored, event) in enumerate(zip(history, expected.history, strict=True)):
        if not _are_equal([stored], [event]):
            return f"{_label(expected)}: event {index} of its history is {stored}, but {event} according to the raw log"
    return ""


def _label(request: ReferenceRequest) -> str:
    return f"user {request.user_id}, request {request.request_id}"


def _are_equal(events: list[Event], expected: list[Event]) -> bool:
    return events == expected or _comparable(events) == _comparable(expected)


def _comparable(value: object) -> object:
    """Return a value in which NaN equals NaN, at any depth."""
    if isinstance(value, dict):
        return {name: _comparable(part) for name, part in value.items()}
    return [_comparable(part) for part in value] if isinstance(value, list | tuple) else sort_key(value)
