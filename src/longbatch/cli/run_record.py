"""Records what a command does, and writes the files of --metrics and --openlineage."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longbatch.schemas.errors import MachineError, SpecError
from longbatch.schemas.json_text import as_json
from longbatch.schemas.stage_log import collect_stages

from .run_facts import EventType, RunFacts, final_event_type, metrics_document

if TYPE_CHECKING:
    from longbatch.schemas.spec.build_spec import BuildSpec


@dataclass
class RunRecord:
    """The record of the running command.

    Attributes:
        facts: What is known about the run.
        metrics: Path or URL of the file of --metrics.
        events: Path of the file of --openlineage.
    """

    facts: RunFacts = field(default_factory=RunFacts)
    metrics: str | None = None
    events: Path | None = None
    _start_written: bool = False

    def write_start(self) -> None:
        """Append the START event, once.

        Raises:
            MachineError: The file cannot be written.
        """
        if self.events and not self._start_written:
            self._start_written = True
            _append_event(self.events, self.facts, "START")

    def finish(self) -> None:
        """Write the metrics and the last event.

        Raises:
            MachineError: A file cannot be written.
        """
        if self.metrics:
            from longbatch.schemas.storage.open_store import open_file

            store, name = open_file(self.metrics)
            store.replace(name, as_json(metrics_document(self.facts)).encode() + b"\n")
        if self.events:
            self.write_start()
            _append_event(self.events, self.facts, final_event_type(self.facts))


_record: ContextVar[RunRecord] = ContextVar("_record")


@contextmanager
def recorded_run() -> Iterator[RunRecord]:
    """Record the command that runs within the block.

    Yields:
        The record, whose exit code and error the block sets. An exception that leaves the block is recorded as a
        failure with exit code 1.
    """
    record = RunRecord()
    token = _record.set(record)
    try:
        with collect_stages() as record.facts.stages:
            yield record
    except BaseException as error:
        record.facts.exit_code, record.facts.error = 1, error
        raise
    finally:
        _record.reset(token)
        record.finish()


def _append_event(path: Path, facts: RunFacts, event_type: EventType) -> None:
    from longbatch.schemas.storage.local_folders import disk_message

    from .openlineage import run_event

    line = json.dumps(json.loads(as_json(run_event(facts, event_type)))) + "\n"
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(line)
    except OSError as error:
        raise MachineError(disk_message(error, path)) from None


def set_record_files(command: str, metrics: str | None, events: str | None) -> None:
    """Set where the record of the running command is written.

    Args:
        command: Name of the command.
        metrics: Path or URL of the file of --metrics.
        events: Path of the file of --openlineage.

    Raises:
        SpecError: The folder of a file does not exist; or the events are to be written to a URL.
    """
    for option, location in (("--metrics", metrics), ("--openlineage", events)):
        if location:
            _check_folder(option, location)
    if events and "://" in events:
        raise SpecError(
            f"--openlineage {events}: events are appended to a file, which an object store cannot do. Write them to a "
            "file of this machine and copy it."
        )
    record = _record.get(None)
    if record is None:
        return  # the application was called without `main`
    record.facts.command = command
    if os.environ.get("RANK", "0") == "0":  # under torchrun the first rank writes
        record.metrics, record.events = metrics, Path(events).expanduser() if events else None


def _check_folder(option: str, location: str) -> None:
    """Raise SpecError unless the folder of a file exists; an object store has no folders to create."""
    from longbatch.schemas.storage.local_store import LocalStore
    from longbatch.schemas.storage.open_store import open_file

    store, _ = open_file(location)
    if isinstance(store, LocalStore) and not store.root.absolute().is_dir():
        raise SpecError(f"{option} {location}: the folder {store.root.absolute()} does not exist. Create it first.")


def describe_run(
    *,
    spec: BuildSpec | None = None,
    reads: str | os.PathLike[str] | None = None,
    writes: str | os.PathLike[str] | None = None,
    other_output: str | os.PathLike[str] | None = None,
) -> None:
    """Record what the running command reads and writes.

    Args:
        spec: The build spec whose sources it reads.
        reads: The dataset that it reads.
        writes: The dataset that it commits to.
        other_output: Another folder that it writes.
    """
    record = _record.get(None)
    if record is None:
        return  # called as a function, without a command line
    dataset = reads if writes is None else writes
    record.facts.spec = spec
    record.facts.dataset_path = None if dataset is None else os.fspath(dataset)
    record.facts.writes_dataset = writes is not None
    record.facts.other_output = None if other_output is None else os.fspath(other_output)
    record.write_start()


def record_result(result: Mapping[str, Any]) -> None:
    """Record what the running command prints with --json.

    Args:
        result: The result as plain values.
    """
    record = _record.get(None)
    if record is not None:
        record.facts.result = result
