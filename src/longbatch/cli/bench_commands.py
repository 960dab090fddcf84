"""`longbatch bench`: measures what the documentation claims."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import typer

from .console import Json, examples, print_result, show_progress

app = typer.Typer()

# benchmark: the options it takes besides --quick; `benchmarks/NAME.py` defines it as `bench_NAME`
OPTIONS: dict[str, tuple[str, ...]] = {
    "build": ("spark", "repeats"),
    "days": (),
    "faults": ("spark",),
    "gpu": (),
    "loader": ("repeats",),
    "matrix": ("only",),
    "manifest": (),
    "quality": ("spark",),
    "skew": ("spark",),
    "storage": (),
    "stores": (),
    "studies": ("out",),
    "trainer": ("repeats",),
    "validate": ("repeats",),
}


@app.command(
    epilog=examples(
        "longbatch bench build --quick",
        "longbatch bench quality",
    )
)
def bench(
    name: Annotated[
        Literal[
            "build",
            "days",
            "faults",
            "gpu",
            "loader",
            "manifest",
            "matrix",
            "quality",
            "skew",
            "storage",
            "stores",
            "studies",
            "trainer",
            "validate",
        ],
        typer.Argument(help="The benchmark to run."),
    ],
    quick: Annotated[bool, typer.Option("--quick", help="Run the same checks on less data.")] = False,
    spark: Annotated[bool, typer.Option(help="Also measure the Spark engine.")] = True,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each measurement; the median counts.")] = 3,
    out: Annotated[Path, typer.Option(help="The folder for data, runs and plots of studies.")] = Path("studies"),
    only: Annotated[list[str] | None, typer.Option(help="A row of the matrix to run; default: all rows.")] = None,
    as_json: Json = False,
) -> None:
    """Measure what the documentation claims: each figure next to a baseline of the same run, or to the true value.

    The exit code is 0 if all checks hold, else 1.
    """
    from longbatch.benchmarks import checks

    from .text_output import format_benchmark

    given: dict[str, object] = {"spark": spark, "repeats": repeats, "out": out, "only": only or ()}
    run = getattr(import_module(f"longbatch.benchmarks.{name}"), f"bench_{name}")
    with show_progress() as progress:
        results, figures = run(quick=quick, progress=progress, **{option: given[option] for option in OPTIONS[name]})
    print_result(checks.document(results, figures), as_json, lambda: format_benchmark(results, figures))
    if not all(check.holds for check in results):
        raise typer.Exit(1)
