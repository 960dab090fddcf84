"""Write a folder of files with libraries that need a path, wherever it belongs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .local_store import LocalStore
from .store import Store


@contextmanager
def output_folder(store: Store, folder: str = "", *, keep_others: bool = False) -> Iterator[Path]:
    """Yield a path of this machine for files of a store; what an object store gets is uploaded at the end of the block.

    After an error nothing is uploaded.

    Args:
        store: Where the folder belongs.
        folder: Its path in the store; "" for all of it.
        keep_others: Replace only files of the same name. Otherwise uploaded files replace all earlier ones of the
            folder.

    Yields:
        The folder itself if the store is on this machine, else an empty temporary folder.

    Raises:
        MachineError: The store cannot be written.
    """
    if isinstance(store, LocalStore):
        yield store.path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="longbatch-") as name:
        local = Path(name) / "output"
        local.mkdir()
        yield local
        earlier = set() if keep_others else {file.path for file in store.list_files(folder)}
        for path in sorted(path for path in local.rglob("*") if path.is_file()):
            name = path.relative_to(local).as_posix()
            target = f"{folder}/{name}" if folder else name
            store.replace(target, path.read_bytes())
            earlier.discard(target)
        store.delete(sorted(earlier))
