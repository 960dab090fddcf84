"""Dictionaries: which ones a spec has, their entries, and that indices into them restore every column."""

from __future__ import annotations

import pyarrow as pa
import pytest
from arrow_values import values_of
from hypothesis import given
from hypothesis import strategies as st

from longbatch.schemas.errors import DataError, DatasetError
from longbatch.schemas.format import dictionaries
from longbatch.schemas.format.dictionaries import (
    Columns,
    Dictionary,
    build_dictionary,
    dictionaries_batch,
    dictionaries_of,
    dictionaries_schema,
    read_dictionaries,
)
from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec
from longbatch.schemas.types import ArrowArray

SPEC = """
compression = "zstd"
[sources.log]
path = "log.parquet"
[items]
features = ["author"]
[history]
source = "log"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
features = { author = "int32", word = "string", count = "int32" }
[requests]
source = "log"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
target_features = { author = "int32", query = "id" }
"""
ITEMS = Dictionary("items", "#item", (pa.field("item_id", pa.int64()), pa.field("author", pa.int32())), ("events",))


def spec() -> BuildSpec:
    return parse_spec(SPEC)


def names(spec: BuildSpec) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(dictionary.name, dictionary.column, dictionary.tables) for dictionary in dictionaries_of(spec)]


def item_columns(rows: list[tuple[int | None, int | None]]) -> Columns:
    """The columns of (item, author) pairs."""
    return {
        "item_id": pa.array([item for item, _ in rows], pa.int64()),
        "author": pa.array([author for _, author in rows], pa.int32()),
    }


def test_items_strings_and_hashed_ids_have_dictionaries() -> None:
    assert names(spec()) == [
        ("items", "#item", ("events", "targets")),
        ("events.word", "word", ("events",)),
        ("targets.query", "query", ("targets",)),
    ]
    assert dictionaries_schema(spec()).names == ["items.item_id", "items.author", "events.word", "targets.query"]


def test_targets_whose_author_has_another_type_do_not_use_the_dictionary_of_items() -> None:
    assert names(
        parse_spec(SPEC.replace('target_features = { author = "int32"', 'target_features = { author = "int64"'))
    )[0] == ("items", "#item", ("events",))


def test_string_item_ids_have_a_dictionary_and_integer_ids_do_not() -> None:
    without = SPEC.replace('[items]\nfeatures = ["author"]\n', "")
    assert [name for name, *_ in names(parse_spec(without))] == ["events.word", "targets.query"]
    strings = without.replace('item_id = "item"', 'item_id = { column = "item", type = "string" }')
    assert names(parse_spec(strings))[0] == ("items", "#item", ("events", "targets"))


def test_the_plain_encoding_has_no_dictionaries() -> None:
    plain = SPEC.replace('[items]\nfeatures = ["author"]\n', "").replace('"zstd"', '"none"')
    assert dictionaries_of(parse_spec(plain)) == ()


def test_an_item_whose_author_varies_has_one_entry_per_author() -> None:
    events = item_columns([(9, 1), (7, 2), (9, 1), (9, None)])
    targets = item_columns([(None, 5), (7, 2)])
    entries, indices = build_dictionary(ITEMS, [events, targets])
    assert entries["item_id"].to_pylist() == [7, 9, 9]
    assert entries["author"].to_pylist() == [2, 1, None]
    assert [values_of(part) for part in indices] == [[1, 0, 1, 2], [None, 0]]


ids, authors = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), st.none() | st.integers(0, 2)


@given(st.lists(st.lists(st.tuples(ids, authors), max_size=20), min_size=1, max_size=3))
def test_indices_restore_every_row_and_entries_are_distinct(
    tables: list[list[tuple[int | None, int | None]]],
) -> None:
    entries, indices = build_dictionary(ITEMS, [item_columns(rows) for rows in tables])
    pairs = list(zip(values_of(entries["item_id"]), values_of(entries["author"]), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert [item for item, _ in pairs] == sorted(item for item, _ in pairs)
    assert [[pairs[index] for index in values_of(part)] for part in indices] == tables


def test_floats_are_distinguished_by_their_bits() -> None:
    floats = Dictionary(
        "items", "item", (pa.field("item_id", pa.int64()), pa.field("price", pa.float32())), ("events",)
    )
    prices: ArrowArray = pa.array([0.0, -0.0, float("nan")], pa.float32())
    entries, indices = build_dictionary(floats, [{"item_id": pa.array([1, 1, 1]), "price": prices}])
    assert len(entries["price"]) == 3
    assert [str(entries["price"][index].as_py()) for index in values_of(indices[0])] == ["0.0", "-0.0", "nan"]


@given(st.lists(st.tuples(ids, authors), max_size=20), st.lists(st.text()), st.lists(ids))
def test_dictionaries_are_read_as_they_were_written(
    items: list[tuple[int | None, int | None]], words: list[str], queries: list[int]
) -> None:
    (item, word, query) = dictionaries_of(spec())
    built = {
        "items": build_dictionary(item, [item_columns(items)])[0],
        "events.word": build_dictionary(word, [{"word": pa.array(words, pa.string())}])[0],
        "targets.query": build_dictionary(query, [{"query": pa.array(queries, pa.int64())}])[0],
    }
    batch = dictionaries_batch(spec(), built)
    batch.validate(full=True)
    assert batch.num_rows == 1
    assert read_dictionaries(spec(), batch) == built


def test_a_file_without_exactly_one_row_is_rejected() -> None:
    empty = dictionaries_schema(spec()).empty_table().to_batches()
    batch = empty[0] if empty else pa.RecordBatch.from_pylist([], schema=dictionaries_schema(spec()))
    with pytest.raises(DatasetError, match="it has 0 rows or nulls instead of 1 row without nulls"):
        read_dictionaries(spec(), batch)


def test_columns_of_different_lengths_are_rejected() -> None:
    (item, word, query) = dictionaries_of(spec())
    built: dict[str, Columns] = {
        "items": {"item_id": pa.array([1, 2]), "author": pa.array([1], pa.int32())},
        "events.word": {"word": pa.array(["a"])},
        "targets.query": {"query": pa.array([5])},
    }
    assert (item.name, word.name, query.name) == tuple(built)
    with pytest.raises(DatasetError, match="the columns of its dictionary 'items' differ in length"):
        read_dictionaries(spec(), dictionaries_batch(spec(), built))


def test_strings_beyond_32_bit_offsets_are_numbered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dictionaries, "MAX_STRING_BYTES", 40)
    word = next(dictionary for dictionary in dictionaries_of(spec()) if dictionary.name == "events.word")
    tables: list[Columns] = [{"word": pa.array(["one", "two"] * 4)}, {"word": pa.array(["two", "three"] * 4)}]
    entries, indices = build_dictionary(word, tables)
    assert entries["word"].type == pa.string()
    assert [entries["word"].take(part).to_pylist() for part in indices] == [t["word"].to_pylist() for t in tables]
    with pytest.raises(DataError, match=r'strings of events.word.word .* Set encoding = "plain"'):
        build_dictionary(word, [{"word": pa.array([f"{n:020}" for n in range(9)])}])
