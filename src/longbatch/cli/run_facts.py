"""The facts about one run of a command, and the document that --metrics writes."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from longbatch import __version__
from longbatch.schemas.errors import LongbatchError
from longbatch.schemas.stage_log import Stage
from longbatch.schemas.time import from_microseconds

if TYPE_CHECKING:
    from longbatch.schemas.format.dataset import Dataset
    from longbatch.schemas.spec.build_spec import BuildSpec

EventType = Literal["START", "COMPLETE", "FAIL", "ABORT"]

METRICS_VERSION = 1
INTERRUPTED = 130
# user:password before the host of a URI, and its query, which may contain a signature
CREDENTIALS = re.compile(r"(?<=://)[^/@]*:[^/@]*@")


@dataclass
class RunFacts:
    """What is known about a run of a command; filled in while it runs.

    Attributes:
        command: Name of the command; empty until it is known.
        run_id: A random UUID.
        started: When the run started.
        stages: Stages that have ended.
        spec: The build spec whose sources the command reads.
        dataset_path: Path or URI of the dataset that the command reads or writes.
        writes_dataset: Whether the command commits to the dataset.
        other_output: Another folder that the command writes.
        result: What the command prints with --json.
        exit_code: Exit code; None while the command runs.
        error: The error that ended the command.
    """

    command: str = ""
    run_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    stages: list[Stage] = field(default_factory=list)
    spec: BuildSpec | None = None
    dataset_path: str | None = None
    writes_dataset: bool = False
    other_output: str | None = None
    result: Mapping[str, Any] | None = None
    exit_code: int | None = None
    error: BaseException | None = None
    _clock: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since the run started."""
        return time.monotonic() - self._clock

    def dataset(self) -> Dataset | None:
        """Open the newest snapshot of the dataset.

        Returns:
            The dataset, or None if the command has none, failed to write it, or it cannot be read.
        """
        if self.dataset_path is None or (self.writes_dataset and self.exit_code != 0):
            return None
        from longbatch.schemas.format.dataset import open_dataset

        try:
            return open_dataset(self.dataset_path)
        except (LongbatchError, OSError):
            return None  # the command itself has reported why


def final_event_type(facts: RunFacts) -> EventType:
    """Return the state in which a run ended.

    Args:
        facts: The facts about the run, with its exit code.
    """
    if facts.exit_code == 0:
        return "COMPLETE"
    return "ABORT" if facts.exit_code == INTERRUPTED else "FAIL"


def metrics_document(facts: RunFacts) -> dict[str, Any]:
    """Describe a run that has ended, as docs/operations.md specifies it.

    Args:
        facts: The facts about the run.

    Returns:
        Values for JSON.
    """
    return {
        "metrics_version": METRICS_VERSION,
        "longbatch_version": __version__,
        "run_id": facts.run_id,
        "command": facts.command,
        "started": facts.started.isoformat(),
        "seconds": facts.seconds,
        "exit_code": facts.exit_code,
        "error": facts.error and {"class": type(facts.error).__name__, "message": str(facts.error)},
        "stages": [asdict(stage) for stage in facts.stages],
        "sources": {
            name: [without_credentials(path) for path in source.path]
            for name, source in (facts.spec.sources if facts.spec else {}).items()
        },
        "dataset": _described_dataset(facts),
        "result": facts.result,
    }


def _described_dataset(facts: RunFacts) -> dict[str, Any] | None:
    dataset = facts.dataset()
    if dataset is None:
        return None
    snapshot = dataset.snapshot
    return {
        "path": without_credentials(facts.dataset_path or ""),
        "snapshot": snapshot.number,
        "fingerprint": snapshot.fingerprint,
        "until": None if snapshot.until is None else from_microseconds(snapshot.until).isoformat(),
        "shards": len(snapshot.shards),
        "files": snapshot.file_count,
        "bytes": snapshot.file_bytes,
        "counts": snapshot.counts.as_dict(),
        "row_accounting": {source: accounting.as_dict() for source, accounting in snapshot.row_accounting.items()},
    }


def without_credentials(path: str) -> str:
    """Return an absolute path, or a URI without password and query.

    Args:
        path: A path or URI.

    Example:
        >>> without_credentials("s3://key:secret@logs/day.parquet?region=eu-west-1")
        's3://logs/day.parquet'
    """
    if "://" not in path:
        return os.path.abspath(path)
    return CREDENTIALS.sub("", path).partition("?")[0]
