"""Arrow schemas of the tables that a dataset stores: timelines and requests."""

from __future__ import annotations

import pyarrow as pa

from .spec.build_spec import BuildSpec
from .spec.columns import FeatureType

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


def event_type(spec: BuildSpec) -> pa.StructType:
    """Return the Arrow type of one event of a timeline: item, time and features.

    Args:
        spec: Build spec.
    """
    features = {name: FEATURE_TYPES[feature.type] for name, feature in spec.history.features.items()}
    return pa.struct(list({"item_id": pa.int64(), "event_time": TIMESTAMP, **features}.items()))


def target_type(spec: BuildSpec) -> pa.StructType:
    """Return the Arrow type of one target of a request: item, target features and labels.

    Args:
        spec: Build spec.
    """
    features = {name: FEATURE_TYPES[feature.type] for name, feature in spec.requests.target_features.items()}
    labels = {name: FEATURE_TYPES[label.type] for name, label in spec.requests.labels.items()}
    return pa.struct(list({"item_id": pa.int64(), **features, **labels}.items()))


def timelines_schema(spec: BuildSpec) -> pa.Schema:
    """Return the Arrow schema of the timelines table, which has one row per user and segment.

    Args:
        spec: Build spec.
    """
    return pa.schema(
        {"user_id": pa.int64(), "segment": pa.int32(), "events": pa.list_(event_type(spec))},
    )


def requests_schema(spec: BuildSpec) -> pa.Schema:
    """Return the Arrow schema of the requests table, which has one row per request with the list of its targets.

    `timeline_row` is the row of the request's timeline in the same block. Its history is the newest events of this
    timeline before index `history_end`.

    Args:
        spec: Build spec.
    """
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
