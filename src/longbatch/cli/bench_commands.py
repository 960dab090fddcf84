"""`longbatch bench`: what the documentation claims, measured."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .console import Json, progress_bars, show

app = typer.Typer()

# what is measured, by `bench_<name>` of `benchmarks/<name>.py`: the options it takes besides --quick
OPTIONS: dict[str, tuple[str, ...]] = {
    "build": ("spark", "repeats"),
    "days": (),
    "faults": ("spark",),
    "loader": ("repeats",),
    "quality": ("spark",),
    "skew": ("spark",),
    "storage": (),
    "studies": ("out",),
    "trainer": ("repeats",),
    "validate": ("repeats",),
}


@app.command()
def bench(
    what: Annotated[
        Literal["build", "days", "faults", "loader", "quality", "skew", "storage", "studies", "trainer", "validate"],
        typer.Argument(help="What to measure."),
    ],
    quick: Annotated[bool, typer.Option("--quick", help="A smaller run of the same checks.")] = False,
    spark: Annotated[bool, typer.Option(help="Measure the spark engine too.")] = True,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each; medians are shown.")] = 3,
    out: Annotated[Path, typer.Option(help="Of studies: where data, runs and plots are kept.")] = Path("studies"),
    as_json: Json = False,
) -> None:
    """Measure what the documentation claims, each figure beside its floor in the same run, or beside what is true.

    \b
    Examples:
      longbatch bench build --quick
      longbatch bench quality
    """
    from longbatch.benchmarks import checks

    given: dict[str, Any] = {"spark": spark, "repeats": repeats, "out": out}
    run = getattr(import_module(f"longbatch.benchmarks.{what}"), f"bench_{what}")
    with progress_bars() as progress:
        found, figures = run(quick=quick, progress=progress, **{name: given[name] for name in OPTIONS[what]})
    show(checks.document(found, figures), as_json, lambda: checks.text(found, figures))
    if not all(check.holds for check in found):
        raise typer.Exit(1)
