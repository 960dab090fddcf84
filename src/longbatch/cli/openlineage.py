"""OpenLineage run events, version 2-0-2 of the specification: https://openlineage.io/spec/2-0-2/OpenLineage.json.

Nothing here sends them: `run_record` appends them to a file.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from longbatch import __version__
from longbatch.schemas.format.dataset import Dataset
from longbatch.schemas.types import ArrowField

from .run_facts import EventType, RunFacts, without_credentials

PRODUCER = f"urn:longbatch:{__version__}"
SPEC = "https://openlineage.io/spec"
RUN_EVENT = f"{SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent"
# the version of the specification of each facet
FACETS = {
    "DataQualityAssertionsDatasetFacet": "1-1-0",
    "DatasetVersionDatasetFacet": "1-0-1",
    "ErrorMessageRunFacet": "1-0-1",
    "InputStatisticsInputDatasetFacet": "1-0-0",
    "JobTypeJobFacet": "2-0-4",
    "OutputStatisticsOutputDatasetFacet": "1-0-2",
    "ProcessingEngineRunFacet": "1-1-1",
    "SchemaDatasetFacet": "1-2-0",
}


def run_event(facts: RunFacts, event_type: EventType) -> dict[str, Any]:
    """Describe a state of a run as an OpenLineage RunEvent.

    Args:
        facts: The facts about the run.
        event_type: The new state of the run.

    Returns:
        Values for JSON.
    """
    is_start = event_type == "START"
    time = facts.started if is_start else datetime.now(UTC)
    dataset = None if is_start else facts.dataset()
    return {
        "eventType": event_type,
        "eventTime": time.isoformat(),
        "producer": PRODUCER,
        "schemaURL": RUN_EVENT,
        "run": {"runId": facts.run_id, "facets": _run_facets(facts)},
        "job": {
            "namespace": os.environ.get("OPENLINEAGE_NAMESPACE", "longbatch"),
            "name": " ".join(["longbatch", facts.command, *_job_location(facts)]),
            "facets": {
                "jobType": _facet("JobTypeJobFacet", processingType="BATCH", integration="LONGBATCH", jobType="COMMAND")
            },
        },
        "inputs": _inputs(facts, dataset),
        "outputs": _outputs(facts, dataset),
    }


def _job_location(facts: RunFacts) -> list[str]:
    """The path that tells jobs of one command apart."""
    return [without_credentials(facts.dataset_path)] if facts.dataset_path else []


def _run_facets(facts: RunFacts) -> dict[str, Any]:
    engine = _facet(
        "ProcessingEngineRunFacet", version=__version__, name="longbatch", openlineageAdapterVersion=__version__
    )
    if facts.error is None:
        return {"processing_engine": engine}
    message = _facet("ErrorMessageRunFacet", message=str(facts.error), programmingLanguage="PYTHON")
    return {"processing_engine": engine, "errorMessage": message}


def _inputs(facts: RunFacts, dataset: Dataset | None) -> list[dict[str, Any]]:
    """The files of the sources, and the dataset if the command does not write it."""
    inputs = []
    row_accounting = (facts.result or {}).get("run_row_accounting", {})
    for name, source in (facts.spec.sources if facts.spec else {}).items():
        for number, path in enumerate(source.path):
            named = {"namespace": "spark", "name": path} if source.format == "table" else _named(path)
            # The rows of a source are counted over all of its paths, so only the first one has them.
            accounting = row_accounting.get(name) if number == 0 else None
            inputs.append({**named, "inputFacets": _source_facets(accounting) if accounting else {}})
    if facts.dataset_path and not facts.writes_dataset:
        facets = _dataset_facets(dataset)
        inputs.append({**_named(facts.dataset_path), "facets": facets, "inputFacets": _assertions(facts)})
    return inputs


def _outputs(facts: RunFacts, dataset: Dataset | None) -> list[dict[str, Any]]:
    outputs = []
    if facts.dataset_path and facts.writes_dataset:
        written = {**_named(facts.dataset_path), "facets": _dataset_facets(dataset), "outputFacets": {}}
        if dataset:
            written["outputFacets"] = {"outputStatistics": _output_statistics(dataset)}
        outputs.append(written)
    if facts.other_output:
        outputs.append({**_named(facts.other_output), "outputFacets": {}})
    return outputs


def _source_facets(accounting: dict[str, Any]) -> dict[str, Any]:
    custom = {"_producer": PRODUCER, "_schemaURL": f"{SPEC}/2-0-2/OpenLineage.json#/$defs/InputDatasetFacet"}
    return {
        "inputStatistics": _facet("InputStatisticsInputDatasetFacet", rowCount=accounting["rows"]),
        "longbatch_rowAccounting": {**custom, **accounting},
    }


def _dataset_facets(dataset: Dataset | None) -> dict[str, Any]:
    if dataset is None:
        return {}
    return {
        "schema": _facet("SchemaDatasetFacet", fields=[_schema_field(field) for field in dataset.schema]),
        "version": _facet("DatasetVersionDatasetFacet", datasetVersion=dataset.fingerprint),
    }


def _schema_field(field: ArrowField) -> dict[str, Any]:
    """A column; a list of records has its element as the nested field `_element`."""
    arrow_type = field.type
    if isinstance(arrow_type, pa.StructType):
        return {"name": field.name, "type": "struct", "fields": [_schema_field(inner) for inner in arrow_type]}
    element = getattr(arrow_type, "value_field", None)
    if element is not None:
        return {"name": field.name, "type": "array", "fields": [_schema_field(element.with_name("_element"))]}
    return {"name": field.name, "type": str(arrow_type)}


def _output_statistics(dataset: Dataset) -> dict[str, Any]:
    snapshot = dataset.snapshot
    return _facet(
        "OutputStatisticsOutputDatasetFacet",
        rowCount=snapshot.counts.requests,
        size=snapshot.file_bytes,
        fileCount=snapshot.file_count,
    )


def _assertions(facts: RunFacts) -> dict[str, Any]:
    """The checks of `validate`: the audit, and each suite of expectations."""
    if facts.command != "validate" or facts.result is None:
        return {}
    suites = (facts.result["expectations"] or {}).get("suites", [])
    assertions = [
        {"assertion": "audit", "success": not facts.result["findings"]},
        *({"assertion": f"expectations: {suite['name']}", "success": not suite["failures"]} for suite in suites),
    ]
    return {"dataQualityAssertions": _facet("DataQualityAssertionsDatasetFacet", assertions=assertions)}


def _facet(facet: str, /, **values: object) -> dict[str, Any]:
    schema_url = f"{SPEC}/facets/{FACETS[facet]}/{facet}.json#/$defs/{facet}"
    return {"_producer": PRODUCER, "_schemaURL": schema_url, **values}


def _named(path: str) -> dict[str, str]:
    """Namespace and name of a path or URI, by the naming rules of OpenLineage."""
    location = without_credentials(path)
    if "://" not in location:
        return {"namespace": "file", "name": Path(location).as_posix()}
    parts = urlsplit(location)
    is_bucket = parts.scheme in ("s3", "s3a", "gs")
    scheme = "s3" if parts.scheme == "s3a" else parts.scheme
    return {"namespace": f"{scheme}://{parts.netloc}", "name": parts.path.lstrip("/") if is_bucket else parts.path}
