"""What a formula says about layouts from counts alone, and the rates per record that measurements give."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from longbatch.pipelines.expansion import OFFSET_BYTES
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.source_schema import source_schema
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import event_type

from .column_sizes import ColumnBytes
from .layouts import TIMELINE_BYTES, Survey

TEXT_BYTES = 20.0  # of a text value where nothing says more: a request id, or a feature
OFFSET_OF_TEXT_BYTES = 8  # Polars' strings have 64-bit offsets when written as Arrow


def means(dataset: Dataset, surveyed: Survey) -> dict[str, float]:
    """The means that the formula needs; those of the history exact, from the dataset's books."""
    sizes, targets = surveyed.history_sizes.astype(np.float64), surveyed.target_counts
    counts = dataset.counts
    beside = float((sizes * targets).sum() / max(1.0, sizes.sum()))
    return {
        "event_bytes": surveyed.event_bytes,
        "request_bytes": surveyed.request_bytes,
        "target_bytes": surveyed.target_bytes,
        "targets_per_request": counts.targets / counts.requests,
        "history_per_request": counts.history_events / counts.requests,
        "history_per_target": beside * counts.history_events / counts.targets,
        "targets_per_history": beside,
        "requests_per_event": counts.history_events / max(1, counts.stored),
        "stored_per_target": counts.stored_with_overlap / counts.targets,
        "timelines_per_target": counts.segments / counts.targets,
    }


def predict(formula: dict[str, float], features: int) -> dict[str, tuple[float, float]]:
    """Level -> (decoded bytes per target, copies of each stored event), from means alone.

    With H history events, e bytes an event, q a request, t a target, m targets a request, o offsets of the lists:
    sample level H_target e + q + t + o; request level (H_request e + q + o) / m + t; user level
    (stored events * e + timelines * their ids) / targets + (q + pointers) / m + t.
    """
    e, q, t = formula["event_bytes"], formula["request_bytes"], formula["target_bytes"]
    m, offsets = formula["targets_per_request"], OFFSET_BYTES * features
    overlap = formula["requests_per_event"]
    stored = formula["stored_per_target"] * e + formula["timelines_per_target"] * TIMELINE_BYTES
    return {
        "sample": (
            formula["history_per_target"] * e + q + t + offsets,
            overlap * formula["targets_per_history"],
        ),
        "request": ((formula["history_per_request"] * e + q + offsets + OFFSET_BYTES) / m + t, overlap),
        "user": (stored + (q + 4 * OFFSET_BYTES) / m + t, 1.0),
    }


def rates(dataset: Dataset, columns: Sequence[ColumnBytes]) -> dict[str, float]:
    """Bytes at rest of the dataset per stored event, request and target; rows of its logs, and bytes of one.

    row_bytes: of a typed row in memory; row_shuffle_bytes: as the build moved it to its bucket, in narrow codes.
    """
    of: dict[str, float] = {"event": 0.0, "request": 0.0, "target": 0.0}
    owner = {"requests": "request", "targets": "target"}  # all else belongs to the timelines
    for column in columns:
        of[owner.get(column.name.split(".")[0], "event")] += column.stored or 0.0
    counts, row_accounting = dataset.counts, dataset.snapshot.row_accounting
    rows = {source: accounting.accepted for source, accounting in row_accounting.items()}
    typed = sum(rows[source] * row_bytes(dataset.spec, source) for source in rows)
    return {
        "event_at_rest": of["event"] / max(1, counts.stored_with_overlap),
        "request_at_rest": of["request"] / counts.requests,
        "target_at_rest": of["target"] / counts.targets,
        "parquet_event_at_rest": sum(c.parquet or 0.0 for c in columns if c.name.startswith("events."))
        / max(1, counts.stored_with_overlap),
        "event_fields": event_type(dataset.spec).num_fields,
        "log_rows": float(sum(rows.values())),
        "row_bytes": typed / max(1, sum(rows.values())),
        "row_shuffle_bytes": dataset.snapshot.shuffled_bytes / max(1, sum(rows.values())),
    }


def row_bytes(spec: BuildSpec, source: str) -> float:
    """Bytes of a typed row of a source in memory: its columns, plain Arrow."""
    return float(sum(_value_bytes(field.type) for field in source_schema(spec, source).arrow_schema))


def _value_bytes(kind: pa.DataType) -> float:
    return TEXT_BYTES + OFFSET_OF_TEXT_BYTES if pa.types.is_string(kind) else kind.bit_width / 8
