"""The interface of an engine: the stages of one build, which `longbatch.jobs.build` calls in order."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from longbatch.jobs.commit.build_result import BuildResult
from longbatch.jobs.commit.incremental_state import Increment
from longbatch.schemas.spec.build_spec import BuildSpec
from longbatch.schemas.storage.store import Store
from longbatch.schemas.types import ProgressCallback

from .conflicts import Conflicts
from .context import BuildContext
from .stages import BuildFacts


class Stages(Protocol):
    """The stages of one running build. Every method returns what the commit must know of its stage."""

    @property
    def context(self) -> BuildContext:
        """The parameters of the build."""

    def read_canonicalize_split(self) -> BuildResult:
        """Read all sources, canonicalize the rows and split them by user bucket."""

    def find_conflicts(self) -> tuple[Conflicts | None, BuildResult]:
        """Find the request ids that several users share."""

    def quarantine_conflicts(self, conflicts: Conflicts) -> BuildResult:
        """Read the requests' source again and write the original rows of conflicting requests to the quarantine.

        Args:
            conflicts: The request ids that several users share.
        """

    def build_shards(self, facts: BuildFacts) -> BuildResult:
        """Build every user bucket: kernel, pack, write the shard; and write the vocabulary.

        Args:
            facts: What the kernel must know about all users.
        """


class Engine(Protocol):
    """Anything that can run the stages of a build."""

    def start(
        self, spec: BuildSpec, store: Store, attempt: str, increment: Increment | None, progress: ProgressCallback
    ) -> AbstractContextManager[Stages]:
        """Plan a build and start what it needs, which is stopped and removed at the end of the block.

        Args:
            spec: The build spec.
            store: The dataset.
            attempt: Name of the attempt, which every file name must contain.
            increment: Time window and state of an incremental build.
            progress: Receives the progress of the stages.
        """
