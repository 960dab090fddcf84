"""The page of `longbatch measure`: the figures of savings.json in words and pictures."""

from __future__ import annotations

from . import charts as plots
from .layouts import SLICE_BYTES
from .results import Savings


def savings_page(savings: Savings) -> str:
    """The report for people: the same numbers, what they mean, which baseline is whose, and where ours loses."""
    counts, drawn = savings.dataset, charts(savings)
    lead = plots.paragraph(
        f"{counts['targets']:,} targets in {counts['requests']:,} requests of {counts['users']:,} users, each with the "
        f"newest {counts['history_length']:,} events at most as its history. The same data, stored in each way that is "
        "in use, and as longbatch stores it: every event of a user once, every request a cut into it."
    )
    return plots.page(
        f"What longbatch saves: {counts['name']}",
        [
            ("", lead + plots.facts(_facts(savings))),
            ("Bytes a reader must decode", _decoded_section(savings, drawn["decoded"])),
            ("Bytes at rest", plots.paragraph(AT_REST) + drawn["at-rest"].svg()),
            ("Time to read everything once", plots.paragraph(READING) + drawn["read"].svg()),
            ("Bytes at rest by column", _columns_section(savings)),
            ("Which comparison is yours", plots.bullets(BASELINES)),
            ("Where longbatch does not win", plots.bullets(_losses(savings))),
            ("All figures", _figures(savings)),
            ("How this was measured", plots.bullets(_method(savings))),
        ],
    )


AT_REST = (
    "Copies of a history that lie near each other cost a codec with a large window (zstd) next to nothing; codecs with "
    "a small one (lz4, snappy: 64 KB) miss every copy that lies further away than that. That is why order and codec "
    "matter more here than the layout, and why a single ratio misleads. Log order is measured at both its ends: with the "
    "targets of a request side by side (logged when they are served), and shuffled, which is what it comes to where samples are "
    "logged one by one as feedback arrives, among those of more users than a page of a file holds rows."
)
READING = (
    "What a codec hid has to be written out again at every read, and then be copied, collated and moved to the device: "
    "these times end at the Arrow arrays, so they are the least a reader spends."
)
BASELINES = (
    "Rows are appended as feedback comes in, each with its history joined in, or were shuffled for training: compare with "
    "sample level, shuffled.",
    "All rows of a request are appended together when it is served: compare with sample level, in log order.",
    "The table is sorted or clustered by user (a table format's sort order does it): compare with sample level, sorted "
    "by user. It is the strongest sample-level baseline, and costs a sort.",
    "Rows are grouped by request already: compare with request level. What is left to save is the overlap of one "
    "user's histories.",
    "The user level in another format is longbatch's own idea in other clothes: it says what the format costs.",
)
LIMITS = (
    "A sample alone is easier to fetch from the sample level: one row holds all of it. Here it takes the request and "
    "its timeline, though both lie in one pair of blocks.",
    "With one target in most requests, short histories, or users who come once there is little to share: the formula "
    "above tells beforehand.",
    "Shuffling is by blocks and requests, not by single targets of any user.",
)


def _times(ratio: float) -> str:
    return f"{plots.format_number(ratio)}×"


def _facts(savings: Savings) -> list[tuple[str, str]]:
    headline = savings.headline
    best = headline["smallest_title"]
    bound = "at least " if savings.layout("sample_level_shuffled").at_least else ""
    against_best = (
        f"fewer bytes at rest than the smallest of the others: {best}"
        if headline["smallest"] >= 1
        else f"the bytes at rest of this dataset: {best} is smaller, see below"
    )
    return [
        (_times(headline["decoded"]), "fewer bytes to decode than with the history copied into every sample"),
        (bound + _times(headline["shuffled"]), "fewer bytes at rest than that shuffled, as Parquet zstd"),
        (bound + _times(headline["log_order"]), "fewer bytes at rest than that in log order, request by request"),
        (_times(headline["sorted_by_user"]), "fewer bytes at rest than that sorted by user, as Parquet zstd"),
        (_times(headline["smallest"]), against_best),
    ]


LEVELS = ("sample_level_by_log", "request_level_by_log", "user_level")
SHOWN = ("Parquet zstd", "Arrow zstd", "Arrow lz4")


def charts(savings: Savings) -> dict[str, plots.Bars]:
    """The pictures of the page, by the names of their PNG files."""
    levels = [savings.layout(name) for name in LEVELS]
    titles, decoded = zip(*((layout.title.split(",")[0], layout.decoded_per_target) for layout in levels), strict=True)
    return {
        "decoded": plots.Bars("Decoded bytes per target", titles, decoded, "B", highlight=[2]),
        "at-rest": _files_chart(savings, "Bytes at rest, whole dataset", "bytes", "B"),
        "read": _files_chart(savings, "Seconds to read and decode, one thread", "read_seconds", "s"),
    }


def _files_chart(savings: Savings, title: str, what: str, unit: str) -> plots.Bars:
    bars = [
        (f"{layout.title}, {name}", float(getattr(layout.file(name), what)))
        for layout in savings.layouts[:-1]
        for name in SHOWN
    ]
    bars.append((f"longbatch dataset as it is (Arrow {savings.on_disk['codec']})", savings.on_disk[what]))
    labels, values = [label for label, _ in bars], [value for _, value in bars]
    return plots.Bars(title, labels, values, unit, log=True, highlight=[len(bars) - 1])


def _decoded_section(savings: Savings, chart: plots.Bars) -> str:
    formula, levels = savings.formula, [savings.layout(name) for name in LEVELS]
    words = plots.paragraph(
        f"A formula predicts this from means: an event takes {formula['event_bytes']:.3g} bytes; a copied history "
        f"serves {formula['targets_per_history']:.3g} targets of its request; a stored event lies in the histories of "
        f"{formula['requests_per_event']:.3g} requests. Request level saves the first factor, user level both. "
        "No codec changes this number: a model reads decoded bytes."
    )
    rows = [
        [
            title,
            plots.format_number(layout.copies_of_event),
            plots.format_number(layout.predicted_per_target, "B"),
            plots.format_number(layout.decoded_per_target, "B"),
        ]
        for title, layout in zip(chart.labels, levels, strict=True)
    ]
    return (
        words
        + chart.svg()
        + plots.table(["Per target", "Copies of an event", "Formula", "Measured"], rows, highlight=[2])
    )


def _columns_section(savings: Savings) -> str:
    """Each column as it is stored, and what it would take elsewhere."""
    words = plots.paragraph(
        "What the dataset spends its bytes on. A dash in the first column: the values lie in a dictionary of the shard, under another name. "
        "The other two are of the same rows in plain columns: in Arrow files with the dataset's codec, and in Parquet zstd with or "
        "without a dictionary, whichever is smaller; files' headers are counted for the dataset only."
    )
    events = savings.dataset["events"]

    def cells(value: float | None) -> list[str]:
        return ["–", "–"] if value is None else [plots.format_number(value, "B"), f"{value / max(1, events):.2f}"]

    rows = [
        [column.name, *cells(column.stored), *cells(column.arrow), *cells(column.parquet)] for column in savings.columns
    ]
    sums = [sum(getattr(column, of) or 0.0 for column in savings.columns) for of in ("stored", "arrow", "parquet")]
    rows.append(["together", *(cell for value in sums for cell in cells(value))])
    headers = ["", "as stored", "per event", "plain Arrow", "per event", "plain Parquet", "per event"]
    return words + plots.table(headers, rows, highlight=[len(rows) - 1])


def _losses(savings: Savings) -> list[str]:
    """Every layout and format that beats the dataset as it is, at rest or in reading; then what numbers do not show."""
    lost = []
    for what, words in (("bytes", "smaller at rest"), ("read_seconds", "faster to read")):
        mine = savings.on_disk[what]
        better = [
            (getattr(file, what) / mine, f"{layout.title}, {file.title}")
            for layout in savings.layouts
            for file in layout.files
            if getattr(file, what) < mine
        ]
        shares = "; ".join(f"{title} ({ratio:.0%} of ours)" for ratio, title in sorted(better))
        lost.append(f"In this run, {words} than the dataset as it is: {shares or 'none'}.")
    lost[0] += (
        f" (The dataset has small blocks, for shuffling and memory; the others have row groups of {SLICE_BYTES // 1_000_000} MB.)"
    )
    return [*lost, *LIMITS]


def _figures(savings: Savings) -> str:
    mine, targets = savings.on_disk, savings.dataset["targets"]
    headers = ["", "at rest", "± s.e.", "at rest per target", "× ours", "read", "write", "decoded per target"]
    rows = [
        [
            f"{layout.title}, {file.title}",
            ("at least " if layout.at_least else "") + plots.format_number(file.bytes, "B"),
            "?" if file.standard_error is None else f"{file.standard_error / max(file.bytes, 1.0):.1%}",
            plots.format_number(file.bytes / targets, "B"),
            plots.format_number(file.bytes / mine["bytes"]),
            plots.format_number(file.read_seconds, "s"),
            plots.format_number(file.write_seconds, "s"),
            plots.format_number(layout.decoded_per_target, "B"),
        ]
        for layout in savings.layouts
        for file in layout.files
    ]
    own = [
        f"longbatch dataset as it is (Arrow {mine['codec']})",
        plots.format_number(mine["bytes"], "B"),
        "0.0%",
        plots.format_number(mine["per_target"], "B"),
        "1",
        plots.format_number(mine["read_seconds"], "s"),
        "–",
        plots.format_number(mine["decoded_per_target"], "B"),
    ]
    words = "Bytes at rest and times are of the whole dataset; times are of one thread, without disk and network."
    return plots.paragraph(words) + plots.table(headers, [*rows, own], highlight=[len(rows)])


def _method(savings: Savings) -> list[str]:
    sampling = savings.sampling
    samples = [
        f"{layout.title}: {layout.sample['share']:.1%} of it written, in {layout.sample['slices']} slices of "
        f"{plots.format_number(layout.sample['slice_bytes'], 'B')} decoded "
        f"({layout.sample['targets']:,} targets in {layout.sample['requests']:,} requests of "
        f"{layout.sample['users']:,} users)."
        for layout in savings.layouts
    ]
    bounds = (
        [
            "Only some of the blocks were surveyed. In a table of fewer users, histories of one user meet in a page more often than in the "
            "whole one, so what is shuffled or in log order would take more bytes than shown: these figures are lower bounds."
        ]
        if any(layout.at_least for layout in savings.layouts)
        else []
    )
    return [
        f"Slices are stretches of the table as it would lie on disk, drawn at random (seed {sampling['seed']}), one "
        f"from each equal part, at most {plots.format_number(sampling['budget_bytes'], 'B')} decoded per layout; from "
        f"{sampling['blocks']:,} of the dataset's {sampling['blocks_in_dataset']:,} blocks. Totals are scaled up by "
        "decoded bytes, which are known for all surveyed blocks; ± is the standard error of that, from the differences "
        "between slices.",
        *bounds,
        *samples,
        "Below about 64 MB a slice is shorter than a file should be, and then Arrow zstd, which sees as far as a record "
        "batch goes, does worse by user than it could: raise the budget.",
        *(f"{name.capitalize()}: {words}." for name, words in savings.settings.items()),
        "Times are single runs on one thread and vary by some tens of percent between runs; the dataset as it is was "
        "read through its own reader, with every offset checked.",
        "Bytes at rest of the dataset are its timelines, requests and dictionaries files, without vocabulary and quarantine.",
        f"Bytes by column are of the first blocks, {savings.sampling['column_blocks']:,} of {savings.sampling['blocks_in_dataset']:,}, scaled up.",
    ]
