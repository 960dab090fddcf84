"""The audit of a dataset: what its files say about themselves, and what the raw log says about them.

`audit` first streams every block and checks its structure on whole columns. Then, where the raw log is at hand,
the naive reference works out some users straight from it, and every request of theirs is compared: the exact
history, request time, features, targets and labels. Findings are sentences that name shard, block, user, request.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from longbatch.schemas.dataset import Dataset
from longbatch.schemas.errors import SourceError, SpecError
from longbatch.schemas.shard import Block
from longbatch.schemas.snapshot import read_snapshot
from longbatch.schemas.spec import BuildSpec
from longbatch.validation.raw import read_raw
from longbatch.validation.reference import Event, Reference, ReferenceRequest, build_reference, order
from longbatch.validation.structure import Seen, blocks_of, file_findings, joined, structure_findings, total_findings

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
    seen = Seen()
    findings = [*file_findings(dataset), *structure_findings(dataset, seen, report)]
    findings += total_findings(dataset, seen)
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


def _sample(seen: Seen, users: int, seed: int) -> set[int]:
    """Draw users, half of them evenly, half in proportion to their stored events."""
    user_id, inverse = np.unique(joined(seen.user_id), return_inverse=True)
    events = np.bincount(inverse, weights=joined(seen.events)) + 1
    if not len(user_id):
        return set()
    random = np.random.default_rng(seed)
    count = min(users, len(user_id))
    long = random.choice(user_id, size=count // 2, replace=False, p=events / events.sum())
    others = np.setdiff1d(user_id, long)
    return {*long.tolist(), *random.choice(others, size=count - len(long), replace=False).tolist()}


# Structure


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
        for place, block in blocks_of(dataset, number):
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
