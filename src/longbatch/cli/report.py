"""The page of the demo: each stage, the savings, the loss, and AUC by history length next to the attainable AUC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longbatch.jobs.build import BuildSummary
from longbatch.jobs.savings import html_page
from longbatch.jobs.savings.charts import Bars, Lines, format_number
from longbatch.jobs.savings.results import Savings
from longbatch.jobs.simulation.simulate import SimulationReport
from longbatch.schemas.accounting import POLICIES, RowAccounting
from longbatch.trainer.fit import TrainReport
from longbatch.trainer.predictions import Metrics
from longbatch.validation.audit.audit import Audit


@dataclass(frozen=True)
class DemoResults:
    """The results of all stages of the demo.

    Attributes:
        simulated: The simulated log.
        built: The dataset.
        audited: The audit of the dataset.
        savings: The measured storage layouts.
        trained: The training run.
        metrics: One record per history length and label.
        seconds: Wall seconds by stage.
    """

    simulated: SimulationReport
    built: BuildSummary
    audited: Audit
    savings: Savings
    trained: TrainReport
    metrics: Sequence[Metrics]
    seconds: Mapping[str, float]

    @property
    def label(self) -> str:
        """The label that the page is about: the first one."""
        return str(self.metrics[0]["label"])

    @property
    def auc(self) -> dict[int, float]:
        """AUC of `label` by history length."""
        return {int(m["history_length"]): float(m["auc"]) for m in self.metrics if m["label"] == self.label}

    @property
    def attainable(self) -> dict[str, float | None]:
        """Attainable AUC of `label`: by history length, and of the true probabilities."""
        return dict(self.simulated.attainable[self.label])


def make_document(results: DemoResults) -> dict[str, Any]:
    """Return everything the page shows, as plain values for JSON."""
    return {
        "simulated": {k: v for k, v in vars(results.simulated).items() if k != "out"},
        "built": results.built.as_dict(),
        "audited": vars(results.audited),
        "savings": vars(results.savings.headline),
        "trained": {
            "steps": results.trained.steps,
            "targets": results.trained.targets,
            "targets_per_second": results.trained.targets_per_second,
            "losses": results.trained.losses,
        },
        "metrics": [dict(m) for m in results.metrics],
        "attainable": results.attainable,
        "seconds": dict(results.seconds),
    }


def make_page(results: DemoResults) -> str:
    """Return the HTML of the self-contained page."""
    counts = results.built.counts
    lead = html_page.paragraph(
        f"A simulated log of {results.simulated.rows:,} impressions by {results.simulated.users:,} users (the busiest "
        f"with {results.simulated.longest_user:,}) became a dataset of {counts.requests:,} requests with "
        f"{counts.targets:,} targets. Every request sees at most its user's newest "
        f"{results.savings.dataset.history_length:,} events; every event is stored once. "
        "A small STCA model was trained on it."
    )
    return html_page.page(
        "longbatch: the main job, end to end",
        [
            ("", lead + html_page.facts(_facts(results))),
            ("Savings by layout", _savings(results.savings)),
            ("Longer histories predict better", _auc(results)),
            ("Training", _training(results.trained)),
            ("Checked against the raw log", _audit(results)),
            ("Time by stage", _stages(results)),
        ],
    )


def _facts(results: DemoResults) -> list[tuple[str, str]]:
    lengths = sorted(results.auc)
    shortest, longest = lengths[0], lengths[-1]
    rate = results.simulated.rows / results.built.seconds
    return [
        (
            f"{results.savings.headline.memory:.0f}×",
            "fewer bytes in memory than with a copy of the history in every sample",
        ),
        (f"{format_number(rate)}/s", "rows of the raw log built into the dataset"),
        (
            f"{results.auc[shortest]:.3f} → {results.auc[longest]:.3f}",
            f"test AUC of {results.label} from {shortest:,} to {longest:,} events of history",
        ),
        (str(len(results.audited.findings)), f"findings in {results.audited.requests_checked:,} requests recomputed"),
    ]


def _savings(savings: Savings) -> str:
    layouts = list(savings.layouts)
    titles = [layout.title for layout in layouts]
    highlighted = [len(layouts) - 1]
    in_memory = Bars(
        "In-memory bytes per target", titles, [layout.memory_per_target for layout in layouts], "B",
        log=True, highlight=highlighted,
    )  # fmt: skip
    codec = savings.stored.codec
    on_disk = Bars(
        "Bytes on disk: the other layouts as Parquet zstd, and the dataset as it is",
        [*titles[:-1], f"user level, as longbatch stores it (Arrow {codec})"],
        [*(layout.file("Parquet zstd").disk_bytes for layout in layouts[:-1]), savings.stored.disk_bytes],
        "B",
        log=True,
        highlight=highlighted,
    )
    text = html_page.paragraph(
        "A reader processes the in-memory bytes, whatever the codec. On disk, a strong codec compresses copies that "
        "are close together, so the order of the rows matters as much as the layout: compare with the one you use. "
        "savings/savings.html next to this page has every format and codec, read and write times, and the method."
    )
    return text + in_memory.svg() + on_disk.svg()


def _auc(results: DemoResults) -> str:
    lengths = sorted(results.auc)
    attainable = results.attainable
    chart = Lines(
        f"Test AUC of {results.label} by history length at inference",
        lengths,
        {
            "counting topics": [attainable.get(str(length)) for length in lengths],
            "STCA": [results.auc[length] for length in lengths],
        },
        "newest events visible",
        "AUC",
        log_x=True,
        from_zero=False,
    )
    truth = attainable.get("true_probability")
    text = html_page.paragraph(
        "The model was trained on short histories and evaluated on later requests of the same users, at several "
        "history lengths. The line 'counting topics' is the AUC that counting topics in the same events attains, which "
        "is known because the log is simulated. A model that also learns its users from earlier requests can do better "
        "if the history is short. A random prediction has an AUC of 0.5"
        + (f"; the true probabilities themselves reach {truth:.3f}." if truth else ".")
    )
    rows = [
        [
            f"{int(row['history_length']):,}",
            str(row["label"]),
            *(f"{row[name]:.4f}" for name in ("auc", "gauc", "log_loss", "ne")),
        ]
        for row in results.metrics
    ]
    return text + chart.svg() + html_page.table(["history", "label", "AUC", "GAUC", "log loss", "NE"], rows)


def _training(trained: TrainReport) -> str:
    steps = [step for step, _ in trained.losses]
    plotted = range(0, len(steps), max(1, len(steps) // 200))
    chart = Lines(
        "Training loss",
        [steps[i] for i in plotted],
        {"loss per target": [trained.losses[i][1] for i in plotted]},
        "step",
        "binary cross entropy",
        from_zero=False,
    )
    text = html_page.paragraph(
        f"{trained.steps:,} steps over {trained.targets:,} targets in {trained.seconds:.0f} s on this machine, "
        f"{trained.targets_per_second:,.0f} targets a second. Each request's history is encoded once for all targets."
    )
    return text + chart.svg()


def _audit(results: DemoResults) -> str:
    audited = results.audited
    text = html_page.paragraph(
        f"{audited.blocks_checked:,} blocks were checked for structure. All {audited.requests_checked:,} requests of "
        f"{audited.users_checked} sampled users were recomputed in plain Python from the raw log, and "
        f"{audited.events_checked:,} history events were compared one by one: {len(audited.findings)} findings. "
        "Every row of the log has exactly one outcome:"
    )
    return text + _row_outcomes(results.built.row_accounting)


def _row_outcomes(accounting_by_source: Mapping[str, RowAccounting]) -> str:
    """A table with one row per outcome and one column per source; the outcomes of a source add up to its rows."""
    sources = accounting_by_source.values()
    outcomes = {
        name: [getattr(source, name) for source in sources]
        for name in ("rows", "accepted", "filtered", "duplicate", "rejected")
    }
    for policy in POLICIES:
        outcomes[f"left out: {policy}"] = [source.policies.get(policy, 0) for source in sources]
    return html_page.table(
        ["outcome", *accounting_by_source],
        [[outcome, *(f"{count:,}" for count in counts)] for outcome, counts in outcomes.items()],
    )


def _stages(results: DemoResults) -> str:
    return Bars("Seconds", list(results.seconds), list(results.seconds.values()), "s").svg()
