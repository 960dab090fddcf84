"""Other layouts of a dataset, what they cost, and simulated logs."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from longbatch.schemas.storage.open_store import Location
from longbatch.schemas.types import ProgressCallback, no_progress

from .arguments import read_dataset

if TYPE_CHECKING:
    from longbatch.jobs.expand import Expansion
    from longbatch.jobs.savings.results import Savings
    from longbatch.jobs.simulation.simulate import SimulationReport
    from longbatch.schemas.format.dataset import Dataset


def expand(
    dataset: Location | Dataset,
    out: Location,
    *,
    history_length: int | None = None,
    check: bool = False,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> Expansion:
    """Write a dataset as Parquet files with one row per target, its history copied into the row.

    Args:
        dataset: A dataset.
        out: Folder or URL of Parquet files to write.
        history_length: The newest events to copy, at most the built length, which is the default.
        check: Read the files back and compare their rows with the dataset.
        overwrite: Replace an earlier expansion after the new one is complete; at a URL, delete it before.
        progress: Called with (stage, done, total).

    Returns:
        Rows, history events, files and bytes, and whether both sides are equal.

    Raises:
        SpecError: `history_length` is beyond the built one.
        DatasetError: `out` exists, or the dataset is damaged.
        MachineError: The disk is full.

    Example:
        >>> import longbatch as lb
        >>> expansion = lb.expand("dataset", "samples", history_length=10, check=True)
        >>> expansion.equal
        True
    """
    from longbatch.jobs.expand import expand as run

    return run(
        read_dataset(dataset),
        out,
        history_length=history_length,
        check=check,
        overwrite=overwrite,
        progress=progress or no_progress,
    )


def measure(
    dataset: Location | Dataset,
    out: Location,
    *,
    budget_bytes: int = 600_000_000,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Savings:
    """Measure the bytes and times of the storage layouts in use: sample, request and user level, in five formats.

    Args:
        dataset: A dataset.
        out: Folder or URL for savings.json, savings.html and plots.
        budget_bytes: In-memory bytes to write of each layout in each format. Larger layouts are sampled.
        seed: Chooses what is sampled.
        progress: Called with (stage, done, total).

    Returns:
        Bytes and seconds of every layout and format, and how many times the dataset's bytes they are.

    Raises:
        SpecError: The budget is too small.
        MachineError: The disk is full.

    Example:
        >>> import longbatch as lb
        >>> savings = lb.measure("dataset", "savings", budget_bytes=1_000_000)
        >>> savings.headline.memory > 1
        True
    """
    from longbatch.jobs.savings.measure import measure as run

    return run(read_dataset(dataset), out, budget_bytes=budget_bytes, seed=seed, progress=progress or no_progress)


def simulate(
    out: str | PathLike[str],
    *,
    users: int = 1_000,
    events: int = 4_000_000,
    seed: int = 0,
    corrupt: float = 0.0,
    format: Literal["parquet", "csv"] = "parquet",
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> SimulationReport:
    """Write a raw log with a planted signal, the spec that builds it, and its ground truth.

    Args:
        out: The folder to write: `log/`, `spec.toml`, `truth.json`, `truth/`.
        users: Users of the log.
        events: Rows of the log, from 100 to 20,000 per user.
        seed: The same arguments and seed give the same log.
        corrupt: Corrupt rows to add, as a share of `events`, up to 0.2.
        format: The file format of the log.
        overwrite: Replace an earlier simulation.
        progress: Called with (stage, done, total).

    Returns:
        Rows, targets and bytes, the planted corrupt rows, and the AUC that each history length makes attainable.

    Raises:
        SpecError: The arguments make no log, or `out` exists.

    Example:
        >>> import longbatch as lb
        >>> report = lb.simulate("raw", users=20, events=20_000)
        >>> report.rows
        20000
    """
    from longbatch.jobs.simulation.simulate import Simulation
    from longbatch.jobs.simulation.simulate import simulate as run

    parameters = Simulation(users=users, events=events, seed=seed, corrupt=corrupt, format=format)
    return run(Path(out), parameters, overwrite=overwrite, progress=progress or no_progress)
