"""What `longbatch measure` found, as values; the keys of savings.json are explained in `measure`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .column_sizes import ColumnBytes


@dataclass(frozen=True)
class File:
    """A layout in one format and codec; sizes and times of the whole dataset.

    standard_error: of bytes, from the differences between slices; None if there was but one slice, and not the whole.
    """

    format: str
    codec: str
    bytes: float
    standard_error: float | None
    write_seconds: float
    read_seconds: float
    settings: str

    @property
    def title(self) -> str:
        """Format and codec."""
        return f"{self.format} {self.codec}"


@dataclass(frozen=True)
class LayoutSavings:
    """One layout: what it decodes to, next to the formula, and its files.

    at_least: whether its bytes at rest are a lower bound, see `Layout.mixes_users`.
    """

    name: str
    title: str
    decoded_bytes: float
    decoded_per_target: float
    predicted_per_target: float
    copies_of_event: float
    sample: dict[str, float]
    files: list[File]
    at_least: bool

    def file(self, title: str) -> File:
        """Return the file of one format and codec, such as "Parquet zstd"."""
        return next(file for file in self.files if file.title == title)


@dataclass(frozen=True)
class Savings:
    """All that `savings.json` holds; its keys are explained at the top of this file."""

    version: int
    dataset: dict[str, Any]
    formula: dict[str, float]
    sampling: dict[str, int]
    settings: dict[str, str]
    layouts: list[LayoutSavings]
    on_disk: dict[str, Any]
    columns: list[ColumnBytes]
    rates: dict[str, float]
    headline: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def layout(self, name: str) -> LayoutSavings:
        """Return a layout by its name, such as "sample_level_by_log"."""
        return next(layout for layout in self.layouts if layout.name == name)
