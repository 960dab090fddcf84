"""The plots of `longbatch bench studies`: means over seeds, with error bars from the worst seed to the best."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .studies_data import COMPARED, LENGTHS, StudyRun, summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID = "#1c2430", "#dfe4ea"
COLORS = ("#1f6fb2", "#c8553d", "#3a7d44", "#8b5fbf", "#b8860b")


def draw(runs: Sequence[StudyRun], attainable: dict[str, float], folder: Path) -> None:
    """Write training.png, sizes.png and models.png.

    Args:
        runs: All runs.
        attainable: AUC that counting topics attains, by history length.
        folder: Folder of the plots.
    """
    known = [attainable[str(length)] for length in LENGTHS]
    policies = {f"trained at {name}": f"train {name}" for name in ("2K", "10K", "mixed lengths")}
    sizes = {"width 16": "width 16", "width 32": "train mixed lengths", "width 64": "width 64"}
    _lengths(runs, known, policies, "Effect of the training length", folder / "training.png")
    _lengths(runs, known, sizes, "Effect of the model size", folder / "sizes.png")
    _models(runs, folder / "models.png")


def _lengths(
    runs: Sequence[StudyRun],
    attainable: Sequence[float],
    arms: dict[str, str],
    title: str,
    path: Path,
) -> None:
    figure, axes = _axes(title, "history length at inference", "test AUC of click")
    for (label, arm), color in zip(arms.items(), COLORS, strict=False):
        seeds = summary(runs, arm)
        _bars(axes, LENGTHS, [seeds.auc[n] for n in LENGTHS], label, color)
    axes.plot(LENGTHS, attainable, color=INK, linestyle=":", label="counting topics in as many events (all times)")
    axes.set_xscale("log")
    axes.set_xticks(LENGTHS, [f"{length:,}" for length in LENGTHS])
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.savefig(path)


def _models(runs: Sequence[StudyRun], path: Path) -> None:
    figure, axes = _axes(
        f"Models at {COMPARED:,} events",
        "operations of training, TFLOP (logarithmic)",
        "test AUC of click",
    )
    known = {run.arm for run in runs}
    for label, color in zip(("STCA", "LONGER", "Transformer", "DIN", "mean"), COLORS, strict=True):
        arms = [arm for arm in known if arm.startswith(f"{label.lower()}, ")]
        by_cost = sorted((summary(runs, arm) for arm in arms), key=lambda arm: arm.flops)
        cost = [arm.flops / 1e12 for arm in by_cost]
        _bars(axes, cost, [arm.auc[COMPARED] for arm in by_cost], label, color)
    axes.set_xscale("log")
    axes.legend(frameon=False)
    figure.savefig(path)


def _bars(axes: Axes, x: Sequence[float], seeds: Sequence[Sequence[float]], label: str, color: str) -> None:
    """A line through the mean of the seeds at each x, with error bars from the worst seed to the best."""
    means = [statistics.mean(values) for values in seeds]
    below = [mean - min(values) for mean, values in zip(means, seeds, strict=True)]
    above = [max(values) - mean for mean, values in zip(means, seeds, strict=True)]
    axes.errorbar(x, means, yerr=[below, above], marker="o", capsize=4, label=label, color=color)


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color=GRID)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
