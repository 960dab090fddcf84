"""The build spec: which columns of which logs become history, requests, targets and labels.

A spec is a TOML file; docs/spec.md describes every key. Unknown keys are errors that name the most similar known key.
Shorthands (`user_id = "uid"`, `author_id = "int32"`) are expanded on reading, so that code sees the long form only.
"""

from __future__ import annotations

import glob
import posixpath
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from longbatch.schemas.errors import SpecError
from longbatch.schemas.storage.open_store import FileLocation, folder_of, is_url, read_file

from .columns import Duration, Features, Id, Label, Labels, Name, Strict, Time, duration_us
from .messages import explain
from .source import Source, SourceFormat

Compression = Literal["zstd", "lz4", "none"]
Encoding = Literal["compact", "plain"]
Role = Literal["history", "requests", "actions"]
ROLES: tuple[Role, ...] = ("history", "requests", "actions")
RESERVED_NAMES = frozenset({"item_id", "event_time", "user_id", "request_id", "request_time", "targets"})


class History(Strict):
    """Section [history]: which rows become events of the timelines.

    Attributes:
        source: Source that the events come from.
        where: SQL-like condition that selects rows.
        event_time: Time of an event; events of a timeline are in this order.
        arrival_time: Time from which serving knew the event; by default the event time.
        delay: Time until a known event can be in a history (the serving delay).
        request_id: Request that showed the item. An event is never in the history of its own request.
    """

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
    """Section [requests]: which rows become targets, and how targets form requests.

    Without a `request_id`, consecutive rows of a user are one request while each is at most `session_gap` after the
    one before.

    Attributes:
        source: Source that the targets come from.
        where: SQL-like condition that selects rows.
        request_time: Time of the request; a history ends before it.
        request_id: Rows with the same id are one request.
        session_gap: Largest time between rows of a request; 0s groups rows of the same time only.
        max_targets: Largest number of targets of a grouped request.
        features: Features of the request, which all of its rows share.
        target_features: Features of each target.
        labels: Labels of each target.
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
        """The longest time between consecutive rows of one request, in microseconds."""
        return duration_us(self.session_gap)

    @property
    def delayed_labels(self) -> dict[str, Label]:
        """The labels that are computed from the actions log."""
        return {name: label for name, label in self.labels.items() if label.aggregate}

    @model_validator(mode="after")
    def _one_way_to_group(self) -> Self:
        if self.request_id and (self.session_gap_us or self.max_targets):
            raise ValueError(
                "request_id already defines the requests; remove it, or remove session_gap and max_targets"
            )
        return self

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        shared = set(self.target_features) & set(self.labels)
        if shared:
            raise ValueError(f"{sorted(shared)} are both target features and labels; rename one")
        return self


class Actions(Strict):
    """Section [actions]: the log of later user actions, for labels with an `aggregate` (delayed labels).

    An action belongs to the targets with its (request_id, item_id) if the log has a `request_id`, else to those with
    its (user_id, item_id).

    Attributes:
        source: Source that the actions come from.
        where: SQL-like condition that selects rows.
        until: Time up to which the log is complete; by default the time of its latest action.
    """

    source: str
    where: str | None = None
    user_id: Id
    item_id: Id
    event_time: Time
    request_id: Id | None = None
    until: AwareDatetime | None = None


class Items(Strict):
    """Section [items]: history features that belong to an item, so that a shard stores them once per item."""

    features: tuple[Name, ...] = ()


class Users(Strict):
    """Section [users]: policies for users with very many or very few events.

    Attributes:
        max_events: Largest number of events of a user.
        over_max_events: For users with more, keep the newest events, or reject the user with all requests.
        min_events: Users with fewer events are rejected.
    """

    max_events: int | None = Field(default=None, ge=1)
    over_max_events: Literal["keep_newest", "reject_user"] = "keep_newest"
    min_events: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _some_user_left(self) -> Self:
        if self.max_events is not None and self.max_events < self.min_events:
            raise ValueError(
                f"max_events {self.max_events} is less than min_events {self.min_events}, so no user would remain"
            )
        return self


class Expectations(Strict):
    """Section [expectations]: settings of the data checks with Great Expectations.

    Attributes:
        sample_rows: Number of sampled rows of each table.
        events: JSON file of the user's own suite for the table of events.
        impressions: JSON file of the user's own suite for the table of impressions.
        requests: JSON file of the user's own suite for the table of requests.
    """

    sample_rows: int = Field(default=10_000, ge=1, le=1_000_000)
    events: str | None = None
    impressions: str | None = None
    requests: str | None = None

    @property
    def suites(self) -> dict[str, str | None]:
        """Path of the user's own suite by table, or None."""
        return {"events": self.events, "impressions": self.impressions, "requests": self.requests}


class BuildSpec(Strict):
    """A complete build spec: sources, their semantics, and how the dataset is stored.

    Attributes:
        name: Name of the dataset, for reports.
        history_length: Largest number of events of a history.
        compression: Codec of the shards' files.
        encoding: "compact" or "plain" columns; by default compact unless compression is "none".
        block_events: Target number of events of a block.
        block_targets: Target number of targets of a block.
        time_range: Earliest and latest valid time; rows outside are rejected.
        max_rejected: Largest share of rejected rows of a source, else the build fails.
        max_rejected_for: Largest share of rows rejected for one reason, by reason.
        sources: Sources by name.
    """

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
        """Return the section of a role.

        Args:
            role: "history", "requests" or "actions".

        Returns:
            The section.

        Raises:
            SpecError: The spec has no section [actions].
        """
        section: History | Requests | Actions | None = getattr(self, role)
        if section is None:
            raise SpecError(f"the spec has no section [{role}]; add it")
        return section

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles of rows: history, requests, and actions if the spec has that section."""
        return ROLES if self.actions else ROLES[:2]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for role in self.roles:
            source = self.section(role).source
            if source not in self.sources:
                raise ValueError(f"{role}.source is {source!r}, which is not one of the sources {sorted(self.sources)}")
        unused = set(self.sources) - {self.section(role).source for role in self.roles}
        if unused:
            raise ValueError(f"sources {sorted(unused)} are not used by {' or '.join(self.roles)}; remove them")
        self._check_ids()
        self._check_actions()
        self._check_encoding()
        self._refuse_reserved_names()
        if any(not 0 <= share <= 1 for share in self.max_rejected_for.values()):
            raise ValueError("max_rejected_for must have shares of rows between 0 and 1, such as 0.001")
        return self

    def _check_ids(self) -> None:
        """Ids that are joined must have one type; roles that share a source must share its user column."""
        requests = self.requests
        for role in self.roles:
            other = self.section(role)
            if other.source == requests.source and other.user_id != requests.user_id:
                raise ValueError(f"{role} and requests read the same source, so they must have the same user_id column")
            if other.user_id.type != requests.user_id.type:
                raise ValueError(f"{role}.user_id and requests.user_id have different types, so no user would match")
            if other.request_id and requests.request_id is None:
                raise ValueError(f"{role}.request_id is mapped but requests.request_id is not; map both or neither")
            if other.request_id and requests.request_id and other.request_id.type != requests.request_id.type:
                raise ValueError(
                    f"{role}.request_id and requests.request_id have different types, so no request would match"
                )
        if self.actions and self.actions.source == self.history.source and self.actions.user_id != self.history.user_id:
            raise ValueError("actions and history read the same source, so they must have the same user_id column")

    def _check_actions(self) -> None:
        delayed = self.requests.delayed_labels
        if delayed and self.actions is None:
            raise ValueError(
                f"labels {sorted(delayed)} have an `aggregate`; name the log of actions in a section [actions]"
            )
        if self.actions and not delayed:
            raise ValueError(
                "there is a section [actions], but no label has an `aggregate`; remove the section or add such a label"
            )
        if self.actions and self.actions.item_id.type != self.requests.item_id.type:
            raise ValueError("actions.item_id and requests.item_id have different types, so no item would match")

    def _check_encoding(self) -> None:
        if self.encoding == "compact" and self.compression == "none":
            raise ValueError('encoding "compact" needs compression "zstd" or "lz4"; change one of them')
        unknown = [name for name in self.items.features if name not in self.history.features]
        if unknown:
            raise ValueError(
                f"items.features {unknown} are not history features; these are {sorted(self.history.features)}"
            )
        if self.items.features and not self.is_compact:
            raise ValueError('items.features need encoding "compact"; remove them or change the encoding')

    def _refuse_reserved_names(self) -> None:
        features = [*self.history.features, *self.requests.features]
        features += [*self.requests.target_features, *self.requests.labels]
        reserved = (set(features) & RESERVED_NAMES) | (
            set(self.requests.features) & {"segment", "timeline_row", "history_end", "history"}
        )
        if reserved:
            raise ValueError(f"{sorted(reserved)} are reserved for columns of the format; rename these features")

    @property
    def is_compact(self) -> bool:
        """Whether files have the compact encoding."""
        return (self.encoding or ("plain" if self.compression == "none" else "compact")) == "compact"

    @property
    def one_log(self) -> bool:
        """Whether one source feeds both history and targets."""
        return self.history.source == self.requests.source

    def with_paths_from(self, folder: Path | str) -> BuildSpec:
        """Return the spec with all relative paths made absolute.

        Args:
            folder: Folder, or URL of one, that the paths of sources and suites are relative to.
        """
        sources = {
            name: source.model_copy(update={"path": tuple(_absolute(p, folder, source.format) for p in source.path)})
            for name, source in self.sources.items()
        }
        suites = {table: path for table, path in self.expectations.suites.items() if path}
        own = {table: _absolute(path, folder, None) for table, path in suites.items()}
        expectations = self.expectations.model_copy(update=own)
        return self.model_copy(update={"sources": sources, "expectations": expectations})


def _absolute(path: str, folder: Path | str, format: SourceFormat | None) -> str:
    is_name = format == "table" or (format == "iceberg" and not path.endswith(".metadata.json"))
    if is_name or "://" in path:
        return path
    if is_url(folder) and not path.startswith("/"):
        scheme, _, base = str(folder).partition("://")
        return f"{scheme}://{posixpath.normpath(f'{base}/{path}')}"
    # Brackets in the name of the spec's folder are not a part of the glob.
    return str(Path(glob.escape(str(folder)) if glob.has_magic(path) else folder) / path)


def parse_spec(text: str, origin: str = "spec") -> BuildSpec:
    """Read a spec from TOML.

    Args:
        text: TOML document.
        origin: Name of the document in errors.

    Returns:
        The spec, with shorthands expanded.

    Raises:
        SpecError: The document is not TOML, or keys are invalid; the message lists all invalid keys.

    Example:
        >>> parse_spec(Path("raw/spec.toml").read_text()).roles
        ('history', 'requests')
    """
    try:
        return BuildSpec.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{origin} is not valid TOML: {error}") from None
    except ValidationError as error:
        problems = "\n".join(f"  {explain(detail, BuildSpec)}" for detail in error.errors())
        raise SpecError(f"{origin} is not a valid build spec:\n{problems}") from None


def load_spec(path: FileLocation) -> BuildSpec:
    """Read a spec file.

    Args:
        path: Path or URL of a TOML file. Relative paths in it are relative to its folder.

    Returns:
        The spec, with absolute paths.

    Raises:
        SpecError: The file cannot be read or is invalid; the message lists all invalid keys.
        MachineError: The store of a URL cannot be reached.

    Example:
        >>> spec = load_spec("raw/spec.toml")
        >>> spec.history_length
        10000
    """
    try:
        text = read_file(path).decode()
    except OSError as error:
        raise SpecError(f"cannot read the spec {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from None
    return parse_spec(text, str(path)).with_paths_from(folder_of(path))
