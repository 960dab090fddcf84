"""The demo's page: what each stage did, the savings, the loss, and AUC by history length beside what is attainable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longbatch.jobs.build import BuildSummary
from longbatch.jobs.savings import charts as plots
from longbatch.jobs.savings.results import Savings
from longbatch.jobs.simulation.simulate import SimulationReport
from longbatch.trainer.train import TrainReport
from longbatch.validation.audit.audit import Audit

from .text_output import format_size, metrics_text


@dataclass(frozen=True)
class Outcome:
    """The results of all stages of the demo; metrics: one per history length and label; seconds: by stage."""

    simulated: SimulationReport
    built: BuildSummary
    audited: Audit
    savings: Savings
    trained: TrainReport
    metrics: Sequence[Mapping[str, Any]]
    seconds: Mapping[str, float]

    @property
    def label(self) -> str:
        """The main label."""
        return str(self.metrics[0]["label"])

    @property
    def auc(self) -> dict[int, float]:
        """AUC of the main label by history length."""
        return {int(m["history_length"]): float(m["auc"]) for m in self.metrics if m["label"] == self.label}

    @property
    def attainable(self) -> dict[str, float | None]:
        """AUC that the log makes attainable for the main label, by history length, and of the true probabilities."""
        return dict(self.simulated.attainable[self.label])


def document(outcome: Outcome) -> dict[str, Any]:
    """Everything the page shows, as plain values."""
    return {
        "simulated": {k: v for k, v in vars(outcome.simulated).items() if k != "out"},
        "built": outcome.built.as_dict(),
        "audited": vars(outcome.audited),
        "savings": outcome.savings.headline,
        "trained": {
            "steps": outcome.trained.steps,
            "targets": outcome.trained.targets,
            "targets_per_second": outcome.trained.targets_per_second,
            "losses": outcome.trained.losses,
        },
        "metrics": [dict(m) for m in outcome.metrics],
        "attainable": outcome.attainable,
        "seconds": dict(outcome.seconds),
    }


def text(outcome: Outcome, out: Path) -> str:
    """The end of the demo in the terminal."""
    headline, audited = outcome.savings.headline, outcome.audited
    known = {k: v for k, v in outcome.attainable.items() if v is not None}
    attainable = ", ".join(f"{name.replace('_', ' ')}: {auc:.3f}" for name, auc in known.items())
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in outcome.seconds.items())
    return "\n".join(
        [
            f"events {outcome.built.counts.events:,}, requests {outcome.built.counts.requests:,}, "
            f"targets {outcome.built.counts.targets:,}, dataset {format_size(outcome.built.bytes)}",
            f"audit: {audited.requests_checked:,} requests of {audited.users_checked} users recomputed from the raw "
            f"log, {len(audited.findings)} findings",
            f"savings: {headline['decoded']:.0f}x fewer bytes to decode than sample level; at rest (Parquet zstd) "
            f"{headline['log_order']:.1f}x fewer than in log order, {headline['sorted_by_user']:.1f}x than sorted by user",
            metrics_text([m for m in outcome.metrics if m["label"] == outcome.label]),
            f"AUC of {outcome.label} attainable by counting topics in the newest events: {attainable}",
            f"{stages}; in all {sum(outcome.seconds.values()):.0f} s",
            f"open {out / 'report.html'}",
        ]
    )


def page(outcome: Outcome) -> str:
    """The self-contained report.html."""
    counts = outcome.built.counts
    lead = plots.paragraph(
        f"A simulated log of {outcome.simulated.rows:,} impressions by {outcome.simulated.users:,} users (the busiest "
        f"with {outcome.simulated.longest_user:,}) became a dataset of {counts.requests:,} requests with "
        f"{counts.targets:,} targets. Every request sees at most its user's newest "
        f"{outcome.savings.dataset['history_length']:,} events; every event is stored once. A small STCA model learnt from it."
    )
    return plots.page(
        "longbatch: the main job, end to end",
        [
            ("", lead + plots.facts(_facts(outcome))),
            ("Savings by layout", _savings(outcome.savings)),
            ("Longer histories predict better", _auc(outcome)),
            ("Training", _training(outcome.trained)),
            ("Checked against the raw log", _audit(outcome)),
            ("Time by stage", _stages(outcome)),
        ],
    )


def _facts(outcome: Outcome) -> list[tuple[str, str]]:
    lengths = sorted(outcome.auc)
    shortest, longest = lengths[0], lengths[-1]
    rate = outcome.simulated.rows / outcome.built.seconds
    return [
        (f"{outcome.savings.headline['decoded']:.0f}×", "fewer bytes to decode than with a history in every sample"),
        (f"{plots.format_number(rate)}/s", "rows of the raw log built into the dataset"),
        (
            f"{outcome.auc[shortest]:.3f} → {outcome.auc[longest]:.3f}",
            f"test AUC of {outcome.label} from {shortest:,} to {longest:,} events of history",
        ),
        (str(len(outcome.audited.findings)), f"findings in {outcome.audited.requests_checked:,} requests recomputed"),
    ]


def _savings(savings: Savings) -> str:
    levels = list(savings.layouts)
    titles = [layout.title for layout in levels]
    stressed = [len(levels) - 1]
    decoded = plots.bar_chart(
        "Decoded bytes per target", titles, [layout.decoded_per_target for layout in levels], "B",
        log=True, highlight=stressed,
    )  # fmt: skip
    codec = savings.on_disk["codec"]
    at_rest = plots.bar_chart(
        "Bytes at rest: the other layouts as Parquet zstd, and the dataset as it is",
        [*titles[:-1], f"user level, as longbatch stores it (Arrow {codec})"],
        [*(layout.file("Parquet zstd").bytes for layout in levels[:-1]), savings.on_disk["bytes"]],
        "B",
        log=True,
        highlight=stressed,
    )
    words = plots.paragraph(
        "Decoded bytes are what a reader works through, whatever the codec. At rest, a strong codec hides copies that lie "
        "together, so the order of the rows matters as much as the layout: compare with the baseline that is yours. "
        "savings/savings.html beside this page has every format and codec, read and write times, and the method."
    )
    return words + decoded + at_rest


def _auc(outcome: Outcome) -> str:
    lengths = sorted(outcome.auc)
    attainable = outcome.attainable
    chart = plots.line_chart(
        f"Test AUC of {outcome.label} by history length at inference",
        lengths,
        {
            "counting topics": [attainable.get(str(length)) for length in lengths],
            "STCA": [outcome.auc[length] for length in lengths],
        },
        "newest events visible",
        "AUC",
        log_x=True,
        from_zero=False,
    )
    truth = attainable.get("true_probability")
    words = plots.paragraph(
        "The model was trained on short histories and evaluated, on later requests of the same users, at several lengths. Beside "
        "it, what counting topics in as many events attains, known because the log is simulated; a model that also learns "
        "its users from earlier requests can do better where the history is short. Chance is 0.5"
        + (f"; the true probabilities themselves reach {truth:.3f}." if truth else ".")
    )
    rows = [
        [
            f"{int(m['history_length']):,}",
            str(m["label"]),
            f"{m['auc']:.4f}",
            f"{m['gauc']:.4f}",
            f"{m['log_loss']:.4f}",
            f"{m['ne']:.4f}",
        ]
        for m in outcome.metrics
    ]
    return words + chart + plots.table(["history", "label", "AUC", "GAUC", "log loss", "NE"], rows)


def _training(trained: TrainReport) -> str:
    steps = [step for step, _ in trained.losses]
    kept = range(0, len(steps), max(1, len(steps) // 200))
    chart = plots.line_chart(
        "Training loss",
        [steps[i] for i in kept],
        {"loss per target": [trained.losses[i][1] for i in kept]},
        "step",
        "binary cross entropy",
        from_zero=False,
    )
    words = plots.paragraph(
        f"{trained.steps:,} steps over {trained.targets:,} targets in {trained.seconds:.0f} s on this machine, "
        f"{trained.targets_per_second:,.0f} targets a second; each request's history is encoded once for all its targets."
    )
    return words + chart


def _audit(outcome: Outcome) -> str:
    audited, row_accounting = outcome.audited, outcome.built.row_accounting
    outcomes = [
        [source, *(f"{n:,}" for n in (b.rows, b.accepted, b.filtered, b.duplicate, b.rejected))]
        for source, b in row_accounting.items()
    ]
    words = plots.paragraph(
        f"{audited.blocks_checked:,} blocks were checked for structure, and all {audited.requests_checked:,} requests of "
        f"{audited.users_checked} sampled users were recomputed by plain Python straight from the raw log, "
        f"{audited.events_checked:,} history events compared one by one: {len(audited.findings)} findings. "
        "Every row of the log has exactly one outcome:"
    )
    return words + plots.table(["source", "rows", "accepted", "filtered", "duplicate", "rejected"], outcomes)


def _stages(outcome: Outcome) -> str:
    return plots.bar_chart("Seconds", list(outcome.seconds), list(outcome.seconds.values()), "s")
