"""The commands of the reference trainer, and the demo of all stages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longbatch.schemas.errors import SpecError

from .console import Json, ProgressDisplay, examples, print_result, show_progress
from .run_record import describe_run

if TYPE_CHECKING:
    from longbatch.trainer.progress import TrainingProgress, TrainingProgressCallback

app = typer.Typer()


@app.command(
    epilog=examples(
        "longbatch train dataset run --seconds 120",
        "longbatch train dataset run --config stca.toml --resume",
        "longbatch train s3://bucket/dataset s3://bucket/run",
        "torchrun --nproc-per-node 2 --no-python longbatch train dataset run",
    )
)
def train(
    dataset: Annotated[str, typer.Argument(help="Folder or URL of a dataset.")],
    run: Annotated[str, typer.Argument(help="Folder or URL to write checkpoints and report.json to.")],
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="TrainConfig as TOML, a path or URL; see docs/trainer.md.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Stop training after this time.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop training after this many steps.")] = None,
    history_length: Annotated[
        int | None, typer.Option(min=1, help="The newest events that the model sees in training.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the checkpoint in RUN.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model on the older requests of a dataset, and evaluate it on the newer ones.

    The model is STCA unless the config names another.
    """
    from longbatch.api.arguments import read_train_config
    from longbatch.api.training import train as run_training

    from .text_output import format_training

    describe_run(reads=dataset, other_output=run)
    chosen = read_train_config(config, max_seconds=seconds, max_steps=steps, history_length=history_length)
    with show_progress() as progress:
        report = run_training(
            dataset, run, config=chosen, resume=resume, progress=training_progress(progress, chosen.max_seconds)
        )
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun only the first rank prints
    document = {**vars(report), "targets_per_second": report.targets_per_second}
    print_result(document, as_json, lambda: format_training(report))


@app.command(
    epilog=examples(
        "longbatch evaluate run dataset --history-lengths 500,10000",
        "longbatch evaluate run dataset --by-history",
    )
)
def evaluate(
    run: Annotated[str, typer.Argument(help="Folder or URL written by train, or one of its checkpoint files.")],
    dataset: Annotated[str, typer.Argument(help="Folder or URL of a dataset.")],
    history_lengths: Annotated[str, typer.Option(help="History lengths, separated by commas.")] = "100,500,2000,10000",
    by_history: Annotated[
        bool, typer.Option("--by-history", help="Report metrics by the number of events in a request's history.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Evaluate a trained model on the requests after its training, at several history lengths."""
    from longbatch.api.training import evaluate as run_evaluation

    from .text_output import format_metrics

    describe_run(reads=dataset)
    lengths = parse_history_lengths(history_lengths)
    with show_progress() as progress:
        metrics = run_evaluation(
            run, dataset, history_lengths=lengths, by_history=by_history, progress=training_progress(progress)
        )
    print_result({"metrics": metrics}, as_json, lambda: format_metrics(metrics))


def parse_history_lengths(option: str) -> list[int]:
    """Read the value of --history-lengths.

    Raises:
        SpecError: A part is not an integer of 0 or more.
    """
    try:
        lengths = [int(length) for length in option.split(",")]
    except ValueError:
        lengths = [-1]
    if min(lengths) < 0:
        raise SpecError(f"--history-lengths takes integers of 0 or more, separated by commas; found {option!r}")
    return lengths


def training_progress(show: ProgressDisplay, max_seconds: float | None = None) -> TrainingProgressCallback:
    """Return a callback that shows the progress of training by time if that is its limit, else by steps."""
    from .text_output import format_training_note

    def callback(progress: TrainingProgress) -> None:
        note = format_training_note(progress)
        if progress.stage == "train" and max_seconds:
            show(progress.stage, min(progress.seconds, max_seconds), max_seconds, note)
        elif progress.total_steps:
            show(progress.stage, progress.step, progress.total_steps, note)

    return callback


@app.command(
    epilog=examples(
        "longbatch demo demo --overwrite     # then open demo/report.html",
    )
)
def demo(
    out: Annotated[Path, typer.Argument(help="The folder to write.")] = Path("demo"),
    seconds: Annotated[float, typer.Option(min=1, help="The time to train for.")] = 110.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove an earlier demo first.")] = False,
    as_json: Json = False,
) -> None:
    """Run all stages on simulated data in minutes: simulate, build, audit, measure, train, evaluate, report."""
    from .demo import run_demo
    from .report import make_document
    from .text_output import format_demo

    with show_progress() as progress:
        results = run_demo(out, train_seconds=seconds, overwrite=overwrite, progress=progress)
    print_result(make_document(results), as_json, lambda: format_demo(results, out))
