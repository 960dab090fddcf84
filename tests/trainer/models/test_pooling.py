from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from training_data import make_batch, small_model

from longbatch.trainer.models import pooling
from longbatch.trainer.models.request_model import loss_sum


def test_din_gives_the_same_gradients_in_chunks_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = small_model("din").double(), make_batch([70, 0, 3, 20], [3, 2, 0, 5])
    results = []
    for pairs_per_chunk in (pooling.PAIRS_PER_CHUNK, 50):
        monkeypatch.setattr(pooling, "PAIRS_PER_CHUNK", pairs_per_chunk)
        model.zero_grad()
        loss = loss_sum(model(batch), batch, model.columns.labels)
        torch.autograd.backward(loss)
        gradients = [p.grad.to_dense() for p in model.parameters() if p.grad is not None]
        results.append([loss.detach(), *gradients])
    for at_once, in_chunks in zip(*results, strict=True):
        torch.testing.assert_close(at_once, in_chunks, rtol=1e-10, atol=1e-10)


def test_mean_pooling_does_not_depend_on_the_order_of_events() -> None:
    model, batch = small_model("mean"), make_batch([9], [2])
    reversed_history = {name: values.flip(0) for name, values in batch.history.items()}
    torch.testing.assert_close(model(replace(batch, history=reversed_history)), model(batch))
