"""Read a file with libraries that need a path, wherever it is."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .local_store import LocalStore
from .store import Store


@contextmanager
def local_copy(store: Store, path: str) -> Iterator[Path]:
    """Yield a path of this machine with the content of a file of a store.

    Args:
        store: The store.
        path: The file.

    Yields:
        The file itself if the store is on this machine, else a temporary copy.

    Raises:
        FileNotFoundError: The file does not exist.
        MachineError: The store cannot be reached or read, or there is no space for the copy.
    """
    if isinstance(store, LocalStore):
        store.size(path)
        yield store.path(path)
        return
    with tempfile.TemporaryDirectory(prefix="longbatch-") as folder:
        target = Path(folder) / "copy"
        store.download(path, target)
        yield target
