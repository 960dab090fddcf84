"""Request ids that several users share: written by group, found again among any ids."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longbatch.jobs.engines import conflicts as module
from longbatch.jobs.engines.conflicts import Conflicts, hash_of
from longbatch.pipelines.arrays.hashing import bucket_of

ID_LISTS = st.one_of(st.lists(st.integers(-(2**63), 2**63 - 1)), st.lists(st.text(max_size=9)))


def write_all(ids: pl.Series, buckets: int, groups: int, folder: Path) -> Conflicts:
    """Write the conflicts of every group, as the tasks of an engine do."""
    none = Conflicts(buckets, groups)
    group = bucket_of(hash_of(ids), buckets) % groups
    return none.join(none.write(n, ids.filter(pl.Series(group == n)), folder, f"task-{n}") for n in range(groups))


@given(ids=ID_LISTS, share=st.integers(0, 3), groups=st.integers(1, 5), filter_bytes=st.sampled_from([8, 64, 1 << 20]))
def test_exactly_the_conflicts_are_found(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int] | list[str], share: int, groups: int, filter_bytes: int
) -> None:
    series = pl.Series("request_id", ids, dtype=pl.Int64 if ids and isinstance(ids[0], int) else pl.String)
    distinct = series.unique().sort()
    shared = distinct.gather_every(share) if share and len(distinct) else distinct.head(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FILTER_BYTES", filter_bytes)
        conflicts = write_all(shared, 10, groups, tmp_path_factory.mktemp("work"))
        found = conflicts.among(series.extend_constant(None, 1))
    assert (set(found.to_list()) if found is not None else set()) == set(shared.to_list())


def test_only_files_of_candidates_are_read(tmp_path: Path) -> None:
    conflicts = write_all(pl.Series([1, 2, 3]), 4, 4, tmp_path)
    for file in conflicts.files.values():
        file.path.unlink()
    assert conflicts.among(pl.Series(range(100, 200))) is None
    with pytest.raises(FileNotFoundError):
        conflicts.among(pl.Series([2]))


def test_filters_of_all_groups_have_a_fixed_size(tmp_path: Path) -> None:
    conflicts = write_all(pl.Series(range(100_000)), 300, 256, tmp_path)
    assert sum(len(file.bits) for file in conflicts.files.values()) == module.FILTER_BYTES
