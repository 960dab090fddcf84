"""Mutants: broken pipelines and damaged datasets with one error each, which the audit must find.

There are three types. "break" replaces a function of the pipeline while a log is built. "rewrite" changes rows of a
valid dataset and writes them with matching checksums and counts, so that only the content is wrong. "damage" changes
files of a valid dataset. A mutant must change what is stored, and both the audit of all users and the audit of a
sample must find it.
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
from longbatch.pipelines import delayed_labels, history_ends, kernel, parse, valid_rows
from longbatch.pipelines import request_grouping as grouping
from longbatch.pipelines.content_hash import content_hash
from longbatch.pipelines.kernel import BuiltBucket
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.format.manifest import CountName
from longbatch.schemas.format.shard_writer import write_shard
from longbatch.schemas.format.shards_table import ShardsTable
from longbatch.schemas.format.snapshot import commit, fingerprint
from longbatch.schemas.spec.build_spec import BuildSpec, Users, load_spec
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.tables import requests_schema, timelines_schema
from longbatch.validation.audit.audit import audit

pytestmark = pytest.mark.slow

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
DELAYED_LABELS = SPEC.replace('{ like = "int8" }', '{ click = { aggregate = "any", within = "20s" } }') + CLICKS


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a log of 30 users with 9 requests each; requests are ten seconds and five events apart.

    Of each five events the second arrives seven seconds late. The fourth arrives in the second of the next request if
    that is an odd one; the fifth has the id of the next request and is visible before it, if it is even. The last of
    three targets is a second late. Clicks are, in turn, at the time of a request, at the end of its label window, and
    a microsecond before the end. Some events are duplicated, and some request ids have two users.
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
def valid(log: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build the dataset of each spec."""
    folder = tmp_path_factory.mktemp("valid")
    specs = (SPEC, IN_ORDER, HEAVY_USERS, SESSIONS, DELAYED_LABELS)
    return {spec: built(log, spec, folder / str(number)) for number, spec in enumerate(specs)}


@dataclass(frozen=True)
class Mutant:
    """A change to a build or a dataset of `spec`, and what audits of all users and of a sample must find."""

    mutant_type: str
    change: Callable[..., None]
    finding: str
    sample_finding: str
    spec: str


MUTANTS: dict[str, Mutant] = {}
Decorator = Callable[[Callable[..., None]], Callable[..., None]]


def mutant(mutant_type: str, finding: str, spec: str = SPEC, sample_finding: str | None = None) -> Decorator:
    """Register a mutant under the name of its function."""

    def register(change: Callable[..., None]) -> Callable[..., None]:
        MUTANTS[change.__name__] = Mutant(mutant_type, change, finding, sample_finding or finding, spec)
        return change

    return register


breaks, rewrites, damages = (partial(mutant, name) for name in ("break", "rewrite", "damage"))
ONE = r"user \d+, request \d+: "
OTHER_EVENT = ONE + r"event \d+ of its history is \(.*\), but \(.*\) according to the raw log"
LONGER = ONE + r"its history has 5 events, but 4 according to the raw log"
SHORTER = ONE + r"its history has 7 events, but 8 according to the raw log"
LOST, FOREIGN = ONE + "is in the raw log, but not in the dataset", ONE + "is in the dataset, but not in the raw log"
OTHER_TARGETS = ONE + r"targets is \[.*\], but \[.*\] according to the raw log"


# Broken histories and timelines


def change_bucket(patch: Patch, change: Callable[[BuiltBucket], BuiltBucket]) -> None:
    """Change the result of the kernel for each bucket."""
    original = kernel.build_bucket
    patch.setattr(tasks, "build_bucket", lambda *arguments: change(original(*arguments)))


def wrap(patch: Patch, module: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace a function by `around(original, *arguments)`."""
    patch.setattr(module, name, partial(around, getattr(module, name)))


@breaks(LONGER)
def events_at_the_request_time_visible(patch: Patch) -> None:
    a_microsecond_later = pl.col("request_time") + 1
    wrap(
        patch,
        history_ends,
        "_visible_rows",
        lambda rows, events, requests: rows(events, requests.with_columns(a_microsecond_later)),
    )


@breaks(OTHER_EVENT)
def oldest_events_instead_of_newest(patch: Patch) -> None:
    change_bucket(patch, lambda bucket: replace(bucket, history_end=np.minimum(bucket.history_end, 8)))


@breaks(SHORTER)
def histories_one_event_too_short(patch: Patch) -> None:
    change_bucket(patch, lambda bucket: replace(bucket, history_end=np.minimum(bucket.history_end, 7)))


@breaks(ONE + "its history has 6 events, but 4 according to the raw log")
def event_time_instead_of_visible_time(patch: Patch) -> None:
    patch.setattr(valid_rows, "visible_time", lambda spec: pl.col("time#time(s,None,UTC)"))


@breaks(OTHER_EVENT)
def delay_ignored(patch: Patch) -> None:
    def without_delay(spec: BuildSpec) -> BuildSpec:
        return spec.model_copy(update={"history": spec.history.model_copy(update={"delay": "0s"})})

    wrap(patch, valid_rows, "visible_time", lambda visible_time, spec: visible_time(without_delay(spec)))


@breaks(OTHER_EVENT)
def own_events_in_the_history(patch: Patch) -> None:
    patch.setattr(history_ends, "_before_own_events", lambda spec, timelines, requests, end: end)


@breaks(r"user \d+: event \d+ of the block is out of order", spec=IN_ORDER)
def unsorted_timeline(patch: Patch) -> None:
    change_bucket(patch, with_swapped_events)


@breaks(OTHER_EVENT)
def unsorted_timeline_of_late_events(patch: Patch) -> None:
    change_bucket(patch, with_swapped_events)


def with_swapped_events(bucket: BuiltBucket) -> BuiltBucket:
    """Swap each pair of neighboring events."""
    events = bucket.timelines.events
    return replace(bucket, timelines=replace(bucket.timelines, events=events[np.arange(events.height) ^ 1]))


@breaks(OTHER_EVENT)
def history_of_another_user(patch: Patch) -> None:
    def of_the_user_before(bucket: BuiltBucket) -> BuiltBucket:
        starts = np.unique(bucket.event_start)
        before = np.append(starts[0], starts)[np.searchsorted(starts, bucket.event_start)]
        return replace(bucket, event_start=before)

    change_bucket(patch, of_the_user_before)


# Broken rows and values


@breaks(ONE + r"request_time is \d{13}, but \d{16} according to the raw log")
def seconds_read_as_milliseconds(patch: Patch) -> None:
    patch.setitem(parse.UNIT_US, "s", 1_000)


@breaks(ONE + r"request_time is \d+2000000, but \d+1000000 according to the raw log")
def latest_row_time_instead_of_earliest(patch: Patch) -> None:
    def latest(first_of_each: Callable[..., pl.DataFrame], targets: pl.DataFrame, starts: Any, columns: Any) -> Any:
        times = np.maximum.reduceat(targets["request_time"].to_numpy(), starts)
        return first_of_each(targets, starts, columns).with_columns(pl.Series("request_time", times))

    wrap(patch, grouping, "_first_of_each", latest)


@breaks(OTHER_EVENT)
def duplicates_kept(patch: Patch) -> None:
    patch.setattr(valid_rows, "repeated_rows", lambda rows, order: np.zeros(rows.height, dtype=np.bool_))


@breaks(OTHER_EVENT)
def null_read_as_zero(patch: Patch) -> None:
    change_bucket(patch, lambda b: replace(b, timelines=replace(b.timelines, events=b.timelines.events.fill_null(0))))


@breaks(FOREIGN)
def conflicting_request_accepted(patch: Patch) -> None:
    def accepting(run: Any, spec: Any, rows: Any, log_facts: Any, carried: Any) -> Any:
        return run(spec, rows, replace(log_facts, conflicts=None), carried)

    wrap(patch, tasks, "build_bucket", accepting)


@breaks(FOREIGN, SESSIONS)
def session_ends_at_its_gap(patch: Patch) -> None:
    wrap(patch, grouping, "_session_starts", lambda run, user, time, gap_us, most: run(user, time, gap_us - 1, most))


@breaks(OTHER_EVENT + "|" + ONE + "its history has", HEAVY_USERS)
def heavy_user_not_capped(patch: Patch) -> None:
    wrap(patch, kernel, "apply_user_policies", lambda judge, users, events, targets: judge(Users(), events, targets))


# Broken labels


def shift_windows(patch: Patch, start_us: int, end_us: int) -> None:
    def shifted(windows: Any, values: Any, group: Any, start: Any, within_us: int) -> Any:
        return windows(values, group, start + start_us, within_us - start_us + end_us)

    wrap(patch, delayed_labels, "_counted_ranges", shifted)


@breaks(OTHER_TARGETS, DELAYED_LABELS)
def label_window_a_microsecond_longer(patch: Patch) -> None:
    shift_windows(patch, 0, 1)


@breaks(OTHER_TARGETS, DELAYED_LABELS)
def label_window_a_microsecond_shorter(patch: Patch) -> None:
    shift_windows(patch, 0, -1)


@breaks(OTHER_TARGETS, DELAYED_LABELS)
def label_window_without_the_request_time(patch: Patch) -> None:
    shift_windows(patch, 1, 0)


@breaks(FOREIGN, DELAYED_LABELS)
def pending_request_not_left_out(patch: Patch) -> None:
    patch.setattr(kernel, "closed_requests", lambda spec, requests, log_end: np.ones(requests.height, dtype=np.bool_))


@breaks(
    r"the snapshot lists \d+ us as the end of the actions, but it is \d+ us according to the raw log", DELAYED_LABELS
)
def log_end_off_by_a_microsecond(patch: Patch) -> None:
    wrap(patch, local, "canonicalize_chunk", with_later_log_end)


def with_later_log_end(canonicalize_chunk: Callable[..., Any], *arguments: Any) -> Any:
    canonical = canonicalize_chunk(*arguments)
    latest = canonical.latest_action
    return replace(canonical, latest_action=None if latest is None else latest + 1)


# Changed rows of a valid dataset, with matching checksums and counts


@rewrites(LOST)
def one_user_dropped(timelines: Rows, requests: Rows) -> None:
    del timelines[1]
    requests[:] = [request for request in requests if request["timeline_row"] != 1]
    for request in requests:
        request["timeline_row"] -= request["timeline_row"] > 1


@rewrites(OTHER_TARGETS, sample_finding="The log has 810 accepted targets, but the requests of the dataset have 811")
def one_target_duplicated(timelines: Rows, requests: Rows) -> None:
    requests[5]["targets"].append(requests[5]["targets"][-1])


@rewrites(ONE + "is out of order or a duplicate")
def duplicate_request(timelines: Rows, requests: Rows) -> None:
    requests.insert(5, requests[5])


@rewrites(ONE + "is duplicated in the block")
def request_id_of_the_previous_request(timelines: Rows, requests: Rows) -> None:
    requests[5]["request_id"] = requests[4]["request_id"]


@rewrites(OTHER_TARGETS)
def labels_flipped(timelines: Rows, requests: Rows) -> None:
    for target in (target for request in requests for target in request["targets"]):
        target["like"] = 1 - target["like"]


# Damaged files


@damages(r"shard 0 \(timelines/.*\), block \d+: was altered")
def flipped_bit(dataset: Path, valid: dict[str, Path]) -> None:
    (path,) = dataset.glob("timelines/*.arrow")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@damages("requests/.* is listed in the snapshot but missing")
def missing_shard(dataset: Path, valid: dict[str, Path]) -> None:
    (path,) = dataset.glob("requests/*.arrow")
    path.unlink()


@damages("timelines/.*(was altered|has .* bytes, but the snapshot lists)")
def files_of_another_build(dataset: Path, valid: dict[str, Path]) -> None:
    """Replace the files of one build by those of another."""
    for table in ("timelines", "requests"):
        (own,), (other,) = dataset.glob(f"{table}/*"), valid[IN_ORDER].glob(f"{table}/*")
        shutil.copy(other, own)


@damages("all shards together contain 30 users, but the snapshot lists 31")
def wrong_count_in_the_snapshot(dataset: Path, valid: dict[str, Path]) -> None:
    (snapshot,) = dataset.glob("snapshots/*.json")
    snapshot.write_text(snapshot.read_text().replace('"users": 30', '"users": 31'))


# The audit of each mutant


def rewritten(valid: Path, out: Path, change: Callable[[Rows, Rows], None]) -> Path:
    """Change the rows of a dataset's first block, and commit it with matching checksums and counts."""
    shutil.copytree(valid, out)
    dataset = open_dataset(valid)
    blocks = []
    for number, block in enumerate(dataset.blocks()):
        timelines, requests = block.timelines.to_pylist(), block.requests.to_pylist()
        if number == 0:
            change(timelines, requests)
        schemas = timelines_schema(dataset.spec), requests_schema(dataset.spec)
        blocks.append(
            (
                pa.RecordBatch.from_pylist(timelines, schemas[0]),
                pa.RecordBatch.from_pylist(requests, schemas[1]),
            )
        )
    shard = write_shard(LocalStore(out), 0, "changed", dataset.spec, blocks)
    assert shard is not None
    names: tuple[CountName, ...] = ("segments", "requests", "targets", "history_events")
    stored = shard.total_events
    counts = replace(
        dataset.counts,
        users=shard.total_segments,
        stored=stored,
        stored_with_overlap=stored,
        beyond_history=dataset.counts.events - dataset.counts.after_last_request - stored,
        **{name: getattr(shard, f"total_{name}") for name in names},
    )
    shards = ShardsTable.from_entries([shard])
    new_fingerprint = fingerprint(dataset.spec, shards)
    commit(
        LocalStore(out), replace(dataset.snapshot, number=2, shards=shards, counts=counts, fingerprint=new_fingerprint)
    )
    return out


def make(mutant: Mutant, log: Path, valid: dict[str, Path], out: Path) -> Path:
    if mutant.mutant_type == "break":
        with pytest.MonkeyPatch.context() as patch:
            mutant.change(patch)
            return built(log, mutant.spec, out)
    if mutant.mutant_type == "rewrite":
        return rewritten(valid[mutant.spec], out, mutant.change)
    shutil.copytree(valid[mutant.spec], out)
    mutant.change(out, valid)
    return out


def contents(dataset: Path, damaged: bool) -> Any:
    """Return the content hash of a dataset, or the hash of every file."""
    if damaged:
        files = sorted(path for path in dataset.rglob("*") if path.is_file())
        return {path.relative_to(dataset): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    opened = open_dataset(dataset)
    return content_hash(opened.blocks(), opened.spec.history_length)


@pytest.mark.parametrize(
    "spec",
    [SPEC, IN_ORDER, HEAVY_USERS, SESSIONS, DELAYED_LABELS],
    ids=["spec", "in order", "heavy_users", "sessions", "delayed labels"],
)
def test_a_valid_build_has_no_findings(valid: dict[str, Path], spec: str) -> None:
    result = audit(valid[spec], users=None)
    assert result.findings == []
    assert result.users_checked == USERS
    assert audit(valid[spec]).findings == []


@pytest.mark.parametrize("name", MUTANTS)
def test_the_audit_finds_every_mutant(name: str, log: Path, valid: dict[str, Path], tmp_path: Path) -> None:
    mutant = MUTANTS[name]
    dataset = make(mutant, log, valid, tmp_path / "dataset")
    damaged = mutant.mutant_type == "damage"
    assert contents(dataset, damaged) != contents(valid[mutant.spec], damaged), "the mutant changed nothing"
    for result, expected in (
        (audit(dataset, users=None), mutant.finding),
        (audit(dataset), mutant.sample_finding),
    ):
        assert any(re.search(expected, finding) for finding in result.findings), result.findings
