"""The commands of the reference trainer, and the demo of everything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from longbatch.schemas.errors import SpecError

from .console import Json, progress_bars, show

app = typer.Typer()


@app.command()
def train(
    dataset: Annotated[Path, typer.Argument(help="A dataset.")],
    run: Annotated[Path, typer.Argument(help="The folder to write the run to.")],
    config: Annotated[Path | None, typer.Option(help="TrainConfig as TOML; see docs/trainer.md.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Stop after so long.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many steps.")] = None,
    history_length: Annotated[int | None, typer.Option(min=1, help="History length to train at.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's checkpoint.")] = False,
    as_json: Json = False,
) -> None:
    """Train the reference model, STCA unless the config names another, on the older requests and evaluate it on the newer ones.

    \b
    Example:
      longbatch train dataset run --seconds 120
      torchrun --nproc-per-node 2 --no-python longbatch train dataset run
    """
    from longbatch.trainer.train import train as run_training

    from .demo import load_config, training_progress
    from .text_output import metrics_text

    chosen = load_config(config, max_seconds=seconds, max_steps=steps, history_length=history_length)
    with progress_bars() as progress:
        report = run_training(dataset, run, chosen, resume=resume, progress=training_progress(progress, chosen))
    if os.environ.get("RANK", "0") != "0":
        return  # the first rank tells
    show(
        {**vars(report), "targets_per_second": report.targets_per_second},
        as_json,
        lambda: (
            f"trained {report.steps:,} steps, {report.targets:,} targets in {report.seconds:.0f} s "
            f"({report.targets_per_second:,.0f} targets/s, {report.waiting_seconds / max(report.seconds, 1e-9):.1%} of the time "
            f"waiting for batches)\n{metrics_text(report.metrics)}"
        ),
    )


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run written by train.")],
    dataset: Annotated[Path, typer.Argument(help="A dataset.")],
    history_lengths: Annotated[str, typer.Option(help="Lengths, separated by commas.")] = "100,500,2000,10000",
    by_history: Annotated[
        bool, typer.Option("--by-history", help="Tell requests apart by how long their history is.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Evaluate a run on the requests after its training, at several history lengths.

    \b
    Example:
      longbatch evaluate run dataset --history-lengths 500,10000
    """
    from longbatch.trainer.train import evaluate as run_evaluation

    from .demo import training_progress
    from .text_output import metrics_text

    try:
        lengths = [int(length) for length in history_lengths.split(",")]
    except ValueError:
        lengths = [-1]
    if min(lengths) < 0:
        raise SpecError(f"--history-lengths takes whole numbers from 0 on and commas, not {history_lengths!r}")
    with progress_bars() as progress:
        found = run_evaluation(
            run, dataset, history_lengths=lengths, by_history=by_history, progress=training_progress(progress)
        )
    show({"metrics": found}, as_json, lambda: metrics_text(found))


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="The folder to write.")] = Path("demo"),
    seconds: Annotated[float, typer.Option(min=1, help="Training time.")] = 110.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove an earlier demo first.")] = False,
    as_json: Json = False,
) -> None:
    """Do all of it on simulated data, in minutes: simulate, build, audit, measure, train, evaluate, report."""
    from .demo import demo as run

    with progress_bars() as progress:
        result = run(out, train_seconds=seconds, overwrite=overwrite, progress=progress)
    show(result.document, as_json, lambda: result.text)
