"""`longbatch expand`: the sample level of a dataset as Parquet files, one row per target with its history copied into it.

    OUT/part-00000.parquet ...   rows in the dataset's order, columns as in `pipelines/levels.py`

The files are written to a hidden folder beside OUT, which takes its name when all is done.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from longbatch.cli.text_output import format_size
from longbatch.jobs.engines.worker_pool import WorkerPool
from longbatch.pipelines.content_hash import Samples
from longbatch.schemas.errors import DatasetError, MachineError
from longbatch.schemas.format.dataset import Dataset, check_history_length
from longbatch.schemas.format.shard import disk_message
from longbatch.schemas.types import ProgressCallback, no_progress

from .expanded_files import is_part, plan_parts, samples_of_file, samples_of_part, settings_for, write_part


@dataclass(frozen=True)
class Expansion:
    """Files of the sample level: one row per target, so many history events in all rows together; bytes on disk.

    seconds: of writing, None where they were only compared. dataset, found: what the dataset expands to and what is in
    the files, each hashed for itself; None where they were not compared.
    """

    path: str
    history_length: int
    rows: int
    events: int
    files: int
    bytes: int
    seconds: float | None = None
    dataset: Samples | None = None
    found: Samples | None = None

    @property
    def equal(self) -> bool:
        """Whether the files hold the rows of the dataset, each as often; true where that was not looked at."""
        return self.dataset == self.found

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "equal": self.equal if self.found else None}


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
    """Write the sample level of a dataset into the folder `out`; on any error nothing is visible and nothing left.

    With `check` the files are compared with the dataset (see `compare`), and get their name only if they are equal.
    `overwrite` replaces an earlier expansion, after success only. `history_length` is at most the built one, the
    default. Takes some 300 MB of memory per worker (default: one per core). Raises SpecError (history_length),
    DatasetError (`out` exists, the dataset is damaged), MachineError (disk full).
    """
    length, root, started = check_history_length(dataset.spec, history_length), Path(out).resolve(), time.monotonic()
    _check_output(root, overwrite, dataset)
    pool, parts = WorkerPool(workers, progress), plan_parts(dataset, length)
    with _hidden(root) as folder:
        settings = settings_for(dataset, length)
        paths = [folder / f"part-{number:05d}.parquet" for number in range(len(parts))]
        write = partial(write_part, dataset, length, settings, pool)
        sizes = pool.each([partial(write, *task) for task in zip(paths, parts, strict=True)])
        rows, events, size = (sum(column) for column in zip(*sizes, strict=True))
        expansion = Expansion(str(out), length, rows, events, len(parts), size, time.monotonic() - started)
        if check:
            sides = _compare(dataset, length, pool, paths)
            expansion = replace(expansion, dataset=sides[0], found=sides[1])
        if expansion.equal:
            _check_output(root, overwrite, dataset)
            _publish(folder, root)
    return expansion


def compare(
    dataset: Dataset,
    out: str | Path,
    *,
    history_length: int | None = None,
    workers: int | None = None,
    progress: ProgressCallback = no_progress,
) -> Expansion:
    """Compare an expansion with the dataset: both as multisets of rows, each hashed for itself.

    The dataset's side copies no history; the other is read from the files, in batches. Raises SpecError
    (`history_length` is not that of the expansion) and DatasetError (`out` is no expansion of such a dataset).
    """
    length, paths = check_history_length(dataset.spec, history_length), sorted(Path(out).glob("*.parquet"))
    if not paths:
        raise DatasetError(f"{out} holds no Parquet files; expand the dataset into it first")
    expected, found = _compare(dataset, length, WorkerPool(workers, progress), paths)
    size = sum(path.stat().st_size for path in paths)
    return Expansion(str(out), length, found.rows, found.events, len(paths), size, dataset=expected, found=found)


def _compare(dataset: Dataset, length: int, pool: WorkerPool, paths: list[Path]) -> tuple[Samples, Samples]:
    """What the dataset expands to, and what is in the files."""
    parts = plan_parts(dataset, length)
    expected = pool.each([partial(samples_of_part, dataset, length, pool, part) for part in parts])
    found = pool.each([partial(samples_of_file, dataset, length, pool, path) for path in paths])
    return sum(expected, Samples()), sum(found, Samples())


def _check_output(root: Path, overwrite: bool, dataset: Dataset) -> None:
    """Raise DatasetError unless `root` is new or empty, or, to be replaced, holds an expansion and nothing else."""
    place = Path(str(dataset.path)).resolve()
    if place.is_relative_to(root) or root.is_relative_to(place):
        raise DatasetError(f"{root} lies in the dataset {place}, or around it; choose a folder of its own")
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    if not overwrite:
        raise DatasetError(f"{root} exists; pass --overwrite to replace it, or --check to compare it with the dataset")
    foreign = sorted(path.name for path in root.iterdir() if not is_part(path)) if root.is_dir() else [root.name]
    if foreign:
        raise DatasetError(
            f"{root} is no expansion: it holds {foreign[0]}; choose another output, or remove it yourself"
        )


@contextmanager
def _hidden(root: Path) -> Iterator[Path]:
    """Make a folder beside `root` that is gone at the end, unless it was renamed."""
    folder = root.with_name(f".{root.name}-{uuid.uuid4().hex[:12]}")
    try:
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        raise MachineError(disk_message(error, root)) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _publish(folder: Path, root: Path) -> None:
    """Give the folder its name, in place of the one that has it."""
    if not root.exists():
        folder.rename(root)
        return
    with _hidden(root) as old:
        root.rename(old)
        try:
            folder.rename(root)
        except BaseException:
            old.rename(root)
            raise


def expansion_text(expansion: Expansion) -> str:
    """What was written, and both sides of the comparison."""
    lines = [
        f"{expansion.path}: {expansion.rows:,} rows with {expansion.events:,} history events in {expansion.files:,} "
        f"files, {format_size(expansion.bytes)}" + (f", {expansion.seconds:.1f} s" if expansion.seconds else "")
    ]
    if expansion.dataset and expansion.found:
        lines.append(f"{'':<8}{'rows':>14}{'history events':>18}  hash")
        for side, samples in (("dataset", expansion.dataset), ("files", expansion.found)):
            lines.append(f"{side:<8}{samples.rows:>14,}{samples.events:>18,}  {samples.hash}")
        lines.append("equal" if expansion.equal else "not equal: these are not the rows that the dataset expands to")
    return "\n".join(lines)
