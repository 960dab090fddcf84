"""The sources of a spec: files of raw rows, their format, and how list columns become rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BeforeValidator, Field, model_validator

from longbatch.schemas.errors import SpecError
from longbatch.schemas.time import to_microseconds

from .columns import Duration, Strict, duration_us, one_or_more

SourceFormat = Literal["parquet", "csv", "jsonl", "arrow", "table"]

SUFFIX_FORMATS: dict[str, SourceFormat] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}


class StringList(Strict):
    """A text column that holds a list: `"N1-1 N2-0"` is separator " ", field_separator "-", two fields."""

    column: str
    separator: str = " "
    fields: tuple[str, ...] = Field(min_length=1)
    field_separator: str | None = None

    @model_validator(mode="after")
    def _separator_for_fields(self) -> Self:
        if len(self.fields) > 1 and not self.field_separator:
            raise ValueError("more than one field needs a `field_separator`")
        return self


class Explode(Strict):
    """One row per list element: parallel list columns, or one text column; `position` names their index."""

    lists: Annotated[tuple[str, ...], BeforeValidator(one_or_more)] = ()
    string: StringList | None = None
    position: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.lists) == (self.string is not None):
            raise ValueError("explode needs either `lists` or `string`, and not both")
        return self


class SyntheticTime(Strict):
    """A time for logs that have none, whose order is the order of their rows: a column made from it.

    Row i of file k (files in the order of the paths, those of a glob sorted; both from 0) gets `start + k * per_file + i` microseconds.
    """

    column: str
    start: AwareDatetime
    per_file: Duration

    def of_file(self, number: int) -> int:
        """Microseconds since 1970 of the first row of a file."""
        return to_microseconds(self.start) + number * duration_us(self.per_file)


class Source(Strict):
    """Files (path, glob, list of them, or URIs) of one format, or a table that Spark knows by name."""

    path: Annotated[tuple[str, ...], BeforeValidator(one_or_more)] = Field(min_length=1)
    format: SourceFormat | None = None
    separator: str | None = Field(default=None, min_length=1, max_length=1)
    quote: str | None = Field(default='"', max_length=1)
    columns: tuple[str, ...] | None = None
    explode: Explode | None = None
    synthetic_time: SyntheticTime | None = None

    @model_validator(mode="after")
    def _files_for_synthetic_time(self) -> Self:
        if self.synthetic_time and self.format == "table":
            raise ValueError("synthetic_time counts the rows of files; a table has none, so give it a time column")
        return self

    @property
    def file_format(self) -> SourceFormat:
        """The declared format, or the one the first path's suffix says."""
        if self.format:
            return self.format
        suffixes = [s for s in Path(self.path[0]).suffixes if s not in (".gz", ".zst", ".bz2", ".lz4")]
        if suffixes and suffixes[-1].lower() in SUFFIX_FORMATS:
            return SUFFIX_FORMATS[suffixes[-1].lower()]
        raise SpecError(
            f"cannot tell the format of {self.path[0]!r} from its suffix; add format = "
            '"parquet", "csv", "jsonl", "arrow" or "table" to its source'
        )

    @property
    def field_separator(self) -> str:
        """The declared separator of a CSV source, or the one its suffix says (.tsv: tab)."""
        return self.separator or ("\t" if ".tsv" in Path(self.path[0].lower()).suffixes else ",")
