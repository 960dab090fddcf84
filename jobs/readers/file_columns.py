"""Which columns each file of a source has, and what the rows of a file get for a column that it lacks.

Logs change over the years: a file may lack a column that was added later, or have it in another type. Numbers of
another width need nothing here, because every chunk is typed on its own by the spec.
"""

from __future__ import annotations

import base64
import difflib
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from longbatch.pipelines.row_filters import where_columns
from longbatch.schemas.errors import SourceError
from longbatch.schemas.source_schema import ActionValue, MappedColumn, source_schema
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.spec.columns import Feature, Label

from .json_lines import JsonHead

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileSchema:
    """The columns of one file.

    Attributes:
        path: Local path or URI.
        types: Types of the needed columns that the file has, by name.
        names: All columns of the file.
    """

    path: str
    types: Mapping[str, pl.DataType]
    names: Sequence[str]


@dataclass(frozen=True)
class Adjustments:
    """How to make the rows of a file equal in type to those of the other files.

    Attributes:
        nulls: Columns to add as nulls, with their types in the other files.
        as_strings: Columns to cast to strings.
    """

    nulls: dict[str, pl.DataType] = field(default_factory=dict)
    as_strings: tuple[str, ...] = ()


def encode_constants(row: pl.DataFrame) -> str:
    """Encode one row as a string that JSON can hold.

    Args:
        row: A frame of one row, of any types.
    """
    if not row.width:
        return ""
    buffer = io.BytesIO()
    row.write_ipc(buffer, compression="uncompressed")
    return base64.b64encode(buffer.getvalue()).decode()


def decode_constants(encoded: str) -> pl.DataFrame:
    """Decode the result of `encode_constants`.

    Args:
        encoded: The encoded row.

    Returns:
        A frame of one row; of no rows and columns for an empty string.
    """
    return pl.read_ipc(io.BytesIO(base64.b64decode(encoded))) if encoded else pl.DataFrame()


def check_columns(spec: BuildSpec, source: str, schemas: Sequence[FileSchema], needed: Sequence[str]) -> None:
    """Check that every needed column is in each file, or in some file and optional.

    Args:
        spec: The build spec.
        source: Name of the source.
        schemas: The columns of each file.
        needed: The columns that files must have.

    Raises:
        SourceError: No file has a column, or a file lacks one that is not optional.
    """
    file_with = {name: schema.path for schema in schemas for name in schema.types}
    required = {name for name in needed if name not in file_with or not _is_optional(spec, source, name)}
    for schema in schemas:
        missing = [name for name in needed if name in required and name not in schema.types]
        if missing:
            raise SourceError(_missing_message(spec, source, schema, missing, file_with))


def check_json_keys(source: str, heads: Mapping[str, JsonHead], needed: Sequence[str]) -> None:
    """Check that every key occurs in some file, as far as the starts of the files show it.

    Args:
        source: Name of the source.
        heads: The start of each file, by path.
        needed: The keys that are read.

    Raises:
        SourceError: A key is in no file.
    """
    unseen = [name for name in needed if not any(name in head.keys for head in heads.values())]
    names = tuple(dict.fromkeys(name for head in heads.values() for name in head.first_keys))
    if not unseen or not names:
        return
    if all(head.is_complete for head in heads.values()):
        message = f"source {source}: no line of {next(iter(heads))} or another file has a key {unseen[0]!r}."
        similar = difflib.get_close_matches(unseen[0], names, 1, 0.7)
        hint = f" Did you mean {similar[0]!r}?" if similar else ""
        raise SourceError(f"{message}{hint} The first line has {', '.join(names)}.")
    logger.warning("source %s: no key %r at the start of any file; lines without it have nulls", source, unseen[0])


def adjustments(schemas: Sequence[FileSchema], needed: Sequence[str]) -> list[Adjustments]:
    """Decide what to do about columns that some files lack, or have in another type.

    Integers of one file and strings of another become strings, so that an id is the same in both.

    Args:
        schemas: The columns of each file.
        needed: The columns that files must have.

    Returns:
        The adjustments of each file.
    """
    for name in needed:
        lacking = sum(name not in schema.types for schema in schemas)
        if lacking:
            logger.warning("%d of %d files have no column %r; it is null in their rows", lacking, len(schemas), name)
    union = {name: _union([s.types[name] for s in schemas if name in s.types]) for name in needed}
    return [_adjustment(schema, needed, union) for schema in schemas]


def _adjustment(schema: FileSchema, needed: Sequence[str], union: Mapping[str, pl.DataType]) -> Adjustments:
    present = schema.types
    # Writers that infer types store a column without values in the type null.
    absent = [name for name in needed if name not in present or present[name] == pl.Null]
    as_strings = [name for name, dtype in present.items() if union[name] == pl.String and dtype.is_integer()]
    return Adjustments({name: union[name] for name in absent if union[name] != pl.Null}, tuple(as_strings))


def _union(dtypes: Sequence[pl.DataType]) -> pl.DataType:
    """Return the type for files without the column: strings if any file has them, else the newest file's."""
    known = [dtype for dtype in dtypes if dtype != pl.Null] or [pl.Null()]
    return pl.String() if pl.String in known else known[-1]


def _is_optional(spec: BuildSpec, source: str, column: str) -> bool:
    """Return whether rows may lack a raw column: whatever reads it has a default, or may be null and the spec says so.

    Ids and times are never optional, because all rows without them would be rejected.
    """
    schema = source_schema(spec, source)
    if column in schema.exploded_from:
        return False
    nulls_allowed = spec.sources[source].missing_columns == "null"
    if column in where_columns(schema) and not nulls_allowed:
        return False
    reads = [mapped for mapped in schema.columns.values() if column in _columns_of(mapped)]
    return all(_has_default(mapped) or (nulls_allowed and _may_be_null(mapped)) for mapped in reads)


def _columns_of(mapped: MappedColumn) -> tuple[str | None, ...]:
    return (mapped.column, mapped.contained_in) if isinstance(mapped, Label) else (mapped.column,)


def _has_default(mapped: MappedColumn) -> bool:
    return isinstance(mapped, Feature | Label) and mapped.default is not None


def _may_be_null(mapped: MappedColumn) -> bool:
    return isinstance(mapped, Feature | ActionValue)


def _missing_message(
    spec: BuildSpec, source: str, schema: FileSchema, missing: Sequence[str], file_with: Mapping[str, str]
) -> str:
    message = f"source {source}: {schema.path} has no column {', '.join(map(repr, missing))}."
    elsewhere = [name for name in missing if name in file_with]
    if elsewhere:
        return f"{message} {file_with[elsewhere[0]]} has {elsewhere[0]!r}. {_advice(spec, source, elsewhere[0])}"
    similar = [close[0] for name in missing if (close := difflib.get_close_matches(name, schema.names, 1, 0.7))]
    if similar:
        message += f" Did you mean {', '.join(map(repr, similar))}?"
    return f"{message} Its columns are {', '.join(schema.names)}."


def _advice(spec: BuildSpec, source: str, column: str) -> str:
    schema = source_schema(spec, source)
    reads = [mapped for mapped in schema.columns.values() if column in _columns_of(mapped)]
    if all(isinstance(mapped, Feature | Label) for mapped in reads) and column not in schema.exploded_from:
        return f'Give what reads it a default, or set sources.{source}.missing_columns = "null".'
    return "Every row needs it, so leave out the files without it, or add it to them."
