"""Settings of all tests: which cases property tests draw, how pytest-xdist divides the tests among its workers, and
the servers of object stores, each started once when a test first needs it.

Property tests draw the same cases each time, so that a run judges the change and not the draw. `make fuzz` draws new
ones, and more of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from longbatch.benchmarks.object_servers import Bucket, azure_server, azurite, gcs_server, s3_server

if TYPE_CHECKING:
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=100)
settings.register_profile("fuzz", derandomize=False, deadline=None, max_examples=500, print_blob=True)
settings.load_profile("fixed")

# What takes seconds to start or to build, and the files or folders that share it: their tests run on one worker.
SHARED = {
    "Spark session": (
        "tests/jobs/engines/test_spark.py",
        "tests/jobs/simulation/test_corrupt_rows_in_builds.py",
        "tests/jobs/test_build_real_logs.py",
        "tests/jobs/test_object_stores.py",
    ),
    "import of Great Expectations": (
        "tests/cli/test_main.py",
        "tests/jobs/test_validate.py",
        "tests/validation/expectations/",
    ),
    "measured datasets": ("tests/jobs/savings/",),
}


@pytest.fixture(scope="session")
def s3() -> Iterator[Bucket]:
    """A bucket of S3."""
    with s3_server() as bucket:
        yield bucket


@pytest.fixture(scope="session")
def azure() -> Iterator[Bucket]:
    """A container of Azure."""
    if not azurite():
        pytest.skip("Azurite is not installed: run `make azurite`, which needs npm")
    with azure_server() as bucket:
        yield bucket


@pytest.fixture(scope="session")
def gcs() -> Iterator[Bucket]:
    """A bucket of Google Cloud Storage."""
    with gcs_server() as bucket:
        yield bucket


@pytest.fixture(params=["s3", "azure", "gcs"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    """A bucket of each kind of object store, without planned faults; requests are counted from here."""
    found: Bucket = request.getfixturevalue(request.param)
    found.proxy.reset()
    return found


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Give all tests of a file, and of the files that share something, to one worker (`--dist loadfile`)."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class LoadSharedFiles(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return next((shared for shared, files in SHARED.items() if file.startswith(files)), file)

    return LoadSharedFiles(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest, else one worker would wait for the last of them to end."""
    ranks = {"spark": 0, "slow": 1}
    first: dict[str, int] = {}
    for item in items:
        file = item.nodeid.partition("::")[0]
        first[file] = min(first.get(file, 2), *(ranks.get(mark.name, 2) for mark in item.iter_markers()), 2)
    items.sort(key=lambda item: first[item.nodeid.partition("::")[0]])
