"""Broken pipelines and damaged datasets: each does one thing wrong, and the audit says what.

Three kinds of mutants: a function of the pipeline is broken while a log is built; the rows of a sound dataset are
changed and written again, with checksums and counts that fit, so that only the meaning is wrong; or its files are
damaged. A mutant must change what is stored, and the audit of all users and that of a sample must both catch it.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from longbatch.jobs.build import build
from longbatch.jobs.engines import local
from longbatch.jobs.engines import stages as tasks
from longbatch.jobs.engines.local import LocalEngine
from longbatch.pipelines import delayed_labels as later
from longbatch.pipelines import kernel, parse
from longbatch.pipelines import request_grouping as grouping
from longbatch.pipelines.content_hash import content_hash
from longbatch.pipelines.kernel import Bucket
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.format.manifest import CountName
from longbatch.schemas.format.shard_writer import write_shard
from longbatch.schemas.format.snapshot import commit, fingerprint
from longbatch.schemas.spec.build_spec import BuildSpec, Users, load_spec
from longbatch.schemas.tables import requests_schema, timelines_schema
from longbatch.validation.audit.audit import audit

Rows = list[dict[str, Any]]
Patch = pytest.MonkeyPatch
USERS, REQUESTS, T = 30, 9, 1_700_000_000

SPEC = """
history_length = 8
block_events = 256
max_rejected = 0.05
time_range = [1970-01-01T00:00:00Z, 2100-01-01T00:00:00Z]
[sources.seen]
path = "seen.parquet"
[sources.shown]
path = "shown.parquet"
[history]
source = "seen"
user_id = "user"
item_id = "item"
event_time = { column = "time", unit = "s" }
arrival_time = { column = "arrival", unit = "s" }
delay = "2s"
request_id = "request"
features = { dwell = "float32" }
[requests]
source = "shown"
user_id = "user"
item_id = "item"
request_time = { column = "time", unit = "s" }
request_id = "request"
features = { tab = "int8" }
target_features = { place = "int8" }
labels = { like = "int8" }
"""
IN_ORDER = SPEC.replace('arrival_time = { column = "arrival", unit = "s" }\n', "")
HEAVY_USERS = SPEC + "[users]\nmax_events = 20\n"
SESSIONS = SPEC.replace('request_id = "request"\n', "").replace(
    "features = { tab", 'session_gap = "1s"\nfeatures = { tab'
)
CLICKS = """
[sources.clicked]
path = "clicked.parquet"
[actions]
source = "clicked"
user_id = "user"
item_id = "item"
request_id = "request"
event_time = { column = "time", unit = "us" }
"""
LATER = SPEC.replace('{ like = "int8" }', '{ click = { aggregate = "any", within = "20s" } }') + CLICKS


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 30 users with 9 requests each, ten seconds and five events apart.

    Of each five events the second arrives seven seconds late. The fourth arrives at the very second of the next
    request if that is an odd one; the fifth carries the id of the next request, and is seen before it, if it is even.
    Of three targets the last is a second late. A click comes in turn at the very time of a request, at the very end
    of its window, and a microsecond before that. Some events are there twice, and some request ids have two users.
    """
    folder = tmp_path_factory.mktemp("log")
    n, r = pl.int_range(USERS * REQUESTS * 5), pl.int_range(USERS * REQUESTS)
    k, q, user = n // USERS, n // USERS // 5, 1_000 + n % USERS
    late = pl.when(k % 5 == 1).then(7).when((k % 5 == 3) & (q % 2 == 0)).then(5).otherwise(0)
    seen = pl.select(
        user=user,
        item=n % 97,
        time=T + 2 * k,
        arrival=T + 2 * k + late,
        dwell=pl.when(n % 13 != 5).then(n % 13 / 2),
        request=pl.when((k % 5 == 4) & (q % 2 == 1)).then(user * 100 + q + 1),
    )
    pl.concat([seen, seen.gather_every(50)]).write_parquet(folder / "seen.parquet")
    user, number = 1_000 + r % USERS, r // USERS
    asked = pl.select(user=user, number=number, time=T + 1 + 10 * number, request=user * 100 + number, tab=number % 3)
    item = (pl.col("request") + pl.col("place")) % 97
    shown = asked.join(pl.DataFrame({"place": [0, 1, 2]}), how="cross").with_columns(item=item, like=item % 2)
    shown = shown.with_columns(pl.col("time") + pl.col("place") // 2)
    shared = shown.filter(place=0, number=3).with_columns(request=900_000 + pl.col("user") // 2)
    pl.concat([shown, shared]).write_parquet(folder / "shown.parquet")
    after_us = (pl.col("number") % 3).replace_strict({0: 0, 1: 20_000_000, 2: 19_999_999})
    clicked = asked.select("user", "request", item=pl.col("request") % 97, time=pl.col("time") * 1_000_000 + after_us)
    clicked.write_parquet(folder / "clicked.parquet")
    return folder


def built(log: Path, spec: str, out: Path) -> Path:
    (log / "spec.toml").write_text(spec)
    build(load_spec(log / "spec.toml"), out, engine=LocalEngine(1))
    return out


@pytest.fixture(scope="module")
def sound(log: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The dataset that each spec yields."""
    folder = tmp_path_factory.mktemp("sound")
    specs = (SPEC, IN_ORDER, HEAVY_USERS, SESSIONS, LATER)
    return {spec: built(log, spec, folder / str(number)) for number, spec in enumerate(specs)}


@dataclass(frozen=True)
class Mutant:
    """What to do to a build or a dataset, of which spec, and what the audit of all users, and of some, must find."""

    kind: str
    change: Callable[..., None]
    finding: str
    finding_of_some: str
    spec: str


MUTANTS: dict[str, Mutant] = {}
Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def mutant(kind: str, finding: str, spec: str = SPEC, of_some: str | None = None) -> Decorator:
    """Register a mutant under its function's name."""

    def register(change: Callable[..., None]) -> Callable[..., None]:
        MUTANTS[change.__name__] = Mutant(kind, change, finding, of_some or finding, spec)
        return change

    return register


breaks, rewrites, damages = (partial(mutant, kind) for kind in ("break", "rewrite", "damage"))
ONE = r"user \d+, request \d+: "
OTHER_EVENT = ONE + r"event \d+ of its history is \(.*\), but \(.*\) according to the raw log"
LONGER = ONE + r"its history has 5 events, but 4 according to the raw log"
SHORTER = ONE + r"its history has 7 events, but 8 according to the raw log"
LOST, FOREIGN = ONE + "is in the raw log, but not in the dataset", ONE + "is in the dataset, but not in the raw log"
OTHER_TARGETS = ONE + r"targets is \[.*\], but \[.*\] according to the raw log"


# Broken cuts and timelines


def change_bucket(patch: Patch, change: Callable[[Bucket], Bucket]) -> None:
    """Change what the kernel makes of a bucket."""
    original = kernel.build_bucket
    patch.setattr(tasks, "build_bucket", lambda *given: change(original(*given)))


def wrap(patch: Patch, module: Any, name: str, around: Callable[..., Any]) -> None:
    """Put `around(original, *arguments)` in the place of a function."""
    patch.setattr(module, name, partial(around, getattr(module, name)))


@breaks(LONGER)
def at_or_before_the_request_for_before(patch: Patch) -> None:
    a_microsecond_later = pl.col("request_time") + 1
    wrap(patch, kernel, "_visible_ends", lambda ends, seen, asked: ends(seen, asked.with_columns(a_microsecond_later)))


@breaks(OTHER_EVENT)
def oldest_kept_for_newest(patch: Patch) -> None:
    change_bucket(patch, lambda bucket: replace(bucket, history_end=np.minimum(bucket.history_end, 8)))


@breaks(SHORTER)
def one_event_too_few_kept(patch: Patch) -> None:
    change_bucket(patch, lambda bucket: replace(bucket, history_end=np.minimum(bucket.history_end, 7)))


@breaks(ONE + "its history has 6 events, but 4 according to the raw log")
def event_time_for_visible_time(patch: Patch) -> None:
    patch.setattr(kernel, "visible_time", lambda spec: pl.col("time#time(s,None,UTC)"))


@breaks(OTHER_EVENT)
def the_delay_forgotten(patch: Patch) -> None:
    def prompt(spec: BuildSpec) -> BuildSpec:
        return spec.model_copy(update={"history": spec.history.model_copy(update={"delay": "0s"})})

    wrap(patch, kernel, "visible_time", lambda visible_time, spec: visible_time(prompt(spec)))


@breaks(OTHER_EVENT)
def own_impressions_in_the_history(patch: Patch) -> None:
    patch.setattr(kernel, "_before_own_events", lambda spec, timelines, requests, end: end)


@breaks(r"user \d+: event \d+ of the block is out of order", spec=IN_ORDER)
def an_unsorted_timeline(patch: Patch) -> None:
    change_bucket(patch, with_swapped_events)


@breaks(OTHER_EVENT)
def an_unsorted_timeline_of_late_events(patch: Patch) -> None:
    change_bucket(patch, with_swapped_events)


def with_swapped_events(bucket: Bucket) -> Bucket:
    """Every second event in front of the first."""
    events = bucket.timelines.events
    return replace(bucket, timelines=replace(bucket.timelines, events=events[np.arange(events.height) ^ 1]))


@breaks(OTHER_EVENT)
def history_of_the_wrong_user(patch: Patch) -> None:
    def of_the_user_before(bucket: Bucket) -> Bucket:
        starts = np.unique(bucket.event_start)
        before = np.append(starts[0], starts)[np.searchsorted(starts, bucket.event_start)]
        return replace(bucket, event_start=before)

    change_bucket(patch, of_the_user_before)


# Broken rows and values


@breaks(ONE + r"request_time is \d{13}, but \d{16} according to the raw log")
def seconds_read_as_milliseconds(patch: Patch) -> None:
    patch.setitem(parse.UNIT_US, "s", 1_000)


@breaks(ONE + r"request_time is \d+2000000, but \d+1000000 according to the raw log")
def the_latest_row_of_a_request_for_the_earliest(patch: Patch) -> None:
    def latest(first_of_each: Callable[..., pl.DataFrame], targets: pl.DataFrame, starts: Any, columns: Any) -> Any:
        times = np.maximum.reduceat(targets["request_time"].to_numpy(), starts)
        return first_of_each(targets, starts, columns).with_columns(pl.Series("request_time", times))

    wrap(patch, grouping, "_first_of_each", latest)


@breaks(OTHER_EVENT)
def duplicates_kept(patch: Patch) -> None:
    patch.setattr(kernel, "repeated_rows", lambda rows, order: np.zeros(rows.height, dtype=np.bool_))


@breaks(OTHER_EVENT)
def a_null_read_as_zero(patch: Patch) -> None:
    change_bucket(patch, lambda b: replace(b, timelines=replace(b.timelines, events=b.timelines.events.fill_null(0))))


@breaks(FOREIGN)
def a_request_of_two_users_accepted(patch: Patch) -> None:
    def accepting(run: Any, spec: Any, rows: Any, facts: Any, carried: Any) -> Any:
        return run(spec, rows, replace(facts, conflicts=None), carried)

    wrap(patch, tasks, "build_bucket", accepting)


@breaks(FOREIGN, SESSIONS)
def a_session_ends_at_its_gap(patch: Patch) -> None:
    wrap(patch, grouping, "_session_starts", lambda run, user, time, gap_us, most: run(user, time, gap_us - 1, most))


@breaks(OTHER_EVENT + "|" + ONE + "its history has", HEAVY_USERS)
def a_heavy_user_not_capped(patch: Patch) -> None:
    wrap(patch, kernel, "apply_user_policies", lambda judge, users, events, targets: judge(Users(), events, targets))


# Broken labels


def shift_windows(patch: Patch, start_us: int, end_us: int) -> None:
    def shifted(windows: Any, values: Any, group: Any, start: Any, within_us: int) -> Any:
        return windows(values, group, start + start_us, within_us - start_us + end_us)

    wrap(patch, later, "_counted_ranges", shifted)


@breaks(OTHER_TARGETS, LATER)
def a_label_window_a_microsecond_longer(patch: Patch) -> None:
    shift_windows(patch, 0, 1)


@breaks(OTHER_TARGETS, LATER)
def a_label_window_a_microsecond_shorter(patch: Patch) -> None:
    shift_windows(patch, 0, -1)


@breaks(OTHER_TARGETS, LATER)
def a_label_window_that_opens_after_the_request(patch: Patch) -> None:
    shift_windows(patch, 1, 0)


@breaks(FOREIGN, LATER)
def an_open_window_not_held_back(patch: Patch) -> None:
    patch.setattr(kernel, "closed_requests", lambda spec, requests, log_end: np.ones(requests.height, dtype=np.bool_))


@breaks(r"the snapshot lists \d+ us as the end of the actions, but it is \d+ us according to the raw log", LATER)
def the_end_of_the_actions_off_by_a_microsecond(patch: Patch) -> None:
    wrap(patch, local, "type_chunk", with_a_later_end)


def with_a_later_end(type_chunk: Callable[..., Any], *given: Any) -> Any:
    typed = type_chunk(*given)
    return replace(typed, latest_action=None if typed.latest_action is None else typed.latest_action + 1)


# Rows of a sound dataset that were changed, with all that goes with them


@rewrites(LOST)
def one_user_dropped(timelines: Rows, requests: Rows) -> None:
    del timelines[1]
    requests[:] = [request for request in requests if request["timeline_row"] != 1]
    for request in requests:
        request["timeline_row"] -= request["timeline_row"] > 1


@rewrites(OTHER_TARGETS, of_some="810 targets accepted, but 811 in requests")
def one_target_duplicated(timelines: Rows, requests: Rows) -> None:
    requests[5]["targets"].append(requests[5]["targets"][-1])


@rewrites(ONE + "is out of order or a duplicate")
def a_request_twice(timelines: Rows, requests: Rows) -> None:
    requests.insert(5, requests[5])


@rewrites(ONE + "is duplicated in the block")
def a_request_again_at_another_time(timelines: Rows, requests: Rows) -> None:
    requests[5]["request_id"] = requests[4]["request_id"]


@rewrites(OTHER_TARGETS)
def labels_turned(timelines: Rows, requests: Rows) -> None:
    for target in (target for request in requests for target in request["targets"]):
        target["like"] = 1 - target["like"]


# Damaged files


@damages(r"shard 0 \(timelines/.*\), block \d+: was altered")
def a_flipped_bit(dataset: Path, sound: dict[str, Path]) -> None:
    (path,) = dataset.glob("timelines/*.arrow")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@damages("requests/.* is listed in the snapshot but missing")
def a_missing_shard(dataset: Path, sound: dict[str, Path]) -> None:
    (path,) = dataset.glob("requests/*.arrow")
    path.unlink()


@damages("timelines/.*(was altered|has .* bytes, but the snapshot lists)")
def a_stale_manifest(dataset: Path, sound: dict[str, Path]) -> None:
    """The snapshot of one build, with the files of another in the place of its own."""
    for table in ("timelines", "requests"):
        (mine,), (others,) = dataset.glob(f"{table}/*"), sound[IN_ORDER].glob(f"{table}/*")
        shutil.copy(others, mine)


@damages("all shards together contain 30 users, but the snapshot lists 31")
def a_manifest_that_miscounts(dataset: Path, sound: dict[str, Path]) -> None:
    (snapshot,) = dataset.glob("snapshots/*.json")
    snapshot.write_text(snapshot.read_text().replace('"users": 30', '"users": 31'))


# What the audit says


def rewritten(sound: Path, out: Path, change: Callable[[Rows, Rows], None]) -> Path:
    """Change the rows of a dataset's first block, and commit it with checksums and counts that fit."""
    shutil.copytree(sound, out)
    dataset = open_dataset(sound)
    blocks = []
    for number, block in enumerate(dataset.blocks()):
        timelines, requests = block.timelines.to_pylist(), block.requests.to_pylist()
        if number == 0:
            change(timelines, requests)
        schemas = timelines_schema(dataset.spec), requests_schema(dataset.spec)
        blocks.append(tuple(map(pa.RecordBatch.from_pylist, (timelines, requests), schemas)))
    shard = write_shard(out, 0, "changed", dataset.spec, blocks)
    assert shard is not None
    names: tuple[CountName, ...] = ("segments", "requests", "targets", "history_events")
    stored = shard.total_events
    counts = replace(
        dataset.counts,
        users=shard.total_segments,
        stored=stored,
        stored_with_overlap=stored,
        beyond_history=dataset.counts.events - dataset.counts.after_last_request - stored,
        **{name: shard.total(name) for name in names},
    )
    print_of = fingerprint(dataset.spec, (shard,))
    commit(out, replace(dataset.snapshot, number=2, shards=(shard,), counts=counts, fingerprint=print_of))
    return out


def make(mutant: Mutant, log: Path, sound: dict[str, Path], out: Path) -> Path:
    if mutant.kind == "break":
        with pytest.MonkeyPatch.context() as patch:
            mutant.change(patch)
            return built(log, mutant.spec, out)
    if mutant.kind == "rewrite":
        return rewritten(sound[mutant.spec], out, mutant.change)
    shutil.copytree(sound[mutant.spec], out)
    mutant.change(out, sound)
    return out


def contents(dataset: Path, damaged: bool) -> Any:
    """What is stored: its hash, or that of every file."""
    if damaged:
        files = sorted(path for path in dataset.rglob("*") if path.is_file())
        return {path.relative_to(dataset): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    opened = open_dataset(dataset)
    return content_hash(opened.blocks(), opened.spec.history_length)


@pytest.mark.parametrize(
    "spec", [SPEC, IN_ORDER, HEAVY_USERS, SESSIONS, LATER], ids=["spec", "in order", "heavy_users", "sessions", "later"]
)
def test_nothing_is_found_in_a_sound_build(sound: dict[str, Path], spec: str) -> None:
    found = audit(sound[spec], users=None)
    assert found.findings == []
    assert found.users_checked == USERS
    assert audit(sound[spec]).findings == []


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name: str, log: Path, sound: dict[str, Path], tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    dataset = make(mutant, log, sound, tmp_path / "dataset")
    damaged = mutant.kind == "damage"
    assert contents(dataset, damaged) != contents(sound[mutant.spec], damaged), "the mutant changed nothing"
    for found, expected in (
        (audit(dataset, users=None), mutant.finding),
        (audit(dataset), mutant.finding_of_some),
    ):
        assert any(re.search(expected, finding) for finding in found.findings), found.findings
