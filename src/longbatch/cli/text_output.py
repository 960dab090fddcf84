"""The results of commands as text for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longbatch.benchmarks.checks import Check, Figure
    from longbatch.jobs.build import BuildSummary
    from longbatch.jobs.expand import Expansion
    from longbatch.jobs.forget import Forgotten
    from longbatch.jobs.savings.capacity_plan import CapacityPlan
    from longbatch.jobs.savings.request_costs import LayoutRequests
    from longbatch.jobs.savings.results import Savings
    from longbatch.jobs.simulation.simulate import SimulationReport
    from longbatch.jobs.vacuum import Vacuumed
    from longbatch.jobs.validate import Validation
    from longbatch.trainer.fit import TrainReport
    from longbatch.trainer.predictions import Metrics
    from longbatch.trainer.progress import TrainingProgress
    from longbatch.validation.audit.audit import Audit

    from .report import DemoResults

Table = list[tuple[str, int | str]]
"""Lines of a name and a value. Names may repeat, as those of several sources do."""

UNITS = ("B", "KB", "MB", "GB", "TB", "PB", "EB")
MAX_LARGEST = 5  # how many of the largest users and requests `inspect` names
BAR_WIDTH = 30
POLICY_COUNTS = {
    "capped_users": "users reduced to their newest events",
    "capped_events": "their older events",
    "rejected_users": "users rejected for too many events",
    "rejected_events": "their events",
    "rejected_targets": "their targets",
    "short_users": "users rejected for too few events",
    "short_events": "their events",
    "short_targets": "their targets",
    "pending_requests": "requests whose label window is still open",
    "pending_targets": "their targets",
}


def format_size(size_bytes: float) -> str:
    """Format bytes with a unit, in powers of 1000.

    Example:
        >>> format_size(1_234_567)
        '1.2 MB'
    """
    for unit in UNITS[:-1]:
        if abs(size_bytes) < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} {UNITS[-1]}"


def format_build_summary(summary: BuildSummary) -> str:
    """Format what a build or an append did: rows by outcome, users, requests, targets, events, bytes, seconds."""
    accounting = {source: rows.as_dict() for source, rows in summary.row_accounting.items()}
    rows_per_second = sum(rows["rows"] for rows in accounting.values()) / max(summary.seconds, 1e-9)
    table = [*_row_outcomes(accounting), *_counts(summary.counts.as_dict())]
    if summary.collisions:
        table.append(("id collisions", summary.collisions))
    table += [("shards", summary.shards), ("bytes", format_size(summary.bytes))]
    table.append(("seconds", f"{summary.seconds:.1f} ({rows_per_second:,.0f} rows/s)"))
    return f"built {summary.path}, snapshot {summary.snapshot}\n{_format_table(table)}"


def format_forget_summary(summary: Forgotten) -> str:
    """Format what `forget` rewrote."""
    return (
        f"forgot {summary.users:,} users ({summary.users_with_requests:,} had requests): rewrote "
        f"{summary.rewritten_shards} of {summary.shards} shards and {summary.rewritten_files} other files. "
        f"Snapshot {summary.snapshot} contains nothing of these users. Older files do until "
        f"`longbatch vacuum {summary.path}` removes them."
    )


def format_vacuum_summary(summary: Vacuumed) -> str:
    """Format what `vacuum` removed."""
    return f"removed {len(summary.snapshots)} snapshots and {summary.files} files ({format_size(summary.bytes)})"


def format_presets(descriptions: Mapping[str, tuple[str, str]]) -> str:
    """Format the presets, two lines each: what the dataset is, and where to download it."""
    return "\n".join(f"{name:<14} {about}\n{'':<14} {download}" for name, (about, download) in descriptions.items())


def format_dataset(description: Mapping[str, Any]) -> str:
    """Format the description of a dataset."""
    sizes = description["bytes"]
    table: Table = [
        ("name", description["name"]),
        ("snapshot", description["snapshot"]),
        ("fingerprint", description["fingerprint"][:16]),
    ]
    if "content_hash" in description:
        table.append(("content hash", description["content_hash"]))
    table += _counts(description["counts"])
    table += [
        ("targets per request", f"{description['targets_per_request']:.2f}"),
        ("mean history", f"{description['mean_history']:,.1f} events, at most {description['history_length']:,}"),
        ("request times", f"{description['first_request_time']} to {description['last_request_time']}"),
        ("files", f"{description['shards']} shards, {description['blocks']} blocks, {description['compression']}"),
        ("timelines", f"{format_size(sizes['timelines'])}, {description['bytes_per_event']:.2f} B/event"),
        ("requests table", format_size(sizes["requests"])),
    ]
    table += [*_row_outcomes(description["row_accounting"]), *_skew(description["skew"])]
    columns = [f"  timelines.{name}: {dtype}" for name, dtype in description["timelines_schema"].items()]
    columns += [f"  requests.{name}: {dtype}" for name, dtype in description["requests_schema"].items()]
    return "\n".join([str(description["path"]), _format_table(table), "columns", *columns])


def format_user_request(request: Mapping[str, Any]) -> str:
    """Format one request of a user: its fields, the newest events of its history, and its targets with labels."""
    fields = [(name, str(value)) for name, value in request.items() if name not in ("newest_events", "targets")]
    events = [f"  {_format_record(event)}" for event in request["newest_events"]]
    targets = [f"  {_format_record(target)}" for target in request["targets"]]
    return "\n".join(
        [
            _format_table([*fields]),
            "newest events, oldest first:",
            *(events or ["  (the history is empty)"]),
            "targets:",
            *targets,
        ]
    )


def format_simulation(report: SimulationReport) -> str:
    """Format what a simulation wrote, and the AUC that each history length makes attainable."""
    table: Table = [
        ("rows", report.rows),
        ("users", report.users),
        ("events of the largest user", report.longest_user),
        ("requests", report.requests),
        ("targets", report.targets),
        ("bytes", format_size(report.size_bytes)),
        ("seconds", f"{report.seconds:.1f} ({report.events_per_second:,.0f} events/s)"),
    ]
    table += [(f"planted {corruption}", rows) for corruption, rows in report.planted.items()]
    for label, auc_by_length in report.attainable.items():
        known = [f"{length}: {auc:.3f}" for length, auc in auc_by_length.items() if auc is not None]
        table.append((f"attainable AUC, {label}", ", ".join(known)))
    command = f"longbatch build {report.out}/spec.toml DATASET"
    return f"simulated {report.out}; build it with: {command}\n{_format_table(table)}"


def format_audit(audit: Audit) -> str:
    """Format what an audit checked, and its findings."""
    checked = (
        f"{audit.blocks_checked:,} blocks checked for structure; {audit.users_checked:,} users, "
        f"{audit.requests_checked:,} requests and {audit.events_checked:,} history events compared with the raw logs"
    )
    findings = [f"finding: {finding}" for finding in audit.findings] or ["no findings"]
    return "\n".join([checked, *findings])


def format_validation(validation: Validation) -> str:
    """Format what the audit checked and found, and the results of the expectations."""
    lines = [format_audit(validation.audit)]
    if validation.expectations is not None:
        results = validation.expectations
        count = sum(suite.expectations for suite in results.suites)
        lines.append(f"{count} expectations in {len(results.suites)} suites, {len(results.failures)} not met")
        lines += [f"not met: {failure}" for failure in results.failures]
        lines += [f"warning: {warning}" for warning in results.warnings]
        lines.append(f"Data Docs: {results.data_docs}")
    return "\n".join(lines)


def format_training(report: TrainReport) -> str:
    """Format what a training run did, and the metrics of its evaluation."""
    waiting = report.waiting_seconds / max(report.seconds, 1e-9)
    return (
        f"trained {report.steps:,} steps, {report.targets:,} targets in {report.seconds:.0f} s "
        f"({report.targets_per_second:,.0f} targets/s, {waiting:.1%} of the time waiting for batches)\n"
        f"{format_metrics(report.metrics)}"
    )


def format_training_note(progress: TrainingProgress) -> str:
    """Format loss and throughput of training so far; empty for evaluation."""
    if progress.stage != "train" or not progress.seconds:
        return ""
    targets, events = progress.targets / progress.seconds, progress.events / progress.seconds
    rates = f"{targets:,.0f} targets/s, {events:,.0f} events/s"
    return f"loss {progress.loss:.4f}, {rates}, waiting {progress.waiting_share:.1%}"


def format_metrics(metrics: Sequence[Metrics]) -> str:
    """Format metrics, a line per history length and label, and per range of events if there is one."""
    by_events = any("events" in row for row in metrics)
    events = f"{'events':<12}" if by_events else ""
    lines = [f"{'history':>8}  {events}{'label':<12}{'AUC':>8}{'GAUC':>8}{'log loss':>10}{'NE':>8}{'targets':>10}"]
    for row in metrics:
        events = f"{row['events']:<12}" if by_events else ""
        lines.append(
            f"{row['history_length']:>8,}  {events}{row['label']:<12}{row['auc']:>8.4f}{row['gauc']:>8.4f}"
            f"{row['log_loss']:>10.4f}{row['ne']:>8.4f}{row['targets']:>10,}"
        )
    lines.append("AUC counts ties as one half. GAUC is the mean AUC of users weighted by their targets, without users")
    lines.append("whose labels are all equal. NE is the log loss divided by that of predicting the base rate: below 1,")
    lines.append("the model beats the base rate.")
    return "\n".join(lines)


def format_savings(savings: Savings, out: str | Path) -> str:
    """Format bytes and seconds of every layout as a table, and how many times the dataset's bytes they are."""
    targets, stored, ratios = savings.dataset.targets, savings.stored, savings.headline
    lines = [
        f"{'layout':<32}{'format':<16}{'on disk':>12}{'per target':>12}{'in memory':>12}{'read':>10}{'write':>10}",
    ]
    lines += [
        f"{layout.title:<32}{file.title:<16}{format_size(file.disk_bytes):>12}"
        f"{format_size(file.disk_bytes / targets):>12}{format_size(layout.memory_per_target):>12}"
        f"{file.read_seconds:>9.2f}s{file.write_seconds:>9.2f}s"
        for layout in savings.layouts
        for file in layout.files
    ]
    lines += [
        f"{'this dataset':<32}{'Arrow ' + stored.codec:<16}{format_size(stored.disk_bytes):>12}"
        f"{format_size(stored.disk_per_target):>12}{format_size(stored.memory_per_target):>12}"
        f"{stored.read_seconds:>9.2f}s",
        "how many times the bytes of this dataset the other layouts take:",
        f"  on disk (Parquet zstd): sample level {ratios.shuffled:.0f} shuffled, "
        f"{ratios.log_order:.1f} in log order, {ratios.sorted_by_user:.1f} sorted by user",
        f"  the smallest other layout, {ratios.smallest_title}: {ratios.smallest:.2f}",
        f"  in memory: sample level {ratios.memory:.0f}",
        f"open {out}/savings.html",
    ]
    return "\n".join(lines)


def format_expansion(expansion: Expansion) -> str:
    """Format what `expand` wrote, and both sides of the comparison if there was one."""
    seconds = f", {expansion.seconds:.1f} s" if expansion.seconds else ""
    lines = [
        f"{expansion.path}: {expansion.rows:,} rows with {expansion.events:,} history events in {expansion.files:,} "
        f"files, {format_size(expansion.bytes)}{seconds}"
    ]
    if expansion.expected and expansion.actual:
        lines.append(f"{'':<8}{'rows':>14}{'history events':>18}  hash")
        for side, samples in (("dataset", expansion.expected), ("files", expansion.actual)):
            lines.append(f"{side:<8}{samples.rows:>14,}{samples.events:>18,}  {samples.hash}")
        lines.append("equal" if expansion.equal else "not equal: the files do not contain what the dataset expands to")
    return "\n".join(lines)


def format_capacity_plan(plan: CapacityPlan) -> str:
    """Format a capacity plan: storage by layout, the build, and reading."""
    volume, build, reading, sample, demand = plan.volume, plan.build, plan.reading, plan.sample, plan.demand
    lines = [
        f"{volume.users:,.0f} users, {volume.requests:,.0f} requests, {volume.targets:,.0f} targets, "
        f"{volume.stored_events:,.0f} stored events",
        f"from a sample of {sample.users:,.0f} users, {sample.history_events / sample.requests:,.0f} events "
        f"in a history (of {plan.sample_history_length:,} at most), {sample.targets / sample.requests:.3g} "
        "targets per request",
        *(f"caution: {caution}" for caution in plan.cautions),
        "",
        f"{'storage':<46}{'on disk':>12}{'in memory':>12}{'on disk per target':>20}",
    ]
    lines += [
        f"{layout.title:<46}{format_size(layout.disk_bytes):>12}{format_size(layout.memory_bytes):>12}"
        f"{format_size(layout.disk_bytes / volume.targets):>20}"
        for layout in plan.layouts
    ]
    table: Table = [
        ("build", ""),
        ("  rows of the log", f"{build.log_rows:,.0f}"),
        ("  shuffled", format_size(build.shuffle_bytes)),
        ("  each further day", f"{build.day_rows:,.0f} rows, {format_size(build.day_shuffle_bytes)} shuffled"),
        ("  buckets", f"{build.buckets:,.0f} of {build.rows_per_bucket:,.0f} rows"),
        ("  memory per task", format_size(build.task_memory_bytes)),
        (f"reading, {demand.trainers:,} trainers", ""),
        ("  requests", f"{reading.requests_per_second:,.0f}/s; an epoch takes {reading.epoch_days:.1f} days"),
        ("  from storage", f"{format_size(reading.read_bytes_per_second)}/s"),
        ("  to trainers", f"{format_size(reading.batch_bytes_per_second)}/s"),
        ("  loader cores", f"{reading.cores:,.0f}"),
        ("  loader hosts", f"{reading.hosts:,.0f} of {demand.cores_per_host} cores"),
    ]
    return "\n".join([*lines, "", _format_table(table)])


def format_request_costs(costs: Sequence[LayoutRequests]) -> str:
    """Format the requests to an object store: for each layout those of a day of training, and of adding a day."""
    lines = [f"{'requests to an object store, a day':<46}{'GET':>16}{'PUT':>16}{'LIST':>12}{'dollars':>12}"]
    for cost in costs:
        for purpose, day in (("training", cost.training_day), ("building", cost.building_day)):
            name = f"{cost.title.removesuffix(', Parquet zstd')}, {purpose}"
            lines.append(f"{name:<46}{day.gets:>16,.0f}{day.puts:>16,.0f}{day.lists:>12,.0f}{day.dollars:>12,.2f}")
    return "\n".join(lines)


def format_benchmark(checks: Sequence[Check], figures: Sequence[Figure]) -> str:
    """Format measured figures, and each check with its value, its limit and whether it holds."""
    lines = [f"{figure.name:<58} {_format_number(figure.value):>12} {figure.unit}" for figure in figures]
    lines += ["", f"{'check':<58} {'value':>12} {'limit':>12}  holds"]
    lines += [
        f"{check.name:<58} {_format_number(check.value):>12} {check.comparison} {_format_number(check.limit):>9}  "
        f"{'yes' if check.holds else 'NO'}"
        for check in checks
    ]
    return "\n".join(lines)


def format_demo(results: DemoResults, out: Path) -> str:
    """Format the results of all stages of the demo in about ten lines."""
    ratios, audited, counts = results.savings.headline, results.audited, results.built.counts
    known = {name: auc for name, auc in results.attainable.items() if auc is not None}
    attainable = ", ".join(f"{name.replace('_', ' ')}: {auc:.3f}" for name, auc in known.items())
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in results.seconds.items())
    return "\n".join(
        [
            f"events {counts.events:,}, requests {counts.requests:,}, targets {counts.targets:,}, "
            f"dataset {format_size(results.built.bytes)}",
            f"audit: {audited.requests_checked:,} requests of {audited.users_checked} users recomputed from the raw "
            f"log, {len(audited.findings)} findings",
            f"savings: {ratios.memory:.0f}x fewer bytes in memory than sample level; on disk (Parquet zstd) "
            f"{ratios.log_order:.1f}x fewer than in log order, {ratios.sorted_by_user:.1f}x than sorted by user",
            format_metrics([row for row in results.metrics if row["label"] == results.label]),
            f"AUC of {results.label} attainable by counting topics in the newest events: {attainable}",
            f"{stages}; {sum(results.seconds.values()):.0f} s in total",
            f"open {out / 'report.html'}",
        ]
    )


def _format_table(table: Table) -> str:
    """Names and values in two columns."""
    width = max(len(name) for name, _ in table)
    return "\n".join(
        f"{name:<{width}}  {value:,}" if isinstance(value, int) else f"{name:<{width}}  {value}"
        for name, value in table
    )


def _row_outcomes(accounting_by_source: Mapping[str, Mapping[str, Any]]) -> Table:
    """Rows of each source by outcome, with the reasons of rejected rows."""
    table: Table = []
    for source, accounting in accounting_by_source.items():
        table.append((f"rows in ({source})", accounting["rows"]))
        table += [(f"  {name}", accounting[name]) for name in ("accepted", "filtered", "duplicate", "rejected")]
        table += [(f"    {reason}", rows) for reason, rows in accounting["reasons"].items()]
        table += [(f"  {policy}", rows) for policy, rows in accounting["policies"].items()]
        if accounting["empty_list"]:
            table.append(("  rows with empty lists", accounting["empty_list"]))
    return table


def _counts(counts: Mapping[str, int]) -> Table:
    """What a dataset holds, and what the policies over users left out."""
    return [
        *((name, counts[name]) for name in ("users", "requests", "targets", "events")),
        ("  stored", counts["stored"]),
        ("  beyond every history", counts["beyond_history"]),
        ("  after the last request", counts["after_last_request"]),
        *((f"  {text}", counts[name]) for name, text in POLICY_COUNTS.items() if counts[name]),
    ]


def _skew(skew: Mapping[str, Any]) -> Table:
    """The largest users and requests, and a histogram of history lengths."""
    largest_by_title = {"largest users, events": skew["users"], "largest requests, targets": skew["requests"]}
    largest_by_title |= {f"{policy}, largest users": largest for policy, largest in skew["policy_users"].items()}
    table: Table = [
        (title, ", ".join(f"{entry['name']} ({entry['size']:,})" for entry in largest[:MAX_LARGEST]))
        for title, largest in largest_by_title.items()
        if largest
    ]
    # bucket b counts the histories of b binary digits: 0, 1, 2 to 3, 4 to 7, ...
    requests_by_digits = {int(digits): count for digits, count in skew["history_lengths"].items()}
    total, most = sum(requests_by_digits.values()), max(requests_by_digits.values(), default=0)
    for digits, count in sorted(requests_by_digits.items()):
        low, high = (1 << digits) >> 1, (1 << digits) - 1
        title = f"history of {low:,} to {high:,}" if high > low else f"history of {high}"
        bar = "#" * round(BAR_WIDTH * count / most)
        table.append((title, f"{count:>12,} requests {count / total:6.1%} {bar}"))
    return table


def _format_record(record: Mapping[str, object]) -> str:
    return "  ".join(f"{name}={value}" for name, value in record.items())


def _format_number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
