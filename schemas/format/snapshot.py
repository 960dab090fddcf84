"""The snapshot: the JSON file that makes a set of files a dataset. Written last, and exclusively.

What no snapshot lists is not part of a dataset, whatever lies in its folders.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from longbatch.schemas.accounting import Counts, RowAccounting
from longbatch.schemas.errors import DatasetError, MachineError
from longbatch.schemas.profile import Profile, profile_of
from longbatch.schemas.spec.build_spec import BuildSpec

from .shard import SHARDS_SCHEMA, check_file, disk_message, shard_files

FORMAT_VERSION = 2
SNAPSHOT_NAME = re.compile(r"^(\d{8})\.json$")


@dataclass(frozen=True)
class Snapshot:
    """One committed version of a dataset.

    shards: rows of SHARDS_SCHEMA, by bucket. vocabulary, quarantine, samples: file entries {path, bytes, sha256, rows},
    of samples also {table}. profile: counters and skew. log_end: up to when the actions are complete, in microseconds;
    None without labels from later events. buckets, until, state: of a dataset that can be appended to, into how many
    buckets its users are split, up to when it holds the log (microseconds), and entries {kind, bucket, path, bytes,
    sha256, rows} of what later appends need. shuffled_bytes: of the typed rows that builds moved to their buckets.
    """

    number: int
    spec: BuildSpec
    counts: Counts
    row_accounting: Mapping[str, RowAccounting]
    collisions: int
    shards: tuple[dict[str, Any], ...]
    vocabulary: tuple[dict[str, Any], ...]
    quarantine: tuple[dict[str, Any], ...]
    fingerprint: str
    samples: tuple[dict[str, Any], ...] = ()
    profile: Profile = field(default_factory=Profile)
    log_end: int | None = None
    buckets: int | None = None
    until: int | None = None
    state: tuple[dict[str, Any], ...] = ()
    shuffled_bytes: int = 0

    @property
    def files(self) -> list[dict[str, Any]]:
        """The entries of all files it lists."""
        shards = [entry for row in self.shards for entry in shard_files(row)]
        return [*shards, *self.vocabulary, *self.quarantine, *self.samples, *self.state]


def fingerprint(spec: BuildSpec, shards: tuple[dict[str, Any], ...]) -> str:
    """Hash of a dataset's content and not of its paths: format, columns, and each file's checksum in order."""
    digest = hashlib.sha256(f"longbatch format {FORMAT_VERSION}\n".encode())
    digest.update(json.dumps(_columns(spec), sort_keys=True, separators=(",", ":")).encode())
    for row in shards:
        digest.update(f"\n{' '.join(entry['sha256'] for entry in shard_files(row))}".encode())
    return digest.hexdigest()


def _columns(spec: BuildSpec) -> dict[str, Any]:
    """History length and the columns of both tables in order, in the words of the spec."""
    requests = spec.requests
    return {
        "history_length": spec.history_length,
        "request_id": requests.request_id.type if requests.request_id else "int64",
        "history": [[name, feature.type] for name, feature in spec.history.features.items()],
        "requests": [[name, feature.type] for name, feature in requests.features.items()],
        "targets": [[name, feature.type] for name, feature in requests.target_features.items()],
        "labels": [[name, label.type] for name, label in requests.labels.items()],
    }


def snapshot_numbers(root: Path) -> list[int]:
    """Numbers of the snapshots under a dataset's root, ascending."""
    try:
        names = os.listdir(root / "snapshots")
    except OSError:
        return []
    return sorted(int(match[1]) for name in names if (match := SNAPSHOT_NAME.match(name)))


def commit(root: Path, snapshot: Snapshot, attempt: str | None = None) -> None:
    """Make a snapshot visible, atomically, by files named with `attempt` until then. Raises DatasetError if another build took its number meanwhile."""
    folder = root / "snapshots"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{snapshot.number:08d}"
    shards = pa.Table.from_pylist(list(snapshot.shards), schema=SHARDS_SCHEMA)
    mine = attempt or uuid.uuid4().hex[:12]  # a commit that loses must not touch the files of the one that won
    staged, table_path = folder / f".{name}.{mine}.json", folder / f"{name}.shards-{mine}.arrow"
    final = folder / f"{name}.json"
    try:
        table_bytes = _ipc_bytes(shards)
        _write_durably(table_path, table_bytes)
        entry = {
            "path": table_path.relative_to(root).as_posix(),
            "bytes": len(table_bytes),
            "sha256": hashlib.sha256(table_bytes).hexdigest(),
        }
        _write_durably(staged, json.dumps(_document(snapshot, entry), indent=1).encode())
        os.link(staged, final)
        _sync_folder(folder)
    except BaseException as error:
        if staged.exists() and final.exists() and final.samefile(staged):
            final.unlink()
        table_path.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            raise DatasetError(
                f"{final}: another build committed first; nothing of this one is visible; run it again"
            ) from None
        if isinstance(error, OSError):
            raise MachineError(disk_message(error, folder)) from None
        raise
    finally:
        staged.unlink(missing_ok=True)


def _document(snapshot: Snapshot, shards: dict[str, Any]) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "fingerprint": snapshot.fingerprint,
        "spec": snapshot.spec.model_dump(mode="json", exclude_none=True),
        "counts": snapshot.counts.as_dict(),
        "row_accounting": {source: accounting.as_dict() for source, accounting in snapshot.row_accounting.items()},
        "collisions": snapshot.collisions,
        "shards": shards,
        "vocabulary": list(snapshot.vocabulary),
        "quarantine": list(snapshot.quarantine),
        "samples": list(snapshot.samples),
        "profile": snapshot.profile.as_dict(),
        "log_end": snapshot.log_end,
        "buckets": snapshot.buckets,
        "until": snapshot.until,
        "state": list(snapshot.state),
        "shuffled_bytes": snapshot.shuffled_bytes,
    }


def _ipc_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def listed_paths(root: Path, number: int) -> set[str]:
    """Paths, relative to the root, of a snapshot's own two files and of all that it lists."""
    snapshot = read_snapshot(root, number)
    name = f"snapshots/{number:08d}.json"
    table = json.loads((root / name).read_bytes())["shards"]["path"]
    return {name, table, *(entry["path"] for entry in snapshot.files)}


def read_snapshot(root: Path, number: int | None = None) -> Snapshot:
    """Read a snapshot, the newest by default. Raises DatasetError if there is none, or it is not one we know."""
    numbers = snapshot_numbers(root)
    if not numbers:
        raise DatasetError(f"{root} is not a dataset: it has no snapshots; build one with `longbatch build`")
    if number is not None and number not in numbers:
        raise DatasetError(f"{root} has no snapshot {number}; it has {numbers}")
    number = numbers[-1] if number is None else number
    path = root / "snapshots" / f"{number:08d}.json"
    try:
        document = json.loads(path.read_bytes())
        version = document["format_version"]
        if version != FORMAT_VERSION:
            raise DatasetError(
                f"{path} is of format {version}; this longbatch reads format {FORMAT_VERSION}; install one that fits"
            )
        return _parse(root, number, document)
    except (KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise DatasetError(f"{path} is not a readable snapshot ({type(error).__name__}: {error})") from None


def _parse(root: Path, number: int, document: dict[str, Any]) -> Snapshot:
    path = check_file(root, document["shards"], checksum=True)
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    if not table.schema.equals(SHARDS_SCHEMA):
        raise DatasetError(f"{path}: not the columns of a shards table of format {FORMAT_VERSION}")
    spec = BuildSpec.model_validate(document["spec"])
    shards = tuple(table.to_pylist())
    found = fingerprint(spec, shards)
    if found != document["fingerprint"]:
        raise DatasetError(f"{path}: fingerprint {found[:12]}... is not the snapshot's; it was altered, build again")
    return Snapshot(
        number=number,
        spec=spec,
        counts=Counts(**document["counts"]),
        row_accounting={
            source: RowAccounting(**accounting) for source, accounting in document["row_accounting"].items()
        },
        collisions=int(document["collisions"]),
        shards=shards,
        vocabulary=tuple(document["vocabulary"]),
        quarantine=tuple(document["quarantine"]),
        samples=tuple(document["samples"]),
        profile=profile_of(document["profile"]),
        log_end=document["log_end"],
        buckets=document.get("buckets"),
        until=document.get("until"),
        state=tuple(document.get("state", ())),
        shuffled_bytes=int(document.get("shuffled_bytes", 0)),
        fingerprint=found,
    )
