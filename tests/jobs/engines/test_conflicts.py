"""Request ids that several users share: written by group, found again among any ids."""

from __future__ import annotations

import pickle
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longbatch.jobs.engines import conflicts as module
from longbatch.jobs.engines.conflicts import Conflicts, hash_of
from longbatch.pipelines.arrays.hashing import bucket_of
from longbatch.schemas.errors import DatasetError
from longbatch.schemas.storage.local_store import LocalStore

ID_LISTS = st.one_of(st.lists(st.integers(-(2**63), 2**63 - 1)), st.lists(st.text(max_size=9)))


def write_all(ids: pl.Series, buckets: int, store: LocalStore) -> Conflicts:
    """Write the conflicts of every group, as the tasks of an engine do."""
    none = Conflicts(buckets)
    group = bucket_of(hash_of(ids), buckets) % none.groups
    return none.join(none.write(n, ids.filter(pl.Series(group == n)), store, "attempt") for n in range(none.groups))


@given(ids=ID_LISTS, share=st.integers(0, 3), groups=st.integers(1, 5), bits=st.integers(0, 12))
def test_exactly_the_conflicts_are_found(
    tmp_path_factory: pytest.TempPathFactory, ids: list[int] | list[str], share: int, groups: int, bits: int
) -> None:
    series = pl.Series("request_id", ids, dtype=pl.Int64 if ids and isinstance(ids[0], int) else pl.String)
    distinct = series.unique().sort()
    shared = distinct.gather_every(share) if share and len(distinct) else distinct.head(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_GROUPS", groups)
        patch.setattr(module, "HASH_BITS", bits + 3)
        store = LocalStore(tmp_path_factory.mktemp("out"))
        conflicts = write_all(shared, 10, store)
        found = conflicts.among(series.extend_constant(None, 1), store)
    assert (set(found.to_list()) if found is not None else set()) == set(shared.to_list())


def test_only_files_of_candidates_are_read(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    conflicts = write_all(pl.Series([1, 2, 3]), 4, store)
    listed = {file.path for file in store.list_files()}
    assert listed == {file.entry.path for file in conflicts.files.values()}
    conflicts.delete(store)
    assert list(store.list_files()) == []
    assert conflicts.among(pl.Series(range(100, 200)), store) is None
    with pytest.raises(DatasetError, match=r"conflicts-0000\d-attempt\.arrow"):
        conflicts.among(pl.Series([2]), store)


def test_what_closures_hold_is_bounded(tmp_path: Path) -> None:
    few = write_all(pl.Series(range(10)), 300, LocalStore(tmp_path / "few"))
    many = write_all(pl.Series(range(1_000_000)), 300, LocalStore(tmp_path / "many"))
    assert len(pickle.dumps(few)) < 5_000
    assert len(pickle.dumps(many)) < 1_200_000
