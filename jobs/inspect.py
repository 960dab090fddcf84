"""`longbatch inspect`: what is in a dataset, and one user's request as people read it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import polars as pl
import pyarrow.compute as pc

from longbatch.pipelines.arrays.hashing import hash_string
from longbatch.pipelines.content_hash import content_hash
from longbatch.schemas.errors import DatasetError, SpecError
from longbatch.schemas.format.dataset import Dataset, user_requests
from longbatch.schemas.format.manifest import SHARD_TABLES
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.time import from_microseconds

NEWEST_SHOWN = 10


def describe(dataset: Dataset, *, hash_content: bool = False) -> dict[str, Any]:
    """Plain values: counts, books, time range, schemas, files and bytes; with the content hash if asked."""
    counts, shards = dataset.counts, dataset.shards
    sizes = {
        table: sum(entry.size_bytes for shard in shards if (entry := getattr(shard, table))) for table in SHARD_TABLES
    }
    described: dict[str, Any] = {
        "path": str(dataset.path),
        "name": dataset.spec.name,
        "snapshot": dataset.snapshot.number,
        "fingerprint": dataset.fingerprint,
        "history_length": dataset.spec.history_length,
        "compression": dataset.spec.compression,
        "encoding": "compact" if dataset.spec.is_compact else "plain",
        "counts": counts.as_dict(),
        "targets_per_request": counts.targets / max(1, counts.requests),
        "mean_history": counts.history_events / max(1, counts.requests),
        "first_request_time": _iso(min((shard.first_request_time for shard in shards), default=None)),
        "last_request_time": _iso(max((shard.last_request_time for shard in shards), default=None)),
        "shards": len(shards),
        "blocks": sum(len(shard.blocks) for shard in shards),
        "bytes": sizes,
        "bytes_per_event": sum(sizes.values()) / max(1, counts.stored),
        "row_accounting": {
            source: accounting.as_dict() for source, accounting in dataset.snapshot.row_accounting.items()
        },
        "collisions": dataset.snapshot.collisions,
        "log_end": None if dataset.snapshot.log_end is None else _iso(from_microseconds(dataset.snapshot.log_end)),
        "skew": dataset.snapshot.profile.as_dict()["skew"],
        "timelines_schema": {field.name: str(field.type) for field in dataset.timelines_schema},
        "requests_schema": {field.name: str(field.type) for field in dataset.requests_schema},
    }
    if hash_content:
        described["content_hash"] = content_hash(dataset.blocks(), dataset.spec.history_length)
    return described


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def user_number(dataset: Dataset, user: str) -> int:
    """Return a user's id in the dataset, from the text or number that the log calls the user."""
    if dataset.spec.requests.user_id.type == "string":
        return int(hash_string(pl.Series([user]))[0])
    try:
        return int(user)
    except ValueError:
        raise SpecError(f"user {user!r} is not a number, but the users of this dataset are integers") from None


def describe_user(dataset: Dataset, user: str, request: int = -1) -> dict[str, Any]:
    """One request of a user (by default the last): its newest events, its targets with labels, as text where known."""
    number = user_number(dataset, user)
    try:
        found = user_requests(dataset, number)
    except DatasetError:
        raise DatasetError(f"user {user} is not in {dataset.path}: no request of that user was built") from None
    if not -found.num_rows <= request < found.num_rows:
        raise SpecError(f"user {user} has {found.num_rows} requests; there is no number {request}")
    row = found.slice(request % found.num_rows, 1).to_pylist()[0]
    history = row.pop("history")
    row["requests_of_user"] = found.num_rows
    row["history_length"] = len(history)
    row["newest_events"] = history[-NEWEST_SHOWN:]
    hashed = _hashed_names(dataset.spec)
    texts = _texts(dataset, set(_hashes(row, hashed)))
    return {name: _readable(value, texts, name in hashed, hashed) for name, value in row.items()}


def _hashed_names(spec: BuildSpec) -> set[str]:
    """Names under which a request, an event or a target holds hashes of text."""
    features = {**spec.history.features, **spec.requests.features, **spec.requests.target_features}
    names = {name for name, feature in features.items() if feature.type == "id"}
    ids = {"user_id": spec.requests.user_id, "item_id": spec.requests.item_id}
    return names | {name for name, column in ids.items() if column.type == "string"}


def _hashes(value: Any, names: set[str]) -> Iterator[int]:
    if isinstance(value, list):
        for entry in value:
            yield from _hashes(entry, names)
    elif isinstance(value, dict):
        for name, entry in value.items():
            if name in names and isinstance(entry, int):
                yield entry
            yield from _hashes(entry, names)


def _texts(dataset: Dataset, ids: set[int]) -> dict[int, str]:
    """Look up the texts of those ids that are hashes."""
    words = dataset.vocabulary()
    if not words.num_rows:
        return {}
    hits = words.filter(pc.is_in(words["id"], value_set=pl.Series(sorted(ids), dtype=pl.Int64).to_arrow()))
    return dict(zip(hits["id"].to_pylist(), hits["string"].to_pylist(), strict=True))


def _readable(value: Any, texts: dict[int, str], is_hash: bool, hashed: set[str]) -> Any:
    if isinstance(value, dict):
        return {name: _readable(entry, texts, name in hashed, hashed) for name, entry in value.items()}
    if isinstance(value, list):
        return [_readable(entry, texts, is_hash, hashed) for entry in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return texts.get(value, value) if is_hash else value
