"""Property tests: labels from later events, sessions, policies and declared values, kernel against naive reference."""

from __future__ import annotations

from random import Random
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_logs import COLUMNS, IDS, Frames, T, buckets, check, every_case, features, frames, ids, small_specs, wheres

from longbatch.schemas.spec.build_spec import BuildSpec

durations = st.sampled_from(["1s", "2s", "1500ms", "1000001us", "60s"])
gaps = st.sampled_from(["0s", "1s", "999ms", "2s", "60s"])


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    """Choose who is left out, often nobody."""
    least = draw(st.sampled_from([0, 0, 1, 3]))
    most = draw(st.sampled_from([None, None, 3, 5, 8]))
    return {
        "min_events": least,
        "max_events": most,
        "over_max_events": draw(st.sampled_from(["keep_newest", "reject_user"])),
    }


@st.composite
def delayed_labels(draw: st.DrawFn) -> dict[str, Any]:
    """Choose labels from later events, of all aggregates."""
    some: dict[str, dict[str, Any]] = {
        "clicked": {"aggregate": "any", "where": "click = 1"},
        "seen": {"aggregate": "count"},
        "tabs": {"aggregate": "sum", "column": "tab", "type": draw(st.sampled_from(["int32", "int64"]))},
        "best": {"aggregate": "max", "column": "score", "type": "float32"},
        "total": {"aggregate": "sum", "column": "score", "type": "float64", "where": "flag"},
        "top": {"aggregate": "max", "column": "tab", "type": "int16", "default": -1, "where": "tab > 0"},
    }
    chosen = draw(st.lists(st.sampled_from(sorted(some)), unique=True, min_size=1, max_size=3))
    return {name: some[name] | {"within": draw(durations)} for name in chosen}


def declared(draw: st.DrawFn, mapped: dict[str, Any]) -> dict[str, Any]:
    """Declare ranges and values of some features."""
    rules = {
        "int8": {"min": 1},
        "float32": draw(st.sampled_from([{"max": 1.0}, {"min": -1.0, "max": 2.5}])),
        "string": {"values": ["a", "é"]},
        "bool": {},
    }
    return {name: feature | (rules[feature["type"]] if draw(st.booleans()) else {}) for name, feature in mapped.items()}


def spec_of(draw: st.DrawFn, string_ids: set[str], sources: tuple[str, str, str]) -> BuildSpec:
    """Draw a spec of history, requests and actions that read the given sources."""
    history, requests, actions = sources
    columns = ids(IDS, string_ids)
    named = draw(st.sampled_from(["no", "no", "requests", "all"]))
    grouping = {"session_gap": draw(gaps), "max_targets": draw(st.sampled_from([None, 1, 2, 3]))}
    labels = draw(delayed_labels()) if draw(st.booleans()) else {}
    own = {"click": {"column": "click", "default": 0}} if draw(st.booleans()) else {}
    until = draw(st.sampled_from([None, None, "2023-11-14T22:13:25Z", "2023-11-14T22:13:24.5Z"]))
    common = {"user_id": columns["user"], "item_id": columns["item"]}
    time = {"column": "time", "unit": "s"}
    spec = {
        **draw(small_specs),
        "sources": {name: {"path": f"{name}.parquet"} for name in {history, requests, *([actions] if labels else [])}},
        "users": draw(policies()),
        "history": common
        | {
            "source": history,
            "where": draw(wheres),
            "event_time": time,
            "request_id": columns["request"] if named == "all" else None,
            "features": declared(draw, features(draw)),
        },
        "requests": common
        | {
            "source": requests,
            "where": draw(wheres),
            "request_time": {"column": "asked", "unit": "s"},
            "request_id": None if named == "no" else columns["request"],
            "features": declared(draw, features(draw)),
            "target_features": declared(draw, features(draw, "target_")),
            "labels": own | labels,
        }
        | (grouping if named == "no" else {}),
    }
    if labels:
        spec["actions"] = common | {
            "source": actions,
            "where": draw(wheres),
            "event_time": time,
            "request_id": columns["request"] if named != "no" and draw(st.booleans()) else None,
            "until": until,
        }
    return BuildSpec.model_validate(spec)


@st.composite
def cases(draw: st.DrawFn) -> tuple[BuildSpec, Frames]:
    """Draw logs for one to three sources, which play one to three roles each."""
    string_ids = set(draw(st.lists(st.sampled_from(["user", "request", "item"]), unique=True)))
    sources = draw(
        st.sampled_from(
            [("a", "a", "a"), ("a", "b", "c"), ("a", "b", "a"), ("a", "b", "b"), ("a", "a", "b")],
        )
    )
    spec = spec_of(draw, string_ids, sources)
    names = [name for name in COLUMNS if name != "origin"]
    return spec, {source: draw(frames(names, string_ids)) for source in spec.sources}


@pytest.mark.slow
@every_case
@given(cases(), buckets)
def test_policies_sessions_and_delayed_labels(case: tuple[BuildSpec, Frames], buckets: int) -> None:
    check(*case, buckets)


@st.composite
def busy(draw: st.DrawFn) -> tuple[BuildSpec, Frames]:
    """Draw one user who sees and does things with two items all the time, at the bounds of all windows."""
    random = Random(draw(st.integers(0, 2**32)))
    shown = [(T + random.randint(0, 12), random.randint(1, 2)) for _ in range(draw(st.integers(1, 12)))]
    done = [
        (T + random.randint(0, 12), random.randint(1, 2), random.choice([None, 1, 100, 1e300, -0.0, 0.1]))
        for _ in range(draw(st.integers(0, 40)))
    ]
    named = {"user_id": "user", "item_id": "item"}
    time = {"column": "time", "unit": "s"}
    spec = {
        "sources": {"shown": {"path": "shown.parquet"}, "done": {"path": "done.parquet"}},
        "history": {"source": "done", **named, "event_time": time},
        "requests": {
            "source": "shown",
            **named,
            "request_time": time,
            "session_gap": draw(gaps),
            "max_targets": draw(st.sampled_from([None, 2, 5])),
            "labels": {
                "did": {"aggregate": "any", "within": draw(durations)},
                "times": {"aggregate": "count", "within": draw(durations)},
                "sum": {"aggregate": "sum", "column": "value", "type": "float64", "within": draw(durations)},
            },
        },
        "actions": {"source": "done", **named, "event_time": time},
    }
    user = pl.lit(1).alias("user")
    frames = {
        "shown": pl.DataFrame(shown, schema={"time": pl.Int64, "item": pl.Int64}, orient="row").with_columns(user),
        "done": pl.DataFrame(
            done, schema={"time": pl.Int64, "item": pl.Int64, "value": pl.Float64}, orient="row"
        ).with_columns(user),
    }
    return BuildSpec.model_validate(spec), frames


@pytest.mark.slow
@every_case
@given(busy())
def test_sessions_of_a_busy_user(case: tuple[BuildSpec, Frames]) -> None:
    check(*case, 1)
