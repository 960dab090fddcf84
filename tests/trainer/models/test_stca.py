from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from longbatch.loaders import RequestDataset
from longbatch.trainer.config import ModelConfig, model_columns
from longbatch.trainer.models.request_model import loss_sum, parameter_count
from longbatch.trainer.models.stca import STCA


def test_a_target_does_not_depend_on_the_other_requests_of_its_batch(make_batch, small_model):
    model = STCA(*small_model).double()
    alone, together = make_batch([5, 9], [2, 3]), make_batch([5, 9, 300], [2, 3, 40])
    first = {name: values[:14] for name, values in together.history.items()}
    alone = type(alone)(
        **{**vars(alone), "history": first, "user_id": together.user_id[:2]},
    )
    alone = type(alone)(
        **{
            **vars(alone),
            "targets": {name: values[:5] for name, values in together.targets.items()},
            "requests": {name: values[:2] for name, values in together.requests.items()},
            "request_time": together.request_time[:2],
        }
    )
    torch.testing.assert_close(model(alone), model(together)[:5], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("elapsed", ["event", "attention"])
def test_the_time_of_an_event_matters_through_its_distance_to_the_request(make_batch, small_model, elapsed):
    model = timed_model(small_model, elapsed)
    batch = make_batch([20], [2])
    day_us = 86_400_000_000
    older = batch.history | {"event_time": batch.history["event_time"] - 300 * day_us}
    shifted = batch.history | {"event_time": batch.history["event_time"] + day_us}
    older["event_time"][:5] -= 700 * day_us
    assert not torch.equal(model(batch), model(replace(batch, history=older)))
    same = replace(batch, history=shifted, request_time=batch.request_time + day_us)
    torch.testing.assert_close(model(batch), model(same))


def timed_model(small_model, elapsed):
    """STCA with the time of events in either place, what it learns of time drawn at random."""
    torch.manual_seed(0)
    config, columns = small_model
    model = STCA(config.model_copy(update={"elapsed": elapsed}), columns)
    for layer in model.layers:
        if layer.attention.elapsed is not None:
            torch.nn.init.normal_(layer.attention.elapsed.weight)
    return model


def batches_of_both_forms(dataset, **arguments):
    return [
        next(iter(RequestDataset(dataset, histories=histories, **arguments))) for histories in ("per_request", "shared")
    ]


@pytest.mark.parametrize("elapsed", ["event", "attention"])
def test_the_shared_form_trains_as_the_windows_form_does(dataset, elapsed):
    config = ModelConfig(width=8, heads=2, layers=3, id_rows=512, elapsed=elapsed)
    model = timed_model((config, model_columns(RequestDataset(dataset).column_types(), (), config)), elapsed).double()
    arguments = {"shuffle": True, "shuffle_run": 8, "batch_size": 64, "history_length": 5}
    windows, shared = batches_of_both_forms(dataset, **arguments)
    assert shared.num_events < windows.num_events / 2
    found = []
    for batch in (windows, shared, windows.expand()):
        model.zero_grad()
        loss = loss_sum(model(batch), batch, ("click", "like"))
        loss.backward()
        found.append([loss, *(p.grad.to_dense() for p in model.parameters())])
    for others in found[1:]:
        for left, right in zip(found[0], others, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


def test_requests_of_a_user_encode_the_timeline_once(dataset):
    config = ModelConfig(width=8, heads=2, id_rows=512, elapsed="attention")
    model = STCA(config, model_columns(RequestDataset(dataset).column_types(), (), config))
    (batch,) = batches_of_both_forms(dataset, batch_size=16)[1:]
    encoded = model.encode(batch, batch.target_offsets)
    assert {len(kept) for kept in encoded.kept} == {batch.num_events} == {16}
    assert int(encoded.spans.length_R.sum()) == 16 * 17 // 2


def test_only_stca_has_elapsed_time_in_attention():
    with pytest.raises(ValidationError, match='elapsed = "attention" is for stca; longer has it in the event'):
        ModelConfig(name="longer", elapsed="attention")


def test_the_loss_is_a_sum_over_targets_and_a_mean_over_labels(make_batch):
    batch = make_batch([1, 1], [1, 2])
    logits = torch.tensor([[2.0, 0.0], [-1.0, 3.0], [0.5, 0.5]])
    click, like = batch.labels["click"].float(), batch.labels["like"].float()
    sign = 1 - 2 * torch.stack([click, like], dim=1)
    wanted = torch.log1p(torch.exp(sign * logits)).sum() / 2
    torch.testing.assert_close(loss_sum(logits, batch, ("click", "like")), wanted)


def test_parameters_of_tables_are_counted_apart(small_model):
    model = STCA(*small_model)
    dense, tables = parameter_count(model)
    assert dense + tables == sum(p.numel() for p in model.parameters())
    assert tables == sum(table.weight.numel() for table in model.tokens.tables.values())
