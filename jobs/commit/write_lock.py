"""One attempt to write to a dataset: its name is part of every file it writes, and a lock shows that it is running.

The operating system holds the lock, not the file, so the lock ends with the process, whatever ends it. This is how
`vacuum` distinguishes the files of a running build from those of one that was killed.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from longbatch.schemas.format.manifest import SHARD_TABLES
from longbatch.schemas.format.snapshot import snapshot_numbers

from .disk_errors import writing
from .interrupts import sigterm_as_interrupt

DATASET_FOLDERS = (*SHARD_TABLES, "vocabulary", "quarantine", "samples", "state", "snapshots")
LOCK_PREFIX = ".attempt-"
WORK_PREFIX = ".work-"


@contextmanager
def attempt(root: Path) -> Iterator[str]:
    """Create the folders of a dataset and a lock for the block; on any error remove the files of this attempt.

    Other attempts may write or commit to the same root meanwhile: their files stay. SIGTERM ends the block like Ctrl-C.

    Args:
        root: The dataset's folder, which need not exist.

    Yields:
        The attempt's name, which every file it writes must contain.

    Raises:
        MachineError: The folder cannot be written.
    """
    name = uuid.uuid4().hex[:12]
    created = [folder for folder in (root, *root.parents) if not folder.exists()]
    lock = root / f"{LOCK_PREFIX}{name}"
    try:
        with writing(root), sigterm_as_interrupt():
            for folder in DATASET_FOLDERS:
                (root / folder).mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                yield name
            except BaseException:
                _remove_files(root, name)
                raise
            finally:
                lock.unlink(missing_ok=True)
                os.close(handle)
    except BaseException:
        if not snapshot_numbers(root):
            _remove_empty([*(root / folder for folder in DATASET_FOLDERS), *created])
        raise


def work_folder(root: Path, attempt: str) -> Path:
    """Folder of an attempt's temporary files.

    Args:
        root: The dataset's folder.
        attempt: Name of the attempt.
    """
    return root / f"{WORK_PREFIX}{attempt}"


def _remove_files(root: Path, name: str) -> None:
    for folder in DATASET_FOLDERS:
        for path in (root / folder).glob(f"*{name}*"):
            path.unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def is_dataset_entry(path: Path) -> bool:
    """Check whether an entry of a dataset's folder is one that attempts create, finished or killed.

    Args:
        path: The entry.
    """
    return path.name in DATASET_FOLDERS or path.name.startswith((LOCK_PREFIX, WORK_PREFIX))


def running_attempts(root: Path) -> set[str]:
    """Find the attempts whose lock is held, and remove the lock files of killed ones.

    Args:
        root: The dataset's folder.

    Returns:
        Names of the running attempts.
    """
    running = set()
    for lock in root.glob(f"{LOCK_PREFIX}*"):
        with suppress(FileNotFoundError):
            handle = os.open(lock, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock.unlink(missing_ok=True)
            except BlockingIOError:
                running.add(lock.name.removeprefix(LOCK_PREFIX))
            finally:
                os.close(handle)
    return running
