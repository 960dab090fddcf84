"""The cost model: sizes in memory predicted from means, and the rates per record of a measured dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from longbatch.pipelines.expansion import OFFSET_BYTES, POINTER_COLUMNS
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.source_schema import source_schema
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.tables import event_type

from .layouts import TIMELINE_BYTES
from .results import ColumnBytes, Level, Means, Rates
from .survey import Survey

STRING_BYTES = 20.0  # assumed length of a string, such as a request id, where nothing is known about it
STRING_OFFSET_BYTES = 8  # Polars writes strings to Arrow with 64-bit offsets


@dataclass(frozen=True)
class Prediction:
    """What the cost model predicts for a level.

    Attributes:
        bytes_per_target: Bytes in memory per target.
        copies_per_event: Copies of each stored event.
    """

    bytes_per_target: float
    copies_per_event: float


def dataset_means(dataset: Dataset, survey: Survey) -> Means:
    """Return the means that `predict` needs.

    Args:
        dataset: The dataset. Its counts give the means of histories exactly.
        survey: Sampled blocks, which give the bytes of records, and how targets are spread over histories.
    """
    sizes, targets = survey.history_sizes.astype(np.float64), survey.target_counts
    counts = dataset.counts
    # mean number of targets, weighted by history events: long histories may come with more targets than short ones
    targets_per_history = float((sizes * targets).sum() / max(1.0, sizes.sum()))
    return Means(
        event_bytes=survey.event_bytes,
        request_bytes=survey.request_bytes,
        target_bytes=survey.target_bytes,
        targets_per_request=counts.targets / counts.requests,
        history_per_request=counts.history_events / counts.requests,
        history_per_target=targets_per_history * counts.history_events / counts.targets,
        targets_per_history=targets_per_history,
        requests_per_event=counts.history_events / max(1, counts.stored),
        stored_per_target=counts.stored_with_overlap / counts.targets,
        timelines_per_target=counts.segments / counts.targets,
    )


def predict(means: Means, event_fields: int) -> dict[Level, Prediction]:
    """Predict the size in memory of every level from means.

    With e, q and t the bytes of an event, a request's own columns and a target, m targets per request, H the history
    events per row, and o = 4 bytes for the offset of each list column (docs/planning.md derives the formulas):

        sample level:  H e + q + t + o fields                        per target
        request level: (H e + q + o fields + o) / m + t              per target
        user level:    (stored events e + timelines ids) / targets + (q + pointers) / m + t

    Args:
        means: Means of a dataset.
        event_fields: Columns of an event.

    Returns:
        For each level the bytes per target and the copies of each stored event.
    """
    own_bytes, per_request = means.request_bytes, means.targets_per_request
    list_offsets = OFFSET_BYTES * event_fields
    sample = means.history_per_target * means.event_bytes + own_bytes + means.target_bytes + list_offsets
    request = means.history_per_request * means.event_bytes + own_bytes + list_offsets + OFFSET_BYTES
    timelines = means.stored_per_target * means.event_bytes + means.timelines_per_target * TIMELINE_BYTES
    pointers = OFFSET_BYTES * len(POINTER_COLUMNS)
    overlap = means.requests_per_event
    return {
        "sample": Prediction(sample, overlap * means.targets_per_history),
        "request": Prediction(request / per_request + means.target_bytes, overlap),
        "user": Prediction(timelines + (own_bytes + pointers) / per_request + means.target_bytes, 1.0),
    }


def dataset_rates(dataset: Dataset, columns: Sequence[ColumnBytes], copied_bytes_per_second: float) -> Rates:
    """Return the rates per record that `longbatch plan` multiplies.

    Args:
        dataset: The dataset.
        columns: Sizes of its columns, as `measure_columns` returns them.
        copied_bytes_per_second: Memory copy bandwidth of one thread.
    """
    disk_bytes: dict[str, float] = {"event": 0.0, "request": 0.0, "target": 0.0}
    record_of = {"requests": "request", "targets": "target"}  # everything else belongs to the timelines
    for column in columns:
        disk_bytes[record_of.get(column.name.split(".")[0], "event")] += column.stored or 0.0
    parquet_events = sum(column.parquet or 0.0 for column in columns if column.name.startswith("events."))
    counts, row_accounting = dataset.counts, dataset.snapshot.row_accounting
    rows = {source: accounting.accepted for source, accounting in row_accounting.items()}
    canonical_bytes = sum(rows[source] * row_bytes(dataset.spec, source) for source in rows)
    total_rows = sum(rows.values())
    return Rates(
        event_disk_bytes=disk_bytes["event"] / max(1, counts.stored_with_overlap),
        request_disk_bytes=disk_bytes["request"] / counts.requests,
        target_disk_bytes=disk_bytes["target"] / counts.targets,
        parquet_event_bytes=parquet_events / max(1, counts.stored_with_overlap),
        event_fields=event_type(dataset.spec).num_fields,
        log_rows=float(total_rows),
        row_bytes=canonical_bytes / max(1, total_rows),
        row_shuffle_bytes=dataset.snapshot.shuffled_bytes / max(1, total_rows),
        copied_bytes_per_second=copied_bytes_per_second,
    )


def row_bytes(spec: BuildSpec, source: str) -> float:
    """Bytes of a canonical row of a source as plain Arrow; strings are assumed to be STRING_BYTES long.

    Args:
        spec: The build spec.
        source: Name of the source.
    """
    return float(sum(_value_bytes(field.type) for field in source_schema(spec, source).arrow_schema))


def _value_bytes(arrow_type: pa.DataType) -> float:
    return STRING_BYTES + STRING_OFFSET_BYTES if pa.types.is_string(arrow_type) else arrow_type.bit_width / 8
