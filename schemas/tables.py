"""The tables between the stages: canonical rows, timelines, requests.

A *canonical row* is one row of a source after typing: every mapped column once, whatever roles share it.
`history_columns` and `request_columns` say which canonical column plays which role.
"""

from __future__ import annotations

import pyarrow as pa

from longbatch.schemas.spec.build_spec import BuildSpec, Role
from longbatch.schemas.spec.columns import Feature, FeatureType, IdColumn, Label, TimeColumn

TIMESTAMP = pa.timestamp("us", tz="UTC")
FEATURE_TYPES: dict[FeatureType, pa.DataType] = {
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "id": pa.int64(),
}
# The column of a source's canonical rows that says whether a row plays a role; there where it has several.
ROLE_COLUMN: dict[Role, str] = {"history": "in_history", "requests": "is_target", "actions": "is_action"}
DECLARED_KEYS = ("default", "min", "max", "values", "at_least")
Mapped = IdColumn | TimeColumn | Feature | Label


class RequestIdColumn(IdColumn):
    """A request id: kept as it is, text or integer, for it is never looked up in a table."""


class ActionValue(Label):
    """What an action adds to a label with an aggregate: null where the label's `where` does not select it."""


def canonical_name(mapped: Mapped) -> str:
    """Return the name of the canonical column: equal for equal readings of one raw column."""
    if isinstance(mapped, TimeColumn):
        return f"{mapped.column}#time({mapped.unit},{mapped.format},{mapped.timezone})"
    if isinstance(mapped, RequestIdColumn):
        return f"{mapped.column}#request_id({mapped.type})"
    if isinstance(mapped, IdColumn):
        return f"{mapped.column}#id({mapped.type})"
    kind = mapped.type if not isinstance(mapped, ActionValue) else f"action({mapped.type},{mapped.where})"
    if isinstance(mapped, Label) and mapped.contained_in:
        kind = f"in({mapped.contained_in},{mapped.type})"
    declared = [
        f"{key}={value!r}"
        for key in ("default", "min", "max", "values", "at_least")
        if (value := getattr(mapped, key, None)) is not None
    ]
    return f"{mapped.column or ''}#{kind}" + "".join(f" {part}" for part in declared)


def canonical_type(mapped: Mapped) -> pa.DataType:
    """Return the Arrow type of a canonical column; times are int64 microseconds UTC."""
    if isinstance(mapped, RequestIdColumn):
        return pa.string() if mapped.type == "string" else pa.int64()
    if isinstance(mapped, IdColumn | TimeColumn):
        return pa.int64()
    return FEATURE_TYPES[mapped.type]


def request_id_column(column: IdColumn | None) -> RequestIdColumn | None:
    """View an id column as a request id."""
    return None if column is None else RequestIdColumn(**column.model_dump())


def history_columns(spec: BuildSpec) -> dict[str, Mapped]:
    """Role name -> mapped column of everything the history needs, in the order that breaks ties of time."""
    history = spec.history
    roles: dict[str, Mapped | None] = {
        "user_id": history.user_id,
        "event_time": history.event_time,
        "arrival_time": history.arrival_time,
        "item_id": history.item_id,
        **{f"history.{name}": feature for name, feature in history.features.items()},
        "request_id": request_id_column(history.request_id),
    }
    return {name: mapped for name, mapped in roles.items() if mapped is not None}


def request_columns(spec: BuildSpec) -> dict[str, Mapped]:
    """Role name -> mapped column of everything requests and targets need."""
    requests = spec.requests
    roles: dict[str, Mapped | None] = {
        "user_id": requests.user_id,
        "request_time": requests.request_time,
        "request_id": request_id_column(requests.request_id),
        "item_id": requests.item_id,
        **{f"request.{name}": feature for name, feature in requests.features.items()},
        **{f"target.{name}": feature for name, feature in requests.target_features.items()},
        **{f"label.{name}": label for name, label in requests.labels.items() if not label.aggregate},
    }
    return {name: mapped for name, mapped in roles.items() if mapped is not None}


def action_columns(spec: BuildSpec) -> dict[str, Mapped]:
    """Role name -> mapped column of everything that labels with an aggregate need; none without [actions]."""
    actions = spec.actions
    if actions is None:
        return {}
    values = {f"value.{name}": _action_value(label) for name, label in spec.requests.delayed_labels.items()}
    roles: dict[str, Mapped | None] = {
        "user_id": actions.user_id,
        "event_time": actions.event_time,
        "item_id": actions.item_id,
        "request_id": request_id_column(actions.request_id),
        **values,
    }
    return {name: mapped for name, mapped in roles.items() if mapped is not None}


def _action_value(label: Label) -> ActionValue:
    """One for each action that counts, or the column that is summed or compared; a null there adds nothing."""
    if label.column is None:
        return ActionValue(aggregate=label.aggregate, within=label.within, where=label.where, type="int8")
    return ActionValue(**label.model_dump(exclude={"default"}))


def source_roles(spec: BuildSpec, source: str) -> tuple[Role, ...]:
    """Return which of "history", "requests" and "actions" a source feeds."""
    return tuple(role for role in spec.roles if spec.section(role).source == source)


def role_columns(spec: BuildSpec, role: Role) -> dict[str, Mapped]:
    """Return the mapped columns of one role."""
    if role == "history":
        return history_columns(spec)
    return request_columns(spec) if role == "requests" else action_columns(spec)


def canonical_columns(spec: BuildSpec, source: str) -> dict[str, Mapped]:
    """Canonical name -> mapped column of a source, each reading of a raw column once."""
    mapped = [m for role in source_roles(spec, source) for m in role_columns(spec, role).values()]
    return {canonical_name(m): m for m in mapped}


def canonical_schema(spec: BuildSpec, source: str) -> pa.Schema:
    """Arrow schema of a source's canonical rows; a source of several roles also says which each row plays."""
    fields = [pa.field(name, canonical_type(m)) for name, m in canonical_columns(spec, source).items()]
    roles = source_roles(spec, source)
    fields += [pa.field(ROLE_COLUMN[role], pa.bool_()) for role in roles if len(roles) > 1]
    return pa.schema(fields)


def raw_columns(spec: BuildSpec, source: str) -> list[str]:
    """Return the raw columns a source's mapping reads (those a `where` reads come on top)."""
    found: dict[str, None] = {}
    for mapped in canonical_columns(spec, source).values():
        if isinstance(mapped, Label) and mapped.contained_in:
            found[mapped.contained_in] = None
        if mapped.column is not None:
            found[mapped.column] = None
    return list(found)


def list_columns(spec: BuildSpec, source: str) -> set[str]:
    """Return the raw columns of a source that hold lists: exploded, or searched for the row's item."""
    how = spec.sources[source].explode
    labels = spec.requests.labels.values() if spec.requests.source == source else ()
    return {*(how.lists if how else ()), *(label.contained_in for label in labels if label.contained_in)}


def event_type(spec: BuildSpec) -> pa.DataType:
    """Arrow type of one event of a timeline."""
    features = {name: FEATURE_TYPES[feature.type] for name, feature in spec.history.features.items()}
    return pa.struct({"item_id": pa.int64(), "event_time": TIMESTAMP, **features})


def target_type(spec: BuildSpec) -> pa.DataType:
    """Arrow type of one target of a request: item, target features, labels."""
    features = {name: FEATURE_TYPES[feature.type] for name, feature in spec.requests.target_features.items()}
    labels = {name: FEATURE_TYPES[label.type] for name, label in spec.requests.labels.items()}
    return pa.struct({"item_id": pa.int64(), **features, **labels})


def timelines_schema(spec: BuildSpec) -> pa.Schema:
    """Arrow schema of the timelines table: one row per user and segment."""
    return pa.schema(
        {"user_id": pa.int64(), "segment": pa.int32(), "events": pa.list_(event_type(spec))},
    )


def requests_schema(spec: BuildSpec) -> pa.Schema:
    """Arrow schema of the requests table: one row per request, its targets grouped in it."""
    request_id = spec.requests.request_id
    features = {name: FEATURE_TYPES[feature.type] for name, feature in spec.requests.features.items()}
    return pa.schema(
        {
            "request_id": pa.string() if request_id and request_id.type == "string" else pa.int64(),
            "user_id": pa.int64(),
            "segment": pa.int32(),
            "timeline_row": pa.int32(),
            "request_time": TIMESTAMP,
            "history_end": pa.int32(),
            **features,
            "targets": pa.list_(target_type(spec)),
        }
    )
