"""A daily DAG for Airflow 3: wait for the log of a day, append it, validate the dataset, train on it.

Every task can be retried and cleared: `append` changes nothing for a day that is in the dataset, `validate` only reads,
and `train` continues from its checkpoint. Codes 1 and 2 of longbatch fail at once, because the same input fails again.

Set these variables of the environment of the workers:

LONGBATCH_SPEC       the build spec; a train.toml beside it is the training config
LONGBATCH_LOG        a folder with one folder a day (2026-03-01), and in it a file _SUCCESS once the day is complete
LONGBATCH_DATASET    the dataset
LONGBATCH_RUNS       the folder of models and metrics
LONGBATCH_FIRST_DAY  the first day to build, 2026-03-01
LONGBATCH            the command, if it is not on PATH
"""

from __future__ import annotations

import json
import os
import subprocess
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import dag, get_current_context, task
from airflow.sdk.exceptions import AirflowException, AirflowFailException

LONGBATCH = os.environ.get("LONGBATCH", "longbatch")
SPEC = Path(os.environ.get("LONGBATCH_SPEC", "/data/spec.toml"))
LOG = Path(os.environ.get("LONGBATCH_LOG", "/data/log"))
DATASET = Path(os.environ.get("LONGBATCH_DATASET", "/data/dataset"))
RUNS = Path(os.environ.get("LONGBATCH_RUNS", "/data/runs"))
FIRST_DAY = datetime.fromisoformat(os.environ.get("LONGBATCH_FIRST_DAY", "2026-03-01"))
PERMANENT = (1, 2)  # exit codes: the data failed a check; the spec or an argument is wrong


def end_of_day() -> datetime:
    """Return the end of the day that this run is about: midnight UTC at or before its scheduled time."""
    end: datetime = get_current_context()["data_interval_end"]
    return end.replace(hour=0, minute=0, second=0, microsecond=0)


def run(command: str, *arguments: str) -> dict[str, Any]:
    """Run a command of longbatch and return its metrics, which are kept beside those of the other days."""
    day = end_of_day() - timedelta(days=1)
    metrics = RUNS / "metrics" / f"{day:%Y-%m-%d}-{command}.json"
    metrics.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([LONGBATCH, "--metrics", str(metrics), command, *arguments], check=False)
    if done.returncode == 0:
        document: dict[str, Any] = json.loads(metrics.read_text())
        return document
    message = f"longbatch {command} ended with exit code {done.returncode}; see its log above and {metrics}"
    raise (AirflowFailException if done.returncode in PERMANENT else AirflowException)(message)


@dag(
    schedule="@daily",
    start_date=FIRST_DAY + timedelta(days=1),  # a run is about the day before it
    catchup=True,
    max_active_runs=1,  # days are appended in order
    default_args={"retries": 3, "retry_delay": timedelta(minutes=10)},
)
def longbatch_daily() -> None:
    """Append a day, validate, train."""

    @task.sensor(poke_interval=300, timeout=12 * 3600, mode="reschedule")
    def wait_for_log() -> bool:
        # A row that arrives after its day was appended is never read, so a day is appended once it is complete.
        return (LOG / f"{end_of_day() - timedelta(days=1):%Y-%m-%d}" / "_SUCCESS").exists()

    @task(depends_on_past=True)
    def append() -> str:
        exists = any((DATASET / "snapshots").glob("*.json"))
        if exists:
            dataset = run("inspect", str(DATASET))["dataset"]
            if dataset["until"] and datetime.fromisoformat(dataset["until"]) >= end_of_day():
                print(f"the dataset contains this day: it was appended until {dataset['until']}")
                return str(dataset["fingerprint"])
        metrics = run("append" if exists else "build", str(SPEC), str(DATASET), "--until", end_of_day().isoformat())
        for source, rows in metrics["result"]["run_row_accounting"].items():
            print(f"{source}: {rows['rows']} rows, {rows['accepted']} accepted, {rows['rejected']} rejected")
        print(f"{metrics['dataset']['counts']['requests']} requests in {metrics['seconds']:.0f} s")
        return str(metrics["dataset"]["fingerprint"])

    @task
    def validate(fingerprint: str) -> str:
        metrics = run("validate", str(DATASET), "--users", "20")
        if metrics["dataset"]["fingerprint"] != fingerprint:
            print("the dataset has grown since this day was appended")
        return str(metrics["dataset"]["fingerprint"])

    @task
    def train(fingerprint: str) -> None:
        # A run belongs to one content of the dataset: a retry continues it, and other content starts another one.
        folder = RUNS / "models" / fingerprint[:16]
        resume = ["--resume"] if (folder / "checkpoint.pt").exists() else []
        config = SPEC.with_name("train.toml")
        run("train", str(DATASET), str(folder), *(["--config", str(config)] if config.exists() else []), *resume)

    appended = append()
    wait_for_log() >> appended
    train(validate(appended))


longbatch_daily()
