"""The sources of a spec: files of raw rows, their format, and how list columns are exploded into rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BeforeValidator, Field, model_validator

from longbatch.schemas.errors import SpecError
from longbatch.schemas.time import to_microseconds

from .columns import Duration, Strict, duration_us, one_or_more

SourceFormat = Literal["parquet", "csv", "jsonl", "arrow", "delta", "iceberg", "table"]
TABLE_FORMATS = frozenset({"delta", "iceberg", "table"})

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
    """A string column that encodes a list.

    Attributes:
        column: The column.
        separator: Separates the elements.
        fields: Names of the columns that an element becomes.
        field_separator: Separates the fields of an element; required for several fields.

    Example:
        `"N1-1 N2-0"` has the separator " ", the field_separator "-" and two fields.
    """

    column: str
    separator: str = " "
    fields: tuple[str, ...] = Field(min_length=1)
    field_separator: str | None = None

    @model_validator(mode="after")
    def _separator_for_fields(self) -> Self:
        if len(self.fields) > 1 and not self.field_separator:
            raise ValueError("several fields need a `field_separator`")
        return self


class Explode(Strict):
    """Turns each element of a list into a row of its own.

    Attributes:
        lists: Parallel list columns, of equal length in every row.
        string: A string column that encodes a list.
        position: Name of a new column with the index of the element, from 0.
    """

    lists: Annotated[tuple[str, ...], BeforeValidator(one_or_more)] = ()
    string: StringList | None = None
    position: str | None = None

    @model_validator(mode="after")
    def _one_way_to_explode(self) -> Self:
        if bool(self.lists) == (self.string is not None):
            raise ValueError("explode needs exactly one of `lists` and `string`")
        return self


class SyntheticTime(Strict):
    """Synthetic timestamps for logs without times, whose rows are in order.

    Row `i` of file `k` has the time `start + k * per_file` plus `i` microseconds; both count from 0. Files are in the
    order of the paths, and files of a glob are sorted by name.

    Attributes:
        column: Name of the new column.
        start: Time of the first row of the first file.
        per_file: Time between the first rows of consecutive files.
    """

    column: str
    start: AwareDatetime
    per_file: Duration

    def of_file(self, number: int) -> int:
        """Return the time of the first row of a file.

        Args:
            number: Index of the file.

        Returns:
            Microseconds since 1970 UTC.
        """
        return to_microseconds(self.start) + number * duration_us(self.per_file)


class Source(Strict):
    """A log: files of one format, or a table.

    Attributes:
        path: Paths, folders, globs or URIs of files; for a table its folder, metadata file or name.
        format: Format of the files or the table; by default inferred from the suffix of the first path.
        version: Version of a Delta table; by default the current one when the build starts.
        snapshot: Snapshot id of an Iceberg table; by default the current one when the build starts.
        hive_partitions: Whether folder names such as `dt=2026-11-26` are columns of the files in them.
        missing_columns: What to do about a column that only some files have and that has no default: "error", or
            "null" to read it as null from the others.
        separator: Field separator of CSV files; by default a comma, or a tab for .tsv.
        quote: Quote character of CSV files; None or empty for no quoting.
        columns: Column names of CSV files without a header.
        explode: How list columns become rows.
        synthetic_time: Generated times, for logs without a time column.
    """

    path: Annotated[tuple[str, ...], BeforeValidator(one_or_more)] = Field(min_length=1)
    format: SourceFormat | None = None
    version: int | None = Field(default=None, ge=0)
    snapshot: int | None = None
    hive_partitions: bool = True
    missing_columns: Literal["error", "null"] = "error"
    separator: str | None = Field(default=None, min_length=1, max_length=1)
    quote: str | None = Field(default='"', max_length=1)
    columns: tuple[str, ...] | None = None
    explode: Explode | None = None
    synthetic_time: SyntheticTime | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.synthetic_time and self.format in TABLE_FORMATS:
            raise ValueError(
                "synthetic_time counts the rows of files, which a table does not have; map a time column instead"
            )
        if self.format in TABLE_FORMATS and len(self.path) > 1:
            raise ValueError(f'a source of format "{self.format}" is one table; use one source for each table')
        if not (self.separator or "").isascii() or not (self.quote or "").isascii():
            raise ValueError("separator and quote must be ASCII characters; convert the files to another one")
        for key, table_format in (("version", "delta"), ("snapshot", "iceberg")):
            if getattr(self, key) is not None and self.format != table_format:
                raise ValueError(f'`{key}` needs format = "{table_format}"; set the format or remove `{key}`')
        return self

    @property
    def file_format(self) -> SourceFormat:
        """The declared format, or the one that the suffix of the first path indicates."""
        if self.format:
            return self.format
        suffixes = [s for s in Path(self.path[0]).suffixes if s not in (".gz", ".zst", ".bz2", ".lz4")]
        if suffixes and suffixes[-1].lower() in SUFFIX_FORMATS:
            return SUFFIX_FORMATS[suffixes[-1].lower()]
        raise SpecError(
            f"cannot infer the format of {self.path[0]!r} from its suffix; set the source's format to "
            '"parquet", "csv", "jsonl", "arrow", "delta", "iceberg" or "table"'
        )

    @property
    def field_separator(self) -> str:
        """The declared field separator of CSV files, or the one that the suffix of the first path indicates."""
        return self.separator or ("\t" if ".tsv" in Path(self.path[0].lower()).suffixes else ",")
