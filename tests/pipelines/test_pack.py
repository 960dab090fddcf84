"""Packing: every history whole in one segment, every block bounded, every event accounted for."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa
from arrow_values import lists_of, values_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longbatch.pipelines.canonicalize import canonicalize
from longbatch.pipelines.kernel import BuiltBucket, build_bucket
from longbatch.pipelines.pack import SEGMENT_BLOCKS, pack, plan_blocks, plan_segments
from longbatch.schemas.accounting import Counts
from longbatch.schemas.spec.build_spec import BuildSpec

T = 1_700_000_000
often = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def spec_of(history_length: int, block_events: int, block_targets: int) -> BuildSpec:
    both = {"user_id": "user", "item_id": "item"}
    return BuildSpec.model_validate(
        {
            "history_length": history_length,
            "block_events": block_events,
            "block_targets": block_targets,
            "sources": {"plays": {"path": "plays.parquet"}, "shown": {"path": "shown.parquet"}},
            "history": {"source": "plays", **both, "event_time": {"column": "time", "unit": "s"}},
            "requests": {
                "source": "shown",
                **both,
                "request_time": {"column": "time", "unit": "s"},
                "labels": {"click": "int8"},
            },
        }
    )


def bucket_of(spec: BuildSpec, plays: list[tuple[int, int]], shown: list[tuple[int, int, int]]) -> BuiltBucket:
    """Events (user, second) and requests (user, second, number of targets)."""
    events = pl.DataFrame(plays, schema=["user", "time"], orient="row").with_columns(item=pl.int_range(pl.len()))
    targets = [(user, second, item) for user, second, count in shown for item in range(count)]
    impressions = pl.DataFrame(targets, schema=["user", "time", "item"], orient="row").with_columns(click=pl.lit(1))
    raw = {"plays": events, "shown": impressions}
    timed = {name: frame.with_columns(pl.col("time") + T) for name, frame in raw.items()}
    return build_bucket(spec, {name: canonicalize(frame, spec, name).rows for name, frame in timed.items()})


def packed(spec: BuildSpec, bucket: BuiltBucket) -> tuple[list[tuple[pa.RecordBatch, pa.RecordBatch]], Counts]:
    blocks, counts = pack(bucket, spec)
    return list(blocks), counts


def events_on_disk(blocks: list[tuple[pa.RecordBatch, pa.RecordBatch]]) -> list[list[int]]:
    return [[event["item_id"] for event in row["events"]] for batch, _ in blocks for row in batch.to_pylist()]


def test_a_user_is_one_segment_with_the_reachable_events_only() -> None:
    """Events at seconds 0 to 9; requests at 5 and 8 include two events each: 3 to 7 of ten."""
    spec = spec_of(2, 100, 100)
    blocks, counts = packed(spec, bucket_of(spec, [(1, second) for second in range(10)], [(1, 5, 1), (1, 8, 2)]))
    ((timelines, requests),) = blocks
    assert events_on_disk(blocks) == [[3, 4, 5, 6, 7]]
    assert timelines.drop_columns("events").to_pylist() == [{"user_id": 1, "segment": 0}]
    assert requests["history_end"].to_pylist() == [2, 5]
    assert values_of(requests["timeline_row"]) == [0, 0]
    assert [len(targets) for targets in lists_of(requests["targets"])] == [1, 2]
    assert counts == Counts(
        users=1,
        segments=1,
        requests=2,
        targets=3,
        events=10,
        stored=5,
        stored_with_overlap=5,
        beyond_history=3,
        after_last_request=2,
        history_events=4,
    )


def test_a_heavy_user_is_split_into_segments_that_overlap_by_the_history_length() -> None:
    """60 events, a request before each, at most 3 visible: spans of max(4 x 2, 4 x 3) = 12 overlap by 3."""
    spec = spec_of(3, 2, 100)
    bucket = bucket_of(spec, [(1, second) for second in range(60)], [(1, second, 1) for second in range(61)])
    segments = plan_segments(bucket, spec)
    bounds = list(zip(segments.event_start.tolist(), segments.event_end.tolist(), strict=True))
    assert bounds[:3] == [(0, 12), (10, 21), (19, 30)]
    assert bounds[-1][1] == 60
    for (_, end), (start, _) in pairwise(bounds):
        assert end - 3 < start <= end, "the next segment begins with the history of its own first request"
    assert segments.segment.tolist() == list(range(len(bounds)))


def test_a_heavy_user_with_few_requests_stores_nothing_between_them() -> None:
    spec = spec_of(3, 2, 100)
    bucket = bucket_of(spec, [(1, second) for second in range(60)], [(1, 5, 1), (1, 50, 1)])
    blocks, counts = packed(spec, bucket)
    assert events_on_disk(blocks) == [[2, 3, 4], [47, 48, 49]]
    assert (counts.stored, counts.beyond_history, counts.after_last_request, counts.segments) == (6, 44, 10, 2)


def test_users_without_events_have_empty_timelines() -> None:
    spec = spec_of(3, 2, 100)
    blocks, counts = packed(spec, bucket_of(spec, [(1, 0)], [(2, 5, 1), (3, 5, 1)]))
    assert events_on_disk(blocks) == [[], []]
    assert (counts.events, counts.stored, counts.after_last_request, counts.users) == (1, 0, 1, 2)


def test_no_requests_make_no_blocks() -> None:
    spec = spec_of(3, 2, 100)
    blocks, counts = packed(spec, bucket_of(spec, [(1, 0), (1, 1)], []))
    assert blocks == []
    assert counts == Counts(events=2, after_last_request=2)


def test_users_share_blocks_up_to_the_budget() -> None:
    spec = spec_of(3, 8, 100)
    plays = [(user, second) for user in range(10) for second in range(3)]
    bucket = bucket_of(spec, plays, [(user, 9, 1) for user in range(10)])
    segments = plan_segments(bucket, spec)
    bounds = plan_blocks(segments, bucket.requests.target_offsets, spec).tolist()
    assert bounds == [0, 3, 6, 8, 10]


def test_a_request_with_fifty_thousand_targets_is_stored_in_one_block() -> None:
    spec = spec_of(3, 1_000, 1_000)
    bucket = bucket_of(spec, [(1, 0), (2, 0)], [(1, 5, 50_000), (1, 6, 1), (2, 5, 2)])
    blocks, counts = packed(spec, bucket)
    sizes = [len(targets) for _, requests in blocks for targets in lists_of(requests["targets"])]
    assert sorted(sizes) == [1, 2, 50_000]
    big = next(requests for _, requests in blocks if len(lists_of(requests["targets"])[0]) == 50_000)
    assert big.num_rows == 1, "whatever follows the budget's end is in another block"
    assert lists_of(big["targets"])[0][49_999]["item_id"] == 49_999
    assert counts.targets == 50_003


def test_a_user_with_many_requests_is_split_by_targets() -> None:
    spec = spec_of(3, 100, 10)
    bucket = bucket_of(spec, [(1, second) for second in range(20)], [(1, second, 4) for second in range(20)])
    blocks, counts = packed(spec, bucket)
    assert [len(requests) for _, requests in blocks] == [3, 2, 3, 2, 3, 2, 3, 2]
    assert counts.segments == 8
    assert counts.stored == 19
    assert counts.stored_with_overlap == sum(len(events) for events in events_on_disk(blocks))


logs = st.tuples(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60)), max_size=80),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(1, 4)), max_size=25),
)


@often
@given(logs, st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_packing_any_log_keeps_the_accounting_identities(
    log: tuple[list[tuple[int, int]], list[tuple[int, int, int]]], length: int, block_events: int, block_targets: int
) -> None:
    spec = spec_of(length, block_events, block_targets)
    bucket = bucket_of(spec, *log)
    segments = plan_segments(bucket, spec)
    starts = segments.event_start[segments.request_segment]
    ends = segments.event_end[segments.request_segment]
    end = (bucket.event_start + bucket.history_end)[segments.request_order]
    start = (bucket.event_start + np.maximum(0, bucket.history_end - length))[segments.request_order]
    assert (starts <= start).all(), "a segment begins with the whole history of each of its requests"
    assert (end <= ends).all()
    assert sorted(segments.request_order.tolist()) == list(range(len(bucket.history_end)))
    span = SEGMENT_BLOCKS * max(block_events, length)
    assert ((segments.event_end - segments.event_start) <= span).all()

    blocks, counts = packed(spec, bucket)
    counts.check(len(bucket.timelines.events))
    assert counts.stored + counts.beyond_history + counts.after_last_request == counts.events
    on_disk = events_on_disk(blocks)
    assert counts.stored == len({item for events in on_disk for item in events})
    assert counts.stored_with_overlap == sum(map(len, on_disk))
    assert counts.segments == len(on_disk)
    for timelines, requests in blocks:
        sizes = [len(events) for events in lists_of(timelines["events"])]
        assert sum(sizes[:-1]) < 2 * block_events, "only the last segment of a block may go beyond the budget"
        target_counts = [len(targets) for targets in lists_of(requests["targets"])]
        before_last = [
            n for n, row in zip(target_counts, values_of(requests["timeline_row"]), strict=True) if row < len(sizes) - 1
        ]
        assert sum(before_last) < 2 * block_targets + 4
