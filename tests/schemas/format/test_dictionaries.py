"""Dictionaries: which a spec has, what is in them, and that places in them give back every column."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longbatch.schemas.errors import DataError, DatasetError
from longbatch.schemas.format import dictionaries
from longbatch.schemas.format.dictionaries import (
    Dictionary,
    build_dictionary,
    dictionaries_batch,
    dictionaries_of,
    dictionaries_schema,
    read_dictionaries,
)
from longbatch.schemas.spec.build_spec import BuildSpec, parse_spec

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
features = { author = "int32", place = "string", count = "int32" }
[requests]
source = "log"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
target_features = { author = "int32", query = "id" }
"""
ITEMS = Dictionary("items", "#item", (pa.field("item_id", pa.int64()), pa.field("author", pa.int32())), ("events",))


def spec(**changes: str) -> BuildSpec:
    text = SPEC
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return parse_spec(text)


def names(of: BuildSpec) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(found.name, found.column, found.tables) for found in dictionaries_of(of)]


def test_items_and_text_and_hashed_ids_have_dictionaries() -> None:
    assert names(spec()) == [
        ("items", "#item", ("events", "targets")),
        ("events.place", "place", ("events",)),
        ("targets.query", "query", ("targets",)),
    ]
    assert dictionaries_schema(spec()).names == ["items.item_id", "items.author", "events.place", "targets.query"]


def test_targets_whose_author_is_of_another_type_keep_it() -> None:
    assert names(
        parse_spec(SPEC.replace('target_features = { author = "int32"', 'target_features = { author = "int64"'))
    )[0] == ("items", "#item", ("events",))


def test_ids_that_are_numbers_have_none_and_those_that_are_text_have() -> None:
    without = SPEC.replace('[items]\nfeatures = ["author"]\n', "")
    assert [name for name, *_ in names(parse_spec(without))] == ["events.place", "targets.query"]
    text = without.replace('item_id = "item"', 'item_id = { column = "item", type = "string" }')
    assert names(parse_spec(text))[0] == ("items", "#item", ("events", "targets"))


def test_plain_files_have_none() -> None:
    plain = SPEC.replace('[items]\nfeatures = ["author"]\n', "").replace('"zstd"', '"none"')
    assert dictionaries_of(parse_spec(plain)) == ()


def test_an_item_whose_author_varies_has_an_entry_for_each() -> None:
    events = {"item_id": pa.array([9, 7, 9, 9]), "author": pa.array([1, 2, 1, None], pa.int32())}
    targets = {"item_id": pa.array([None, 7]), "author": pa.array([5, 2], pa.int32())}
    entries, places = build_dictionary(ITEMS, [events, targets])
    assert entries["item_id"].to_pylist() == [7, 9, 9]
    assert entries["author"].to_pylist() == [2, 1, None]
    assert [place.to_pylist() for place in places] == [[1, 0, 1, 2], [None, 0]]


ids, authors = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), st.none() | st.integers(0, 2)


@given(st.lists(st.lists(st.tuples(ids, authors), max_size=20), min_size=1, max_size=3))
def test_places_give_back_every_row_and_entries_are_distinct(tables: list[list[tuple[int, int | None]]]) -> None:
    columns = [
        {"item_id": pa.array([i for i, _ in rows], pa.int64()), "author": pa.array([a for _, a in rows], pa.int32())}
        for rows in tables
    ]
    entries, places = build_dictionary(ITEMS, columns)
    held = list(zip(entries["item_id"].to_pylist(), entries["author"].to_pylist(), strict=True))
    assert len(set(held)) == len(held)
    assert [item for item, _ in held] == sorted(item for item, _ in held)
    assert [[held[place] for place in of.to_pylist()] for of in places] == tables


def test_a_float_is_told_from_another_by_its_bits() -> None:
    floats = Dictionary(
        "items", "item", (pa.field("item_id", pa.int64()), pa.field("price", pa.float32())), ("events",)
    )
    events = {"item_id": pa.array([1, 1, 1]), "price": pa.array([0.0, -0.0, float("nan")], pa.float32())}
    entries, places = build_dictionary(floats, [events])
    assert len(entries["price"]) == 3
    assert [str(entries["price"][place].as_py()) for place in places[0].to_pylist()] == ["0.0", "-0.0", "nan"]


@given(st.lists(st.tuples(ids, authors), max_size=20), st.lists(st.text()), st.lists(ids))
def test_what_is_written_to_the_file_is_read_back(
    items: list[tuple[int, int | None]], places: list[str], queries: list[int]
) -> None:
    columns = {
        "item_id": pa.array([i for i, _ in items], pa.int64()),
        "author": pa.array([a for _, a in items], pa.int32()),
    }
    (item, place, query) = dictionaries_of(spec())
    built = {
        "items": build_dictionary(item, [columns])[0],
        "events.place": build_dictionary(place, [{"place": pa.array(places, pa.string())}])[0],
        "targets.query": build_dictionary(query, [{"query": pa.array(queries, pa.int64())}])[0],
    }
    batch = dictionaries_batch(spec(), built)
    batch.validate(full=True)
    assert batch.num_rows == 1
    assert read_dictionaries(spec(), batch) == built


def test_a_file_of_two_rows_is_refused() -> None:
    empty = dictionaries_schema(spec()).empty_table().to_batches()
    batch = empty[0] if empty else pa.RecordBatch.from_pylist([], schema=dictionaries_schema(spec()))
    with pytest.raises(DatasetError, match="it has 0 rows or nulls instead of 1 row without nulls"):
        read_dictionaries(spec(), batch)


def test_columns_of_different_lengths_are_refused() -> None:
    (item, place, query) = dictionaries_of(spec())
    built = {
        "items": {"item_id": pa.array([1, 2]), "author": pa.array([1], pa.int32())},
        "events.place": {"place": pa.array(["a"])},
        "targets.query": {"query": pa.array([5])},
    }
    assert (item.name, place.name, query.name) == tuple(built)
    with pytest.raises(DatasetError, match="the columns of its dictionary 'items' differ in length"):
        read_dictionaries(spec(), dictionaries_batch(spec(), built))


def test_text_beyond_the_reach_of_32_bits_is_numbered_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dictionaries, "MAX_STRING_BYTES", 40)
    place = next(found for found in dictionaries_of(spec()) if found.name == "events.place")
    tables = [{"place": pa.array(["one", "two"] * 4)}, {"place": pa.array(["two", "three"] * 4)}]
    values, places = build_dictionary(place, tables)
    assert values["place"].type == pa.string()
    assert [values["place"].take(each).to_pylist() for each in places] == [t["place"].to_pylist() for t in tables]
    with pytest.raises(DataError, match=r'strings of events.place.place .* Set encoding = "plain"'):
        build_dictionary(place, [{"place": pa.array([f"{n:020}" for n in range(9)])}])
