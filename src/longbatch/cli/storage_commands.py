"""The commands about other layouts of a dataset and what they cost: measure, expand, plan."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import Json, Overwrite, examples, print_result, show_progress
from .run_record import describe_run

app = typer.Typer()


@app.command(
    epilog=examples(
        "longbatch measure dataset savings      # then open savings/savings.html",
        "longbatch measure dataset savings --budget 50",
    )
)
def measure(
    dataset: Annotated[str, typer.Argument(help="Folder or URL of a dataset.")],
    out: Annotated[str, typer.Argument(help="Folder or URL for savings.json, savings.html and plots.")],
    budget: Annotated[
        int,
        typer.Option(
            min=1, help="In-memory megabytes to write of each layout in each format; larger ones are sampled."
        ),
    ] = 600,
    seed: Annotated[int, typer.Option(min=0, help="Chooses what is sampled.")] = 0,
    as_json: Json = False,
) -> None:
    """Measure what it saves to store each timeline once: sample, request and user level in five formats."""
    from longbatch.api.storage import measure as run

    from .text_output import format_savings

    describe_run(reads=dataset, other_output=out)
    with show_progress() as progress:
        savings = run(dataset, out, budget_bytes=budget * 1_000_000, seed=seed, progress=progress)
    print_result(savings.as_dict(), as_json, lambda: format_savings(savings, out))


@app.command(
    epilog=examples(
        "longbatch expand dataset samples --history-length 100",
        "longbatch expand dataset samples --check                 # compare existing files",
        "longbatch expand dataset samples --overwrite --check     # write and compare",
        "longbatch expand dataset s3://bucket/samples",
    )
)
def expand(
    dataset: Annotated[str, typer.Argument(help="Folder or URL of a dataset.")],
    out: Annotated[str, typer.Argument(help="Folder or URL of the Parquet files to write.")],
    check: Annotated[
        bool, typer.Option("--check", help="Compare the files with the dataset. If OUT exists, only compare.")
    ] = False,
    history_length: Annotated[
        int | None, typer.Option(min=0, help="The newest events to copy. Default: the built length.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write a dataset as Parquet with one row per target, its history copied into the row.

    With --check the files are read back, and their rows are compared with the dataset's in any order. The exit code
    is 0 if both are equal, else 1.
    """
    from longbatch.api.storage import expand as run
    from longbatch.jobs.expand import compare, has_files
    from longbatch.schemas.format.dataset import open_dataset

    from .text_output import format_expansion

    describe_run(reads=dataset, other_output=out)
    opened = open_dataset(dataset)
    with show_progress() as progress:
        if check and not overwrite and has_files(out):
            expansion = compare(opened, out, history_length=history_length, progress=progress)
        else:
            expansion = run(
                opened, out, history_length=history_length, check=check, overwrite=overwrite, progress=progress
            )
    print_result(expansion.as_dict(), as_json, lambda: format_expansion(expansion))
    if not expansion.equal:
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "longbatch measure dataset savings",
        "longbatch plan savings/savings.json --users 1e9 --targets 8 --length 10000 --days 30",
        "longbatch plan savings/savings.json --put-price 0.0055 --get-price 0.00043 --list-price 0.0055",
    )
)
def plan(
    savings: Annotated[
        str, typer.Argument(help="Path or URL of a savings.json written by measure, of a sample of the log.")
    ],
    users: Annotated[float, typer.Option(min=1, max=1e12, help="Users with requests.")] = 1e6,
    requests_per_user_day: Annotated[float, typer.Option(min=1e-6, max=1e6, help="Requests of a user per day.")] = 30,
    targets: Annotated[float, typer.Option(min=1e-6, max=1e6, help="Mean targets of a request.")] = 8,
    length: Annotated[float, typer.Option(min=1, max=1e9, help="Mean events of a history.")] = 10_000,
    days: Annotated[float, typer.Option(min=1e-6, max=1e5, help="Days of requests in the dataset.")] = 30,
    events_per_user_day: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="Events of a user per day. Default: each target is one.")
    ] = None,
    trainers: Annotated[int, typer.Option(min=1, max=1_000_000, help="Training processes.")] = 8,
    requests_per_second: Annotated[
        float, typer.Option(min=1e-6, max=1e9, help="Requests that each of them consumes.")
    ] = 1_000,
    cores_per_host: Annotated[int, typer.Option(min=1, max=100_000, help="Cores of a loader host.")] = 32,
    put_price: Annotated[float, typer.Option(min=0, help="Dollars for 1,000 PUT requests.")] = 0.005,
    get_price: Annotated[float, typer.Option(min=0, help="Dollars for 1,000 GET requests.")] = 0.0004,
    list_price: Annotated[float, typer.Option(min=0, help="Dollars for 1,000 LIST requests.")] = 0.005,
    read_megabytes: Annotated[
        float, typer.Option(min=0.001, max=1e6, help="Megabytes of one request for a part of a Parquet file.")
    ] = 8,
    block_events: Annotated[int, typer.Option(min=1, help="block_events and block_targets of the spec.")] = 65_536,
    as_json: Json = False,
) -> None:
    """Extrapolate a measured sample to any scale: storage by layout, build, reading, requests to an object store.

    docs/planning.md has every formula and how accurate it was. The default prices are the list prices of S3 Standard
    in us-east-1 as of 2024.
    """
    from longbatch.jobs.savings.capacity_plan import Demand, plan_capacity, steady_volume
    from longbatch.jobs.savings.request_costs import ObjectStore, plan_requests
    from longbatch.jobs.savings.results import read_savings

    from .text_output import format_capacity_plan, format_request_costs

    volume = steady_volume(
        users=users,
        requests_per_user_day=requests_per_user_day,
        targets=targets,
        length=length,
        days=days,
        events_per_user_day=requests_per_user_day * targets if events_per_user_day is None else events_per_user_day,
    )
    measured = read_savings(savings)
    planned = plan_capacity(measured, volume, Demand(trainers, requests_per_second, cores_per_host))
    store = ObjectStore(
        put_price=put_price,
        get_price=get_price,
        list_price=list_price,
        read_bytes=read_megabytes * 1e6,
        block_events=block_events,
        block_targets=block_events,
    )
    costs = plan_requests(measured, planned, days, store)
    document = {**planned.as_dict(), "object_store": {**vars(store), "layouts": [cost.as_dict() for cost in costs]}}
    print_result(document, as_json, lambda: f"{format_capacity_plan(planned)}\n\n{format_request_costs(costs)}")
