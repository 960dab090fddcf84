"""`longbatch expand`: the sample level of a dataset as Parquet, one row per target with its history copied into it.

    OUT/part-00000.parquet ...   rows in the dataset's order, columns as in `longbatch.pipelines.expansion`

The files are written to a hidden folder next to OUT. The folder is renamed to OUT once every file is written.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from longbatch.schemas.types import ProgressCallback, no_progress

from .expanded_files import (
    Expander,
    is_part,
    plan_parts,
    samples_of_file,
    samples_of_part,
    settings_for,
    write_part,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Expansion:
    """Files of the sample level: one row per target.

    Attributes:
        path: Folder of the files.
        history_length: Newest events that each history holds at most.
        rows: Rows of all files.
        events: History events in all rows together.
        files: Number of files.
        bytes: Size of the files on disk.
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
    out: str | Path,
    *,
    history_length: int | None = None,
    check: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    progress: ProgressCallback = no_progress,
) -> Expansion:
    """Write the sample level of a dataset into the folder `out`. After an error no file is left behind.

    Takes about 300 MB of memory per worker.

    Args:
        dataset: The dataset to expand.
        out: A folder that does not exist yet or is empty.
        history_length: Newest events to copy into each row; by default, and at most, the built length.
        check: Compare the files with the dataset (see `compare`), and keep them only if they are equal.
        overwrite: Replace an earlier expansion once the new one is complete.
        workers: Threads; by default one per core.
        progress: Called with a stage, the rows done and all rows.

    Returns:
        What was written, and both sides of the comparison if `check` is set.

    Raises:
        SpecError: `history_length` is out of range.
        DatasetError: `out` exists already, or the dataset is damaged.
        MachineError: The disk is full.

    Example:
        expansion = expand(open_dataset("dataset"), "samples", history_length=100, check=True)
        assert expansion.equal
    """
    length, root, started = check_history_length(dataset.spec, history_length), Path(out).resolve(), time.monotonic()
    _check_output(root, overwrite, dataset)
    expander = Expander(dataset, length, WorkerPool(workers, progress))
    parts = plan_parts(dataset, length)
    with _folder_beside(root) as folder:
        settings = settings_for(expander, parts)
        paths = [folder / f"part-{number:05d}.parquet" for number in range(len(parts))]
        tasks = zip(paths, parts, strict=True)
        with logged_stage(logger, "expand") as stage:
            written = expander.pool.run_all([partial(write_part, expander, settings, *task) for task in tasks])
            rows, events, size = (sum(column) for column in zip(*written, strict=True))
            stage.rows, stage.size_bytes = rows, size
        expansion = Expansion(str(out), length, rows, events, len(parts), size, time.monotonic() - started)
        if check:
            expected, actual = _both_sides(expander, paths)
            expansion = replace(expansion, expected=expected, actual=actual)
        if expansion.equal:
            _check_output(root, overwrite, dataset)  # again: the folder may have appeared in the meantime
            replace_folder(folder, root)
    return expansion


def compare(
    dataset: Dataset,
    out: str | Path,
    *,
    history_length: int | None = None,
    workers: int | None = None,
    progress: ProgressCallback = no_progress,
) -> Expansion:
    """Compare an expansion with the dataset, as multisets of rows. Each side is hashed independently.

    The dataset is hashed without copying histories; the files are read back in batches.

    Args:
        dataset: The dataset that was expanded.
        out: The folder of the expansion.
        history_length: The history length of the expansion; by default the built length.
        workers: Threads; by default one per core.
        progress: Called with a stage, the rows done and all rows.

    Returns:
        The expansion with both sides of the comparison; see `Expansion.equal`.

    Raises:
        SpecError: `history_length` is not the one of the expansion.
        DatasetError: `out` is not an expansion of such a dataset.
    """
    length, paths = check_history_length(dataset.spec, history_length), sorted(Path(out).glob("*.parquet"))
    if not paths:
        raise DatasetError(f"{out} contains no Parquet files. Expand the dataset into it first.")
    expected, actual = _both_sides(Expander(dataset, length, WorkerPool(workers, progress)), paths)
    size = sum(path.stat().st_size for path in paths)
    return Expansion(str(out), length, actual.rows, actual.events, len(paths), size, expected=expected, actual=actual)


def _both_sides(expander: Expander, paths: list[Path]) -> tuple[SampleDigest, SampleDigest]:
    """What the dataset expands to, and what the files contain."""
    parts = plan_parts(expander.dataset, expander.history_length)
    with logged_stage(logger, "compare") as stage:
        expected = expander.pool.run_all([partial(samples_of_part, expander, part) for part in parts])
        actual = sum(
            expander.pool.run_all([partial(samples_of_file, expander, path) for path in paths]), SampleDigest()
        )
        stage.rows = actual.rows
    return sum(expected, SampleDigest()), actual


def _check_output(root: Path, overwrite: bool, dataset: Dataset) -> None:
    """Raise DatasetError unless `root` is new or empty, or, to be replaced, contains an expansion and nothing else."""
    source = dataset.store.root.resolve() if isinstance(dataset.store, LocalStore) else None
    if source and (source.is_relative_to(root) or root.is_relative_to(source)):
        raise DatasetError(f"{root} is inside the dataset {source} or contains it. Choose a separate folder.")
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    if not overwrite:
        raise DatasetError(
            f"{root} already exists. Pass --overwrite to replace it, or --check to compare it with the dataset."
        )
    foreign = sorted(path.name for path in root.iterdir() if not is_part(path)) if root.is_dir() else [root.name]
    if foreign:
        raise DatasetError(
            f"{root} is not an expansion: it contains {foreign[0]}. Choose another output, or remove it yourself."
        )


@contextmanager
def _folder_beside(root: Path) -> Iterator[Path]:
    """A new folder next to `root` that is removed at the end, unless it was renamed; names the disk in errors."""
    try:
        with hidden_folder(root) as folder:
            yield folder
    except OSError as error:
        raise MachineError(disk_message(error, root)) from None
