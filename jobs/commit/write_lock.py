"""One attempt to write to a dataset: its name is in every file it writes, and a lock says that it still runs.

Whatever ends an attempt, the lock ends with it (the system holds it, not the file). So `vacuum` can tell files of a
build that runs from those of one that was killed.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from longbatch.jobs.engines.stages import FOLDERS
from longbatch.schemas.errors import MachineError
from longbatch.schemas.format.shard import disk_message
from longbatch.schemas.format.snapshot import snapshot_numbers

LOCK, WORK = ".attempt-", ".work-"


@contextmanager
def attempt(root: Path) -> Iterator[str]:
    """Make the folders and yield the attempt's name; on any error remove its files, and what folders are then empty.

    Other attempts may be writing, or have committed, to the same root meanwhile: their files are left alone.
    """
    name = uuid.uuid4().hex[:12]
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    lock = root / f"{LOCK}{name}"
    try:
        for folder in FOLDERS:
            (root / folder).mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield name
        except BaseException:
            _remove(root, name)
            raise
        finally:
            lock.unlink(missing_ok=True)
            os.close(handle)
    except BaseException as error:
        if not snapshot_numbers(root):
            _remove_empty([*(root / folder for folder in FOLDERS), *made])
        if isinstance(error, OSError):
            raise MachineError(disk_message(error, root)) from None
        raise


def _remove(root: Path, name: str) -> None:
    for folder in FOLDERS:
        for path in (root / folder).glob(f"*{name}*"):
            path.unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def is_ours(path: Path) -> bool:
    """Whether an entry of a dataset's root is one that attempts make, finished or killed."""
    return path.name in FOLDERS or path.name.startswith((LOCK, WORK))


def running_attempts(root: Path) -> set[str]:
    """Names of the attempts whose lock is held; locks that nobody holds are removed."""
    running = set()
    for lock in root.glob(f"{LOCK}*"):
        with suppress(FileNotFoundError):
            handle = os.open(lock, os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock.unlink(missing_ok=True)
            except BlockingIOError:
                running.add(lock.name.removeprefix(LOCK))
            finally:
                os.close(handle)
    return running
