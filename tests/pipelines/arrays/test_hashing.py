"""The hashes, against docs/meaning.md restated one number at a time."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longbatch.pipelines.arrays.hashing import bucket_of, hash_string, mix, request_ids_of

often = settings(max_examples=2 * settings.default.max_examples, deadline=None)
texts = st.lists(st.none() | st.text(max_size=40), max_size=20)


def slow_mix(x: int) -> int:
    x ^= x >> 30
    x = x * 0xBF58476D1CE4E5B9 % 2**64
    x ^= x >> 27
    x = x * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def slow_hash(text: str) -> int:
    data = text.encode("utf-8")
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
@given(texts)
def test_text_is_hashed_as_documented(values: list[str | None]) -> None:
    expected = [None if text is None else slow_hash(text) for text in values]
    assert hash_string(pl.Series("x", values, dtype=pl.String)).to_list() == expected


@often
@given(texts, st.integers(0, 20), st.integers(0, 20))
def test_a_slice_is_hashed_like_its_own_rows(values: list[str | None], start: int, length: int) -> None:
    sliced = pl.Series("x", values, dtype=pl.String).slice(start, length)
    expected = [None if text is None else slow_hash(text) for text in values[start : start + length]]
    assert hash_string(sliced).to_list() == expected


@pytest.mark.parametrize(
    ("text", "hashed"),
    [
        ("", 0),
        ("a", slow_hash("a")),
        ("12345678", slow_hash("12345678")),
        ("123456789", slow_hash("123456789")),
        ("a\0", slow_hash("a\0")),
        ("😀" * 5, slow_hash("😀" * 5)),
    ],
)
def test_lengths_around_a_word(text: str, hashed: int) -> None:
    assert hash_string(pl.Series([text])).to_list() == [hashed]


def test_trailing_zeros_make_another_text() -> None:
    assert hash_string(pl.Series(["", "\0", "a", "a\0", "a" * 8, "a" * 8 + "\0"])).n_unique() == 6


def test_the_hash_never_changes() -> None:
    """Datasets on disk hold these numbers."""
    assert hash_string(pl.Series(["user-1", "a longer text than one word"])).to_list() == [
        8621307351792616465,
        4532590430688011765,
    ]


def test_chunks_and_categories_and_nothing_are_hashed() -> None:
    chunked = pl.concat([pl.Series(["a"]), pl.Series(["b", None])], rechunk=False)
    assert hash_string(chunked).to_list() == [slow_hash("a"), slow_hash("b"), None]
    assert hash_string(chunked.cast(pl.Categorical)).to_list() == [slow_hash("a"), slow_hash("b"), None]
    assert hash_string(pl.Series("x", [None, None])).to_list() == [None, None]
    assert hash_string(pl.Series("x", [], dtype=pl.String)).dtype == pl.Int64


def test_a_hash_is_an_id() -> None:
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
