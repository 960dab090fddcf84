"""`longbatch vacuum`: remove snapshots that are out of date, and files that no snapshot lists."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longbatch.jobs.commit.write_lock import WORK, running_attempts
from longbatch.jobs.engines.stages import FOLDERS
from longbatch.schemas.errors import DatasetError, SpecError
from longbatch.schemas.format.snapshot import listed_paths, snapshot_numbers


@dataclass(frozen=True)
class Vacuumed:
    """What was removed: snapshots by number, files and their bytes; and attempts that were running, left alone."""

    snapshots: list[int]
    files: int
    bytes: int
    running: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dict(self.__dict__)


def vacuum(root: Path, keep: int = 1) -> Vacuumed:
    """Keep the newest `keep` snapshots and what they list; remove all else that builds wrote here and that none writes now.

    Files are looked for before the locks of running attempts, and those before the snapshots: a file found belongs to
    an attempt that holds its lock, or that is over, committed or not. Raises DatasetError if a snapshot cannot be read.
    """
    if keep < 1:
        raise SpecError(f"keep is {keep}; at least the newest snapshot stays")
    if not snapshot_numbers(root):
        raise DatasetError(f"{root} is not a dataset: it has no snapshots")
    found = [path for folder in FOLDERS if (root / folder).is_dir() for path in (root / folder).iterdir()]
    scratch = list(root.glob(f"{WORK}*"))
    running = running_attempts(root)
    numbers = snapshot_numbers(root)
    old = numbers[:-keep]
    listed = set().union(*(listed_paths(root, number) for number in numbers[-keep:]))
    dropped = [root / "snapshots" / f"{number:08d}.json" for number in old]
    dead = [path for path in found if path not in dropped and not _lives(root, path, listed, running)]
    removed = 0
    for path in [*dropped, *dead]:  # snapshots first: a kill in between leaves no snapshot without its files
        removed += path.stat().st_size if path.exists() else 0
        path.unlink(missing_ok=True)
    for folder in scratch:
        if folder.name.removeprefix(WORK) not in running:
            shutil.rmtree(folder, ignore_errors=True)
    return Vacuumed(old, len(dead), removed, sorted(running))


def _lives(root: Path, path: Path, listed: set[str], running: set[str]) -> bool:
    return path.relative_to(root).as_posix() in listed or any(name in path.name for name in running)
