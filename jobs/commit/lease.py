"""The lease of a running attempt: a small file that its process renews, so that `vacuum` leaves its files alone.

A lease names the process and the snapshot that the attempt reads. It counts as running while it was renewed in the last
LEASE_SECONDS, by the clock of the store. If its process was one of this machine and is gone, it has ended at once,
whatever ended it. No file lock is needed, which network disks and object stores do not have.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from longbatch.schemas.errors import DatasetError, MachineError
from longbatch.schemas.format.snapshot import snapshot_path
from longbatch.schemas.storage.store import TEMPORARY_FOLDER, Store, temporary_path

logger = logging.getLogger(__name__)

# Twelve hexadecimal digits between separators: only files with such a name were written by an attempt.
ATTEMPT_NAME = re.compile(r"(?<![0-9a-f])[0-9a-f]{12}(?![0-9a-f])")
RENEW_SECONDS = 30.0
LEASE_SECONDS = 600.0  # many times RENEW_SECONDS, because a store may not answer for minutes


@dataclass(frozen=True)
class RunningAttempt:
    """An attempt whose lease counts.

    Attributes:
        name: Name of the attempt, a part of the names of its files.
        snapshot: Number of the snapshot that it reads; None if it reads none.
    """

    name: str
    snapshot: int | None


class Lease:
    """The lease of this process for one attempt.

    Args:
        store: The dataset.
        attempt: Name of the attempt.
        snapshot: Number of the snapshot that the attempt reads, whose files must stay.

    Raises:
        DatasetError: The snapshot was removed before the lease was written.
        MachineError: The place cannot be written.
    """

    def __init__(self, store: Store, attempt: str, snapshot: int | None) -> None:
        self._store, self._path = store, f"{TEMPORARY_FOLDER}/{attempt}"
        document = {"machine": _machine(), "process": os.getpid(), "started": _start_time(os.getpid())}
        self._content = json.dumps({**document, "snapshot": snapshot}).encode()
        self._ended = threading.Event()
        store.write(self._path, self._content)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()
        # Looked up after the lease is written: a vacuum removes a snapshot first and then reads the leases.
        if snapshot is not None and not _exists(store, snapshot_path(snapshot)):
            self.end()
            raise DatasetError(f"snapshot {snapshot} of {store.location} was removed meanwhile. Run again.")

    def check(self) -> None:
        """Check that no vacuum took the attempt for an ended one, which would have removed its files.

        Raises:
            DatasetError: The lease is gone.
        """
        if not _exists(self._store, self._path):
            raise DatasetError(
                f"{self._store.name(self._path)} was removed: this process did not renew it for "
                f"{LEASE_SECONDS:.0f} s, and a vacuum took it for a killed one. Nothing was committed; run again."
            )

    def end(self) -> None:
        """Stop renewing and remove the lease."""
        self._ended.set()
        self._thread.join()
        with suppress(MachineError):
            self._store.delete([self._path])

    def _renew(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                # Only renewed, never created again: `check` must see that a vacuum removed it.
                if _exists(self._store, self._path):
                    self._store.replace(self._path, self._content)
            except MachineError as error:
                logger.warning("the lease could not be renewed: %s", error)


def running_attempts(store: Store) -> list[RunningAttempt]:
    """Find the attempts whose lease counts, and remove the leases of ended ones.

    Args:
        store: The dataset.

    Returns:
        The running attempts.

    Raises:
        MachineError: The place cannot be read or written.
    """
    files = list(store.list_files(TEMPORARY_FOLDER))
    if not files:
        return []
    now = store.now(temporary_path("clock"))
    running = []
    for file in files:
        name = file.path.removeprefix(f"{TEMPORARY_FOLDER}/")
        is_lease = ATTEMPT_NAME.fullmatch(name)  # else a file of a probe or a clock whose process was killed
        with suppress(FileNotFoundError):  # the attempt ended meanwhile
            document = _read(store, file.path) if is_lease else {}
            if now - file.modified > LEASE_SECONDS or _has_ended(document):
                store.delete([file.path])
            elif is_lease:
                snapshot = document.get("snapshot")
                running.append(RunningAttempt(name, snapshot if isinstance(snapshot, int) else None))
    return running


def _read(store: Store, path: str) -> dict[str, object]:
    """The content of a lease; empty if it is not a lease that this version wrote: then only its age counts."""
    try:
        document = json.loads(store.read(path).to_pybytes())
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _exists(store: Store, path: str) -> bool:
    try:
        store.size(path)
    except FileNotFoundError:
        return False
    return True


def _has_ended(document: dict[str, object]) -> bool:
    """Whether the process of a lease was one of this machine and is gone."""
    machine, process = _machine(), document.get("process")
    if machine is None or document.get("machine") != machine or not isinstance(process, int):
        return False
    return _start_time(process) != document.get("started")


def _machine() -> str | None:
    """Identify this boot of this machine, and the container: process numbers mean nothing outside them."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None  # not Linux: the age of the lease decides


def _start_time(process: int) -> str | None:
    """Start time of a process, in clock ticks since boot; None if there is no such process.

    Together with its number it identifies a process, because numbers are used again.
    """
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # "1234 (name) S 1 ...": the name may contain spaces and parentheses. The start time is field 22; a zombie (state
    # Z) has ended, although it still has a number.
    state, *fields = status.rpartition(")")[2].split()
    return None if state == "Z" else fields[18]
