"""The files of earlier increments, by bucket."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from longbatch.jobs.commit.incremental_state import EarlierFiles, Increment
from longbatch.schemas.format.manifest import FileEntry

ENTRIES = st.lists(
    st.builds(
        FileEntry,
        st.text(),
        st.integers(0, 9),
        st.text(),
        table=st.sampled_from(["events", "users"]),
        bucket=st.integers(0, 5),
    )
)


@given(state=ENTRIES, vocabulary=ENTRIES)
def test_files_by_bucket_are_those_that_a_search_finds(state: list[FileEntry], vocabulary: list[FileEntry]) -> None:
    increment = Increment(1, 2, 6, tuple(state), tuple(vocabulary))
    by_bucket = increment.files_by_bucket()
    for bucket in range(7):
        expected = EarlierFiles(
            tuple(entry for entry in state if entry.bucket == bucket),
            tuple(entry for entry in vocabulary if entry.bucket == bucket),
        )
        assert by_bucket.get(bucket, EarlierFiles()) == expected
        assert EarlierFiles.from_json(expected.to_json()) == expected
        assert expected.of_table("users") == [entry for entry in expected.state if entry.table == "users"]
    assert increment.without_files() == Increment(1, 2, 6)
