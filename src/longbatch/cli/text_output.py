"""What commands tell people at their end, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longbatch.jobs.build import BuildSummary
from longbatch.jobs.expand import Expansion
from longbatch.jobs.savings.results import Savings
from longbatch.jobs.simulation.simulate import SimulationReport
from longbatch.jobs.validate import Validation
from longbatch.validation.audit.audit import Audit

UNITS = ("B", "KB", "MB", "GB", "TB", "PB", "EB")


def format_size(size_bytes: float) -> str:
    """Bytes as people read them, in powers of 1000."""
    for unit in UNITS[:-1]:
        if abs(size_bytes) < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} {UNITS[-1]}"


Rows = list[tuple[str, Any]]


def _lines(rows: Rows) -> str:
    """Names and values in two columns; names may come twice, as those of several sources do."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(
        f"{name:<{width}}  {value:,}" if isinstance(value, int) else f"{name:<{width}}  {value}" for name, value in rows
    )


def _outcomes(row_accounting: Mapping[str, Mapping[str, Any]]) -> Rows:
    rows: Rows = []
    for source, accounting in row_accounting.items():
        rows.append((f"rows in ({source})", accounting["rows"]))
        rows += [(f"  {outcome}", accounting[outcome]) for outcome in ("accepted", "filtered", "duplicate", "rejected")]
        rows += [(f"    {reason}", count) for reason, count in accounting["reasons"].items()]
        rows += [(f"  {policy}", count) for policy, count in accounting["policies"].items()]
        if accounting["empty_list"]:
            rows.append(("  rows with empty lists", accounting["empty_list"]))
    return rows


def _counts(counts: Mapping[str, int]) -> Rows:
    return [*_kept(counts).items(), *((f"  {text}", counts[name]) for name, text in LEFT_OUT.items() if counts[name])]


LEFT_OUT = {
    "capped_users": "users capped to their newest events",
    "capped_events": "events older than those",
    "rejected_users": "users with too many events, left out",
    "rejected_events": "their events",
    "rejected_targets": "their targets",
    "short_users": "users with too few events, left out",
    "short_events": "their events",
    "short_targets": "their targets",
    "pending_requests": "requests held back: a window not over",
    "pending_targets": "their targets",
}


def _kept(counts: Mapping[str, int]) -> dict[str, Any]:
    return {
        "users": counts["users"],
        "requests": counts["requests"],
        "targets": counts["targets"],
        "events": counts["events"],
        "  stored": counts["stored"],
        "  beyond every history": counts["beyond_history"],
        "  after the last request": counts["after_last_request"],
    }


def build_text(summary: BuildSummary) -> str:
    """The end of a build: rows in and their outcomes, users, requests, targets, events, bytes, seconds."""
    plain = summary.as_dict()
    rate = sum(accounting["rows"] for accounting in plain["row_accounting"].values()) / max(summary.seconds, 1e-9)
    rows = [*_outcomes(plain["row_accounting"]), *_counts(plain["counts"])]
    if summary.collisions:
        rows.append(("id collisions", summary.collisions))
    rows += [("shards", summary.shards), ("bytes", format_size(summary.bytes))]
    rows.append(("seconds", f"{summary.seconds:.1f} ({rate:,.0f} rows/s)"))
    return f"built {summary.path}, snapshot {summary.snapshot}\n{_lines(rows)}"


def dataset_text(described: Mapping[str, Any]) -> str:
    """What `inspect` says of a dataset."""
    rows: Rows = [
        ("name", described["name"]),
        ("snapshot", described["snapshot"]),
        ("fingerprint", described["fingerprint"][:16]),
    ]
    if "content_hash" in described:
        rows.append(("content hash", described["content_hash"]))
    rows += _counts(described["counts"])
    rows += [
        ("targets per request", f"{described['targets_per_request']:.2f}"),
        ("mean history", f"{described['mean_history']:,.1f} events, at most {described['history_length']:,}"),
        ("request times", f"{described['first_request_time']} to {described['last_request_time']}"),
        ("files", f"{described['shards']} shards, {described['blocks']} blocks, {described['compression']}"),
        ("timelines", f"{format_size(described['bytes']['timelines'])}, {described['bytes_per_event']:.2f} B/event"),
        ("requests table", format_size(described["bytes"]["requests"])),
    ]
    rows += [*_outcomes(described["row_accounting"]), *_skew(described["skew"])]
    columns = [f"  timelines.{name}: {kind}" for name, kind in described["timelines_schema"].items()]
    columns += [f"  requests.{name}: {kind}" for name, kind in described["requests_schema"].items()]
    return "\n".join([str(described["path"]), _lines(rows), "columns", *columns])


def _skew(skew: Mapping[str, Any]) -> Rows:
    """The largest users and requests, and how long histories are."""
    largest = {"largest users, events": skew["users"], "largest requests, targets": skew["requests"]}
    largest |= {f"{policy}, largest users": found for policy, found in skew["policy_users"].items()}
    rows: Rows = [
        (title, ", ".join(f"{large['name']} ({large['size']:,})" for large in found[:SHOWN]))
        for title, found in largest.items()
        if found
    ]
    lengths = {int(bits): count for bits, count in skew["history_lengths"].items()}
    total, most = sum(lengths.values()), max(lengths.values(), default=0)
    for bits, count in sorted(lengths.items()):
        low, high = (1 << bits) >> 1, (1 << bits) - 1
        title = f"history of {low:,} to {high:,}" if high > low else f"history of {high}"
        rows.append((title, f"{count:>12,} requests {count / total:6.1%} {'#' * round(30 * count / most)}"))
    return rows


SHOWN = 5


def user_text(shown: Mapping[str, Any]) -> str:
    """One request of a user: what was visible, what was shown, what came of it."""
    plain = {k: v for k, v in shown.items() if k not in ("newest_events", "targets")}
    parts = [_lines([(name, str(value)) for name, value in plain.items()]), "newest events, oldest first:"]
    parts += [f"  {_record(event)}" for event in shown["newest_events"]] or ["  (none was visible)"]
    parts += ["targets:", *(f"  {_record(target)}" for target in shown["targets"])]
    return "\n".join(parts)


def _record(record: Mapping[str, Any]) -> str:
    return "  ".join(f"{name}={value}" for name, value in record.items())


def simulation_text(report: SimulationReport) -> str:
    """What a simulation wrote, and how well a model could do on it."""
    rows: dict[str, Any] = {
        "rows": report.rows,
        "users": report.users,
        "longest user": report.longest_user,
        "requests": report.requests,
        "targets": report.targets,
        "bytes": format_size(report.size_bytes),
        "seconds": f"{report.seconds:.1f} ({report.events_per_second:,.0f} events/s)",
    }
    rows |= {f"planted {kind}": count for kind, count in report.planted.items()}
    for label, by_length in report.attainable.items():
        known = [f"{length}: {auc:.3f}" for length, auc in by_length.items() if auc is not None]
        rows[f"attainable AUC, {label}"] = ", ".join(known)
    return f"simulated {report.out}; build it with: longbatch build {report.out}/spec.toml DATASET\n{_lines(list(rows.items()))}"


def audit_text(found: Audit) -> str:
    """What an audit checked, and its findings."""
    checked = (
        f"{found.blocks_checked:,} blocks checked for structure; {found.users_checked:,} users, "
        f"{found.requests_checked:,} requests and {found.events_checked:,} events of their histories "
        "compared with the raw log"
    )
    verdict = [f"finding: {finding}" for finding in found.findings] or ["no finding"]
    return "\n".join([checked, *verdict])


def validation_text(found: Validation) -> str:
    """What the audit checked and found, and what became of the expectations."""
    lines = [audit_text(found.audit)]
    if found.expectations is not None:
        results = found.expectations
        count = sum(suite.expectations for suite in results.suites)
        lines.append(f"{count} expectations in {len(results.suites)} suites, {len(results.failures)} not met")
        lines += [f"not met: {failure}" for failure in results.failures]
        lines += [f"warning: {warning}" for warning in results.warnings]
        lines.append(f"Data Docs: {results.data_docs}")
    return "\n".join(lines)


def metrics_text(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Metrics by history length and label, a row each, and by the events there are where they are told apart by them.

    Their rules are told below.
    """
    told = any("events" in m for m in metrics)
    events = f"{'events':<12}" if told else ""
    lines = [f"{'history':>8}  {events}{'label':<12}{'AUC':>8}{'GAUC':>8}{'log loss':>10}{'NE':>8}{'targets':>10}"]
    lines += [
        f"{m['history_length']:>8,}  {format(m['events'], '<12') if told else ''}{m['label']:<12}{m['auc']:>8.4f}"
        f"{m['gauc']:>8.4f}{m['log_loss']:>10.4f}{m['ne']:>8.4f}{m['targets']:>10,}"
        for m in metrics
    ]
    lines.append("AUC counts ties one half; GAUC: users' AUCs weighed by their targets, users of one class left out.")
    lines.append("NE: log loss over that of the mean label, below 1 is better than knowing nothing but it.")
    return "\n".join(lines)


def savings_text(savings: Savings, out: str) -> str:
    """Bytes at rest and decoded of every layout, as a table, and how many times those of the dataset they are."""
    lines = [f"{'layout':<32}{'format':<16}{'at rest':>12}{'per target':>12}{'decoded':>12}{'read':>10}{'write':>10}"]
    targets = savings.dataset["targets"]
    lines += [
        f"{layout.title:<32}{file.title:<16}{format_size(file.bytes):>12}{format_size(file.bytes / targets):>12}"
        f"{format_size(layout.decoded_per_target):>12}{file.read_seconds:>9.2f}s{file.write_seconds:>9.2f}s"
        for layout in savings.layouts
        for file in layout.files
    ]
    mine = savings.on_disk
    lines.append(
        f"{'this dataset':<32}{'Arrow ' + mine['codec']:<16}{format_size(mine['bytes']):>12}"
        f"{format_size(mine['per_target']):>12}{format_size(mine['decoded_per_target']):>12}{mine['read_seconds']:>9.2f}s"
    )
    headline = savings.headline
    lines.append(
        f"times the bytes of this dataset: sample level shuffled {headline['shuffled']:.0f}, in log order "
        f"{headline['log_order']:.1f}, sorted by user "
        f"{headline['sorted_by_user']:.1f} (Parquet zstd); to decode {headline['decoded']:.0f}; the smallest other "
        f"layout, {headline['smallest_title']}, {headline['smallest']:.2f}"
    )
    return "\n".join([*lines, f"open {out}/savings.html"])


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


def plan_text(planned: Mapping[str, Any]) -> str:
    """A plan as people read it: storage by layout, the build, and reading."""
    volume, build, reading, sample = (planned[name] for name in ("volume", "build", "reading", "sample"))
    targets = volume["targets"]
    lines = [
        f"{volume['users']:,.0f} users, {volume['requests']:,.0f} requests, {targets:,.0f} targets, "
        f"{volume['stored_events']:,.0f} stored events",
        f"from a sample of {sample['users']:,.0f} users, {sample['history_events'] / sample['requests']:,.0f} events in a history (of "
        f"{sample['history_length']:,.0f} at most), {sample['targets'] / sample['requests']:.3g} targets per request",
        *(f"caution: {text}" for text in planned["cautions"]),
        "",
        f"{'storage':<46}{'at rest':>12}{'decoded':>12}{'at rest per target':>20}",
    ]
    lines += [
        f"{layout['title']:<46}{format_size(layout['bytes']):>12}{format_size(layout['decoded_bytes']):>12}"
        f"{format_size(layout['bytes'] / targets):>20}"
        for layout in planned["layouts"]
    ]
    rows = {
        "build": "",
        "  rows of the log": f"{build['log_rows']:,.0f}",
        "  shuffled": format_size(build["shuffle_bytes"]),
        "  a day more": f"{build['day_rows']:,.0f} rows, {format_size(build['day_shuffle_bytes'])} shuffled",
        "  buckets": f"{build['buckets']:,.0f}, of {build['rows_per_bucket']:,.0f} rows",
        "  memory per task": format_size(build["task_memory_bytes"]),
        f"reading, {planned['demand']['trainers']:,} trainers": "",
        "  requests": f"{reading['requests_per_second']:,.0f}/s; an epoch takes {reading['epoch_days']:.1f} days",
        "  from storage": f"{format_size(reading['read_bytes_per_second'])}/s",
        "  to trainers": f"{format_size(reading['batch_bytes_per_second'])}/s",
        "  loader cores": f"{reading['cores']:,.0f}",
        "  loader hosts": f"{reading['hosts']:,.0f}, of {planned['demand']['cores_per_host']} cores",
    }
    return "\n".join([*lines, "", _lines(list(rows.items()))])
