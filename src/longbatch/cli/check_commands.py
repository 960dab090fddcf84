"""The commands that show and check what is in a dataset."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import Json, examples, print_result, show_progress
from .run_record import describe_run

app = typer.Typer()


@app.command(
    epilog=examples(
        "longbatch inspect dataset",
        "longbatch inspect dataset --user 42 --request 0",
        "longbatch inspect dataset --content-hash --json",
    )
)
def inspect(
    dataset: Annotated[str, typer.Argument(help="Folder or URL of a dataset.")],
    user: Annotated[str | None, typer.Option(help="Show one request of this user.")] = None,
    request: Annotated[int, typer.Option(help="The number of the user's request; -1 is the last.")] = -1,
    content_hash: Annotated[
        bool, typer.Option("--content-hash", help="Also hash the content, which reads all of it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what is in a dataset, or one request of a user with its history and targets."""
    from longbatch.jobs.inspect import describe, describe_user
    from longbatch.schemas.format.dataset import open_dataset

    from .text_output import format_dataset, format_user_request

    describe_run(reads=dataset)
    opened = open_dataset(dataset)
    if user is not None:
        described_request = describe_user(opened, user, request)
        print_result(described_request, as_json, lambda: format_user_request(described_request))
        return
    description = describe(opened, hash_content=content_hash).as_dict()
    print_result(description, as_json, lambda: format_dataset(description))


@app.command(
    epilog=examples(
        "longbatch validate dataset --users 50",
        "longbatch validate dataset --against moved/spec.toml     # the same spec with other paths",
        "longbatch validate dataset --no-expectations",
    )
)
def validate(
    dataset: Annotated[str, typer.Argument(help="Folder or URL of a dataset.")],
    against: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Path or URL of a spec with the paths of the raw logs, if they moved. Default: the dataset's own.",
        ),
    ] = None,
    users: Annotated[int, typer.Option(min=0, help="Users to recompute from the raw logs; 0 for all.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the users.")] = 0,
    expectations: Annotated[bool, typer.Option(help="Run Great Expectations and write its Data Docs.")] = True,
    as_json: Json = False,
) -> None:
    """Check the structure of a dataset, and recompute sampled users from the raw logs, event by event.

    Great Expectations then checks the counters and samples of the build and writes DATASET/reports/data_docs.
    The exit code is 0 if everything passed, else 1. If the raw logs are gone, only the structure is checked.
    """
    from longbatch.api.data import validate as run

    from .text_output import format_validation

    describe_run(reads=dataset)
    with show_progress() as progress:
        validation = run(
            dataset, against=against, users=users or None, seed=seed, expectations=expectations, progress=progress
        )
    print_result(validation.as_dict(), as_json, lambda: format_validation(validation))
    if validation.audit.not_compared:
        typer.echo(f"nothing was compared with the raw logs: {validation.audit.not_compared}", err=True)
    if not validation.passed:
        raise typer.Exit(1)
