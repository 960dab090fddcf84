"""The build spec: which columns of which logs become history, requests, targets and labels.

A spec is a TOML file. Unknown keys are errors that name the nearest known key; shorthands
(`user_id = "uid"`, `author_id = "int32"`) are expanded on reading, so that the rest of the code sees one form.
"""

from __future__ import annotations

import tomllib
from datetime import datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from longbatch.schemas.errors import SpecError

from .columns import Duration, Features, Id, Label, Labels, Name, Strict, Time, duration_us
from .messages import explain
from .source import Source, SourceFormat

Compression = Literal["zstd", "lz4", "none"]
Encoding = Literal["compact", "plain"]
Role = Literal["history", "requests", "actions"]
ROLES: tuple[Role, ...] = ("history", "requests", "actions")
RESERVED_NAMES = frozenset({"item_id", "event_time", "user_id", "request_id", "request_time", "targets"})


class History(Strict):
    """What enters the timelines."""

    source: str
    where: str | None = None
    user_id: Id
    item_id: Id
    event_time: Time
    arrival_time: Time | None = None
    delay: Duration = "0s"
    request_id: Id | None = None
    features: Features = Field(default_factory=dict)

    @property
    def delay_us(self) -> int:
        """The serving delay in microseconds."""
        return duration_us(self.delay)


class Requests(Strict):
    """What becomes requests, their targets and labels.

    Without a `request_id` the rows of a user are grouped: those at most `session_gap` after the one before
    (0s: those of the same time) are one request, and at most `max_targets` of them, if given.
    """

    source: str
    where: str | None = None
    user_id: Id
    item_id: Id
    request_time: Time
    request_id: Id | None = None
    session_gap: Duration = "0s"
    max_targets: int | None = Field(default=None, ge=1)
    features: Features = Field(default_factory=dict)
    target_features: Features = Field(default_factory=dict)
    labels: Labels = Field(default_factory=dict)

    @property
    def session_gap_us(self) -> int:
        """The longest time between neighbouring rows of one request, in microseconds."""
        return duration_us(self.session_gap)

    @property
    def delayed_labels(self) -> dict[str, Label]:
        """The labels that are computed from the actions log."""
        return {name: label for name, label in self.labels.items() if label.aggregate}

    @model_validator(mode="after")
    def _one_way_to_group(self) -> Self:
        if self.request_id and (self.session_gap_us or self.max_targets):
            raise ValueError("request_id says what a request is; take away session_gap and max_targets, or request_id")
        return self

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        twice = set(self.target_features) & set(self.labels)
        if twice:
            raise ValueError(f"{sorted(twice)} are both target features and labels; rename one")
        return self


class Actions(Strict):
    """The log of what users did later, for labels with an `aggregate`.

    Actions belong to a target by (request_id, item_id) where they carry a `request_id`, else by
    (user_id, item_id). The log is complete up to `until`; if that is not said, up to its latest action.
    """

    source: str
    where: str | None = None
    user_id: Id
    item_id: Id
    event_time: Time
    request_id: Id | None = None
    until: AwareDatetime | None = None


class Items(Strict):
    """What belongs to an item and not to an event: history features that are stored once per item of a shard."""

    features: tuple[Name, ...] = ()


class Users(Strict):
    """Policies for users that no model wants.

    Of a user with more than `max_events` events the newest are kept, or the user is rejected with all requests;
    users with fewer than `min_events` are rejected too.
    """

    max_events: int | None = Field(default=None, ge=1)
    over_max_events: Literal["keep_newest", "reject_user"] = "keep_newest"
    min_events: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _some_user_left(self) -> Self:
        if self.max_events is not None and self.max_events < self.min_events:
            raise ValueError(f"max_events {self.max_events} is below min_events {self.min_events}: no user would stay")
        return self


class Expectations(Strict):
    """Great Expectations: how many rows of a table are sampled, and the user's own suites (JSON files)."""

    sample_rows: int = Field(default=10_000, ge=1, le=1_000_000)
    events: str | None = None
    impressions: str | None = None
    requests: str | None = None

    @property
    def suites(self) -> dict[str, str | None]:
        """Table -> path of the user's own suite for it, or None."""
        return {"events": self.events, "impressions": self.impressions, "requests": self.requests}


class BuildSpec(Strict):
    """A whole build: sources, what they mean, and how the dataset is stored."""

    name: str = "dataset"
    history_length: int = Field(default=10_000, ge=1, le=1_000_000)
    compression: Compression = "zstd"
    encoding: Encoding | None = None
    block_events: int = Field(default=65_536, ge=1)
    block_targets: int = Field(default=65_536, ge=1)
    time_range: tuple[AwareDatetime, AwareDatetime] = (
        datetime.fromisoformat("1990-01-01T00:00:00+00:00"),
        datetime.fromisoformat("2100-01-01T00:00:00+00:00"),
    )
    max_rejected: float = Field(default=0.01, ge=0.0, le=1.0)
    max_rejected_for: dict[str, float] = Field(default_factory=dict)
    sources: dict[Name, Source] = Field(min_length=1)
    history: History
    requests: Requests
    actions: Actions | None = None
    items: Items = Items()
    users: Users = Users()
    expectations: Expectations = Expectations()

    def section(self, role: Role) -> History | Requests | Actions:
        """Return the section of a role that the spec has."""
        found: History | Requests | Actions | None = getattr(self, role)
        if found is None:
            raise SpecError(f"the spec has no section [{role}]")
        return found

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles that rows can play: history, requests, and actions where the spec has that section."""
        return ROLES if self.actions else ROLES[:2]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for role in self.roles:
            source = self.section(role).source
            if source not in self.sources:
                raise ValueError(f"{role}.source is {source!r}, but the sources are {sorted(self.sources)}")
        unused = set(self.sources) - {self.section(role).source for role in self.roles}
        if unused:
            raise ValueError(f"sources {sorted(unused)} are used by none of {', '.join(self.roles)}")
        self._check_ids()
        self._check_actions()
        self._check_encoding()
        self._refuse_reserved_names()
        if any(not 0 <= share <= 1 for share in self.max_rejected_for.values()):
            raise ValueError("max_rejected_for holds shares of rows between 0 and 1, such as 0.001")
        return self

    def _check_ids(self) -> None:
        """Ids that meet must be of one type; of one source, the user is one column."""
        asked = self.requests
        for role in self.roles:
            other = self.section(role)
            if other.source == asked.source and other.user_id != asked.user_id:
                raise ValueError(f"{role} and requests read one source, so their user_id must be the same column")
            if other.user_id.type != asked.user_id.type:
                raise ValueError(f"{role}.user_id and requests.user_id differ in type, so no user would ever match")
            if other.request_id and asked.request_id is None:
                raise ValueError(f"{role}.request_id is mapped but requests.request_id is not; map both or neither")
            if other.request_id and asked.request_id and other.request_id.type != asked.request_id.type:
                raise ValueError(f"{role}.request_id and requests.request_id differ in type, so none would ever match")
        if self.actions and self.actions.source == self.history.source and self.actions.user_id != self.history.user_id:
            raise ValueError("actions and history read one source, so their user_id must be the same column")

    def _check_actions(self) -> None:
        later = self.requests.delayed_labels
        if later and self.actions is None:
            raise ValueError(f"labels {sorted(later)} have an `aggregate`; say over which log in a section [actions]")
        if self.actions and not later:
            raise ValueError("section [actions] is there, but no label has an `aggregate`; add one, or remove it")
        if self.actions and self.actions.item_id.type != self.requests.item_id.type:
            raise ValueError("actions.item_id and requests.item_id differ in type, so no item would ever match")

    def _check_encoding(self) -> None:
        if self.encoding == "compact" and self.compression == "none":
            raise ValueError('encoding "compact" only makes columns compress; with compression "none" it is "plain"')
        unknown = [name for name in self.items.features if name not in self.history.features]
        if unknown:
            raise ValueError(
                f"items.features {unknown} are no features of the history, {sorted(self.history.features)}"
            )
        if self.items.features and not self.is_compact:
            raise ValueError("items.features are stored once per item in the compact encoding only; take them away")

    def _refuse_reserved_names(self) -> None:
        features = [*self.history.features, *self.requests.features]
        features += [*self.requests.target_features, *self.requests.labels]
        reserved = (set(features) & RESERVED_NAMES) | (
            set(self.requests.features) & {"segment", "timeline_row", "history_end", "history"}
        )
        if reserved:
            raise ValueError(f"{sorted(reserved)} are columns of the format itself; give the feature another name")

    @property
    def is_compact(self) -> bool:
        """Whether files hold the compact encoding: by default where they are compressed."""
        return (self.encoding or ("plain" if self.compression == "none" else "compact")) == "compact"

    @property
    def one_log(self) -> bool:
        """Whether one source feeds both history and targets."""
        return self.history.source == self.requests.source

    def with_paths_from(self, folder: Path) -> BuildSpec:
        """Return the spec with the relative paths of sources and suites made absolute against `folder`."""
        sources = {
            name: source.model_copy(update={"path": tuple(_absolute(p, folder, source.format) for p in source.path)})
            for name, source in self.sources.items()
        }
        suites = {table: path for table, path in self.expectations.suites.items() if path}
        own = {table: _absolute(path, folder, None) for table, path in suites.items()}
        expectations = self.expectations.model_copy(update=own)
        return self.model_copy(update={"sources": sources, "expectations": expectations})


def _absolute(path: str, folder: Path, format: SourceFormat | None) -> str:
    if format == "table" or "://" in path:
        return path
    return str(folder / path)


def parse_spec(text: str, origin: str = "spec") -> BuildSpec:
    """Read a spec from TOML text. Raises SpecError naming the key, what was found, and the nearest known key."""
    try:
        return BuildSpec.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{origin} is not TOML: {error}") from None
    except ValidationError as error:
        problems = "\n".join(f"  {explain(detail, BuildSpec)}" for detail in error.errors())
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
