"""The snapshot: a JSON file that lists all files of a dataset.

Written last, and only if no other build committed first. Files that no snapshot lists are not part of the dataset.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import pyarrow as pa
from pydantic import ValidationError

from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.errors import DatasetError, MachineError
from longbatch.schemas.profile import Profile, profile_of
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.messages import has_renamed_keys
from longbatch.schemas.storage.store import Store

from .disk import read_file
from .manifest import SHARD_TABLES, FileEntry
from .shards_table import ShardsTable, write_table

# Version of the layout on disk. Readers refuse all others, because a wrong guess would yield wrong training data.
FORMAT_VERSION = 2
SNAPSHOT_PATH = re.compile(r"^snapshots/(\d{8})\.json$")


@dataclass(frozen=True)
class Snapshot:
    """One committed version of a dataset.

    Attributes:
        number: Snapshots are numbered from 1.
        spec: Build spec, with the paths that were read.
        counts: Users, requests, targets and events, and what policies left out.
        row_accounting: Outcomes of the rows of each source.
        collisions: Strings that have the same hash as another one.
        shards: Shards by bucket, then by file name.
        vocabulary: Files of (id, string) pairs of hashed strings, by bucket of the id.
        quarantine: Files of rejected rows.
        fingerprint: Hash of the content, see `fingerprint`.
        samples: Files of sampled rows, by table.
        profile: Counters of every column, and the skew.
        log_end: Time up to which actions are complete, in microseconds; None without delayed labels.
        buckets: Number of user buckets; None for a dataset that cannot be appended to.
        until: Time up to which the log was built, in microseconds; None for a dataset that cannot be appended to.
        state: Files that later appends need, by table and bucket.
        shuffled_bytes: Bytes of typed rows that the builds moved to their buckets.
    """

    number: int
    spec: BuildSpec
    counts: Counts
    row_accounting: Mapping[str, RowAccounting]
    collisions: int
    shards: ShardsTable
    vocabulary: tuple[FileEntry, ...]
    quarantine: tuple[FileEntry, ...]
    fingerprint: str
    samples: tuple[FileEntry, ...] = ()
    profile: Profile = field(default_factory=Profile)
    log_end: int | None = None
    buckets: int | None = None
    until: int | None = None
    state: tuple[FileEntry, ...] = ()
    shuffled_bytes: int = 0

    @property
    def small_files(self) -> tuple[FileEntry, ...]:
        """Entries of all files that are not part of a shard."""
        return (*self.vocabulary, *self.quarantine, *self.samples, *self.state)

    @property
    def file_count(self) -> int:
        """Number of all files that the snapshot lists."""
        return len(self.shards.paths()) + len(self.small_files)

    @property
    def file_bytes(self) -> int:
        """Bytes of all files that the snapshot lists."""
        shards = sum(self.shards.file_bytes(table) for table in SHARD_TABLES)
        return shards + sum(entry.size_bytes for entry in self.small_files)

    @property
    def paths(self) -> set[str]:
        """Paths of all files that the snapshot lists, relative to the dataset."""
        return {*cast(list[str], self.shards.paths().to_pylist()), *(entry.path for entry in self.small_files)}


def fingerprint(spec: BuildSpec, shards: ShardsTable) -> str:
    """Compute the hash of a dataset's content: format, columns, and the checksums of the shards' files in order.

    Args:
        spec: Build spec; only what decides the columns counts.
        shards: Shards of the snapshot, in order.

    Returns:
        SHA-256 in hexadecimal digits. It does not depend on the paths of the files.
    """
    # A hash of hashes: the shards' checksums are already known, so no file is read. The file names are left out,
    # because each attempt has names of its own for the same content.
    digest = hashlib.sha256(f"longbatch format {FORMAT_VERSION}\n".encode())
    digest.update(json.dumps(_columns(spec), sort_keys=True, separators=(",", ":")).encode())
    digest.update(shards.checksum_lines())
    return digest.hexdigest()


def _columns(spec: BuildSpec) -> dict[str, Any]:
    """History length and the columns of both tables in order, with the spec's names of types."""
    requests = spec.requests
    return {
        "history_length": spec.history_length,
        "request_id": requests.request_id.type if requests.request_id else "int64",
        "history": [[name, feature.type] for name, feature in spec.history.features.items()],
        "requests": [[name, feature.type] for name, feature in requests.features.items()],
        "targets": [[name, feature.type] for name, feature in requests.target_features.items()],
        "labels": [[name, label.type] for name, label in requests.labels.items()],
    }


def snapshot_path(number: int) -> str:
    """Return the path of a snapshot's JSON file.

    Args:
        number: Number of the snapshot.
    """
    return f"snapshots/{number:08d}.json"


def snapshot_numbers(store: Store) -> list[int]:
    """List the snapshots of a dataset.

    Args:
        store: The dataset.

    Returns:
        Their numbers, ascending; none if the folder is not a dataset.
    """
    paths = [file.path for file in store.list_files("snapshots")]
    return sorted(int(match[1]) for path in paths if (match := SNAPSHOT_PATH.match(path)))


def commit(store: Store, snapshot: Snapshot, attempt: str | None = None) -> None:
    """Make a snapshot visible, atomically.

    Args:
        store: The dataset.
        snapshot: The snapshot; all files that it lists are there.
        attempt: Unique part of the name of the shards table; random if not given.

    Raises:
        DatasetError: Another build committed a snapshot with this number first.
        MachineError: The place cannot be written.
    """
    final = snapshot_path(snapshot.number)
    # A unique name, because a build that loses the race must not touch the files of the one that won. It also makes
    # the JSON below different from that of any other build, which `create_exclusively` needs.
    table_path = f"{final.removesuffix('.json')}.shards-{attempt or uuid.uuid4().hex[:12]}.arrow"
    table_bytes = _compressed(snapshot.shards.table)
    try:
        # The order makes a visible snapshot complete: the shards table is there before the JSON with its checksum.
        store.write(table_path, table_bytes)
        table = FileEntry(table_path, len(table_bytes), hashlib.sha256(table_bytes).hexdigest())
        # This is the commit: of any number of builds that create this file, the first wins.
        store.create_exclusively(final, json.dumps(_document(snapshot, table), indent=1).encode())
    except BaseException as error:
        with suppress(MachineError):
            store.delete([table_path])
        if isinstance(error, FileExistsError):
            raise DatasetError(
                f"{store.name(final)}: another build committed first. Nothing of this build is visible; run it again."
            ) from None
        raise


def _document(snapshot: Snapshot, table: FileEntry) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "fingerprint": snapshot.fingerprint,
        "spec": snapshot.spec.model_dump(mode="json", exclude_none=True),
        "counts": snapshot.counts.as_dict(),
        "row_accounting": {source: accounting.as_dict() for source, accounting in snapshot.row_accounting.items()},
        "collisions": snapshot.collisions,
        "shards": table.as_dict(),
        "vocabulary": [entry.as_dict() for entry in snapshot.vocabulary],
        "quarantine": [entry.as_dict() for entry in snapshot.quarantine],
        "samples": [entry.as_dict() for entry in snapshot.samples],
        "profile": snapshot.profile.as_dict(),
        "log_end": snapshot.log_end,
        "buckets": snapshot.buckets,
        "until": snapshot.until,
        "state": [entry.as_dict() for entry in snapshot.state],
        "shuffled_bytes": snapshot.shuffled_bytes,
    }


def _compressed(table: pa.Table) -> bytes:
    # Compressed: neighboring blocks have similar counts, times and offsets.
    sink = pa.BufferOutputStream()
    write_table(sink, table, "zstd")
    return sink.getvalue().to_pybytes()


def listed_paths(store: Store, number: int) -> set[str]:
    """Return the paths of a snapshot's own two files and of all files that it lists.

    Args:
        store: The dataset.
        number: Number of the snapshot.

    Returns:
        Paths relative to the dataset.
    """
    snapshot, name = read_snapshot(store, number), snapshot_path(number)
    table = json.loads(store.read(name).to_pybytes())["shards"]["path"]
    return {name, table, *snapshot.paths}


def read_snapshot(store: Store, number: int | None = None) -> Snapshot:
    """Read a snapshot and check it.

    Args:
        store: The dataset.
        number: Number of the snapshot; by default the newest.

    Returns:
        The snapshot.

    Raises:
        DatasetError: There is no such snapshot, it was altered, or its format is unknown; names the file.
    """
    numbers = snapshot_numbers(store)
    if not numbers:
        raise DatasetError(f"{store.location} is not a dataset: it has no snapshots. Build one with `longbatch build`.")
    if number is not None and number not in numbers:
        raise DatasetError(f"{store.location} has no snapshot {number}, only {numbers}.")
    number = numbers[-1] if number is None else number
    path = store.name(snapshot_path(number))
    try:
        document = json.loads(store.read(snapshot_path(number)).to_pybytes())
        # The version is compared first, because another version may have other keys.
        version = document["format_version"]
        if version != FORMAT_VERSION:
            raise DatasetError(
                f"{path} has format {version}, but this longbatch reads format {FORMAT_VERSION}. "
                "Install a version that reads it, or build the dataset again."
            )
        if "ledgers" in document:
            raise DatasetError(_outdated(path))
        return _parse(store, number, document, path)
    except ValidationError as error:
        if has_renamed_keys(error):
            raise DatasetError(_outdated(path)) from None
        raise DatasetError(f"{path} has an invalid spec ({error}). Restore it or build again.") from None
    except (KeyError, TypeError, ValueError, FileNotFoundError, pa.ArrowException) as error:
        raise DatasetError(
            f"{path} is not a readable snapshot ({type(error).__name__}: {error}). Restore it or build again."
        ) from None


def _outdated(path: str) -> str:
    """The error for a snapshot with key names from before the first release."""
    return f"{path} was built by an earlier development version. Build the dataset again."


def _parse(store: Store, number: int, document: dict[str, Any], path: str) -> Snapshot:
    # Checksums form a tree: the JSON lists that of the shards table, and the table those of all files and blocks.
    entry = FileEntry.from_dict(document["shards"], f"{path}, shards")
    table_path = store.name(entry.path)
    shards = ShardsTable(pa.ipc.open_file(read_file(store, entry)).read_all(), table_path)
    spec = BuildSpec.model_validate(document["spec"])
    # Computed again, because an edited spec would change the columns that the files are decoded to.
    computed = fingerprint(spec, shards)
    if computed != document["fingerprint"]:
        raise DatasetError(
            f"{table_path}: its fingerprint {computed[:12]}... is not that of the snapshot. It was altered; "
            "restore it or build again."
        )

    def entries(key: str) -> tuple[FileEntry, ...]:
        return tuple(FileEntry.from_dict(entry, f"{path}, {key}") for entry in document[key])

    return Snapshot(
        number=number,
        spec=spec,
        counts=Counts(**document["counts"]),
        row_accounting={
            source: RowAccounting(**accounting) for source, accounting in document["row_accounting"].items()
        },
        collisions=int(document["collisions"]),
        shards=shards,
        vocabulary=entries("vocabulary"),
        quarantine=entries("quarantine"),
        samples=entries("samples"),
        profile=profile_of(document["profile"]),
        log_end=document["log_end"],
        buckets=document["buckets"],
        until=document["until"],
        state=entries("state"),
        shuffled_bytes=int(document["shuffled_bytes"]),
        fingerprint=computed,
    )
