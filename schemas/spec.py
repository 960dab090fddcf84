"""The build spec: which columns of which logs become history, requests, targets and labels.

A spec is a TOML file. Unknown keys are errors that name the nearest known key; shorthands
(`user_id = "uid"`, `author_id = "int32"`) are expanded here, so that the rest of the code sees one form.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import available_timezones

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from longbatch.schemas.errors import SpecError

FeatureType = Literal["int8", "int16", "int32", "int64", "float32", "float64", "bool", "string", "id"]
TimeUnit = Literal["s", "ms", "us", "iso"]
SourceFormat = Literal["parquet", "csv", "jsonl", "arrow", "table"]
Compression = Literal["zstd", "lz4", "none"]

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
DURATION_US = {"us": 1, "ms": 1_000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
RESERVED_NAMES = frozenset({"item_id", "event_time", "user_id", "request_id", "request_time", "targets"})


class Strict(BaseModel):
    """A frozen model that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")


def _column(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class IdColumn(Strict):
    """A column of ids: `int64` as they are, or `string`, hashed to int64 with the text kept."""

    column: str
    type: Literal["int64", "string"] = "int64"


class TimeColumn(Strict):
    """A column of times. A timestamp-typed column needs no unit; numbers need s, ms or us; text needs iso."""

    column: str
    unit: TimeUnit | None = None
    format: str | None = None
    timezone: str = "UTC"

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError("no such time zone; write one of the IANA names, such as Europe/Berlin")
        return value


def _fits(default: bool | int | float | str, type_name: FeatureType) -> bool:
    """Whether a default is a value of the type. An id is a number, or a text to be hashed."""
    if type_name in ("string", "id"):
        return isinstance(default, str) or (type_name == "id" and type(default) is int and abs(default) < 2**63)
    if type_name == "bool":
        return default in (0, 1)
    if type_name.startswith("float"):
        return isinstance(default, int | float) and not isinstance(default, bool)
    limit = 1 << (int(type_name.removeprefix("int")) - 1)
    return type(default) is int and -limit <= default < limit


class Feature(Strict):
    """A column stored as a feature, converted to `type`; a null takes `default` where one is given."""

    column: str
    type: FeatureType
    default: int | float | bool | str | None = None

    @model_validator(mode="after")
    def _default_of_type(self) -> Self:
        if self.default is not None and not _fits(self.default, self.type):
            raise ValueError(f"default {self.default!r} is not of type {self.type}; change one of them")
        return self


class Label(Strict):
    """A label of a target: a column, or whether the row's item is among the items of a list column."""

    column: str | None = None
    type: Literal["int8", "int16", "int32", "int64", "float32", "float64", "bool"] = "int8"
    default: int | float | bool | None = None
    contained_in: str | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.column is None) == (self.contained_in is None):
            raise ValueError("a label needs either `column` or `contained_in`, and not both")
        if self.default is not None and not _fits(self.default, self.type):
            raise ValueError(f"default {self.default!r} is not of type {self.type}; change one of them")
        return self


def _features(value: Any) -> Any:
    """Expand `name = "int32"` to `name = { column = "name", type = "int32" }`."""
    if not isinstance(value, Mapping):
        return value
    return {
        name: {"column": name, "type": entry} if isinstance(entry, str) else _with_column(name, entry)
        for name, entry in value.items()
    }


def _with_column(name: str, entry: Any) -> Any:
    if isinstance(entry, Mapping) and "contained_in" not in entry:
        return {"column": name, **entry}
    return entry


Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Id = Annotated[IdColumn, BeforeValidator(_column)]
Time = Annotated[TimeColumn, BeforeValidator(_column)]
Features = Annotated[dict[Name, Feature], BeforeValidator(_features)]
Labels = Annotated[dict[Name, Label], BeforeValidator(_features)]


class TextList(Strict):
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

    lists: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = ()
    text: TextList | None = None
    position: str | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.lists) == (self.text is not None):
            raise ValueError("explode needs either `lists` or `text`, and not both")
        return self


class Source(Strict):
    """Files (path, glob, list of them, or URIs) of one format, or a table that Spark knows by name."""

    path: Annotated[tuple[str, ...], BeforeValidator(_one_or_more)] = Field(min_length=1)
    format: SourceFormat | None = None
    separator: str | None = Field(default=None, min_length=1, max_length=1)
    quote: str | None = Field(default='"', max_length=1)
    columns: tuple[str, ...] | None = None
    explode: Explode | None = None

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


class History(Strict):
    """What enters the timelines."""

    source: str
    where: str | None = None
    user_id: Id
    item_id: Id
    event_time: Time
    arrival_time: Time | None = None
    delay: str = "0s"
    request_id: Id | None = None
    features: Features = {}

    @field_validator("delay")
    @classmethod
    def _is_duration(cls, value: str) -> str:
        if duration_us(value) > 36_525 * DURATION_US["d"]:
            raise ValueError("a delay of more than a century; check its unit")
        return value

    @property
    def delay_us(self) -> int:
        """The serving delay in microseconds."""
        return duration_us(self.delay)


class Requests(Strict):
    """What becomes requests, their targets and labels."""

    source: str
    where: str | None = None
    user_id: Id
    item_id: Id
    request_time: Time
    request_id: Id | None = None
    features: Features = {}
    target_features: Features = {}
    labels: Labels = {}

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        twice = set(self.target_features) & set(self.labels)
        if twice:
            raise ValueError(f"{sorted(twice)} are both target features and labels; rename one")
        return self


class BuildSpec(Strict):
    """A whole build: sources, what they mean, and how the dataset is stored."""

    name: str = "dataset"
    history_length: int = Field(default=10_000, ge=1, le=1_000_000)
    compression: Compression = "zstd"
    block_events: int = Field(default=65_536, ge=1)
    block_targets: int = Field(default=65_536, ge=1)
    time_range: tuple[AwareDatetime, AwareDatetime] = (
        datetime.fromisoformat("1990-01-01T00:00:00+00:00"),
        datetime.fromisoformat("2100-01-01T00:00:00+00:00"),
    )
    max_rejected: float = Field(default=0.01, ge=0.0, le=1.0)
    sources: dict[Name, Source] = Field(min_length=1)
    history: History
    requests: Requests

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for role, section in (("history", self.history), ("requests", self.requests)):
            if section.source not in self.sources:
                raise ValueError(f"{role}.source is {section.source!r}, but the sources are {sorted(self.sources)}")
        unused = set(self.sources) - {self.history.source, self.requests.source}
        if unused:
            raise ValueError(f"sources {sorted(unused)} are used by neither history nor requests")
        if self.one_log and self.history.user_id != self.requests.user_id:
            raise ValueError("history and requests read one source, so their user_id must be the same column")
        if self.history.user_id.type != self.requests.user_id.type:
            raise ValueError("history.user_id and requests.user_id differ in type, so no user would ever match")
        if self.history.request_id and self.requests.request_id is None:
            raise ValueError("history.request_id is mapped but requests.request_id is not; map both or neither")
        if (
            self.history.request_id
            and self.requests.request_id
            and (self.history.request_id.type != self.requests.request_id.type)
        ):
            raise ValueError("history.request_id and requests.request_id differ in type, so none would ever match")
        self._refuse_reserved_names()
        return self

    def _refuse_reserved_names(self) -> None:
        features = [*self.history.features, *self.requests.features]
        features += [*self.requests.target_features, *self.requests.labels]
        reserved = (set(features) & RESERVED_NAMES) | (
            set(self.requests.features) & {"segment", "timeline_row", "history_end", "history"}
        )
        if reserved:
            raise ValueError(f"{sorted(reserved)} are columns of the format itself; give the feature another name")

    @property
    def one_log(self) -> bool:
        """Whether one source feeds both history and targets."""
        return self.history.source == self.requests.source

    def with_paths_from(self, folder: Path) -> BuildSpec:
        """Return the spec with relative source paths made absolute against `folder`."""
        sources = {
            name: source.model_copy(update={"path": tuple(_absolute(p, folder, source.format) for p in source.path)})
            for name, source in self.sources.items()
        }
        return self.model_copy(update={"sources": sources})


def _absolute(path: str, folder: Path, format: SourceFormat | None) -> str:
    if format == "table" or "://" in path:
        return path
    return str(folder / path)


def duration_us(text: str) -> int:
    """Microseconds of a duration such as "5s", "250ms", "2h"; units us, ms, s, m, h, d."""
    match = re.fullmatch(r"\s*(\d+)\s*([a-z]+)\s*", text)
    if match is None or match[2] not in DURATION_US:
        raise ValueError(f"{text!r} is not a duration; write a whole number and a unit, such as 5s, 250ms, 2h, 1d")
    return int(match[1]) * DURATION_US[match[2]]


def parse_spec(text: str, origin: str = "spec") -> BuildSpec:
    """Read a spec from TOML text. Raises SpecError naming the key, what was found, and the nearest known key."""
    try:
        return BuildSpec.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{origin} is not TOML: {error}") from None
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(detail)}" for detail in error.errors())
        raise SpecError(f"{origin} does not say what to build:\n{problems}") from None


def load_spec(path: str | Path) -> BuildSpec:
    """Read a spec file; relative source paths are taken from the spec's own folder."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"cannot read the spec {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from None
    return parse_spec(text, str(path)).with_paths_from(path.resolve().parent)


_MODELS: dict[str, type[Strict]] = {
    "": BuildSpec,
    "sources.*": Source,
    "sources.*.explode": Explode,
    "sources.*.explode.text": TextList,
    "history": History,
    "history.features.*": Feature,
    "requests": Requests,
    "requests.features.*": Feature,
    "requests.target_features.*": Feature,
    "requests.labels.*": Label,
}


def _model_at(location: tuple[str, ...]) -> type[Strict] | None:
    parts = list(location)
    if len(parts) > 1 and (parts[0] == "sources" or parts[-2] in ("features", "target_features", "labels")):
        parts[1 if parts[0] == "sources" else -1] = "*"
    known = _MODELS.get(".".join(parts))
    if known is None and parts and parts[-1].endswith("_id"):
        return IdColumn
    if known is None and parts and parts[-1].endswith("_time"):
        return TimeColumn
    return known


def _explain(detail: Any) -> str:
    """One line for one pydantic error: where, what was found, what to do."""
    location = tuple(str(part) for part in detail["loc"])
    where = ".".join(location) or "the spec"
    if detail["type"] == "extra_forbidden":
        model = _model_at(location[:-1])
        known = sorted(model.model_fields) if model else []
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    if detail["type"] == "missing":
        return f"{where}: missing; add it to the spec"
    message = str(detail["msg"]).removeprefix("Value error, ")
    found = detail.get("input")
    shown = f" (found {found!r})" if isinstance(found, str | int | float | bool) else ""
    return f"{where}: {message}{shown}"
