"""Everything that follows from a spec for one source: its roles, and the columns of its canonical rows.

A *canonical row* is a raw row after typing. It holds every reading of a raw column once, even where several roles
share the reading. A *role* (history, requests, actions) has its own names for the columns it uses: the canonical
column `user#id(int64)` is `user_id` in each of them.

`source_schema` compiles this once per spec and source. A `SourceSchema` can be pickled, but Spark tasks receive the
spec as JSON and compile their own, which takes less than a millisecond.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from .spec.build_spec import BuildSpec, Role
from .spec.columns import Feature, IdColumn, Label, TimeColumn
from .tables import FEATURE_TYPES

# The boolean column of canonical rows that marks the rows of a role; only sources with several roles have it.
ROLE_COLUMN: dict[Role, str] = {"history": "in_history", "requests": "is_target", "actions": "is_action"}
DECLARED_KEYS = ("default", "min", "max", "values", "at_least")
MappedColumn = IdColumn | TimeColumn | Feature | Label


class RequestIdColumn(IdColumn):
    """A request id: kept as a string or an integer, never hashed, because no vocabulary translates it back."""


class ActionValue(Label):
    """What one action adds to a label with an aggregate; null where the label's `where` does not select the action."""


@dataclass(frozen=True)
class SourceSchema:
    """The columns of one source.

    Attributes:
        source: Name of the source in the spec.
        roles: Roles that the source's rows can have, in the order of `schemas.spec.build_spec.ROLES`.
        role_columns: Role -> the role's name of a column -> the mapped column, in the order that breaks ties of time.
        names: Role -> the role's name of a column -> its canonical name.
        columns: Canonical name -> mapped column, each reading of a raw column once.
        arrow_schema: Arrow schema of the canonical rows, with a boolean column per role if there are several roles.
        filters: Role -> key in the spec -> `where` expression or None: of the role itself under the role's name,
            and of each label over the actions under `requests.labels.<label>`.
        raw_columns: Raw columns that the mapped columns read; those that only `where` expressions read are not here.
        list_columns: Raw columns that hold lists, to be exploded or searched for the row's item.
        exploded_from: Raw columns that `explode` reads, as the files have them.
        exploded_to: Columns that rows have only after `explode`: the fields of a string list, and the position.
    """

    source: str
    roles: tuple[Role, ...]
    role_columns: Mapping[Role, Mapping[str, MappedColumn]]
    names: Mapping[Role, Mapping[str, str]]
    columns: Mapping[str, MappedColumn]
    arrow_schema: pa.Schema
    filters: Mapping[Role, Mapping[str, str | None]]
    raw_columns: tuple[str, ...]
    list_columns: frozenset[str]
    exploded_from: tuple[str, ...]
    exploded_to: frozenset[str]

    @property
    def user_id(self) -> str:
        """Canonical name of the column with the user ids; all roles of a source share it."""
        return self.names[self.roles[0]]["user_id"]

    @property
    def user_column(self) -> IdColumn:
        """The raw column of the user ids and its type."""
        column = self.role_columns[self.roles[0]]["user_id"]
        assert isinstance(column, IdColumn)
        return column


_COMPILED: dict[int, dict[str, SourceSchema]] = {}


def source_schema(spec: BuildSpec, source: str) -> SourceSchema:
    """Return the schema of a source, compiled once per instance of a spec.

    Args:
        spec: The build spec.
        source: Name of one of its sources.

    Returns:
        The compiled schema, the same object for every call with the same spec.
    """
    # A spec cannot be hashed (it holds dicts), so the key is its identity, dropped when the spec is garbage-collected.
    # Two threads may compile the same schema; both results are equal and one of them is kept.
    by_source = _COMPILED.get(id(spec))
    if by_source is None:
        by_source = _COMPILED.setdefault(id(spec), {})
        weakref.finalize(spec, _COMPILED.pop, id(spec), None)
    compiled = by_source.get(source)
    return compiled if compiled is not None else by_source.setdefault(source, _compile(spec, source))


def role_schema(spec: BuildSpec, role: Role) -> SourceSchema:
    """Return the schema of the source that feeds a role."""
    return source_schema(spec, spec.section(role).source)


def canonical_name(column: MappedColumn) -> str:
    """Return the name of the canonical column of a mapped column.

    Equal readings of one raw column have equal names, different readings have different names.

    Example:
        >>> canonical_name(TimeColumn(column="ts", unit="ms"))
        'ts#time(ms,None,UTC)'
    """
    if isinstance(column, TimeColumn):
        return f"{column.column}#time({column.unit},{column.format},{column.timezone})"
    if isinstance(column, RequestIdColumn):
        return f"{column.column}#request_id({column.type})"
    if isinstance(column, IdColumn):
        return f"{column.column}#id({column.type})"
    reading: str = column.type
    if isinstance(column, ActionValue):
        reading = f"action({column.type},{column.where})"
    elif isinstance(column, Label) and column.contained_in:
        reading = f"in({column.contained_in},{column.type})"
    declared = [f" {key}={value!r}" for key in DECLARED_KEYS if (value := getattr(column, key, None)) is not None]
    return f"{column.column or ''}#{reading}" + "".join(declared)


def canonical_type(column: MappedColumn) -> pa.DataType:
    """Return the Arrow type of a canonical column; times are int64 microseconds UTC, hashed ids are int64."""
    if isinstance(column, RequestIdColumn):
        return pa.string() if column.type == "string" else pa.int64()
    if isinstance(column, IdColumn | TimeColumn):
        return pa.int64()
    return FEATURE_TYPES[column.type]


def _compile(spec: BuildSpec, source: str) -> SourceSchema:
    roles = tuple(role for role in spec.roles if spec.section(role).source == source)
    role_columns = {role: _role_columns(spec, role) for role in roles}
    columns = {canonical_name(column): column for of_role in role_columns.values() for column in of_role.values()}
    fields = [pa.field(name, canonical_type(column)) for name, column in columns.items()]
    fields += [pa.field(ROLE_COLUMN[role], pa.bool_()) for role in roles if len(roles) > 1]
    explode = spec.sources[source].explode
    lists = explode.lists if explode else ()
    string = explode.string if explode else None
    searched = [label.contained_in for label in spec.requests.labels.values()] if "requests" in roles else []
    position = explode.position if explode else None
    return SourceSchema(
        source=source,
        roles=roles,
        role_columns=role_columns,
        names={
            role: {name: canonical_name(column) for name, column in of_role.items()}
            for role, of_role in role_columns.items()
        },
        columns=columns,
        arrow_schema=pa.schema(fields),
        filters={role: _filters(spec, role) for role in roles},
        raw_columns=_raw_columns(columns),
        list_columns=frozenset([*lists, *(name for name in searched if name)]),
        exploded_from=(*lists, *([string.column] if string else [])),
        exploded_to=frozenset([*(string.fields if string else ()), *([position] if position else [])]),
    )


def _role_columns(spec: BuildSpec, role: Role) -> dict[str, MappedColumn]:
    if role == "history":
        return _history_columns(spec)
    return _request_columns(spec) if role == "requests" else _action_columns(spec)


def _history_columns(spec: BuildSpec) -> dict[str, MappedColumn]:
    history = spec.history
    return _mapped(
        {
            "user_id": history.user_id,
            "event_time": history.event_time,
            "arrival_time": history.arrival_time,
            "item_id": history.item_id,
            **{f"history.{name}": feature for name, feature in history.features.items()},
            "request_id": _request_id(history.request_id),
        }
    )


def _request_columns(spec: BuildSpec) -> dict[str, MappedColumn]:
    requests = spec.requests
    return _mapped(
        {
            "user_id": requests.user_id,
            "request_time": requests.request_time,
            "request_id": _request_id(requests.request_id),
            "item_id": requests.item_id,
            **{f"request.{name}": feature for name, feature in requests.features.items()},
            **{f"target.{name}": feature for name, feature in requests.target_features.items()},
            **{f"label.{name}": label for name, label in requests.labels.items() if not label.aggregate},
        }
    )


def _action_columns(spec: BuildSpec) -> dict[str, MappedColumn]:
    actions = spec.actions
    if actions is None:
        return {}
    return _mapped(
        {
            "user_id": actions.user_id,
            "event_time": actions.event_time,
            "item_id": actions.item_id,
            "request_id": _request_id(actions.request_id),
            **{f"value.{name}": _action_value(label) for name, label in spec.requests.delayed_labels.items()},
        }
    )


def _mapped(columns: Mapping[str, MappedColumn | None]) -> dict[str, MappedColumn]:
    return {name: column for name, column in columns.items() if column is not None}


def _request_id(column: IdColumn | None) -> RequestIdColumn | None:
    return None if column is None else RequestIdColumn(**column.model_dump())


def _action_value(label: Label) -> ActionValue:
    """Return what an action adds: 1 if actions are counted, else its column; a null adds nothing."""
    if label.column is None:
        return ActionValue(aggregate=label.aggregate, within=label.within, where=label.where, type="int8")
    return ActionValue(**label.model_dump(exclude={"default"}))


def _filters(spec: BuildSpec, role: Role) -> dict[str, str | None]:
    labels = spec.requests.delayed_labels if role == "actions" else {}
    own = {str(role): spec.section(role).where}
    return own | {f"requests.labels.{name}": label.where for name, label in labels.items()}


def _raw_columns(columns: Mapping[str, MappedColumn]) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for column in columns.values():
        searched = column.contained_in if isinstance(column, Label) else None
        names |= {name: None for name in (searched, column.column) if name is not None}
    return tuple(names)
