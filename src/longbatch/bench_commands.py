"""`longbatch bench`: what the documentation claims, measured."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from longbatch.console import Json, progress_bars, show

app = typer.Typer()


@app.command()
def bench(
    what: Annotated[
        Literal["build", "days", "faults", "quality", "skew", "storage", "validate"],
        typer.Argument(help="What to measure."),
    ],
    quick: Annotated[bool, typer.Option("--quick", help="A smaller run of the same checks.")] = False,
    spark: Annotated[bool, typer.Option(help="Measure the spark engine too.")] = True,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each; medians are shown.")] = 3,
    as_json: Json = False,
) -> None:
    """Measure what the documentation claims, each figure beside its floor in the same run, or beside what is true.

    \b
    Examples:
      longbatch bench build --quick
      longbatch bench quality
    """
    from longbatch.benchmarks import checks
    from longbatch.benchmarks.build import bench_build
    from longbatch.benchmarks.days import bench_days
    from longbatch.benchmarks.faults import bench_faults
    from longbatch.benchmarks.quality import bench_quality
    from longbatch.benchmarks.skew import bench_skew
    from longbatch.benchmarks.storage import bench_storage
    from longbatch.benchmarks.validate import bench_validate

    with progress_bars() as progress:
        if what == "quality":
            found, figures = bench_quality(quick=quick, spark=spark, progress=progress)
        elif what == "days":
            found, figures = bench_days(quick=quick, progress=progress)
        elif what == "faults":
            found, figures = bench_faults(quick=quick, progress=progress)
        elif what == "skew":
            found, figures = bench_skew(quick=quick, spark=spark, progress=progress)
        elif what == "storage":
            found, figures = bench_storage(quick=quick, progress=progress)
        elif what == "validate":
            found, figures = bench_validate(quick=quick, repeats=repeats, progress=progress)
        else:
            found, figures = bench_build(quick=quick, spark=spark, repeats=repeats, progress=progress)
    show(checks.document(found, figures), as_json, lambda: checks.text(found, figures))
    if not all(check.holds for check in found):
        raise typer.Exit(1)
