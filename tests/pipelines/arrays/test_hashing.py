"""The hashes, against docs/semantics.md restated one number at a time."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longbatch.pipelines.arrays.hashing import bucket_of, hash_string, mix, request_ids_of

often = settings(max_examples=2 * settings().max_examples, deadline=None)
strings = st.lists(st.none() | st.text(max_size=40), max_size=20)


def slow_mix(x: int) -> int:
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 % 2**64
    x ^= x >> 27
    x = x * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def slow_hash(string: str) -> int:
    data = string.encode("utf-8")
    hashed = len(data) * 0x9E3779B97F4A7C15 % 2**64
    for start in range(0, len(data), 8):
        hashed = slow_mix(hashed ^ int.from_bytes(data[start : start + 8], "little"))
    return slow_mix(hashed) >> 1


def slow_unmix(x: int) -> int:
    """The inverse of mix: each step undone, last first."""
    x ^= x >> 31 ^ x >> 62
    x = x * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
    x ^= x >> 27 ^ x >> 54
    x = x * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
    return x ^ x >> 30 ^ x >> 60


@often
@given(strings)
def test_strings_are_hashed_as_documented(values: list[str | None]) -> None:
    expected = [None if string is None else slow_hash(string) for string in values]
    assert hash_string(pl.Series("x", values, dtype=pl.String)).to_list() == expected


@often
@given(strings, st.integers(0, 20), st.integers(0, 20))
def test_a_slice_has_the_hashes_of_its_rows(values: list[str | None], start: int, length: int) -> None:
    sliced = pl.Series("x", values, dtype=pl.String).slice(start, length)
    expected = [None if string is None else slow_hash(string) for string in values[start : start + length]]
    assert hash_string(sliced).to_list() == expected


@pytest.mark.parametrize(
    ("string", "hashed"),
    [
        ("", 0),
        ("a", slow_hash("a")),
        ("12345678", slow_hash("12345678")),
        ("123456789", slow_hash("123456789")),
        ("a\0", slow_hash("a\0")),
        ("😀" * 5, slow_hash("😀" * 5)),
    ],
)
def test_strings_around_the_length_of_a_word_are_hashed(string: str, hashed: int) -> None:
    assert hash_string(pl.Series([string])).to_list() == [hashed]


def test_trailing_zero_bytes_change_the_hash() -> None:
    assert hash_string(pl.Series(["", "\0", "a", "a\0", "a" * 8, "a" * 8 + "\0"])).n_unique() == 6


def test_the_hash_never_changes() -> None:
    """Datasets on disk hold these numbers."""
    assert hash_string(pl.Series(["user-1", "a longer text than one word"])).to_list() == [
        8621307351792616465,
        4532590430688011765,
    ]


def test_chunked_categorical_and_empty_columns_are_hashed() -> None:
    chunked = pl.concat([pl.Series(["a"]), pl.Series(["b", None])], rechunk=False)
    assert hash_string(chunked).to_list() == [slow_hash("a"), slow_hash("b"), None]
    assert hash_string(chunked.cast(pl.Categorical)).to_list() == [slow_hash("a"), slow_hash("b"), None]
    assert hash_string(pl.Series("x", [None, None])).to_list() == [None, None]
    assert hash_string(pl.Series("x", [], dtype=pl.String)).dtype == pl.Int64


def test_a_hash_is_a_nonnegative_int64() -> None:
    hashed = hash_string(pl.Series([str(number) for number in range(10_000)]))
    assert (hashed >= 0).all()
    assert hashed.n_unique() == 10_000
    assert hashed.name == ""


@often
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_mix_is_a_bijection(values: list[int]) -> None:
    given_values = np.array(values, dtype=np.uint64)
    mixed = mix(given_values)
    assert mixed.tolist() == [slow_mix(value) for value in values]
    assert [slow_unmix(value) for value in mixed.tolist()] == values
    assert given_values.tolist() == values, "mix must not write into what it was given"


@often
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), st.integers(1, 8192))
def test_a_bucket_is_in_range_and_as_documented(ids: list[int], buckets: int) -> None:
    expected = [slow_mix(number % 2**64 ^ 0x9E3779B97F4A7C15) % buckets for number in ids]
    assert bucket_of(np.array(ids, dtype=np.int64), buckets).tolist() == expected


def test_users_spread_evenly_over_buckets() -> None:
    counts = np.bincount(bucket_of(np.arange(80_000, dtype=np.int64), 8))
    assert (abs(counts - 10_000) < 400).all()


@often
@given(st.lists(st.tuples(*[st.integers(-(2**63), 2**63 - 1)] * 2), max_size=20))
def test_a_request_without_an_id_takes_one_of_its_user_and_time(pairs: list[tuple[int, int]]) -> None:
    expected = [slow_mix(slow_mix(user % 2**64) ^ time % 2**64) >> 1 for user, time in pairs]
    users, times = (np.array([pair[i] for pair in pairs], dtype=np.int64) for i in (0, 1))
    assert request_ids_of(users, times).tolist() == expected
