"""The shared form is the windows form; conversions hold the same events."""

from __future__ import annotations

import pickle

import pytest
import torch

from longbatch.loaders import RequestDataset, StochasticLength, make_dataloader
from longbatch.loaders import collate as gather
from longbatch.loaders.copy_slices import join_slices_with_numpy
from longbatch.schemas.errors import MachineError


def values(batch):
    return [(field, name, tensor.dtype, tensor.tolist()) for field, name, tensor in batch.tensors() if name != "ratio"]


@pytest.mark.parametrize("order", ["shuffled", "time", "sequential"])
@pytest.mark.parametrize("length", [50, 7, StochasticLength(8, 48)])
def test_shared_timelines_hold_the_windows(random_dataset, order, length):
    options = {"batch_size": 16, "order": order, "history_length": length}
    for shared, windows in zip(
        RequestDataset(random_dataset, histories="shared", **options),
        RequestDataset(random_dataset, **options),
        strict=True,
    ):
        assert (shared.has_shared_timelines, windows.has_shared_timelines) == (True, False)
        assert values(shared.to_per_request()) == values(windows)
        assert values(shared.newest(5).to_per_request()) == values(windows.newest(5))
        assert values(shared.expand()) == values(windows.expand())
        assert len(shared.history_offsets) - 1 == shared.user_id.unique().numel()
        assert length != 50 or shared.num_events <= windows.num_events  # short histories may leave gaps between
        starts, ends = shared.spans
        rows = shared.history_rows
        assert (starts >= shared.history_offsets[rows]).all()
        assert (ends <= shared.history_offsets[rows + 1]).all()


@pytest.mark.parametrize("histories", ["per_request", "shared"])
def test_batches_are_the_same_where_nothing_was_compiled(random_dataset, monkeypatch, histories):
    here = [values(batch) for batch in RequestDataset(random_dataset, batch_size=16, histories=histories, shuffle=True)]
    monkeypatch.setattr(gather, "join_slices", join_slices_with_numpy)
    assert [values(b) for b in RequestDataset(random_dataset, batch_size=16, histories=histories, shuffle=True)] == here


def test_by_time_no_request_comes_before_an_older_one(random_dataset):
    times = torch.cat([batch.request_time for batch in RequestDataset(random_dataset, order="time", batch_size=7)])
    assert (times.diff() >= 0).all()


def test_a_budget_bounds_the_events_of_every_batch(random_dataset):
    for order in ("shuffled", "time", "sequential"):
        dataset = RequestDataset(random_dataset, order=order, max_tokens=300, history_length=40)
        assert all(0 < batch.num_events + batch.num_requests <= 300 for batch in dataset)


@pytest.mark.parametrize("histories", ["per_request", "shared"])
def test_requests_of_a_batch_are_selected_by_slice_positions_or_mask(random_dataset, histories):
    batch = next(iter(RequestDataset(random_dataset, batch_size=16, histories=histories)))
    part = batch[2:5]
    assert part.request_id.tolist() == batch.request_id[2:5].tolist()
    assert values(part) == values(batch[[2, 3, 4]])
    mask = torch.zeros(16, dtype=torch.bool)
    mask[2:5] = True
    assert values(part) == values(batch[mask])
    assert batch[:0].num_requests == batch[[]].num_targets == 0
    assert values(batch[:]) == values(batch.to_per_request())
    with pytest.raises(TypeError, match=r"request 3 alone is not a batch; give a slice, \[3:4\]"):
        batch[3]
    with pytest.raises(IndexError, match=r"a mask of shape \(3,\) for 16 requests"):
        batch[torch.ones(3, dtype=torch.bool)]


@pytest.mark.parametrize("histories", ["per_request", "shared"])
def test_padded_and_nested_histories_hold_the_same_events(random_dataset, histories):
    batch = next(iter(RequestDataset(random_dataset, batch_size=16, histories=histories)))
    windows = batch.to_per_request()
    padded, mask = batch.to_padded()
    nested = batch.to_nested()
    assert mask.sum(1).tolist() == windows.history_offsets.diff().tolist()
    assert (mask[:, 1:] >= mask[:, :-1]).all(), "padding stands in front"
    for name in ("item_id", "event_time", "author_id"):
        assert padded[name][mask].tolist() == windows.history[name].tolist()
        assert (padded[name][~mask] == 0).all()
        assert nested[name].values().tolist() == windows.history[name].tolist()
    cut, mask = batch.to_padded(3)
    assert cut["item_id"][mask].tolist() == windows.newest(3).history["item_id"].tolist()
    assert batch[:0].to_padded(4)[0]["item_id"].shape == (0, 4)


def test_keyed_jagged_tensors_need_torchrec_and_take_integers(random_dataset):
    batch = next(iter(RequestDataset(random_dataset, batch_size=4)))
    with pytest.raises(KeyError, match=r"columns \['nope'\] are not in the history"):
        batch.to_keyed_jagged(["nope"])
    with pytest.raises(ValueError, match=r"columns \['ratio'\] contain floats"):
        batch.to_keyed_jagged(["ratio"])
    try:
        import torchrec  # noqa: F401
    except ImportError:
        with pytest.raises(MachineError, match=r"install the extra longbatch\[torchrec\]"):
            batch.to_keyed_jagged()
    else:
        keyed = batch.to_keyed_jagged()
        assert keyed["item_id"].values().tolist() == batch.history["item_id"].tolist()


@pytest.mark.parametrize("histories", ["per_request", "shared"])
@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_batches_come_whole_from_processes_of_any_kind(random_dataset, histories, context):
    dataset = RequestDataset(random_dataset, batch_size=16, histories=histories)
    loader = make_dataloader(dataset, num_workers=1)
    loader.multiprocessing_context = context
    found = list(loader)
    assert [values(batch) for batch in found] == [values(batch) for batch in dataset]
    assert len({tensor.untyped_storage().data_ptr() for _, _, tensor in found[0].tensors()}) == 1
    assert values(pickle.loads(pickle.dumps(found[0]))) == values(found[0])


def test_arguments_that_exclude_each_other_are_refused(random_dataset):
    with pytest.raises(ValueError, match="batch_size 3 and max_tokens 9 are both given; give one"):
        RequestDataset(random_dataset, batch_size=3, max_tokens=9)
    with pytest.raises(ValueError, match="shuffle=True and order='time' exclude each other"):
        RequestDataset(random_dataset, shuffle=True, order="time")
    with pytest.raises(ValueError, match="histories is 'padded'; give one of 'per_request', 'shared'"):
        RequestDataset(random_dataset, histories="padded")
