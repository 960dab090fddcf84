from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_data import make_batch, small_model

from longbatch.loaders import RequestBatch, RequestDataset
from longbatch.trainer.config import ModelConfig, model_columns
from longbatch.trainer.models import stca
from longbatch.trainer.models.request_model import loss_sum
from longbatch.trainer.models.stca import STCA, reorders_attention

DAY_US = 86_400_000_000
both_time_encodings = pytest.mark.parametrize("time_encoding", ["event_feature", "attention_bias"])


def randomize_time_bias(model: STCA) -> None:
    """Replace the initial zeros, so that the bias has an effect."""
    for layer in model.layers:
        if layer.attention.time_bias is not None:
            torch.nn.init.normal_(layer.attention.time_bias.weight)


def dataset_model(dataset: Path, time_encoding: str, layers: int) -> STCA:
    config = ModelConfig.model_validate(
        {"width": 8, "heads": 2, "layers": layers, "id_table_rows": 512, "time_encoding": time_encoding}
    )
    torch.manual_seed(0)
    model = STCA(config, model_columns(RequestDataset(dataset).column_types(), (), config)).double()
    randomize_time_bias(model)
    return model


def first_batches(dataset: Path, *, batch_size: int, history_length: int, shuffle_run: int) -> list[RequestBatch]:
    """The first batch with per-request histories, and the same with shared timelines."""
    return [
        next(
            iter(
                RequestDataset(
                    dataset,
                    batch_size=batch_size,
                    history_length=history_length,
                    shuffle=shuffle_run > 1,
                    shuffle_run=shuffle_run,
                    histories=histories,
                )
            )
        )
        for histories in ("per_request", "shared")
    ]


@both_time_encodings
def test_only_the_time_from_event_to_request_matters(time_encoding: str) -> None:
    model, batch = small_model(time_encoding=time_encoding), make_batch([20], [2])
    assert isinstance(model, STCA)
    randomize_time_bias(model)
    event_time = batch.history["event_time"]
    older_time = event_time - 300 * DAY_US
    older_time[:5] -= 700 * DAY_US
    older = replace(batch, history={**batch.history, "event_time": older_time})
    assert not torch.equal(model(batch), model(older))
    shifted_history = {**batch.history, "event_time": event_time + DAY_US}
    shifted = replace(batch, history=shifted_history, request_time=batch.request_time + DAY_US)
    torch.testing.assert_close(model(batch), model(shifted))


@both_time_encodings
def test_shared_timelines_train_as_per_request_histories(dataset: Path, time_encoding: str) -> None:
    model = dataset_model(dataset, time_encoding, layers=3)
    per_request, shared = first_batches(dataset, batch_size=64, history_length=5, shuffle_run=8)
    assert shared.num_events < per_request.num_events / 2
    results = []
    for batch in (per_request, shared, per_request.expand()):
        model.zero_grad()
        loss = loss_sum(model(batch), batch, ("click", "like"))
        torch.autograd.backward(loss)
        gradients = [p.grad.to_dense() for p in model.parameters() if p.grad is not None]
        results.append([loss.detach(), *gradients])
    for others in results[1:]:
        for left, right in zip(results[0], others, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


def test_requests_of_a_user_encode_their_timeline_once(dataset: Path) -> None:
    model = dataset_model(dataset, "attention_bias", layers=2)
    _, batch = first_batches(dataset, batch_size=16, history_length=16, shuffle_run=1)
    cache = model.encode_history(batch, batch.target_offsets)
    assert {len(states) for states in cache.states} == {batch.num_events} == {16}
    assert int(cache.spans.length_R.sum()) == 16 * 17 // 2


def test_flex_attention_projects_keys_where_reordered_heads_would_be_too_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    for width, reorders in ((256, True), (512, False)):
        assert reorders_attention(ModelConfig(width=width, attention="flex"), targets_per_event=2) is reorders
        assert reorders_attention(ModelConfig(width=width, attention="tiled"), targets_per_event=2)
    batch = make_batch([70, 0, 3], [3, 2, 1])
    expected = small_model().double()(batch)
    monkeypatch.setattr(stca, "MAX_HEAD_WIDTH", 4)
    model = small_model(attention="flex").double()
    cache = model.encode_history(batch, batch.target_offsets)
    assert cache.states[0].shape == (batch.num_events, 2, 4)  # heads and their width: keys are projected
    torch.testing.assert_close(model(batch), expected, rtol=1e-10, atol=1e-10)
