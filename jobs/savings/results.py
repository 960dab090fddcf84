"""The results of `longbatch measure`: the records of savings.json, how they are written, read back and checked.

Sizes are in bytes and times in seconds of one thread, with the files in the page cache. All are of the whole dataset:
they are scaled up from slices, and `standard_error` estimates the error of that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from longbatch.schemas.errors import SpecError
from longbatch.schemas.storage.open_store import FileLocation, read_file

SAVINGS_VERSION = 3  # of savings.json; raised whenever a key changes
PARQUET_LAYOUTS = ("sample_level_by_user", "request_level_by_user")  # `longbatch plan` extrapolates their sizes
Level = Literal["sample", "request", "user"]
Count = Annotated[int, Field(ge=0)]
PositiveCount = Annotated[int, Field(gt=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveAmount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class MeasuredDataset:
    """The dataset that was measured.

    Attributes:
        path: Where it was read from.
        name: Name in its spec.
        fingerprint: Hash of its content.
        snapshot: Number of the snapshot.
        history_length: Newest events of a history at most.
        users: Number of users.
        requests: Number of requests.
        targets: Number of targets.
        stored_events: Events of all timelines, each counted once.
        history_events: Events of all histories, each counted once per history that contains it.
    """

    path: str
    name: str
    fingerprint: str
    snapshot: Count
    history_length: Count
    users: PositiveCount
    requests: PositiveCount
    targets: PositiveCount
    stored_events: Count
    history_events: Count


@dataclass(frozen=True)
class Means:
    """Means of a dataset from which the cost model predicts sizes in memory.

    Attributes:
        event_bytes: Bytes in memory of an event.
        request_bytes: Bytes in memory of a request's own columns.
        target_bytes: Bytes in memory of a target.
        targets_per_request: Targets of a request.
        history_per_request: History events of a request.
        history_per_target: History events of a target's request, averaged over targets.
        targets_per_history: Targets that share one copy of a history event at the request level.
        requests_per_event: Histories that contain a stored event.
        stored_per_target: Stored events, those repeated in several segments included, per target.
        timelines_per_target: Timelines per target.
    """

    event_bytes: PositiveAmount
    request_bytes: PositiveAmount
    target_bytes: PositiveAmount
    targets_per_request: Amount
    history_per_request: Amount
    history_per_target: Amount
    targets_per_history: Amount
    requests_per_event: Amount
    stored_per_target: Amount
    timelines_per_target: Amount


@dataclass(frozen=True)
class Sampling:
    """How the measured part of the dataset was chosen.

    Attributes:
        seed: Seed of all random choices.
        budget_bytes: Bytes in memory that were written of each layout at most, in each format.
        blocks: Blocks that were sampled.
        blocks_in_dataset: All blocks.
        column_blocks: Blocks from which the sizes of columns are scaled up.
    """

    seed: Count
    budget_bytes: PositiveCount
    blocks: Count
    blocks_in_dataset: Count
    column_blocks: Count


@dataclass(frozen=True)
class LayoutSample:
    """The part of a layout that was written and read.

    Attributes:
        slices: Number of slices.
        slice_bytes: Bytes in memory of a slice, as planned.
        bytes: Bytes in memory of all slices.
        share: Measured share of the whole layout.
        users: Users in the slices.
        requests: Requests in the slices.
        targets: Targets in the slices.
    """

    slices: PositiveCount
    slice_bytes: Count
    bytes: Amount
    share: Amount
    users: Count
    requests: Count
    targets: Count


@dataclass(frozen=True)
class FileSavings:
    """A layout written in one format and codec.

    Attributes:
        format: "Arrow" or "Parquet".
        codec: Compression codec, "none" without one.
        disk_bytes: Size on disk.
        standard_error: Of `disk_bytes`, from the differences between slices; 0 if everything was measured, None if
            there was only one slice.
        write_seconds: Time to write.
        read_seconds: Time to read and decode.
        settings: Settings that were chosen for the table, in words.
    """

    format: str
    codec: str
    disk_bytes: Amount
    standard_error: Amount | None
    write_seconds: Amount
    read_seconds: Amount
    settings: str

    @property
    def title(self) -> str:
        """Format and codec."""
        return f"{self.format} {self.codec}"


@dataclass(frozen=True)
class LayoutSavings:
    """One layout: its size in memory, what the cost model predicts, and its files.

    Attributes:
        name: Identifier, such as "sample_level_by_log".
        title: The same in words.
        level: What a row is.
        memory_bytes: Bytes in memory.
        memory_per_target: Bytes in memory per target.
        predicted_per_target: The same, as the cost model predicts it.
        copies_per_event: Copies of each stored event.
        is_lower_bound: Whether sizes on disk are lower bounds, see `Layout.interleaves_users`.
        sample: The measured part.
        files: One for each format and codec.
    """

    name: str
    title: str
    level: Level
    memory_bytes: Amount
    memory_per_target: Amount
    predicted_per_target: Amount
    copies_per_event: Amount
    is_lower_bound: bool
    sample: LayoutSample
    files: list[FileSavings]

    def file(self, title: str) -> FileSavings:
        """Return the file of one format and codec, such as "Parquet zstd"."""
        return next(file for file in self.files if file.title == title)


@dataclass(frozen=True)
class StoredDataset:
    """The dataset itself, as it is stored.

    Attributes:
        codec: Compression codec of its Arrow files.
        disk_bytes: Bytes on disk of timelines, requests and dictionaries.
        disk_per_target: The same per target.
        memory_bytes: Bytes in memory of all blocks.
        memory_per_target: The same per target.
        read_seconds: Time to read and decode all blocks.
    """

    codec: str
    disk_bytes: PositiveAmount
    disk_per_target: PositiveAmount
    memory_bytes: PositiveAmount
    memory_per_target: PositiveAmount
    read_seconds: Amount


@dataclass(frozen=True)
class ColumnBytes:
    """Bytes on disk of one column of the whole dataset, scaled up from some of its blocks.

    Attributes:
        name: `timelines.<column>`, `events.<field>`, `requests.<column>`, `targets.<field>`, `dictionaries` (files of
            their own) or `headers` (what surrounds the columns of each block).
        stored: As the dataset stores it; None if it stores no such column.
        arrow: As a plain Arrow column with the dataset's codec; None if the decoded tables have no such column.
        parquet: As a plain Parquet column with zstd, with or without a dictionary, whichever is smaller.
    """

    name: str
    stored: Number | None
    arrow: Number | None
    parquet: Number | None


@dataclass(frozen=True)
class Rates:
    """Rates per record that `longbatch plan` multiplies.

    Attributes:
        event_disk_bytes: Bytes on disk of the dataset per stored event.
        request_disk_bytes: Bytes on disk of the dataset per request.
        target_disk_bytes: Bytes on disk of the dataset per target.
        parquet_event_bytes: Bytes of an event in plain Parquet with zstd.
        event_fields: Columns of an event.
        log_rows: Accepted rows of the raw log.
        row_bytes: Bytes in memory of a canonical row.
        row_shuffle_bytes: Bytes of a row as the build shuffled it.
        copied_bytes_per_second: Memory copy bandwidth of one thread.
    """

    event_disk_bytes: Amount
    request_disk_bytes: Amount
    target_disk_bytes: Amount
    parquet_event_bytes: Amount
    event_fields: PositiveCount
    log_rows: Amount
    row_bytes: Amount
    row_shuffle_bytes: Amount
    copied_bytes_per_second: PositiveAmount


@dataclass(frozen=True)
class Headline:
    """How many times the bytes of the dataset other layouts take.

    Attributes:
        memory: Sample level, in memory.
        shuffled: Sample level shuffled, Parquet zstd on disk.
        log_order: Sample level in log order, Parquet zstd on disk.
        sorted_by_user: Sample level sorted by user, Parquet zstd on disk.
        smallest: The smallest other layout and format on disk, the user level excluded.
        smallest_title: Which one that is.
    """

    memory: Amount
    shuffled: Amount
    log_order: Amount
    sorted_by_user: Amount
    smallest: Amount
    smallest_title: str


@dataclass(frozen=True)
class Savings:
    """Everything in savings.json.

    Attributes:
        version: Version of the format, SAVINGS_VERSION.
        dataset: What was measured.
        means: Means that the cost model predicts from.
        sampling: How the measured part was chosen.
        settings: How files were written and read, and on which machine, in words.
        layouts: The layouts that were compared; the user level is the last.
        stored: The dataset itself.
        columns: The columns of the dataset.
        rates: Rates per record.
        headline: The main ratios.
    """

    version: int
    dataset: MeasuredDataset
    means: Means
    sampling: Sampling
    settings: dict[str, str]
    layouts: list[LayoutSavings]
    stored: StoredDataset
    columns: list[ColumnBytes]
    rates: Rates
    headline: Headline

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def layout(self, name: str) -> LayoutSavings:
        """Return a layout by its name, such as "sample_level_by_log"."""
        return next(layout for layout in self.layouts if layout.name == name)


_ADAPTER = TypeAdapter(Savings)


def write_savings(savings: Savings, path: Path) -> None:
    """Write a savings.json."""
    path.write_text(json.dumps(savings.as_dict(), indent=2) + "\n", encoding="utf-8")


def read_savings(path: FileLocation) -> Savings:
    """Read a savings.json and check every value.

    Args:
        path: Path or URL of a file written by `longbatch measure`.

    Returns:
        The results, checked: counts and sizes are finite and in range, and the layouts that `longbatch plan`
        extrapolates are present.

    Raises:
        SpecError: The file cannot be read, has another version, or a value is missing or invalid.
        MachineError: The store of a URL cannot be reached.
    """
    try:
        content = read_file(path)
        document = json.loads(content)
    except OSError as error:
        raise SpecError(f"cannot read {path}: {error.strerror}. Create it with `longbatch measure`.") from None
    except ValueError:
        raise SpecError(f"{path} is not a savings.json. Create one with `longbatch measure`.") from None
    if not isinstance(document, Mapping) or "version" not in document:
        raise SpecError(f"{path} is not a savings.json. Create one with `longbatch measure`.")
    if document["version"] != SAVINGS_VERSION:
        raise SpecError(
            f"{path} has version {document['version']}, this longbatch reads version {SAVINGS_VERSION}. Measure again."
        )
    try:
        savings = _ADAPTER.validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise SpecError(f"{path} is damaged: {key}: {first['msg']}. Measure again.") from None
    measured = {layout.name: {file.title for file in layout.files} for layout in savings.layouts}
    missing = [name for name in PARQUET_LAYOUTS if "Parquet zstd" not in measured.get(name, ())]
    if missing:
        raise SpecError(f"{path} is damaged: no Parquet zstd size for {', '.join(missing)}. Measure again.")
    return savings
