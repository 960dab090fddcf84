"""Settings of all tests: which cases property tests draw, and which tests share a worker of pytest-xdist.

Property tests draw the same cases each time, so that a run judges the change and not the draw. `make fuzz` draws new
ones, and more of them.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=100)
settings.register_profile("fuzz", derandomize=False, deadline=None, max_examples=500, print_blob=True)
settings.load_profile("fixed")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group tests for `--dist loadgroup`, and start the groups that take longest first.

    The tests of a file are one group, so that its fixtures are built once. All tests on the shared Spark session are
    one group, because a session takes seconds to start. A file may name another group: those with Great Expectations
    do, because its import takes seconds too. If the longest group came last, one worker would wait for the other.
    """
    if not hasattr(config, "workerinput"):  # not a worker of pytest-xdist
        return
    groups = [_group(item) for item in items]
    ranks: dict[str, int] = {}
    for item, group in zip(items, groups, strict=True):
        item.add_marker(pytest.mark.xdist_group(group))
        marks = {mark.name for mark in item.iter_markers()}
        ranks[group] = min(ranks.get(group, 2), 0 if "spark" in marks else 1 if "slow" in marks else 2)
    order = sorted(range(len(items)), key=lambda number: ranks[groups[number]])  # stable: files stay together
    items[:] = [items[number] for number in order]


def _group(item: pytest.Item) -> str:
    if "spark_session" in getattr(item, "fixturenames", ()):
        return "spark_session"
    named = item.get_closest_marker("xdist_group")
    return str(named.args[0]) if named else item.path.as_posix()
