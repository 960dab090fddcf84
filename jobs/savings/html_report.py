"""The page of `longbatch measure`: the results of savings.json in words and charts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .charts import Bars, format_number
from .html_page import bullets, facts, page, paragraph, table
from .layouts import SLICE_BYTES
from .results import FileSavings, Savings, StoredDataset

LEVELS = ("sample_level_by_log", "request_level_by_log", "user_level")
SHOWN_FORMATS = ("Parquet zstd", "Arrow zstd", "Arrow lz4")

ON_DISK = (
    "A codec with a large window (zstd) compresses copies of a history that are close together to almost nothing. A "
    "codec with a small window (lz4 and snappy: 64 KB) misses every copy that is further away. Row order and codec "
    "therefore matter more here than the layout, and a single ratio is misleading. Log order is measured at both "
    "extremes: with the targets of a request adjacent, as if logged when they are served; and shuffled, as if samples "
    "are logged one by one when feedback arrives, among those of more users than a page has rows."
)
READING = (
    "Whatever a codec compressed must be decompressed at every read, and then copied, collated and moved to the "
    "device. These times end at the Arrow arrays, so a reader spends at least as much."
)
BASELINES = (
    "Rows are appended as feedback arrives, each with its history joined in, or were shuffled for training: compare "
    "with sample level, shuffled.",
    "All rows of a request are appended together when it is served: compare with sample level, in log order.",
    "The table is sorted or clustered by user, for example by the sort order of a table format: compare with sample "
    "level, sorted by user. It is the strongest sample-level baseline, and requires a sort.",
    "Rows are grouped by request: compare with request level. What remains to be saved is the overlap of one user's "
    "histories.",
    "The user level in other formats is longbatch's own layout: it shows the cost of the file format alone.",
)
LIMITATIONS = (
    "A single sample is easier to fetch from the sample level, where one row contains all of it. Here it takes the "
    "request and its timeline, although both are in one pair of blocks.",
    "With one target in most requests, short histories, or users who come only once, there is little to share. The "
    "formula above predicts this.",
    "Shuffling is by blocks and requests, not by single targets of any user.",
)


def savings_page(savings: Savings) -> str:
    """Render the report: the results, what they mean, which baseline applies, and where other layouts are better.

    Args:
        savings: The results of `longbatch measure`.

    Returns:
        A self-contained HTML document.
    """
    counts, drawn = savings.dataset, charts(savings)
    lead = paragraph(
        f"{counts.targets:,} targets in {counts.requests:,} requests of {counts.users:,} users. The history of a "
        f"request is the newest {counts.history_length:,} events of its user at most. The same data is stored in each "
        "layout in common use, and as longbatch stores it: each event of a user once, and each request as a slice of "
        "the user's events."
    )
    return page(
        f"What longbatch saves: {counts.name}",
        [
            ("", lead + facts(_facts(savings))),
            ("Size in memory", _memory_section(savings, drawn["memory"])),
            ("Size on disk", paragraph(ON_DISK) + drawn["disk"].svg()),
            ("Time to read everything once", paragraph(READING) + drawn["read"].svg()),
            ("Size on disk by column", _columns_section(savings)),
            ("Which baseline applies to you", bullets(BASELINES)),
            ("Limitations, and where other layouts are better", bullets([*_better_files(savings), *LIMITATIONS])),
            ("All results", _results_section(savings)),
            ("Method", bullets(_method(savings))),
        ],
    )


def charts(savings: Savings) -> dict[str, Bars]:
    """Return the charts of the page, by the names of their PNG files.

    Args:
        savings: The results of `longbatch measure`.
    """
    levels = [savings.layout(name) for name in LEVELS]
    titles = [layout.title.split(",")[0] for layout in levels]
    memory = [layout.memory_per_target for layout in levels]
    return {
        "memory": Bars("Bytes in memory per target", titles, memory, "B", highlight=[2]),
        "disk": _files_chart(savings, _DISK, "Bytes on disk, whole dataset", "B"),
        "read": _files_chart(savings, _READ, "Seconds to read and decode, one thread", "s"),
    }


@dataclass(frozen=True)
class _Quantity:
    """A quantity of every file that is also known of the stored dataset, and what a smaller value means."""

    of_file: Callable[[FileSavings], float]
    of_stored: Callable[[StoredDataset], float]
    smaller: str


_DISK = _Quantity(lambda file: file.disk_bytes, lambda stored: stored.disk_bytes, "Smaller on disk")
_READ = _Quantity(lambda file: file.read_seconds, lambda stored: stored.read_seconds, "Faster to read")


def _files_chart(savings: Savings, quantity: _Quantity, title: str, unit: str) -> Bars:
    bars = [
        (f"{layout.title}, {name}", quantity.of_file(layout.file(name)))
        for layout in savings.layouts
        if layout.level != "user"
        for name in SHOWN_FORMATS
    ]
    bars.append((_stored_title(savings), quantity.of_stored(savings.stored)))
    labels, values = [label for label, _ in bars], [value for _, value in bars]
    return Bars(title, labels, values, unit, log=True, highlight=[len(bars) - 1])


def _stored_title(savings: Savings) -> str:
    return f"longbatch dataset as stored (Arrow {savings.stored.codec})"


def _times(ratio: float) -> str:
    return f"{format_number(ratio)}×"


def _facts(savings: Savings) -> list[tuple[str, str]]:
    headline = savings.headline
    smallest = headline.smallest_title
    bound = "at least " if savings.layout("sample_level_shuffled").is_lower_bound else ""
    against_smallest = (
        f"smaller on disk than the smallest other layout: {smallest}"
        if headline.smallest >= 1
        else f"the size of this dataset on disk: {smallest} is smaller, see below"
    )
    return [
        (_times(headline.memory), "smaller in memory than with the history copied into every sample"),
        (bound + _times(headline.shuffled), "smaller on disk than the same shuffled, as Parquet zstd"),
        (bound + _times(headline.log_order), "smaller on disk than the same in log order, request by request"),
        (_times(headline.sorted_by_user), "smaller on disk than the same sorted by user, as Parquet zstd"),
        (_times(headline.smallest), against_smallest),
    ]


def _memory_section(savings: Savings, chart: Bars) -> str:
    means, levels = savings.means, [savings.layout(name) for name in LEVELS]
    words = paragraph(
        f"A formula predicts these sizes from means: an event takes {means.event_bytes:.3g} bytes, a copied history "
        f"serves {means.targets_per_history:.3g} targets of its request, and a stored event belongs to the histories "
        f"of {means.requests_per_event:.3g} requests. The request level saves the first factor, the user level both. "
        "No codec changes these sizes: a model reads decoded arrays."
    )
    rows = [
        [
            title,
            format_number(layout.copies_per_event),
            format_number(layout.predicted_per_target, "B"),
            format_number(layout.memory_per_target, "B"),
        ]
        for title, layout in zip(chart.labels, levels, strict=True)
    ]
    return words + chart.svg() + table(["Per target", "Copies of an event", "Formula", "Measured"], rows, highlight=[2])


def _columns_section(savings: Savings) -> str:
    words = paragraph(
        "The size of each column. A dash in the first column means that the values are in a dictionary of the shard, "
        "under another name. The other two sizes are of the same rows in plain columns: in Arrow files with the "
        "dataset's codec, and in Parquet zstd with or without a dictionary, whichever is smaller. File headers are "
        "counted for the dataset only."
    )
    events = max(1, savings.dataset.stored_events)

    def cells(value: float | None) -> list[str]:
        return ["–", "–"] if value is None else [format_number(value, "B"), f"{value / events:.2f}"]

    rows = [
        [column.name, *cells(column.stored), *cells(column.arrow), *cells(column.parquet)] for column in savings.columns
    ]
    totals = [
        sum(column.stored or 0.0 for column in savings.columns),
        sum(column.arrow or 0.0 for column in savings.columns),
        sum(column.parquet or 0.0 for column in savings.columns),
    ]
    rows.append(["total", *(cell for value in totals for cell in cells(value))])
    headers = ["", "as stored", "per event", "plain Arrow", "per event", "plain Parquet", "per event"]
    return words + table(headers, rows, highlight=[len(rows) - 1])


def _better_files(savings: Savings) -> list[str]:
    """Every layout and format that is smaller on disk, or faster to read, than the dataset as stored."""
    lines = []
    for quantity in (_DISK, _READ):
        own = quantity.of_stored(savings.stored)
        better = sorted(
            (quantity.of_file(file) / own, f"{layout.title}, {file.title}")
            for layout in savings.layouts
            for file in layout.files
            if quantity.of_file(file) < own
        )
        shares = "; ".join(f"{title} ({ratio:.0%} of the dataset)" for ratio, title in better)
        lines.append(f"{quantity.smaller} than the dataset as stored, in this run: {shares or 'none'}.")
    lines[0] += (
        " (The dataset has small blocks, for shuffling and memory; the other files have row groups of "
        f"{SLICE_BYTES // 1_000_000} MB.)"
    )
    return lines


def _results_section(savings: Savings) -> str:
    stored, targets = savings.stored, savings.dataset.targets
    headers = ["", "on disk", "± s.e.", "on disk per target", "× dataset", "read", "write", "in memory per target"]
    rows = [
        [
            f"{layout.title}, {file.title}",
            ("at least " if layout.is_lower_bound else "") + format_number(file.disk_bytes, "B"),
            "?" if file.standard_error is None else f"{file.standard_error / max(file.disk_bytes, 1.0):.1%}",
            format_number(file.disk_bytes / targets, "B"),
            format_number(file.disk_bytes / stored.disk_bytes),
            format_number(file.read_seconds, "s"),
            format_number(file.write_seconds, "s"),
            format_number(layout.memory_per_target, "B"),
        ]
        for layout in savings.layouts
        for file in layout.files
    ]
    own = [
        _stored_title(savings),
        format_number(stored.disk_bytes, "B"),
        "0.0%",
        format_number(stored.disk_per_target, "B"),
        "1",
        format_number(stored.read_seconds, "s"),
        "–",
        format_number(stored.memory_per_target, "B"),
    ]
    words = "Sizes and times are of the whole dataset. Times are of one thread, without disk and network."
    return paragraph(words) + table(headers, [*rows, own], highlight=[len(rows)])


def _method(savings: Savings) -> list[str]:
    sampling = savings.sampling
    samples = [
        f"{layout.title}: {layout.sample.share:.1%} of it was written, in {layout.sample.slices} slices of "
        f"{format_number(layout.sample.slice_bytes, 'B')} in memory ({layout.sample.targets:,} targets in "
        f"{layout.sample.requests:,} requests of {layout.sample.users:,} users)."
        for layout in savings.layouts
    ]
    bounds = (
        [
            "Only some of the blocks were sampled. In a table of fewer users, more histories of one user share a "
            "page than in the full table, so the shuffled layout and those in log order would take more bytes than "
            "shown: their sizes are lower bounds."
        ]
        if any(layout.is_lower_bound for layout in savings.layouts)
        else []
    )
    return [
        f"Slices are ranges of the table as it would be on disk, chosen at random (seed {sampling.seed}), one from "
        f"each equal part, at most {format_number(sampling.budget_bytes, 'B')} in memory per layout; from "
        f"{sampling.blocks:,} of the dataset's {sampling.blocks_in_dataset:,} blocks. Totals are scaled up by bytes "
        "in memory, which are known for all sampled blocks; ± is the standard error of that, from the differences "
        "between slices.",
        *bounds,
        *samples,
        "A slice below about 64 MB is shorter than a file should be. Arrow zstd, whose window ends with the record "
        "batch, then compresses layouts sorted by user worse than it could: raise the budget.",
        *(f"{name.capitalize()}: {words}." for name, words in savings.settings.items()),
        "Times are of single runs on one thread and vary by some tens of percent between runs. The dataset as stored "
        "was read through its own reader, which checks every offset.",
        "The size of the dataset on disk is that of its timelines, requests and dictionaries files, without "
        "vocabulary and quarantine.",
        f"Sizes by column are of the first {sampling.column_blocks:,} sampled blocks, of "
        f"{sampling.blocks_in_dataset:,} in the dataset, scaled up.",
    ]
