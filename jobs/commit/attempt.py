"""One attempt to write to a dataset: its name is part of every file it writes, and a lease shows that it is running."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from longbatch.schemas.errors import MachineError
from longbatch.schemas.format.manifest import SHARD_TABLES
from longbatch.schemas.format.snapshot import Snapshot, commit, snapshot_numbers
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.storage.store import TEMPORARY_FOLDER, Store

from .interrupts import sigterm_as_interrupt
from .lease import ATTEMPT_NAME, Lease

DATA_FOLDERS = (*SHARD_TABLES, "vocabulary", "quarantine", "samples", "state")
DATASET_FOLDERS = (*DATA_FOLDERS, "snapshots")
WORK_PREFIX = ".work-"


@dataclass(frozen=True)
class Attempt:
    """A running attempt.

    Attributes:
        store: The dataset.
        name: Twelve hexadecimal digits, which the name of every file of the attempt contains.
        lease: Its lease.
    """

    store: Store
    name: str
    lease: Lease

    def commit(self, snapshot: Snapshot) -> None:
        """Make a snapshot visible; see `snapshot.commit`."""
        self.lease.check()
        commit(self.store, snapshot, self.name)


@contextmanager
def attempt(store: Store, reads: int | None = None) -> Iterator[Attempt]:
    """Take a lease for the block; on any error remove the files of this attempt.

    Other attempts may write or commit to the same dataset meanwhile: their files stay. SIGTERM ends the block like
    Ctrl-C.

    Args:
        store: The dataset.
        reads: Number of the snapshot that the attempt reads; None if it reads none.

    Yields:
        The attempt.

    Raises:
        DatasetError: The snapshot to read was removed meanwhile.
        MachineError: The place cannot be written, or cannot commit.
    """
    name = uuid.uuid4().hex[:12]
    missing = _missing_folders(store)
    try:
        with sigterm_as_interrupt():
            # Before any work: a place that cannot commit is refused at once.
            store.probe()
            lease = Lease(store, name, reads)
            try:
                yield Attempt(store, name, lease)
            except BaseException:
                _remove_files(store, name)
                raise
            finally:
                lease.end()
    except BaseException:
        _remove_empty_folders(store, missing)
        raise


def work_folder(store: Store, attempt: str) -> Path:
    """Folder of an attempt's temporary files on this machine: beside a local dataset, else where the system has them.

    Args:
        store: The dataset.
        attempt: Name of the attempt.
    """
    base = store.root if isinstance(store, LocalStore) else Path(tempfile.gettempdir())
    return base / f"{WORK_PREFIX}{attempt}"


def remove_work_folders(store: Store, running: set[str]) -> None:
    """Remove the temporary files of ended attempts.

    Args:
        store: The dataset.
        running: Names of the running attempts.
    """
    # Of a remote dataset they are in the system's folder, where nothing says which dataset an attempt belongs to.
    if isinstance(store, LocalStore):
        for folder in store.root.glob(f"{WORK_PREFIX}*"):
            if folder.name.removeprefix(WORK_PREFIX) not in running and not folder.is_symlink():
                shutil.rmtree(folder, ignore_errors=True)


def attempt_files(store: Store) -> Iterator[str]:
    """List the files that attempts wrote, committed or not, apart from snapshots.

    Args:
        store: The dataset.

    Yields:
        Paths.
    """
    for folder in DATASET_FOLDERS:
        for file in store.list_files(folder):
            if ATTEMPT_NAME.search(file.path):
                yield file.path


def is_dataset_entry(name: str) -> bool:
    """Check whether an entry of a dataset's folder is one that attempts create, finished or killed.

    Args:
        name: Name of the file or folder.
    """
    return name in (*DATASET_FOLDERS, TEMPORARY_FOLDER) or name.startswith(WORK_PREFIX)


def _remove_files(store: Store, name: str) -> None:
    with suppress(MachineError):
        store.delete([path for path in attempt_files(store) if name in path])


def _missing_folders(store: Store) -> list[Path]:
    if not isinstance(store, LocalStore):
        return []
    return [folder for folder in (store.root, *store.root.parents) if not folder.exists()]


def _remove_empty_folders(store: Store, missing: list[Path]) -> None:
    """Remove the folders that this attempt created, if the dataset has no snapshot."""
    with suppress(MachineError):
        if isinstance(store, LocalStore) and not snapshot_numbers(store):
            for folder in [*(store.root / name for name in DATASET_FOLDERS), *missing]:
                with suppress(OSError):
                    folder.rmdir()
