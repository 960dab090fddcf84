"""OpenLineage events: valid for the client of OpenLineage, with the inputs, outputs and outcome of the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import run_command as longbatch
from openlineage.client import event_v2, facet_v2, set_producer
from openlineage.client.serde import Serde

from longbatch.cli.openlineage import PRODUCER, run_event
from longbatch.cli.run_facts import RunFacts, final_event_type

FACETS = {
    "jobType": facet_v2.job_type_job.JobTypeJobFacet,
    "processing_engine": facet_v2.processing_engine_run.ProcessingEngineRunFacet,
    "errorMessage": facet_v2.error_message_run.ErrorMessageRunFacet,
    "schema": facet_v2.schema_dataset.SchemaDatasetFacet,
    "version": facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet,
    "outputStatistics": facet_v2.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet,
    "inputStatistics": facet_v2.input_statistics_input_dataset.InputStatisticsInputDatasetFacet,
    "dataQualityAssertions": facet_v2.data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet,
}
OWN_FACETS = {"longbatch_rowAccounting"}


def assert_valid(event: dict[str, Any]) -> None:
    """Construct the event from the client's classes, which refuse unknown and missing keys, and compare it."""
    set_producer(PRODUCER)
    parsed = event_v2.RunEvent(
        eventType=event_v2.RunState(event["eventType"]),
        eventTime=event["eventTime"],
        run=event_v2.Run(event["run"]["runId"], facets=parsed_facets(event["run"]["facets"])),
        job=event_v2.Job(event["job"]["namespace"], event["job"]["name"], facets=parsed_facets(event["job"]["facets"])),
        inputs=[event_v2.InputDataset(**parsed_dataset(dataset)) for dataset in event["inputs"]],
        outputs=[event_v2.OutputDataset(**parsed_dataset(dataset)) for dataset in event["outputs"]],
        producer=event["producer"],
    )
    assert without_empty(Serde.to_dict(parsed)) == without_empty(without_own_facets(event))


def parsed_dataset(dataset: dict[str, Any]) -> dict[str, Any]:
    return {key: parsed_facets(value) if key.lower().endswith("facets") else value for key, value in dataset.items()}


def parsed_facets(facets: dict[str, Any]) -> dict[str, Any]:
    known = {name: facet for name, facet in facets.items() if name not in OWN_FACETS}
    return {
        name: FACETS[name](**{key: value for key, value in facet.items() if not key.startswith("_")})
        for name, facet in known.items()
    }


def without_own_facets(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_own_facets(inner) for key, inner in value.items() if key not in OWN_FACETS}
    return [without_own_facets(inner) for inner in value] if isinstance(value, list) else value


def without_empty(value: Any) -> Any:
    """Leave out empty mappings, which the client writes or leaves out as it likes."""
    if isinstance(value, dict):
        cleaned = {key: without_empty(inner) for key, inner in value.items()}
        return {key: inner for key, inner in cleaned.items() if inner not in ({}, [])}
    return [without_empty(inner) for inner in value] if isinstance(value, list) else value


def events_of(folder: Path, *command: str) -> list[dict[str, Any]]:
    """Run a command, and return the events that it appended; all of them are valid."""
    file = folder / "events.jsonl"
    before = len(file.read_text().splitlines()) if file.exists() else 0
    longbatch("--openlineage", str(file), *command)
    events = [json.loads(line) for line in file.read_text().splitlines()[before:]]
    for event in events:
        assert_valid(event)
    return events


def test_a_build_starts_and_completes_with_its_sources_and_its_dataset(spec: Path, tmp_path: Path) -> None:
    start, complete = events_of(tmp_path, "build", str(spec), str(tmp_path / "dataset"))
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == complete["run"]["runId"]
    assert start["eventTime"] < complete["eventTime"]
    assert start["job"] == complete["job"]
    assert start["job"]["name"] == f"longbatch build {tmp_path / 'dataset'}"
    (log,) = complete["inputs"]
    assert (log["namespace"], log["name"]) == ("file", str(tmp_path / "log.parquet"))
    assert log["inputFacets"]["inputStatistics"]["rowCount"] == 3
    assert log["inputFacets"]["longbatch_rowAccounting"]["accepted"] == 3
    (dataset,) = complete["outputs"]
    assert (dataset["namespace"], dataset["name"]) == ("file", str(tmp_path / "dataset"))
    statistics = dataset["outputFacets"]["outputStatistics"]
    assert (statistics["rowCount"], statistics["fileCount"]) == (3, 5)
    assert len(dataset["facets"]["version"]["datasetVersion"]) == 64


def test_the_schema_names_the_fields_of_nested_records(spec: Path, tmp_path: Path) -> None:
    _, complete = events_of(tmp_path, "build", str(spec), str(tmp_path / "dataset"))
    fields = {field["name"]: field for field in complete["outputs"][0]["facets"]["schema"]["fields"]}
    assert fields["user_id"]["type"] == "int64"
    assert fields["targets"]["type"] == "array"
    (element,) = fields["targets"]["fields"]
    assert (element["name"], element["type"]) == ("_element", "struct")
    assert [field["name"] for field in element["fields"]] == ["item_id", "click"]


def test_an_append_counts_only_the_rows_that_it_read(spec: Path, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    events_of(tmp_path, "build", str(spec), dataset, "--until", "2023-11-14T22:13:25Z")
    _, complete = events_of(tmp_path, "append", str(spec), dataset, "--until", "2023-11-15")
    accounting = complete["inputs"][0]["inputFacets"]["longbatch_rowAccounting"]
    assert (accounting["rows"], accounting["accepted"], accounting["filtered"]) == (3, 2, 1)
    assert complete["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 3


def test_a_failed_build_has_its_error_and_no_output_statistics(spec: Path, tmp_path: Path) -> None:
    (tmp_path / "log.parquet").unlink()
    start, fail = events_of(tmp_path, "build", str(spec), str(tmp_path / "dataset"))
    assert (start["eventType"], fail["eventType"]) == ("START", "FAIL")
    assert "log.parquet" in fail["run"]["facets"]["errorMessage"]["message"]
    assert fail["outputs"][0]["outputFacets"] == {}


def test_a_command_that_cannot_be_parsed_starts_and_fails(tmp_path: Path) -> None:
    start, fail = events_of(tmp_path, "build", "--nope")
    assert (start["eventType"], fail["eventType"]) == ("START", "FAIL")
    assert fail["job"]["name"] == "longbatch build"


def test_validate_reports_its_checks_as_assertions_of_the_dataset(spec: Path, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    events_of(tmp_path, "build", str(spec), dataset)
    _, passed = events_of(tmp_path, "validate", dataset, "--no-expectations")
    (checked,) = passed["inputs"]
    assert checked["name"] == dataset
    assert checked["inputFacets"]["dataQualityAssertions"]["assertions"] == [{"assertion": "audit", "success": True}]
    next((tmp_path / "dataset" / "requests").iterdir()).write_bytes(b"damaged")
    _, failed = events_of(tmp_path, "validate", dataset, "--no-expectations")
    assert failed["eventType"] == "FAIL"
    assert failed["inputs"][0]["inputFacets"]["dataQualityAssertions"]["assertions"][0]["success"] is False


def test_expand_reads_the_dataset_and_writes_a_folder(spec: Path, tmp_path: Path) -> None:
    dataset, samples = str(tmp_path / "dataset"), str(tmp_path / "samples")
    events_of(tmp_path, "build", str(spec), dataset)
    _, complete = events_of(tmp_path, "expand", dataset, samples)
    assert [item["name"] for item in complete["inputs"]] == [dataset]
    assert [item["name"] for item in complete["outputs"]] == [samples]


def test_the_namespace_of_the_job_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENLINEAGE_NAMESPACE", "recommender")
    assert run_event(RunFacts("vacuum"), "START")["job"]["namespace"] == "recommender"


@pytest.mark.parametrize(
    ("path", "namespace", "name"),
    [
        ("s3://logs/day/a.parquet", "s3://logs", "day/a.parquet"),
        ("s3a://logs/day/a.parquet", "s3://logs", "day/a.parquet"),
        ("gs://logs/a.parquet", "gs://logs", "a.parquet"),
        ("hdfs://host:8020/logs/a.parquet", "hdfs://host:8020", "/logs/a.parquet"),
        ("s3://key:secret@logs/a.parquet?region=eu-west-1", "s3://logs", "a.parquet"),
    ],
)
def test_uris_are_named_by_the_rules_of_openlineage_without_credentials(path: str, namespace: str, name: str) -> None:
    facts = RunFacts("build", dataset_path=path, writes_dataset=True)
    (output,) = run_event(facts, "START")["outputs"]
    assert (output["namespace"], output["name"]) == (namespace, name)


def test_an_interrupted_run_is_aborted() -> None:
    facts = RunFacts("build", exit_code=130)
    assert final_event_type(facts) == "ABORT"
    assert_valid(run_event(facts, "ABORT"))
