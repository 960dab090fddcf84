"""`longbatch bench`: what the documentation claims, measured."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from longbatch.console import Json, progress_bars, show

app = typer.Typer()


@app.command()
def bench(
    what: Annotated[Literal["build", "quality", "validate", "loader"], typer.Argument(help="What to measure.")],
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
      longbatch bench loader --quick
    """
    from longbatch.benchmarks import checks
    from longbatch.benchmarks.build import bench_build
    from longbatch.benchmarks.loader import bench_loader
    from longbatch.benchmarks.quality import bench_quality
    from longbatch.benchmarks.validate import bench_validate

    with progress_bars() as progress:
        if what == "quality":
            found, figures = bench_quality(quick=quick, spark=spark, progress=progress)
        elif what == "validate":
            found, figures = bench_validate(quick=quick, repeats=repeats, progress=progress)
        elif what == "loader":
            found, figures = bench_loader(quick=quick, repeats=repeats, progress=progress)
        else:
            found, figures = bench_build(quick=quick, spark=spark, repeats=repeats, progress=progress)
    show(checks.document(found, figures), as_json, lambda: checks.text(found, figures))
    if not all(check.holds for check in found):
        raise typer.Exit(1)
