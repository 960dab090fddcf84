"""`longbatch vacuum`: remove old snapshots, and files that no snapshot lists."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longbatch.jobs.commit.write_lock import DATASET_FOLDERS, WORK_PREFIX, running_attempts
from longbatch.schemas.errors import DatasetError, SpecError
from longbatch.schemas.format.snapshot import listed_paths, snapshot_numbers
from longbatch.schemas.stage_log import logged_stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Vacuumed:
    """What a vacuum removed.

    Attributes:
        snapshots: Numbers of the removed snapshots.
        files: Number of other removed files.
        bytes: Size of all removed files.
        running: Names of running attempts, whose files stay.
    """

    snapshots: list[int]
    files: int
    bytes: int
    running: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return asdict(self)


def vacuum(root: Path, keep: int = 1) -> Vacuumed:
    """Remove what builds wrote to a dataset but no kept snapshot lists and no running build writes.

    Args:
        root: The dataset's folder.
        keep: Number of the newest snapshots to keep.

    Returns:
        What was removed.

    Raises:
        SpecError: `keep` is less than 1.
        DatasetError: The folder is not a dataset, or a snapshot cannot be read.
    """
    if keep < 1:
        raise SpecError(f"keep is {keep}, but at least the newest snapshot must be kept. Use 1 or more.")
    if not snapshot_numbers(root):
        raise DatasetError(f"{root} is not a dataset: it has no snapshots.")
    # The order matters: first list the files, then the locks of running attempts, then the snapshots. A listed file
    # belongs to an attempt that holds its lock, or to one that has ended before its snapshots are listed.
    # As strings and not as paths, because a dataset can have a million files.
    files = [f"{folder}/{name}" for folder in DATASET_FOLDERS for name in _names(root / folder)]
    work_folders = list(root.glob(f"{WORK_PREFIX}*"))
    running = running_attempts(root)
    numbers = snapshot_numbers(root)
    old = numbers[:-keep]
    listed = set[str]().union(*(listed_paths(root, number) for number in numbers[-keep:]))
    dropped = [f"snapshots/{number:08d}.json" for number in old]
    unlisted = sorted(set(files).difference(listed, dropped))
    unused = [path for path in unlisted if not any(name in path for name in running)]
    removed = 0
    with logged_stage(logger, "remove files") as stage:
        # Snapshots first, so that a kill in between leaves no snapshot whose files are gone.
        for name in [*dropped, *unused]:
            path = root / name
            removed += path.stat().st_size if path.exists() else 0
            path.unlink(missing_ok=True)
        stage.size_bytes = removed
    for folder in work_folders:
        if folder.name.removeprefix(WORK_PREFIX) not in running:
            shutil.rmtree(folder, ignore_errors=True)
    return Vacuumed(old, len(unused), removed, sorted(running))


def _names(folder: Path) -> list[str]:
    """Names of the files in a folder; none if there is no such folder."""
    return os.listdir(folder) if folder.is_dir() else []
