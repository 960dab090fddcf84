"""The build spec: its defaults, its shorthands, and the errors for invalid specs."""

from __future__ import annotations

import math
import pickle
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from longbatch.schemas.errors import SpecError
from longbatch.schemas.spec.build_spec import BuildSpec, load_spec, parse_spec
from longbatch.schemas.spec.columns import Feature, Label, duration_us
from longbatch.schemas.spec.source import Source

SPEC = """
[sources.log]
path = "log/*.parquet"
[history]
source = "log"
user_id = "user_id"
item_id = "item_id"
event_time = { column = "time", unit = "ms" }
[history.features]
author_id = "int32"
[requests]
source = "log"
user_id = "user_id"
item_id = "item_id"
request_time = { column = "time", unit = "ms" }
request_id = "request_id"
[requests.features]
tab = { type = "int8", default = -1 }
[requests.target_features]
price = "float32"
[requests.labels]
click = "int8"
"""


def with_lines(after: str, *lines: str, spec: str = SPEC) -> str:
    """The spec with lines added after the line `after`."""
    assert f"\n{after}\n" in spec
    return spec.replace(f"\n{after}\n", "\n".join(["", after, *lines, ""]))


def with_line(old: str, new: str, spec: str = SPEC) -> str:
    assert old in spec
    return spec.replace(old, new)


def test_a_short_spec_takes_the_defaults() -> None:
    spec = parse_spec(SPEC)
    assert (spec.name, spec.history_length, spec.compression, spec.max_rejected) == ("dataset", 10_000, "zstd", 0.01)
    assert spec.time_range == (datetime(1990, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
    assert (spec.history.delay_us, spec.history.arrival_time, spec.history.request_id) == (0, None, None)
    assert spec.one_log


def test_shorthands_are_expanded() -> None:
    spec = parse_spec(SPEC)
    assert spec.sources["log"].path == ("log/*.parquet",)
    assert spec.history.user_id.model_dump() == {"column": "user_id", "type": "int64"}
    assert spec.history.features == {"author_id": Feature(column="author_id", type="int32")}
    assert spec.requests.features == {"tab": Feature(column="tab", type="int8", default=-1)}
    assert spec.requests.labels == {"click": Label(column="click", type="int8")}


def test_a_single_list_to_explode_may_be_a_string() -> None:
    spec = parse_spec(with_lines('path = "log/*.parquet"', 'explode = { lists = "items" }'))
    assert spec.sources["log"].explode is not None
    assert spec.sources["log"].explode.lists == ("items",)


def test_a_label_contained_in_a_list_has_no_default_column() -> None:
    spec = parse_spec(with_line('click = "int8"', 'click = { contained_in = "clicked" }'))
    assert spec.requests.labels["click"] == Label(contained_in="clicked", type="int8")


UNKNOWN = [
    ("[sources.log]", 'pth = "x"', "sources.log.pth: unknown key; did you mean `path`?"),
    ("[sources.log]", 'explode = { list = "x" }', "sources.log.explode.list: unknown key; did you mean `lists`?"),
    (
        "[sources.log]",
        'explode = { string = { column = "x", fields = ["y"], seperator = " " } }',
        "sources.log.explode.string.seperator: unknown key; did you mean `separator`?",
    ),
    ("[history]", 'were = "x"', "history.were: unknown key; did you mean `where`?"),
    ("[requests]", 'label = "x"', "requests.label: unknown key; did you mean `labels`?"),
    (
        "[history]",
        'arrival_time = { column = "x", units = "s" }',
        "history.arrival_time.units: unknown key; did you mean `unit`?",
    ),
    (
        "[history]",
        'request_id = { column = "x", typ = "string" }',
        "history.request_id.typ: unknown key; did you mean `type`?",
    ),
    (
        "[history.features]",
        'x_id = { typ = "int8", type = "int8" }',
        "history.features.x_id.typ: unknown key; did you mean `type`?",
    ),
    (
        "[requests.features]",
        'x = { type = "int8", defualt = 1 }',
        "requests.features.x.defualt: unknown key; did you mean `default`?",
    ),
    (
        "[requests.target_features]",
        'x = { type = "int8", colum = "y" }',
        "requests.target_features.x.colum: unknown key; did you mean `column`?",
    ),
    (
        "[requests.labels]",
        'x = { contained_in = "y", defaults = 1 }',
        "requests.labels.x.defaults: unknown key; did you mean `default`?",
    ),
]


@pytest.mark.parametrize(("after", "line", "message"), UNKNOWN)
def test_an_unknown_key_names_the_most_similar_known_key(after: str, line: str, message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        parse_spec(with_lines(after, line))


@pytest.mark.parametrize(
    ("line", "similar"), [("history_len = 5", "history_length"), ("compresion = 'lz4'", "compression")]
)
def test_an_unknown_top_level_key_names_the_most_similar_known_key(line: str, similar: str) -> None:
    with pytest.raises(SpecError, match=f"unknown key; did you mean `{similar}`"):
        parse_spec(f"{line}\n{SPEC}")


def test_an_unknown_key_without_a_similar_one_lists_the_known_keys() -> None:
    with pytest.raises(SpecError, match=r"history\.zzz: unknown key; known keys: arrival_time, delay, event_time"):
        parse_spec(with_lines("[history]", "zzz = 1"))


def test_all_problems_are_listed_in_one_error() -> None:
    text = with_line("[history]", "[history]\nwere = 1\ndelay = 'soon'")
    with pytest.raises(SpecError) as caught:
        parse_spec(text, "my.toml")
    first, *problems = str(caught.value).splitlines()
    assert first == "my.toml is not a valid build spec:"
    assert len(problems) == 2


def test_a_missing_key_is_named() -> None:
    with pytest.raises(SpecError, match=r"requests\.request_time: required key is missing; add it to the spec"):
        parse_spec(with_line('request_time = { column = "time", unit = "ms" }\n', ""))


SECTION = "the spec: "
INVALID = [
    ("int32", "int33", r"history\.features\.author_id\.type: Input should be 'int8', .* \(found 'int33'\)"),
    ('unit = "ms" }\n[history', 'unit = "min" }\n[history', r"history\.event_time\.unit: Input should be 's', 'ms'"),
    (
        "[sources.log]",
        "history_length = 0\n[sources.log]",
        r"history_length: .* greater than or equal to 1 \(found 0\)",
    ),
    ("[sources.log]", "max_rejected = 2\n[sources.log]", r"max_rejected: .* less than or equal to 1 \(found 2\)"),
    ("[sources.log]", "compression = 'gzip'\n[sources.log]", r"compression: Input should be 'zstd', 'lz4' or 'none'"),
    (
        "[sources.log]",
        "time_range = [2020-01-01T00:00:00, 2021-01-01T00:00:00]\n[sources.log]",
        r"time_range.*timezone",
    ),
    ('path = "log/*.parquet"', 'path = "x.csv"\nseparator = "||"', r"sources\.log\.separator: .* at most 1 character"),
    ('path = "log/*.parquet"', "path = []", r"sources\.log\.path: .* at least 1 item"),
    ("author_id =", '"author-id" =', r"history\.features\.author-id.*should match pattern"),
    (
        'path = "log/*.parquet"',
        'path = "x.csv"\nexplode = { position = "rank" }',
        r"sources\.log\.explode: explode needs exactly one of `lists` and `string`",
    ),
    (
        'path = "log/*.parquet"',
        'path = "x.csv"\nexplode = { string = { column = "x", fields = ["a", "b"] } }',
        r"sources\.log\.explode\.string: several fields need a `field_separator`",
    ),
    (
        'click = "int8"',
        'click = { column = "click", contained_in = "clicked" }',
        r"requests\.labels\.click: a label needs exactly one of `column`, `contained_in` and `aggregate`",
    ),
    (
        'price = "float32"',
        'click = "float32"',
        r"requests: \['click'\] are both target features and labels; rename one",
    ),
    (
        "author_id =",
        "event_time =",
        r"\['event_time'\] are reserved for columns of the format; rename these features",
    ),
    ("tab =", "history =", r"\['history'\] are reserved for columns of the format"),
    ("tab =", "segment =", r"\['segment'\] are reserved for columns of the format"),
    (
        '[history]\nsource = "log"',
        '[history]\nsource = "logs"',
        r"history\.source is 'logs', which is not one of the sources \['log'\]",
    ),
    (
        "[history]",
        '[sources.more]\npath = "x.csv"\n[history]',
        r"sources \['more'\] are not used by history or requests; remove them",
    ),
    (
        'item_id = "item_id"\nevent_time',
        'item_id = "item_id"\nrequest_id = { column = "request_id", type = "string" }\nevent_time',
        r"history\.request_id and requests\.request_id have different types, so no request would match",
    ),
    (
        'user_id = "user_id"\nitem_id = "item_id"\nevent_time',
        'user_id = "uid"\nitem_id = "item_id"\nevent_time',
        r"history and requests read the same source, so they must have the same user_id column",
    ),
    (
        "[sources.log]",
        "max_rejected_for = { missing_user = 2 }\n[sources.log]",
        r"max_rejected_for must have shares of rows",
    ),
    ('price = "float32"', 'price = { type = "float32", min = 2, max = 1 }', r"min 2 is greater than max 1; change one"),
    ('price = "float32"', 'price = { type = "string", min = 2 }', r"min and max apply to numbers, not to string"),
    (
        'price = "float32"',
        'price = { type = "float32", values = [1] }',
        r"`values` must be integers or strings, but the type is float32",
    ),
    ('"int32"', '{ type = "int8", values = [1, 300] }', r"values \[1, 300\] are not all of type int8"),
    ('"int32"', '{ type = "id", values = [1, "a"] }', r"values \[1, 'a'\] are not all of type id"),
    (
        'click = "int8"',
        'click = { column = "x", at_least = 1, max = 3 }',
        r"`at_least` yields 0 or 1; declare min, max",
    ),
    (
        'click = "int8"',
        'click = { at_least = 1, type = "float32" }',
        r"`at_least` needs a `column` and yields 0 or 1",
    ),
    (
        'click = "int8"',
        'click = { column = "x", within = "1h" }',
        r"`within` and `where` apply only to a label with an `aggr",
    ),
    (
        'click = "int8"',
        'x = { aggregate = "any", within = "1h", at_least = 2 }',
        r"cannot be combined with `contained_in` or",
    ),
    (
        'click = "int8"',
        'click = { contained_in = "x", max = 1 }',
        r"min, max and values need a `column`, which this label",
    ),
    ('click = "int8"', 'x = { aggregate = "any" }', r"an aggregate needs `within`, the time after the request"),
    ('click = "int8"', 'x = { aggregate = "sum", within = "1h" }', r"sum and max need a `column`"),
    ('click = "int8"', 'x = { aggregate = "any", column = "y", within = "1h" }', r"any and count must not have one"),
    (
        'click = "int8"',
        'x = { aggregate = "count", type = "float32", within = "1h" }',
        r"a count needs an integer type, not float32",
    ),
    (
        'click = "int8"',
        'x = { aggregate = "max", column = "y", type = "bool", within = "1h" }',
        r"need a numeric type, not bool",
    ),
    ('click = "int8"', 'x = { aggregate = "any", within = "1h", default = 1 }', r"only max takes a `default`"),
    (
        'click = "int8"',
        'x = { aggregate = "any", within = "1h" }',
        r"labels \['x'\] have an `aggregate`; name the log",
    ),
    (
        'click = "int8"',
        'x = { aggregate = "mean", within = "1h" }',
        r"aggregate: Input should be 'any', 'count', 'sum' or 'm",
    ),
    (
        'request_id = "request_id"',
        'request_id = "r"\nsession_gap = "1m"',
        r"request_id already defines the requests; remove it",
    ),
    ('request_id = "request_id"', 'session_gap = "1 minute"', r"requests\.session_gap: '1 minute' is not a duration"),
    ('request_id = "request_id"', "max_targets = 0", r"requests\.max_targets: .* greater than or equal to 1"),
    (
        "[sources.log]",
        "[users]\nmax_events = 2\nmin_events = 3\n[sources.log]",
        r"max_events 2 is less than min_events 3",
    ),
    (
        "[sources.log]",
        "[users]\nmax_event = 2\n[sources.log]",
        r"users\.max_event: unknown key; did you mean `max_events`",
    ),
    (
        'path = "log/*.parquet"',
        'path = "t"\nformat = "table"\n'
        'synthetic_time = { column = "x", start = 2020-01-01T00:00:00Z, per_file = "1d" }',
        r"synthetic_time counts the rows of files, which a table does not have",
    ),
    (
        'path = "log/*.parquet"',
        'path = "log/*.csv"\nseparator = "§"',
        r"separator and quote must be ASCII characters; convert the files",
    ),
    (
        'path = "log/*.parquet"',
        'path = "log/*.parquet"\nversion = 3',
        r'`version` needs format = "delta"; set the format or remove `version`',
    ),
    (
        'path = "log/*.parquet"',
        'path = "log"\nformat = "delta"\nsnapshot = 3',
        r'`snapshot` needs format = "iceberg"; set the format or remove `snapshot`',
    ),
    (
        'path = "log/*.parquet"',
        'path = ["a", "b"]\nformat = "delta"',
        r'a source of format "delta" is one table; use one source for each table',
    ),
]


ACTIONS = """
[actions]
source = "log"
user_id = "user_id"
item_id = "item_id"
event_time = { column = "time", unit = "ms" }
"""
DELAYED = 'click = { aggregate = "any", within = "30m", where = "clicked" }'


def test_the_type_of_a_delayed_label_follows_from_its_aggregate() -> None:
    labels = (
        'a = { aggregate = "any", within = "1h" }\nb = { aggregate = "count", within = "1h" }\n'
        'c = { aggregate = "sum", column = "x", within = "1h" }\n'
        'd = { aggregate = "max", column = "x", within = "90s", type = "float32" }'
    )
    spec = parse_spec(with_line('click = "int8"', labels) + ACTIONS)
    assert {name: label.type for name, label in spec.requests.delayed_labels.items()} == {
        "a": "int8",
        "b": "int32",
        "c": "int64",
        "d": "float32",
    }
    assert spec.requests.labels["d"].within_us == 90_000_000


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (DELAYED, 'click = "int8"', r"there is a section \[actions\], but no label has an `aggregate`"),
        (
            '[actions]\nsource = "log"',
            '[actions]\nsource = "done"',
            r"actions\.source is 'done', which is not one of the sources",
        ),
        (
            '[actions]\nsource = "log"\nuser_id = "user_id"',
            '[actions]\nsource = "log"\nuser_id = "u"',
            r"actions and requ",
        ),
        (
            '[actions]\nsource = "log"\nuser_id = "user_id"\nitem_id = "item_id"',
            '[actions]\nsource = "log"\nuser_id = "user_id"\nitem_id = { column = "item_id", type = "string" }',
            r"actions\.item_id and requests\.item_id have different types, so no item would match",
        ),
    ],
)
def test_inconsistent_actions_are_rejected(old: str, new: str, message: str) -> None:
    text = with_line('click = "int8"', DELAYED) + ACTIONS
    parse_spec(text)
    with pytest.raises(SpecError, match=message):
        parse_spec(with_line(old, new, text))


def test_paths_of_suites_are_relative_to_the_folder_of_the_spec(tmp_path: Path) -> None:
    path = tmp_path / "spec.toml"
    path.write_text(SPEC + '[expectations]\nevents = "own.json"\nrequests = "/far/other.json"\n')
    expectations = load_spec(path).expectations
    assert expectations.suites == {
        "events": str(tmp_path / "own.json"),
        "impressions": None,
        "requests": "/far/other.json",
    }


def test_synthetic_time_starts_at_a_multiple_of_per_file() -> None:
    line = 'synthetic_time = { column = "time", start = 2020-01-01T00:00:00Z, per_file = "7d" }'
    spec = parse_spec(with_lines('path = "log/*.parquet"', line))
    time = spec.sources["log"].synthetic_time
    assert time is not None
    assert time.of_file(0) == 1_577_836_800_000_000
    assert time.of_file(2) == time.of_file(0) + 14 * 86_400_000_000


@pytest.mark.parametrize(("old", "new", "message"), INVALID)
def test_invalid_values_are_rejected(old: str, new: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(SPEC.replace(old, new, 1))


def test_a_request_id_of_the_history_needs_one_of_the_requests() -> None:
    text = with_lines("[history]", 'request_id = "request_id"').replace(
        'unit = "ms" }\nrequest_id = "request_id"', 'unit = "ms" }'
    )
    with pytest.raises(SpecError, match=r"history\.request_id is mapped but requests\.request_id is not; map both"):
        parse_spec(text)


def test_user_ids_of_two_logs_must_have_the_same_type() -> None:
    text = with_line(
        '[history]\nsource = "log"\nuser_id = "user_id"',
        '[history]\nsource = "plays"\nuser_id = { column = "uid", type = "string" }',
    )
    with pytest.raises(SpecError, match=r"user_id and requests\.user_id have different types, so no user would match"):
        parse_spec(with_line("[history]", '[sources.plays]\npath = "plays.csv"\n[history]', text))


DEFAULTS = [
    ("int8", "127", True),
    ("int8", "128", False),
    ("int8", "-129", False),
    ("int8", "1.5", False),
    ("int8", "true", False),
    ("int8", '"x"', False),
    ("int64", "9223372036854775807", True),
    ("float32", "1", True),
    ("float32", "nan", True),
    ("float32", "true", False),
    ("float32", '"1"', False),
    ("bool", "true", True),
    ("bool", "1", True),
    ("bool", "2", False),
    ("string", '"x"', True),
    ("string", "1", False),
    ("id", "1", True),
    ("id", '"x"', True),
    ("id", "1.5", False),
]


@pytest.mark.parametrize(("type_name", "default", "fits"), DEFAULTS)
def test_a_default_must_have_the_type_of_its_feature(type_name: str, default: str, fits: bool) -> None:
    text = with_line('type = "int8", default = -1', f'type = "{type_name}", default = {default}')
    if fits:
        parse_spec(text)
        return
    with pytest.raises(SpecError, match=rf"features\.tab: default .* is not of type {type_name}; change one of them"):
        parse_spec(text)


def test_a_default_must_have_the_type_of_its_label() -> None:
    with pytest.raises(SpecError, match=r"labels\.click: default 300 is not of type int8; change one of them"):
        parse_spec(with_line('click = "int8"', 'click = { type = "int8", default = 300 }'))


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("5s", 5_000_000),
        ("250ms", 250_000),
        ("7us", 7),
        ("2m", 120_000_000),
        (" 2 h ", 7_200_000_000),
        ("1d", 86_400_000_000),
    ],
)
def test_a_duration_is_an_integer_and_a_unit(text: str, microseconds: int) -> None:
    assert duration_us(text) == microseconds


@pytest.mark.parametrize("text", ["5", "s", "1.5s", "-1s", "5 weeks", ""])
def test_other_durations_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{text!r} is not a duration; write a whole number and a unit")):
        duration_us(text)


def test_a_delay_of_centuries_is_rejected() -> None:
    with pytest.raises(
        SpecError, match=r"history\.delay: the duration is longer than a century; check its unit \(found"
    ):
        parse_spec(with_lines("[history]", 'delay = "99999999999d"'))


def test_an_unknown_time_zone_is_rejected() -> None:
    with pytest.raises(SpecError, match=r"event_time\.timezone: unknown time zone; .* \(found 'Mars/Olympus'\)"):
        parse_spec(SPEC.replace('unit = "ms" }', 'unit = "iso", timezone = "Mars/Olympus" }', 1))


def test_an_invalid_delay_names_its_key_and_value() -> None:
    with pytest.raises(SpecError, match=r"history\.delay: 'soon' is not a duration; .* such as 5s.*\(found 'soon'\)"):
        parse_spec(with_lines("[history]", 'delay = "soon"'))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.parquet", "parquet"),
        ("a.csv", "csv"),
        ("a.TSV", "csv"),
        ("a.csv.gz", "csv"),
        ("a.jsonl", "jsonl"),
        ("a.ndjson.zst", "jsonl"),
        ("a.json.bz2", "jsonl"),
        ("a.arrow", "arrow"),
        ("a.feather", "arrow"),
        ("a.ipc", "arrow"),
        ("s3://bucket/2024.01/*.parquet", "parquet"),
    ],
)
def test_the_format_is_inferred_from_the_suffix(path: str, expected: str) -> None:
    assert Source(path=(path,)).file_format == expected


def test_a_declared_format_overrides_the_suffix() -> None:
    assert Source(path=("a.parquet",), format="csv").file_format == "csv"


def test_an_unknown_suffix_is_rejected() -> None:
    with pytest.raises(
        SpecError, match=r"cannot infer the format of 'a\.txt' from its suffix; set the source's format to"
    ):
        _ = Source(path=("a.txt",)).file_format


@pytest.mark.parametrize(
    ("source", "separator"),
    [
        (Source(path=("a.csv",)), ","),
        (Source(path=("a.tsv.gz",)), "\t"),
        (Source(path=("a.TSV",)), "\t"),
        (Source(path=("a.csv",), separator=";"), ";"),
    ],
)
def test_the_separator_is_inferred_from_the_suffix(source: Source, separator: str) -> None:
    assert source.field_separator == separator


def test_paths_are_relative_to_the_folder_of_the_spec(tmp_path: Path) -> None:
    paths = 'path = ["log/*.parquet", "../a.parquet", "/data/b.parquet", "s3://bucket/c.parquet"]'
    (tmp_path / "spec.toml").write_text(with_line('path = "log/*.parquet"', paths))
    assert load_spec(tmp_path / "spec.toml").sources["log"].path == (
        f"{tmp_path}/log/*.parquet",
        f"{tmp_path}/../a.parquet",
        "/data/b.parquet",
        "s3://bucket/c.parquet",
    )


def test_paths_are_relative_to_the_url_of_the_spec() -> None:
    paths = 'path = ["log/*.parquet", "../a.parquet", "/data/b.parquet", "gs://bucket/c.parquet"]'
    spec = parse_spec(with_line('path = "log/*.parquet"', paths)).with_paths_from("s3://bucket/specs")
    assert spec.sources["log"].path == (
        "s3://bucket/specs/log/*.parquet",
        "s3://bucket/a.parquet",
        "/data/b.parquet",
        "gs://bucket/c.parquet",
    )


def test_the_name_of_a_table_is_not_a_path() -> None:
    spec = parse_spec(with_line('path = "log/*.parquet"', 'path = "catalog.log"\nformat = "table"'))
    assert spec.with_paths_from(Path("/somewhere")).sources["log"].path == ("catalog.log",)
    iceberg = Source(path=("prod.db.log",), format="iceberg")
    metadata = Source(path=("log/v1.metadata.json",), format="iceberg")
    spec = spec.model_copy(update={"sources": {"a": iceberg, "b": metadata}}).with_paths_from(Path("/somewhere"))
    assert [source.path for source in spec.sources.values()] == [
        ("prod.db.log",),
        ("/somewhere/log/v1.metadata.json",),
    ]


def test_a_document_that_is_not_toml_is_rejected() -> None:
    with pytest.raises(SpecError, match=r"my\.toml is not valid TOML: .*line 1"):
        parse_spec("path: log", "my.toml")


def test_a_missing_spec_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot read the spec .*none\.toml: No such file"):
        load_spec(tmp_path / "none.toml")


def test_a_spec_file_that_is_not_utf8_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"spec\.toml is not UTF-8 text"):
        load_spec(tmp_path / "spec.toml")


def test_a_spec_survives_json_and_pickle() -> None:
    spec = parse_spec(
        with_lines('path = "log/*.parquet"', 'quote = ""', 'explode = { lists = ["items"], position = "rank" }')
    )
    assert BuildSpec.model_validate_json(spec.model_dump_json()) == spec
    assert BuildSpec.model_validate(spec.model_dump(mode="json", exclude_none=True)) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


@pytest.mark.parametrize("written", ["nan", "inf"])
def test_a_default_of_nan_or_infinity_survives_json(written: str) -> None:
    spec = parse_spec(with_line('price = "float32"', f'price = {{ type = "float32", default = {written} }}'))
    read = BuildSpec.model_validate_json(spec.model_dump_json())
    default: Any = read.requests.target_features["price"].default
    assert math.isnan(default) if written == "nan" else default == math.inf


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse_spec(SPEC).history_length = 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            'made_time = { column = "time", start = 2020-01-01T00:00:00Z, per_file = "7d" }',
            r"sources\.log\.made_time: this key was renamed; write `synthetic_time`",
        ),
        (
            'explode = { text = { column = "x", fields = ["y"] } }',
            r"sources\.log\.explode\.text: this key was renamed; write `string`",
        ),
    ],
)
def test_a_renamed_key_names_the_new_key(line: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec(with_lines('path = "log/*.parquet"', line))
