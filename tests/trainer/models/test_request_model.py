"""What all models have in common."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from training_data import make_batch, small_model

from longbatch.loaders.batch import RequestBatch
from longbatch.trainer.config import ModelName
from longbatch.trainer.models.registry import MODELS
from longbatch.trainer.models.request_model import RequestModel, count_parameters, loss_sum, segment_ids

LENGTHS, COUNTS = [70, 0, 3, 20], [3, 2, 0, 5]
every_model = pytest.mark.parametrize("name", MODELS)


def double_model(name: ModelName, **changes: object) -> RequestModel:
    return small_model(name, **{"layers": 3, **changes}).double()


def loss_and_gradients(model: RequestModel, batch: RequestBatch) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = loss_sum(model(batch), batch, model.columns.labels) / batch.num_targets
    torch.autograd.backward(loss)
    return loss, {name: p.grad.to_dense() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_loss_and_gradients(model: RequestModel, batch: RequestBatch, other: RequestBatch) -> None:
    loss, gradients = loss_and_gradients(model, batch)
    other_loss, other_gradients = loss_and_gradients(model, other)
    torch.testing.assert_close(loss, other_loss, rtol=1e-10, atol=1e-10)
    assert gradients.keys() == other_gradients.keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, other_gradients[name], rtol=1e-10, atol=1e-10, msg=name)


@every_model
def test_request_level_training_equals_sample_level_training(name: ModelName) -> None:
    batch = make_batch(LENGTHS, COUNTS)
    assert_same_loss_and_gradients(double_model(name), batch, batch.expand())


@every_model
def test_a_request_has_the_same_scores_alone_and_in_a_batch(name: ModelName) -> None:
    model, batch = double_model(name), make_batch(LENGTHS, COUNTS)
    logits = model(batch)
    for request in range(len(LENGTHS)):
        targets = slice(*batch.target_offsets[request : request + 2].tolist())
        torch.testing.assert_close(model(batch[request : request + 1]), logits[targets], rtol=1e-10, atol=1e-10)


@every_model
def test_a_target_does_not_depend_on_other_targets_of_its_request(name: ModelName) -> None:
    model, batch = double_model(name), make_batch([30], [4])
    other_targets = {**batch.targets, "item_id": batch.targets["item_id"] + torch.tensor([0, 1, 1, 1])}
    changed, before = model(replace(batch, targets=other_targets)), model(batch)
    torch.testing.assert_close(changed[0], before[0], rtol=1e-12, atol=1e-12)
    assert not torch.isclose(changed[1:], before[1:]).any()


@every_model
@pytest.mark.parametrize("position", [0, -1])
def test_the_oldest_and_the_newest_event_matter(name: ModelName, position: int) -> None:
    model, batch = double_model(name), make_batch([41], [2])
    author = batch.history["author_id"].clone()
    author[position] += 1
    changed = model(replace(batch, history={**batch.history, "author_id": author}))
    assert not torch.equal(changed, model(batch))


@every_model
@pytest.mark.parametrize(("lengths", "counts"), [([0, 0], [1, 4]), ([], []), ([5], [0]), ([0], [0])])
def test_empty_histories_and_empty_batches_give_finite_outputs_and_gradients(
    name: ModelName, lengths: list[int], counts: list[int]
) -> None:
    model, batch = double_model(name), make_batch(lengths, counts)
    logits = model(batch)
    assert logits.shape == (sum(counts), 2)
    torch.autograd.backward(loss_sum(logits, batch, model.columns.labels))
    assert logits.isfinite().all()
    assert all(p.grad is None or p.grad.to_dense().isfinite().all() for p in model.parameters())


def test_tokens_are_computed_without_reading_sizes_from_the_device() -> None:
    # tensors on the meta device have no values: every read raises an error
    model, batch = small_model().to("meta"), make_batch(LENGTHS, COUNTS).to("meta")
    assert model.tokens.event_tokens(batch).shape == (sum(LENGTHS), 8)
    assert segment_ids(batch.target_offsets, sum(COUNTS)).shape == (sum(COUNTS),)


def test_the_loss_is_a_sum_over_targets_and_a_mean_over_labels() -> None:
    batch = make_batch([1, 1], [1, 2])
    logits = torch.tensor([[2.0, 0.0], [-1.0, 3.0], [0.5, 0.5]])
    click, like = batch.labels["click"].float(), batch.labels["like"].float()
    sign = 1 - 2 * torch.stack([click, like], dim=1)
    expected = torch.log1p(torch.exp(sign * logits)).sum() / 2
    torch.testing.assert_close(loss_sum(logits, batch, ("click", "like")), expected)


def test_parameters_of_tables_are_counted_separately() -> None:
    model = small_model()
    dense, tables = count_parameters(model)
    assert dense + tables == sum(p.numel() for p in model.parameters())
    assert tables == sum(p.numel() for p in model.tokens.tables.parameters())
