from __future__ import annotations

import math
import pickle
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from block_rows import Row, event, random_shards, request, request_ids, target, time_of, timeline, write_dataset
from torch.utils.data import DataLoader

from longbatch.loaders import RequestBatch, RequestDataset, StochasticLength, make_dataloader
from longbatch.loaders.dataset_index import DatasetIndex, Shards
from longbatch.loaders.plan import Order
from longbatch.schemas.errors import DatasetError, SpecError
from longbatch.schemas.format.dataset import open_dataset
from longbatch.schemas.time import to_microseconds
from longbatch.schemas.types import Int64Array


def listed(batch: RequestBatch) -> list[Row]:
    """The requests of a batch as plain values, so that batches can be compared."""
    requests = []
    for r in range(batch.num_requests):
        events = slice(batch.history_offsets[r], batch.history_offsets[r + 1])
        targets = slice(batch.target_offsets[r], batch.target_offsets[r + 1])
        requests.append(
            {
                "request_id": int(batch.request_id[r]),
                "user_id": int(batch.user_id[r]),
                "request_time": int(batch.request_time[r]),
                "requests": {name: values[r].item() for name, values in batch.requests.items()},
                "history": {name: values[events].tolist() for name, values in batch.history.items()},
                "targets": {name: values[targets].tolist() for name, values in batch.targets.items()},
                "labels": {name: values[targets].tolist() for name, values in batch.labels.items()},
            }
        )
    return requests


def scanned(path: Path, length: int | None) -> list[Row]:
    """The same plain values, read row by row from `open_dataset(path).scan()`: the slow reference."""
    requests = []
    for batch in open_dataset(path).scan(length):
        for row in batch.to_pylist():
            history = {
                name: [to_microseconds(e[name]) if name == "event_time" else e[name] for e in row["history"]]
                for name in ("item_id", "event_time", "author_id", "ratio")
            }
            requests.append(
                {
                    "request_id": row["request_id"],
                    "user_id": row["user_id"],
                    "request_time": to_microseconds(row["request_time"]),
                    "requests": {"tab": row["tab"]},
                    "history": history,
                    "targets": {n: [t[n] for t in row["targets"]] for n in ("item_id", "author_id")},
                    "labels": {n: [t[n] for t in row["targets"]] for n in ("click", "like", "dwell")},
                }
            )
    return requests


@pytest.mark.parametrize("length", [None, 50, 7, 0])
def test_batches_contain_what_a_scan_of_the_dataset_yields(random_dataset: Path, length: int | None) -> None:
    batches = list(RequestDataset(random_dataset, batch_size=7, history_length=length))
    assert [request for batch in batches for request in listed(batch)] == scanned(random_dataset, length)


def test_shuffled_batches_contain_the_same_requests_and_mix_users(random_dataset: Path) -> None:
    dataset = RequestDataset(random_dataset, batch_size=16, shuffle=True, window_blocks=4)
    batches = list(dataset)
    requests = sorted((r for batch in batches for r in listed(batch)), key=lambda r: r["request_id"])
    assert requests == scanned(random_dataset, None)
    assert request_ids(batches) != sorted(request_ids(batches))
    assert all(len(set(batch.user_id.tolist())) > 4 for batch in batches[:-1])


def test_a_batch_of_literal_rows(tmp_path: Path) -> None:
    timelines = [
        timeline(1, [event(10, 1), event(11, 2), event(12, 3)]),
        timeline(2, []),
    ]
    requests = [
        request(100, 1, 0, 2, 1, [target(20)]),
        request(101, 1, 0, 9, 3, [target(21), target(22)]),
        request(102, 2, 1, 5, 0, [target(23)]),
    ]
    write_dataset(tmp_path / "d", [[(timelines, requests)]])
    (batch,) = RequestDataset(tmp_path / "d", history_length=2)
    assert batch.history["item_id"].tolist() == [10, 11, 12]
    assert batch.history_offsets.tolist() == [0, 1, 3, 3]
    assert batch.target_offsets.tolist() == [0, 1, 3, 4]
    assert batch.labels["click"].tolist() == [0, 1, 0, 1]
    assert batch.request_time[0] == to_microseconds(time_of(2))
    assert batch.history["item_id"].dtype == torch.int64
    assert batch.labels["click"].dtype == torch.int8
    assert (batch.num_requests, batch.num_targets, batch.num_events) == (3, 4, 3)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_sequence_of_batches_depends_on_neither_workers_nor_world(
    random_dataset: Path, num_workers: int, shuffle: bool
) -> None:
    options: dict[str, Any] = {"batch_size": 7, "shuffle": shuffle, "seed": 3, "streams": 3, "window_blocks": 2}
    expected = [listed(batch) for batch in RequestDataset(random_dataset, **options)]
    for world_size in (1, 3):
        ranks = []
        for rank in range(world_size):
            dataset = RequestDataset(random_dataset, rank=rank, world_size=world_size, **options)
            ranks.append(list(make_dataloader(dataset, num_workers=num_workers)))
            assert len(ranks[-1]) == len(dataset)
        found = [batch for step in zip(*ranks, strict=True) for batch in step]
        assert [listed(batch) for batch in found if not batch.is_padding] == expected
        assert all(batch.is_padding for batch in found[len(expected) :])


def test_a_rank_without_data_yields_an_empty_batch_of_the_same_columns(random_dataset: Path) -> None:
    first, *_, padding = list(RequestDataset(random_dataset, batch_size=7, rank=19, world_size=20))
    assert padding.is_padding
    assert (padding.num_requests, padding.num_targets, padding.num_events) == (0, 0, 0)
    assert padding.history_offsets.tolist() == padding.target_offsets.tolist() == [0]
    for role in ("history", "targets", "labels", "requests"):
        dtypes = [{name: values.dtype for name, values in getattr(b, role).items()} for b in (first, padding)]
        assert dtypes[0] == dtypes[1]


def test_drop_last_leaves_only_full_steps(random_dataset: Path) -> None:
    total = len(scanned(random_dataset, 0))
    batches: list[RequestBatch] = []
    for rank in range(2):
        batches += RequestDataset(random_dataset, batch_size=7, drop_last=True, rank=rank, world_size=2)
    assert len(batches) == total // 7 // 2 * 2
    assert all(batch.num_requests == 7 and not batch.is_padding for batch in batches)


def test_epochs_differ_and_reach_persistent_workers(random_dataset: Path) -> None:
    dataset = RequestDataset(random_dataset, batch_size=7, shuffle=True)
    loader = make_dataloader(dataset, num_workers=2)
    orders = []
    for epoch in (0, 1, 1):
        dataset.set_epoch(epoch)
        orders.append(request_ids(loader))
    assert orders[1] == orders[2] == request_ids(RequestDataset(random_dataset, batch_size=7, shuffle=True, epoch=1))
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_iteration_can_start_at_any_step(random_dataset: Path) -> None:
    dataset = RequestDataset(random_dataset, batch_size=7, shuffle=True, rank=0, world_size=2)
    whole = list(dataset)
    dataset.position.set(0, 10)
    assert len(dataset) == len(whole) - 5
    assert request_ids(dataset) == request_ids(whole[5:])


def test_time_ranges_split_the_requests(random_dataset: Path) -> None:
    noon = time_of(43_200)
    older = RequestDataset(random_dataset, before=noon, shuffle=True, batch_size=7)
    newer = RequestDataset(random_dataset, after=noon, batch_size=7)
    assert all((batch.request_time < to_microseconds(noon)).all() for batch in older)
    assert all((batch.request_time >= to_microseconds(noon)).all() for batch in newer)
    assert sorted(request_ids(older) + request_ids(newer)) == sorted(request_ids(RequestDataset(random_dataset)))
    assert len(older) == len(list(older))
    nothing = RequestDataset(random_dataset, before=time_of(-1))
    assert len(nothing) == len(list(nothing)) == 0


def test_only_blocks_across_an_end_of_the_time_range_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [
        ([timeline(n, [])], [request(2 * n, n, 0, 10 * n, 0, [target(1)]), request(2 * n + 1, n, 0, 10 * n + 5, 0, [])])
        for n in range(4)
    ]
    path = write_dataset(tmp_path / "d", [blocks])
    read: list[int] = []
    request_times = DatasetIndex.request_times

    def recorded(index: DatasetIndex, shards: Shards, number: int) -> Int64Array:
        read.append(number)
        return request_times(index, shards, number)

    monkeypatch.setattr(DatasetIndex, "request_times", recorded)
    # after, before: numbers of the blocks that are read. Block n has requests at 10 n and 10 n + 5.
    ranges = {(12, 35): [1, 3], (0, 20): [], (5, 36): [0], (10, 10): [], (36, 99): [], (-9, 0): [], (13, 14): [1]}
    for (after, before), expected in ranges.items():
        read.clear()
        dataset = RequestDataset(path, after=time_of(after), before=time_of(before))
        times = [0, 5, 10, 15, 20, 25, 30, 35]
        assert request_ids(dataset) == [number for number, time in enumerate(times) if after <= time < before]
        assert read == expected


def test_a_share_of_the_requests_is_before_its_split_time(random_dataset: Path) -> None:
    times = sorted(request["request_time"] for request in scanned(random_dataset, 0))
    assert RequestDataset(random_dataset).split_time_us(0.8) == times[int(0.8 * len(times))]


def test_drawn_lengths_keep_the_newest_events_and_differ_by_epoch(random_dataset: Path) -> None:
    whole = {r["request_id"]: r["history"]["item_id"] for r in scanned(random_dataset, None)}
    dataset = RequestDataset(random_dataset, history_length=StochasticLength(8, 50), shuffle=True)
    lengths = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        found = {r["request_id"]: r["history"]["item_id"] for batch in dataset for r in listed(batch)}
        assert all(items == whole[key][len(whole[key]) - len(items) :] for key, items in found.items())
        truncated = [len(items) for key, items in found.items() if len(items) < len(whole[key])]
        assert truncated
        assert all(length % 8 == 0 for length in truncated)
        lengths.append([len(items) for _, items in sorted(found.items())])
    assert lengths[0] != lengths[1]


def test_nulls_are_zero_or_nan_and_a_null_integer_label_is_an_error(tmp_path: Path) -> None:
    timelines = [timeline(1, [event(10, 1, author_id=None, ratio=None)])]
    valid = [request(5, 1, 0, 2, 1, [target(20, dwell=None)], tab=None)]
    write_dataset(tmp_path / "valid", [[(timelines, valid)]])
    (batch,) = RequestDataset(tmp_path / "valid")
    assert batch.history["author_id"].tolist() == [0]
    assert math.isnan(batch.history["ratio"])
    assert math.isnan(batch.labels["dwell"])
    assert batch.requests["tab"].tolist() == [0]
    invalid = [request(5, 1, 0, 2, 1, [target(20, click=None)])]
    write_dataset(tmp_path / "invalid", [[(timelines, invalid)]])
    with pytest.raises(DatasetError, match=r"requests/00000-0.arrow, block 0: column 'click' has 1 nulls"):
        list(RequestDataset(tmp_path / "invalid"))
    assert "click" not in next(iter(RequestDataset(tmp_path / "invalid", columns=["like"]))).labels


def test_string_request_ids_are_read_as_row_numbers_of_the_dataset(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d", random_shards(shards=2, request_id=str), request_id="string")
    strings = [request["request_id"] for request in scanned(path, 0)]
    shuffled = request_ids(RequestDataset(path, shuffle=True, batch_size=7))
    assert sorted(shuffled) == list(range(len(strings)))
    assert [strings[i] for i in request_ids(RequestDataset(path, batch_size=7))] == strings


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_other_compressions_read_the_same(tmp_path: Path, compression: str) -> None:
    path = write_dataset(tmp_path / "d", random_shards(), compression=compression)
    assert [r for b in RequestDataset(path) for r in listed(b)] == scanned(path, None)


def test_columns_select_features_and_labels(random_dataset: Path) -> None:
    batch = next(iter(RequestDataset(random_dataset, columns=["author_id", "click"])))
    assert list(batch.history) == ["item_id", "event_time", "author_id"]
    assert list(batch.targets) == ["item_id", "author_id"]
    assert list(batch.labels) == ["click"]
    assert batch.requests == {}
    with pytest.raises(KeyError, match=r"columns \['nope'\] are not in .*'author_id', 'click'"):
        RequestDataset(random_dataset, columns=["nope"]).open()
    with pytest.raises(SpecError, match=r"columns \['title'\] of .* contain strings"):
        RequestDataset(random_dataset, columns=["title"]).open()


def test_column_types_are_those_of_the_columns_read(random_dataset: Path) -> None:
    types = RequestDataset(random_dataset).column_types()
    assert types == {
        "history": {"author_id": "int32", "ratio": "float"},
        "targets": {"author_id": "int32"},
        "labels": {"click": "int8", "like": "bool", "dwell": "float"},
        "requests": {"tab": "int8"},
    }


def test_wrong_arguments_are_errors(random_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="history_length 51 is not between 0 and 50"):
        len(RequestDataset(random_dataset, history_length=51))
    with pytest.raises(SpecError, match="history_length 80 is not between"):
        len(RequestDataset(random_dataset, history_length=StochasticLength(8, 80)))
    with pytest.raises(ValueError, match="before is 2024-01-01T00:00:00 without a time zone"):
        RequestDataset(random_dataset, before=datetime(2024, 1, 1))
    with pytest.raises(ValueError, match="epoch -1 is negative"):
        RequestDataset(random_dataset).set_epoch(-1)
    with pytest.raises(ValueError, match="rank 2 of a world of 2"):
        len(RequestDataset(random_dataset, rank=2, world_size=2))
    with pytest.raises(ValueError, match="share is 1"):
        RequestDataset(random_dataset).split_time_us(1)
    with pytest.raises(DatasetError, match="is not a dataset"):
        make_dataloader(RequestDataset(tmp_path))


def test_a_damaged_block_is_an_error_that_names_the_file_in_workers_too(tmp_path: Path) -> None:
    path = write_dataset(tmp_path / "d", random_shards(shards=1, blocks=1))
    file = next((path / "requests").iterdir())
    content = bytearray(file.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 64] = bytes(64)
    file.write_bytes(content)
    for num_workers in (0, 1):
        with pytest.raises(DatasetError, match=r"requests/00000-0\.arrow"):
            list(make_dataloader(RequestDataset(path), num_workers=num_workers))


@pytest.mark.slow
def test_rank_and_world_size_are_read_from_the_environment(
    random_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = RequestDataset(random_dataset, batch_size=7)
    whole = list(dataset)
    assert len(whole) == len(dataset)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert request_ids(list(dataset)) == request_ids(whole[1::2])


def test_a_dataset_is_pickled_without_open_files(random_dataset: Path) -> None:
    dataset = RequestDataset(random_dataset, batch_size=7, shuffle=True, epoch=2)
    list(dataset)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.epoch == 2
    assert request_ids(copy) == request_ids(dataset)


def test_the_plain_dataloader_works_too(random_dataset: Path) -> None:
    loader: DataLoader[RequestBatch] = DataLoader(RequestDataset(random_dataset, batch_size=7), batch_size=None)
    assert len(loader) == len(list(loader))


def test_open_blocks_are_bounded_by_the_windows(random_dataset: Path) -> None:
    def most_blocks(**options: Any) -> int:
        dataset = RequestDataset(random_dataset, batch_size=3, **options)
        reader = dataset.reader(0)
        most = []
        for number in range(dataset.plan().num_batches):
            reader.batch(number)
            most.append(reader.num_open_blocks)
        return max(most)

    assert most_blocks(shuffle=True, streams=2, window_blocks=2) <= 2 * 2
    assert most_blocks() == 1


def test_batches_own_their_memory(random_dataset: Path) -> None:
    batch = next(iter(RequestDataset(random_dataset)))
    for values in (*batch.history.values(), *batch.targets.values(), batch.user_id, batch.request_id):
        assert values.numpy().flags.writeable
    batch.history["item_id"].zero_()
    assert next(iter(RequestDataset(random_dataset))).history["item_id"].sum() > 0


def test_random_state_of_the_process_is_untouched(random_dataset: Path) -> None:
    numpy_state, torch_state = str(np.random.get_state()), torch.get_rng_state()  # noqa: NPY002
    list(RequestDataset(random_dataset, shuffle=True, history_length=StochasticLength(8, 48)))
    assert str(np.random.get_state()) == numpy_state  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_arguments_that_exclude_each_other_are_errors(random_dataset: Path) -> None:
    with pytest.raises(ValueError, match="batch_size 3 and max_tokens 9 are both given; give one"):
        RequestDataset(random_dataset, batch_size=3, max_tokens=9)
    with pytest.raises(ValueError, match="shuffle=True and order='time' exclude each other"):
        RequestDataset(random_dataset, shuffle=True, order="time")
    with pytest.raises(ValueError, match="histories is 'padded'; give one of 'per_request', 'shared'"):
        RequestDataset(random_dataset, histories="padded")  # type: ignore[arg-type]


def test_order_by_time_is_ascending(random_dataset: Path) -> None:
    times = torch.cat([batch.request_time for batch in RequestDataset(random_dataset, order="time", batch_size=7)])
    assert (times.diff() >= 0).all()


def test_a_budget_bounds_the_events_of_every_batch(random_dataset: Path) -> None:
    orders: tuple[Order, ...] = ("shuffled", "time", "sequential")
    for order in orders:
        dataset = RequestDataset(random_dataset, order=order, max_tokens=300, history_length=40)
        assert all(0 < batch.num_events + batch.num_requests <= 300 for batch in dataset)
