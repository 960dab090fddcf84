"""What all tasks of one build share."""

from __future__ import annotations

from dataclasses import dataclass, replace

from longbatch.jobs.commit.incremental_state import Increment
from longbatch.pipelines.incremental import IncrementWindow
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.storage.store import Store


@dataclass(frozen=True)
class BuildContext:
    """The parameters of a build. Spark pickles it with the functions that it sends to executors.

    Attributes:
        spec: The build spec.
        store: The dataset; with Spark a place that all executors reach.
        attempt: Name of the attempt, which every file name contains.
        buckets: Number of user buckets.
        increment: The time window of an incremental build, without the files of its state, which each bucket gets on
            its own; None for a build of the whole log.
    """

    spec: BuildSpec
    store: Store
    attempt: str
    buckets: int
    increment: Increment | None = None

    @property
    def window(self) -> IncrementWindow | None:
        """The time window of an incremental build."""
        return self.increment.window if self.increment else None

    def for_task(self, task: int) -> BuildContext:
        """Copy the context with an attempt name of its own, so that a retried task never overwrites files.

        Args:
            task: Number of the task attempt.
        """
        # Only files that a returned result lists are committed, so those of a lost or duplicate attempt are never read,
        # and `vacuum` removes them.
        return replace(self, attempt=f"{self.attempt}-{task}")
