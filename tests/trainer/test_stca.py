from __future__ import annotations

import pytest
import torch

from longbatch.trainer.model import loss_sum, parameter_count
from longbatch.trainer.stca import STCA

LENGTHS, COUNTS = [70, 0, 3, 20], [3, 2, 0, 5]


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = loss_sum(model(batch), batch, model.columns.labels) / batch.num_targets
    loss.backward()
    gradients = {name: p.grad.to_dense() for name, p in model.named_parameters() if p.grad is not None}
    return loss, gradients


def test_request_level_training_equals_sample_level_training(make_batch, small_model):
    torch.manual_seed(0)
    model = STCA(*small_model).double()
    batch = make_batch(LENGTHS, COUNTS)
    assert batch.expand().num_requests == batch.num_targets == 10
    loss, gradients = loss_and_gradients(model, batch)
    expanded_loss, expanded_gradients = loss_and_gradients(model, batch.expand())
    torch.testing.assert_close(loss, expanded_loss, rtol=1e-10, atol=1e-10)
    assert gradients.keys() == expanded_gradients.keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expanded_gradients[name], rtol=1e-10, atol=1e-10, msg=name)
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())


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


@pytest.mark.parametrize(("lengths", "counts"), [([0, 0], [1, 4]), ([], []), ([5], [0])])
def test_empty_histories_and_empty_batches_give_finite_outputs_and_gradients(make_batch, small_model, lengths, counts):
    model = STCA(*small_model)
    batch = make_batch(lengths, counts)
    logits = model(batch)
    assert logits.shape == (sum(counts), 2)
    loss_sum(logits, batch, model.columns.labels).backward()
    assert logits.isfinite().all()
    assert all(p.grad is None or p.grad.to_dense().isfinite().all() for p in model.parameters())


def test_the_time_of_an_event_matters_through_its_distance_to_the_request(make_batch, small_model):
    model = STCA(*small_model)
    batch = make_batch([20], [2])
    day_us = 86_400_000_000
    older = batch.history | {"event_time": batch.history["event_time"] - 300 * day_us}
    shifted = batch.history | {"event_time": batch.history["event_time"] + day_us}
    replace = {**vars(batch)}
    assert not torch.equal(model(batch), model(type(batch)(**{**replace, "history": older})))
    same = type(batch)(**{**replace, "history": shifted, "request_time": batch.request_time + day_us})
    torch.testing.assert_close(model(batch), model(same))


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
