"""`longbatch inspect`: a description of a dataset, and one request of a user with the strings of hashed ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow.compute as pc

from longbatch.pipelines.content_hash import content_hash
from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.errors import DatasetError, SpecError
from longbatch.schemas.format.dataset import Dataset, user_requests
from longbatch.schemas.format.manifest import SHARD_TABLES
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.time import from_microseconds

from .user_ids import user_ids

NEWEST_SHOWN = 10


@dataclass(frozen=True)
class DatasetDescription:
    """What `longbatch inspect` reports of a dataset.

    Attributes:
        path: Where the dataset is.
        name: Name in its spec.
        snapshot: Number of the snapshot.
        fingerprint: Hash of its files.
        history_length: Newest events of a history at most.
        compression: Codec of the files.
        encoding: "compact" or "plain".
        counts: Users, requests, targets and events.
        targets_per_request: Mean targets of a request.
        mean_history: Mean events of a history.
        first_request_time: Earliest request, in ISO format; None without requests.
        last_request_time: Latest request, in ISO format; None without requests.
        shards: Number of shards.
        blocks: Number of blocks.
        bytes: Bytes on disk of each table.
        bytes_per_event: Bytes on disk of all tables per stored event.
        row_accounting: Outcomes of the raw rows of each source.
        collisions: Strings whose hash equals that of another string.
        log_end: End of the log, in ISO format; None if it is not known.
        skew: Largest users and requests, and history lengths, as in the snapshot's profile.
        timelines_schema: Arrow type of each column of the timelines.
        requests_schema: Arrow type of each column of the requests.
        content_hash: Hash of the content; None if it was not requested.
    """

    path: str
    name: str
    snapshot: int
    fingerprint: str
    history_length: int
    compression: str
    encoding: str
    counts: Counts
    targets_per_request: float
    mean_history: float
    first_request_time: str | None
    last_request_time: str | None
    shards: int
    blocks: int
    bytes: dict[str, int]
    bytes_per_event: float
    row_accounting: Mapping[str, RowAccounting]
    collisions: int
    log_end: str | None
    skew: Mapping[str, Any]
    timelines_schema: dict[str, str]
    requests_schema: dict[str, str]
    content_hash: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; without the content hash if it was not requested."""
        document = {
            **vars(self),
            "counts": self.counts.as_dict(),
            "row_accounting": {source: accounting.as_dict() for source, accounting in self.row_accounting.items()},
        }
        if self.content_hash is None:
            del document["content_hash"]
        return document


def describe(dataset: Dataset, *, hash_content: bool = False) -> DatasetDescription:
    """Describe a dataset: counts, row accounting, time range, schemas, files and bytes.

    Args:
        dataset: The dataset.
        hash_content: Also compute the content hash, which reads every block.

    Returns:
        The description.
    """
    counts, shards, log_end = dataset.counts, dataset.shards, dataset.snapshot.log_end
    sizes: dict[str, int] = {table: shards.file_bytes(table) for table in SHARD_TABLES}
    return DatasetDescription(
        path=dataset.location,
        name=dataset.spec.name,
        snapshot=dataset.snapshot.number,
        fingerprint=dataset.fingerprint,
        history_length=dataset.spec.history_length,
        compression=dataset.spec.compression,
        encoding="compact" if dataset.spec.is_compact else "plain",
        counts=counts,
        targets_per_request=counts.targets / max(1, counts.requests),
        mean_history=counts.history_events / max(1, counts.requests),
        first_request_time=_iso(shards.values("first_request_time").min()) if len(shards) else None,
        last_request_time=_iso(shards.values("last_request_time").max()) if len(shards) else None,
        shards=len(shards),
        blocks=shards.num_blocks,
        bytes=sizes,
        bytes_per_event=sum(sizes.values()) / max(1, counts.stored),
        row_accounting=dataset.snapshot.row_accounting,
        collisions=dataset.snapshot.collisions,
        log_end=None if log_end is None else _iso(log_end),
        skew=dataset.snapshot.profile.as_dict()["skew"],
        timelines_schema={field.name: str(field.type) for field in dataset.timelines_schema},
        requests_schema={field.name: str(field.type) for field in dataset.requests_schema},
        content_hash=content_hash(dataset.blocks(), dataset.spec.history_length) if hash_content else None,
    )


def _iso(microseconds: int | np.int64) -> str:
    return from_microseconds(int(microseconds)).isoformat()


def describe_user(dataset: Dataset, user: str, request: int = -1) -> dict[str, Any]:
    """Describe one request of a user, with the strings of hashed ids where the vocabulary has them.

    Args:
        dataset: The dataset.
        user: The user's string or number in the raw log.
        request: Index of the request in the order of time; negative numbers count from the last request.

    Returns:
        The request's own columns by name, `targets` with their labels, `newest_events` of the history, and the numbers
        `history_length` and `requests_of_user`. Times are in ISO format.

    Raises:
        DatasetError: The dataset has no request of the user.
        SpecError: The user has no request with this index, or is not an integer where the dataset's users are.
    """
    number = int(user_ids(dataset.spec, [user])[0])
    try:
        requests = user_requests(dataset, number)
    except DatasetError:
        raise DatasetError(f"user {user} has no request in {dataset.location}") from None
    if not -requests.num_rows <= request < requests.num_rows:
        raise SpecError(f"user {user} has {requests.num_rows} requests, none with index {request}")
    row: dict[str, Any] = requests.slice(request % requests.num_rows, 1).to_pylist()[0]
    history = row.pop("history")
    row["requests_of_user"] = requests.num_rows
    row["history_length"] = len(history)
    row["newest_events"] = history[-NEWEST_SHOWN:]
    hashed = _hashed_names(dataset.spec)
    strings = _strings_of(dataset, set(_hashes(row, hashed)))
    return {name: _readable(value, strings, name in hashed, hashed) for name, value in row.items()}


def _hashed_names(spec: BuildSpec) -> set[str]:
    """Names of the columns of requests, events and targets that contain hashes of strings."""
    features = {**spec.history.features, **spec.requests.features, **spec.requests.target_features}
    names = {name for name, feature in features.items() if feature.type == "id"}
    ids = {"user_id": spec.requests.user_id, "item_id": spec.requests.item_id}
    return names | {name for name, column in ids.items() if column.type == "string"}


def _hashes(value: object, names: set[str]) -> Iterator[int]:
    """All integers under one of the names, in nested lists and dicts."""
    if isinstance(value, list):
        for entry in value:
            yield from _hashes(entry, names)
    elif isinstance(value, dict):
        for name, entry in value.items():
            if name in names and isinstance(entry, int):
                yield entry
            yield from _hashes(entry, names)


def _strings_of(dataset: Dataset, ids: set[int]) -> dict[int, str]:
    """The strings of those ids that are in the vocabulary."""
    vocabulary = dataset.vocabulary()
    if not vocabulary.num_rows:
        return {}
    wanted = pl.Series(sorted(ids), dtype=pl.Int64).to_arrow()
    entries = vocabulary.filter(pc.is_in(vocabulary["id"], value_set=wanted)).to_pydict()
    return dict(zip(cast("list[int]", entries["id"]), cast("list[str]", entries["string"]), strict=True))


def _readable(value: object, strings: Mapping[int, str], is_hash: bool, hashed: set[str]) -> object:
    """Replace hashes by strings, and datetimes by their ISO format, in nested lists and dicts."""
    if isinstance(value, dict):
        return {name: _readable(entry, strings, name in hashed, hashed) for name, entry in value.items()}
    if isinstance(value, list):
        return [_readable(entry, strings, is_hash, hashed) for entry in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return strings.get(value, value) if is_hash and isinstance(value, int) else value
