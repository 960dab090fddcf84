"""The content hash: blind to how a dataset is stored, and to nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from arrow_values import flat_values, values_of
from hypothesis import given
from hypothesis import strategies as st

from longbatch.pipelines.content_hash import SampleDigest, content_hash, digest_block, digest_rows
from longbatch.pipelines.expansion import sample_level, slice_histories
from longbatch.pipelines.in_memory import build_in_memory
from longbatch.schemas.format.shard_reader import Block
from longbatch.schemas.spec.build_spec import BuildSpec

T = 1_700_000_000
SPEC = BuildSpec.model_validate(
    {
        "history_length": 4,
        "sources": {"plays": {"path": "plays.parquet"}, "shown": {"path": "shown.parquet"}},
        "history": {
            "source": "plays",
            "user_id": "user",
            "item_id": "item",
            "event_time": {"column": "time", "unit": "s"},
            "features": {"tab": "int8", "word": "string", "score": "float32", "flag": "bool"},
        },
        "requests": {
            "source": "shown",
            "user_id": "user",
            "item_id": "item",
            "request_time": {"column": "time", "unit": "s"},
            "request_id": {"column": "request", "type": "string"},
            "features": {"rank": "int8"},
            "target_features": {"price": "float32"},
            "labels": {"click": "int8"},
        },
    }
)
PLAYS = pl.DataFrame(
    [
        {"user": 1, "item": 11, "time": T + 1, "tab": 1, "word": "a", "score": 0.5, "flag": True},
        {"user": 1, "item": 12, "time": T + 2, "tab": 2, "word": None, "score": 1.5, "flag": None},
        {"user": 1, "item": 13, "time": T + 3, "tab": None, "word": "c", "score": None, "flag": False},
        {"user": 1, "item": 14, "time": T + 4, "tab": 0, "word": "", "score": 0.0, "flag": False},
        {"user": 1, "item": 15, "time": T + 5, "tab": 5, "word": "e", "score": 2.5, "flag": True},
        {"user": 2, "item": 21, "time": T + 1, "tab": 1, "word": "a", "score": 0.5, "flag": True},
    ],
    schema_overrides={"tab": pl.Int8, "score": pl.Float32},
)
SHOWN = pl.DataFrame(
    [
        {"user": 1, "request": "r1", "time": T + 3, "item": 5, "rank": 1, "price": 0.5, "click": 0},
        {"user": 1, "request": "r1", "time": T + 3, "item": 6, "rank": 1, "price": None, "click": 1},
        {"user": 1, "request": "r2", "time": T + 9, "item": 5, "rank": None, "price": 1.5, "click": 1},
        {"user": 2, "request": "r3", "time": T + 9, "item": 7, "rank": 0, "price": 1.5, "click": 0},
    ],
    schema_overrides={"rank": pl.Int8, "price": pl.Float32, "click": pl.Int8},
)


def blocks(
    spec: BuildSpec = SPEC, plays: pl.DataFrame = PLAYS, shown: pl.DataFrame = SHOWN, buckets: int = 1
) -> list[Block]:
    return [Block(*pair) for pair in build_in_memory(spec, {"plays": plays, "shown": shown}, buckets=buckets).blocks]


def hashed(*arguments: Any, **named: Any) -> str:
    return content_hash(blocks(*arguments, **named), 4)


def test_the_hash_does_not_depend_on_storage() -> None:
    expected = hashed()
    assert len(expected) == 32
    assert hashed(buckets=7) == expected
    for size in (1, 2, 3):
        spec = SPEC.model_copy(update={"block_events": size, "block_targets": size})
        assert len(blocks(spec)) > 1
        assert hashed(spec) == expected
    assert content_hash(reversed(blocks(buckets=7)), 4) == expected
    assert hashed(plays=PLAYS.reverse(), shown=SHOWN.reverse()) == expected
    assert hashed(shown=pl.concat([SHOWN, SHOWN.head(1)])) == expected, "a duplicate row is no content"


def test_a_heavy_user_split_into_segments_has_the_same_hash() -> None:
    plays = pl.DataFrame(
        {"user": 1, "item": range(100), "time": range(T, T + 100), "tab": 1, "word": "a", "score": 0.5, "flag": True}
    )
    shown = pl.DataFrame(
        {
            "user": 1,
            "request": [str(n) for n in range(100)],
            "time": range(T, T + 100),
            "item": 5,
            "rank": 1,
            "price": 0.5,
            "click": 1,
        }
    )
    cut = SPEC.model_copy(update={"block_events": 2, "block_targets": 7})
    assert max(values_of(block.timelines["segment"])[-1] for block in blocks(cut, plays, shown)) > 5
    assert hashed(cut, plays, shown) == hashed(SPEC, plays, shown)


CHANGES = [
    (frame, row, column, value)
    for frame, row, column, value in [
        ("plays", 1, "item", 99),
        ("plays", 1, "time", T + 1),
        ("plays", 0, "tab", 2),
        ("plays", 0, "tab", None),
        ("plays", 2, "tab", 0),
        ("plays", 0, "word", "b"),
        ("plays", 1, "word", ""),
        ("plays", 3, "word", None),
        ("plays", 0, "score", 0.75),
        ("plays", 2, "score", 0.0),
        ("plays", 0, "flag", False),
        ("plays", 1, "flag", False),
        ("plays", 0, "user", 2),
        ("shown", 0, "item", 4),
        ("shown", 2, "time", T + 8),
        ("shown", 2, "request", "r9"),
        ("shown", 2, "rank", 0),
        ("shown", 0, "price", 0.25),
        ("shown", 1, "price", 0.0),
        ("shown", 0, "click", 1),
        ("shown", 3, "user", 3),
    ]
]


@pytest.mark.parametrize(("frame", "row", "column", "value"), CHANGES)
def test_the_hash_depends_on_every_value(frame: str, row: int, column: str, value: Any) -> None:
    original = {"plays": PLAYS, "shown": SHOWN}[frame]
    changed = original.with_columns(
        pl.when(pl.int_range(pl.len()) == row)
        .then(pl.lit(value, dtype=original.schema[column]))
        .otherwise(column)
        .alias(column)
    )
    assert not changed.equals(original)
    assert hashed(**{frame: changed}) != hashed()


def rewritten(block: Block, table: str, column: str, order: list[int]) -> Block:
    """Take the elements of the first list of a column in another order."""
    batch = getattr(block, table)
    rows = batch.to_pylist()
    rows[0][column] = [rows[0][column][index] for index in order]
    batches = {"timelines": block.timelines, "requests": block.requests}
    return Block(**{**batches, table: pa.RecordBatch.from_pylist(rows, schema=batch.schema)})


@pytest.mark.parametrize(
    ("table", "column", "order"),
    [
        ("timelines", "events", [0, 1, 2, 4, 3]),
        ("timelines", "events", [1, 0, 2, 3, 4]),
        ("requests", "targets", [1, 0]),
    ],
)
def test_the_hash_depends_on_the_order_of_events_and_targets(table: str, column: str, order: list[int]) -> None:
    (block,) = blocks()
    assert content_hash([block], 4) == hashed()
    assert content_hash([rewritten(block, table, column, order)], 4) != hashed()


def test_the_hash_depends_on_the_history_length() -> None:
    (block,) = blocks()
    assert len({content_hash([block], length) for length in (0, 1, 2, 3, 4)}) == 5


def test_the_hash_depends_on_missing_and_repeated_requests() -> None:
    (block,) = blocks()
    fewer = Block(block.timelines, block.requests.slice(0, 2))
    assert len({content_hash(part, 4) for part in ([], [fewer], [block], [block, block])}) == 4


def test_no_blocks_hash_to_zero() -> None:
    empty: Iterable[Block] = []
    assert content_hash(empty, 4) == "0" * 32


def test_events_outside_every_history_do_not_change_the_hash() -> None:
    later = PLAYS.head(1).with_columns(time=pl.lit(T + 100), item=pl.lit(77))
    other_user = PLAYS.head(1).with_columns(user=pl.lit(9))
    assert hashed(plays=pl.concat([PLAYS, later, other_user], how="vertical_relaxed")) == hashed()


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=20),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_the_hash_of_any_log_does_not_depend_on_storage(
    events: list[tuple[int, int, int]],
    requests: list[tuple[int, int]],
    block_events: int,
    block_targets: int,
    buckets: int,
) -> None:
    plays = pl.DataFrame(events, schema=["user", "second", "item"], orient="row").select(
        "user", "item", time=T + pl.col("second"), tab=pl.lit(1), word=pl.lit("a"), score=pl.lit(0.5), flag=pl.lit(True)
    )
    shown = (
        pl.DataFrame(requests, schema=["user", "second"], orient="row")
        .with_row_index("row")
        .select(
            "user",
            request=pl.format("{}-{}", "user", "second"),
            time=T + pl.col("second"),
            item=pl.col("row").cast(pl.Int64),
            rank=pl.lit(1),
            price=pl.lit(0.5),
            click=pl.lit(1),
        )
    )
    small = SPEC.model_copy(update={"block_events": block_events, "block_targets": block_targets})
    assert hashed(small, plays.sample(fraction=1, shuffle=True, seed=1), shown.reverse(), buckets) == hashed(
        SPEC, plays, shown
    )


# The sample level


def expanded(block: Block, length: int) -> pa.RecordBatch:
    slices = slice_histories(block, length)
    owners = np.repeat(np.arange(block.requests.num_rows), slices.target_counts)
    (batch,) = sample_level(slices, owners, np.arange(len(owners))).to_batches()
    return batch


@pytest.mark.parametrize("length", [0, 1, 2, 4])
def test_the_digest_of_a_block_equals_the_digest_of_its_expanded_rows(length: int) -> None:
    (whole,) = blocks()
    expected = digest_block(whole, length)
    rows = expanded(whole, length)
    assert digest_rows(rows, SPEC) == expected
    assert expected.rows == 4
    assert expected.events == len(flat_values(rows["history_item_id"]))
    small = SPEC.model_copy(update={"block_events": 1, "block_targets": 1})
    parts = blocks(small, buckets=2)
    assert len(parts) > 1
    assert sum((digest_block(part, length) for part in parts), SampleDigest()) == expected
    assert sum((digest_rows(rows[n : n + 1], SPEC) for n in (2, 0, 3, 1)), SampleDigest()) == expected


def test_a_digest_counts_repeated_rows() -> None:
    (block,) = blocks()
    rows = expanded(block, 4)
    once, twice = (
        digest_rows(rows[:1], SPEC),
        digest_rows(pa.Table.from_batches([rows[:1], rows[:1]]).combine_chunks().to_batches()[0], SPEC),
    )
    assert twice == once + once
    assert len({SampleDigest().hash, once.hash, twice.hash}) == 3
