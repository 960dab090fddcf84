"""Files and folders of this machine: durable writes and atomic replacement."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

MKDIR_ATTEMPTS = 10


def disk_message(error: OSError, path: Path) -> str:
    """Describe a failed write: file, cause and remedy.

    Args:
        error: What the system reported.
        path: File or folder that was written.

    Returns:
        The message of a MachineError.
    """
    return f"cannot write {path}: {error.strerror or error}. Free space there and run again. Nothing was committed."


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file, create its folder if need be, and flush the file to the disk itself.

    Args:
        path: The file.
        data: All of its bytes.

    Raises:
        FileExistsError: The file exists.
    """
    with open_new(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def open_new(path: Path) -> BinaryIO:
    """Create a file, and its folder if need be.

    Args:
        path: The file.

    Returns:
        The file, open for writing.

    Raises:
        FileExistsError: The file exists: a retried attempt must not overwrite what a snapshot may already list.
    """
    for _ in range(MKDIR_ATTEMPTS):
        with suppress(FileNotFoundError):
            return path.open("xb")
        # Repeated, because another process may remove the folder while it is empty.
        path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk itself, so that a new or renamed file survives a power failure.

    Args:
        folder: The folder.
    """
    # On POSIX a name belongs to the folder: fsync of the file flushes its bytes, but not the entry that names it.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(target: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces `target` at the end, unless there was an error.

    A reader sees the previous file or the new one, never a part, and a power failure loses neither.

    Args:
        target: The file to replace; it need not exist.

    Yields:
        The new file, open for writing.
    """
    partial = target.with_name(f".{target.name}-{uuid.uuid4().hex[:12]}")
    try:
        with partial.open("xb") as file:
            yield file
            # The order matters: a rename that reaches the disk before the bytes would leave an empty file.
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        sync_folder(target.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def hidden_folder(target: Path) -> Iterator[Path]:
    """Make a hidden folder beside `target`, and remove it at the end unless it was renamed.

    Args:
        target: The folder that the hidden one is going to become.

    Yields:
        The hidden folder, which is empty and on the same file system.
    """
    # Beside the target, because a rename is atomic only within one file system; the random part of the name keeps
    # concurrent processes apart.
    folder = target.with_name(f".{target.name}-{uuid.uuid4().hex[:12]}")
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_folder(finished: Path, target: Path) -> None:
    """Rename a folder to `target`, and remove the folder that had this name.

    Args:
        finished: A folder beside the target.
        target: The final name. If the rename fails, the earlier folder is put back.
    """
    if not target.exists():
        finished.rename(target)
        return
    # A rename cannot replace a folder that is not empty, so the earlier one is moved out of the way first.
    with hidden_folder(target) as replaced:
        target.rename(replaced)
        try:
            finished.rename(target)
        except BaseException:
            replaced.rename(target)
            raise
