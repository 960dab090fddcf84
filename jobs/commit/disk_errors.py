"""Errors of the disk, turned into messages of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longbatch.schemas.errors import MachineError
from longbatch.schemas.storage.local_folders import disk_message


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a MachineError that names the file.

    Args:
        path: The file or folder that the block writes.

    Raises:
        MachineError: The disk is full, or the path cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise MachineError(disk_message(error, path)) from None
