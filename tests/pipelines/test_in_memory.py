"""The whole build in memory: the number of buckets changes nothing, and conflicts are found across buckets."""

from __future__ import annotations

import polars as pl

from longbatch.pipelines.arrays.hashing import hash_string
from longbatch.pipelines.in_memory import InMemoryDataset, build_in_memory
from longbatch.schemas.accounting import RowAccounting
from longbatch.schemas.spec.build_spec import BuildSpec

T = 1_700_000_000
TIME = {"column": "time", "unit": "s"}
USER = {"column": "user", "type": "string"}
SPEC = BuildSpec.model_validate(
    {
        "history_length": 2,
        "sources": {"log": {"path": "log.parquet"}},
        "history": {"source": "log", "user_id": USER, "item_id": "item", "event_time": TIME},
        "requests": {
            "source": "log",
            "user_id": USER,
            "item_id": "item",
            "request_time": TIME,
            "request_id": "request",
        },
    }
)
LOG = pl.DataFrame(
    [
        {"user": "ann", "item": 1, "time": T, "request": 1},
        {"user": "ann", "item": 2, "time": T + 1, "request": 2},
        {"user": "ann", "item": 2, "time": T + 1, "request": 2},
        {"user": "bob", "item": 3, "time": T + 2, "request": 3},
        {"user": "cid", "item": 4, "time": T + 3, "request": 9},
        {"user": "dan", "item": 5, "time": T + 4, "request": 9},
        {"user": None, "item": 6, "time": T + 5, "request": 4},
    ]
)


def requests(built: InMemoryDataset) -> list[tuple[int, int]]:
    ends = [(row["request_id"], row["history_end"]) for _, batch in built.blocks for row in batch.to_pylist()]
    return sorted(ends)


def test_the_number_of_buckets_changes_only_the_blocks() -> None:
    one, many = build_in_memory(SPEC, {"log": LOG}), build_in_memory(SPEC, {"log": LOG}, buckets=8)
    assert requests(one) == requests(many) == [(1, 0), (2, 1), (3, 0)]
    assert one.row_accounting == many.row_accounting
    assert one.counts == many.counts
    assert one.vocabulary.equals(many.vocabulary)
    assert (len(one.blocks), len(many.blocks)) == (1, 2)


def test_the_accounting_has_an_outcome_for_every_row() -> None:
    built = build_in_memory(SPEC, {"log": LOG}, buckets=3)
    reasons = {"conflicting_request": 2, "missing_user": 1}
    assert built.row_accounting == {"log": RowAccounting(rows=7, rejected=3, duplicate=1, accepted=3, reasons=reasons)}
    assert (built.counts.targets, built.counts.events) == (3, 3)


def test_the_vocabulary_maps_hashed_users_to_their_strings() -> None:
    words = build_in_memory(SPEC, {"log": LOG}).vocabulary
    assert sorted(words["string"]) == ["ann", "bob", "cid", "dan"]
    assert hash_string(words["string"]).to_list() == words["id"].to_list()
