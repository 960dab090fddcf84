"""The commands about what a layout costs on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import Json, Overwrite, progress_bars, show

app = typer.Typer()


@app.command()
def measure(
    dataset: Annotated[Path, typer.Argument(help="A dataset.")],
    out: Annotated[Path, typer.Argument(help="The folder for savings.json and savings.html.")],
    budget: Annotated[int, typer.Option(min=1, help="Megabytes to write of each layout in each format.")] = 600,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Measure what storing each timeline once saves: sample, request and user level, in five formats.

    \b
    Example:
      longbatch measure dataset savings
    """
    from longbatch.jobs.savings.measure import measure as run
    from longbatch.schemas.format.dataset import open_dataset

    from .text_output import savings_text

    with progress_bars() as progress:
        savings = run(open_dataset(dataset), out, budget_bytes=budget * 1_000_000, seed=seed, progress=progress)
    show(savings.as_dict(), as_json, lambda: savings_text(savings, str(out)))


@app.command()
def expand(
    dataset: Annotated[Path, typer.Argument(help="A dataset.")],
    out: Annotated[Path, typer.Argument(help="The folder of Parquet files to write.")],
    check: Annotated[
        bool, typer.Option("--check", help="Compare the files with the dataset; OUT as it is, where it exists.")
    ] = False,
    history_length: Annotated[int | None, typer.Option(min=0, help="Default: the built one.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the sample level of a dataset as Parquet: one row per target, its history copied into it.

    With --check, both are hashed as multisets of rows, the files as they are read back: ends with 0 if they are equal,
    with 1 if not. Where OUT exists and --overwrite is not given, --check writes nothing.

    \b
    Examples:
      longbatch expand dataset samples --history-length 100
      longbatch expand dataset samples --overwrite --check
    """
    from longbatch.jobs.expand import compare
    from longbatch.jobs.expand import expand as run
    from longbatch.schemas.format.dataset import open_dataset

    from .text_output import format_expansion

    opened = open_dataset(dataset)
    with progress_bars() as progress:
        if check and not overwrite and out.is_dir() and any(out.iterdir()):
            found = compare(opened, out, history_length=history_length, progress=progress)
        else:
            found = run(opened, out, history_length=history_length, check=check, overwrite=overwrite, progress=progress)
    show(found.as_dict(), as_json, lambda: format_expansion(found))
    if not found.equal:
        raise typer.Exit(1)


@app.command()
def plan(
    savings: Annotated[Path, typer.Argument(help="A savings.json written by measure, of a sample of the log.")],
    users: Annotated[float, typer.Option(min=1, max=1e12, help="Users with requests.")] = 1e6,
    requests_per_user_day: Annotated[float, typer.Option(min=1e-6, max=1e6)] = 30,
    targets: Annotated[float, typer.Option(min=1e-6, max=1e6, help="Targets of a request.")] = 8,
    length: Annotated[float, typer.Option(min=1, max=1e9, help="Events of a history, in the mean.")] = 10_000,
    days: Annotated[float, typer.Option(min=1e-6, max=1e5, help="Days of requests in the dataset.")] = 30,
    events_per_user_day: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="Default: each target is one.")
    ] = None,
    trainers: Annotated[int, typer.Option(min=1, max=1_000_000, help="Processes that train at once.")] = 8,
    requests_per_second: Annotated[float, typer.Option(min=1e-6, max=1e9, help="Requests each of them takes.")] = 1_000,
    cores_per_host: Annotated[int, typer.Option(min=1, max=100_000, help="Cores of a host that loads for them.")] = 32,
    as_json: Json = False,
) -> None:
    """Say what a dataset of any size would take: storage of each layout, the build's shuffle and memory, reading.

    The rates are those measured on a sample; docs/planning.md has every formula and how well they held.

    \b
    Example:
      longbatch measure dataset savings
      longbatch plan savings/savings.json --users 1e9 --requests-per-user-day 30 --targets 8 --length 10000 --days 30
    """
    from longbatch.jobs.savings.capacity_plan import Demand, project, steady_volume
    from longbatch.jobs.savings.results_file import read_savings

    from .text_output import plan_text

    volume = steady_volume(
        users=users,
        requests_per_user_day=requests_per_user_day,
        targets=targets,
        length=length,
        days=days,
        events_per_user_day=requests_per_user_day * targets if events_per_user_day is None else events_per_user_day,
    )
    planned = project(read_savings(savings), volume, Demand(trainers, requests_per_second, cores_per_host))
    show(planned, as_json, lambda: plan_text(planned))
