"""`longbatch expand`: the sample level of a dataset as Parquet, one row per target with its history copied into it.

    OUT/part-00000.parquet ...   rows in the dataset's order, columns as in `longbatch.pipelines.expansion`

On a disk the files are written to a hidden folder next to OUT, which is renamed to OUT once every file is written. An
object store has no rename: there OUT/_SUCCESS is written last, and an expansion without it is incomplete.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from longbatch.jobs.engines.worker_pool import WorkerPool
from longbatch.pipelines.content_hash import SampleDigest
from longbatch.schemas.errors import DatasetError, MachineError
from longbatch.schemas.format.dataset import Dataset, check_history_length
from longbatch.schemas.stage_log import logged_stage
from longbatch.schemas.storage.local_folders import disk_message, hidden_folder, replace_folder
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.storage.object_store import ObjectStore
from longbatch.schemas.storage.open_store import Location, open_store
from longbatch.schemas.storage.store import Store
from longbatch.schemas.types import ProgressCallback, no_progress

from .expanded_files import (
    PART_NAME,
    Expander,
    is_part,
    plan_parts,
    samples_of_file,
    samples_of_part,
    settings_for,
    write_part,
)

logger = logging.getLogger(__name__)

MARKER = "_SUCCESS"  # as Hadoop and Spark name it; readers of Parquet folders ignore it


@dataclass(frozen=True)
class Expansion:
    """Files of the sample level: one row per target.

    Attributes:
        path: Folder or URL of the files.
        history_length: Newest events that each history holds at most.
        rows: Rows of all files.
        events: History events in all rows together.
        files: Number of files.
        bytes: Size of the files.
        seconds: Time to write them, None where they were only compared.
        expected: What the dataset expands to, None where nothing was compared.
        actual: What the files contain, None where nothing was compared.
    """

    path: str
    history_length: int
    rows: int
    events: int
    files: int
    bytes: int
    seconds: float | None = None
    expected: SampleDigest | None = None
    actual: SampleDigest | None = None

    @property
    def equal(self) -> bool:
        """Whether the files contain exactly the rows of the dataset; true where they were not compared."""
        return self.expected == self.actual

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `equal` is None where the files were not compared."""
        return {**asdict(self), "equal": self.equal if self.actual else None}


def expand(
    dataset: Dataset,
    out: Location,
    *,
    history_length: int | None = None,
    check: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    progress: ProgressCallback = no_progress,
) -> Expansion:
    """Write the sample level of a dataset into the folder or URL `out`. After an error no file is left behind.

    Takes about 300 MB of memory per worker.

    Args:
        dataset: The dataset to expand.
        out: A folder or URL that does not exist yet or is empty.
        history_length: Newest events to copy into each row; by default, and at most, the built length.
        check: Compare the files with the dataset (see `compare`), and keep them only if they are equal.
        overwrite: Replace an earlier expansion once the new one is complete; at a URL, delete it before.
        workers: Threads; by default one per core.
        progress: Called with a stage, the rows done and all rows.

    Returns:
        What was written, and both sides of the comparison if `check` is set.

    Raises:
        SpecError: `history_length` is out of range.
        DatasetError: `out` exists already, or the dataset is damaged.
        MachineError: The disk is full, or the store cannot be reached or written.

    Example:
        expansion = expand(open_dataset("dataset"), "samples", history_length=100, check=True)
        assert expansion.equal
    """
    length, target, started = check_history_length(dataset.spec, history_length), _open_target(out), time.monotonic()
    expander = Expander(dataset, length, WorkerPool(workers, progress))
    _check_output(target, overwrite, expander)
    parts = plan_parts(dataset, length)
    with _staging(target) as store:
        settings = settings_for(expander, parts)
        names = [f"part-{number:05d}.parquet" for number in range(len(parts))]
        tasks = zip(names, parts, strict=True)
        with logged_stage(logger, "expand") as stage:
            written = expander.pool.run_all([partial(write_part, expander, settings, store, *task) for task in tasks])
            rows, events, size = (sum(column) for column in zip(*written, strict=True))
            stage.rows, stage.size_bytes = rows, size
        expansion = Expansion(_shown(out), length, rows, events, len(parts), size, time.monotonic() - started)
        if check:
            expected, actual = _both_sides(expander, store, names)
            expansion = replace(expansion, expected=expected, actual=actual)
        if expansion.equal:
            _publish(store, target, overwrite, expander)
    return expansion


def compare(
    dataset: Dataset,
    out: Location,
    *,
    history_length: int | None = None,
    workers: int | None = None,
    progress: ProgressCallback = no_progress,
) -> Expansion:
    """Compare an expansion with the dataset, as multisets of rows. Each side is hashed independently.

    The dataset is hashed without copying histories; the files are read back in batches.

    Args:
        dataset: The dataset that was expanded.
        out: Folder or URL of the expansion.
        history_length: The history length of the expansion; by default the built length.
        workers: Threads; by default one per core.
        progress: Called with a stage, the rows done and all rows.

    Returns:
        The expansion with both sides of the comparison; see `Expansion.equal`.

    Raises:
        SpecError: `history_length` is not the one of the expansion.
        DatasetError: `out` is not an expansion of such a dataset, or is incomplete.
        MachineError: The store cannot be reached or read.
    """
    length, store = check_history_length(dataset.spec, history_length), open_store(out)
    sizes = _file_sizes(store)
    names = sorted(name for name in sizes if name.endswith(".parquet") and "/" not in name)
    if not names:
        raise DatasetError(f"{store.location} contains no Parquet files. Expand the dataset into it first.")
    if MARKER not in sizes and not isinstance(store, LocalStore):
        raise DatasetError(
            f"{store.location} is incomplete: it has no {MARKER}, which `longbatch expand` writes last. Expand again "
            "with --overwrite."
        )
    expected, actual = _both_sides(Expander(dataset, length, WorkerPool(workers, progress)), store, names)
    size = sum(sizes[name] for name in names)
    return Expansion(
        _shown(out), length, actual.rows, actual.events, len(names), size, expected=expected, actual=actual
    )


def has_files(out: Location) -> bool:
    """Whether anything is in a folder or at a URL.

    Args:
        out: The output of an expansion.

    Raises:
        MachineError: The store cannot be reached or read.
    """
    return bool(_entries(open_store(out)))


def _shown(out: Location) -> str:
    return out.location if isinstance(out, Store) else str(out)


def _open_target(out: Location) -> Store:
    """The output; a folder by its absolute path without links, which can be compared with that of the dataset."""
    store = open_store(out)
    return LocalStore(store.root.resolve()) if isinstance(store, LocalStore) else store


def _entries(store: Store) -> list[str]:
    """Names of what is directly in a folder; of an object store, paths of all files."""
    if isinstance(store, LocalStore):
        return [path.name for path in store.root.iterdir()] if store.root.is_dir() else []
    return [file.path for file in store.list_files()]


def _file_sizes(store: Store) -> dict[str, int]:
    if isinstance(store, LocalStore):
        return {path.name: path.stat().st_size for path in store.root.glob("*.parquet")}
    return {file.path: file.size_bytes for file in store.list_files()}


def _both_sides(expander: Expander, store: Store, names: list[str]) -> tuple[SampleDigest, SampleDigest]:
    """What the dataset expands to, and what the files contain."""
    parts = plan_parts(expander.dataset, expander.history_length)
    with logged_stage(logger, "compare") as stage:
        expected = expander.pool.run_all([partial(samples_of_part, expander, part) for part in parts])
        actual = sum(
            expander.pool.run_all([partial(samples_of_file, expander, store, name) for name in names]), SampleDigest()
        )
        stage.rows = actual.rows
    return sum(expected, SampleDigest()), actual


def _check_output(target: Store, overwrite: bool, expander: Expander) -> None:
    """Raise DatasetError unless the place is new or empty, or, to be replaced, contains an expansion and no more."""
    if _overlap(expander.dataset.store, target):
        raise DatasetError(
            f"{target.location} is inside the dataset {expander.dataset.store.location} or contains it. Choose a "
            "separate folder."
        )
    is_not_folder = isinstance(target, LocalStore) and target.root.exists() and not target.root.is_dir()
    names = sorted(_entries(target))
    if not names and not is_not_folder:
        return
    if not overwrite:
        raise DatasetError(
            f"{target.location} already exists. Pass --overwrite to replace it, or --check to compare it with the "
            "dataset."
        )
    candidates = [name for name in names if name != MARKER]
    are_parts = expander.pool.run_all([partial(is_part, target, name) for name in candidates])
    foreign = [name for name, belongs in zip(candidates, are_parts, strict=True) if not belongs]
    if is_not_folder:
        foreign = [target.location.rpartition("/")[2]]
    if foreign:
        raise DatasetError(
            f"{target.location} is not an expansion: it contains {foreign[0]}. Choose another output, or remove it "
            "yourself."
        )


def _overlap(dataset: Store, target: Store) -> bool:
    """Whether one of two places contains the other."""
    first, second = _comparable(dataset), _comparable(target)
    return first.startswith(second) or second.startswith(first)


def _comparable(store: Store) -> str:
    if isinstance(store, LocalStore):
        return f"{store.root.resolve()}/"
    url = store.url if isinstance(store, ObjectStore) else store.location
    return f"{url.rstrip('/')}/"


@contextmanager
def _staging(target: Store) -> Iterator[Store]:
    """Where the files are written: a folder beside the target, or in an object store the target itself.

    What was not published is removed at the end.
    """
    if isinstance(target, LocalStore):
        with _folder_beside(target.root) as folder:
            yield LocalStore(folder)
        return
    # The marker goes first: a reader must not take what is left of the earlier expansion for all of it.
    target.delete([MARKER])
    _delete_parts(target)
    try:
        yield target
    finally:
        with suppress(MachineError):
            if MARKER not in _entries(target):
                _delete_parts(target)


def _delete_parts(target: Store) -> None:
    target.delete([name for name in _entries(target) if PART_NAME.match(name)])


def _publish(staged: Store, target: Store, overwrite: bool, expander: Expander) -> None:
    if isinstance(staged, LocalStore) and isinstance(target, LocalStore):
        _check_output(target, overwrite, expander)  # again: the folder may have appeared in the meantime
        replace_folder(staged.root, target.root)
    else:
        target.replace(MARKER, b"")


@contextmanager
def _folder_beside(root: Path) -> Iterator[Path]:
    """A new folder next to `root` that is removed at the end, unless it was renamed; names the disk in errors."""
    try:
        with hidden_folder(root) as folder:
            yield folder
    except OSError as error:
        raise MachineError(disk_message(error, root)) from None
