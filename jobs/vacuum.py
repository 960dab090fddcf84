"""`longbatch vacuum`: remove old snapshots, and files that no snapshot lists."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from longbatch.jobs.commit.attempt import DATASET_FOLDERS, remove_work_folders
from longbatch.jobs.commit.lease import ATTEMPT_NAME, running_attempts
from longbatch.schemas.errors import DatasetError, SpecError
from longbatch.schemas.format.snapshot import listed_paths, snapshot_numbers, snapshot_path
from longbatch.schemas.stage_log import logged_stage
from longbatch.schemas.storage.open_store import Location, open_store

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


def vacuum(dataset: Location, keep: int = 1) -> Vacuumed:
    """Remove what builds wrote to a dataset but no kept snapshot lists and no running build writes or reads.

    Only files whose names builds make are removed.

    Args:
        dataset: Folder or URL of the dataset.
        keep: Number of the newest snapshots to keep; those that a running append or forget reads stay too.

    Returns:
        What was removed.

    Raises:
        SpecError: `keep` is less than 1.
        DatasetError: The folder is not a dataset, or a snapshot cannot be read.
        MachineError: The place cannot be written.
    """
    if keep < 1:
        raise SpecError(f"keep is {keep}, but at least the newest snapshot must be kept. Use 1 or more.")
    store = open_store(dataset)
    # The order matters: first list the files, then the running attempts, then the snapshots. A listed file belongs to
    # an attempt that is running, or to one that has ended before its snapshot is listed.
    sizes = {file.path: file.size_bytes for folder in DATASET_FOLDERS for file in store.list_files(folder)}
    running = running_attempts(store)
    numbers = snapshot_numbers(store)
    if not numbers:
        raise DatasetError(f"{store.location} is not a dataset: it has no snapshots.")
    kept = {*numbers[-keep:], *(attempt.snapshot for attempt in running)}
    old = [number for number in numbers if number not in kept]
    used = set[str]().union(*(listed_paths(store, number) for number in numbers if number in kept))
    with logged_stage(logger, "remove files") as stage:
        # Snapshots first, so that a kill in between leaves no snapshot whose files are gone.
        store.delete([snapshot_path(number) for number in old])
        # An attempt that began meanwhile may read one of them: it looks for its snapshot after it wrote its lease. Then
        # the files are left to the next vacuum.
        running = [*running, *running_attempts(store)] if old else running
        names = {attempt.name for attempt in running}
        unused = [path for path in sizes if path not in used and _is_ended(path, names)]
        if any(attempt.snapshot in old for attempt in running):
            unused = []
        store.delete(unused)
        remove_work_folders(store, names)
        stage.size_bytes = sum(sizes.get(path, 0) for path in (*unused, *map(snapshot_path, old)))
    return Vacuumed(old, len(unused), stage.size_bytes, sorted(names))


def _is_ended(path: str, running: set[str]) -> bool:
    """Whether an attempt wrote the file and none that is running did; a name is looked up as a whole."""
    names = ATTEMPT_NAME.findall(path)
    return bool(names) and not any(name in running for name in names)
