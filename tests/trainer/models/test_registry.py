from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from longbatch.trainer.config import ModelConfig
from longbatch.trainer.models import pooling
from longbatch.trainer.models.registry import MODELS, make_model
from longbatch.trainer.models.request_model import loss_sum

LENGTHS, COUNTS = [70, 0, 3, 20], [3, 2, 0, 5]
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture
def model_of(small_model):
    """A model by name in float64, LONGER with groups of 4 events and 5 tokens that ask."""
    config, columns = small_model

    def make(name):
        torch.manual_seed(0)
        changes = {"name": name, "newest": 5, "layers": 3}
        return make_model(config.model_copy(update=changes), columns).double()

    return make


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = loss_sum(model(batch), batch, model.columns.labels) / batch.num_targets
    loss.backward()
    return loss, {name: p.grad.to_dense() for name, p in model.named_parameters() if p.grad is not None}


def without_targets_of_others(batch, request):
    """The batch of one request of it alone."""
    events = slice(*batch.history_offsets[request : request + 2].tolist())
    targets = slice(*batch.target_offsets[request : request + 2].tolist())
    rows = slice(request, request + 1)
    parts = {
        "history": {name: values[events] for name, values in batch.history.items()},
        "targets": {name: values[targets] for name, values in batch.targets.items()},
        "labels": {name: values[targets] for name, values in batch.labels.items()},
        "requests": {name: values[rows] for name, values in batch.requests.items()},
        "history_offsets": torch.tensor([0, events.stop - events.start]),
        "target_offsets": torch.tensor([0, targets.stop - targets.start]),
    }
    ids = {name: getattr(batch, name)[rows] for name in ("request_id", "user_id", "request_time")}
    return replace(batch, **parts, **ids), targets


@every_model
def test_request_level_training_equals_sample_level_training(make_batch, model_of, name):
    model, batch = model_of(name), make_batch(LENGTHS, COUNTS)
    loss, gradients = loss_and_gradients(model, batch)
    expanded_loss, expanded_gradients = loss_and_gradients(model, batch.expand())
    torch.testing.assert_close(loss, expanded_loss, rtol=1e-10, atol=1e-10)
    assert gradients.keys() == expanded_gradients.keys() == dict(model.named_parameters()).keys()
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(gradient, expanded_gradients[parameter], rtol=1e-10, atol=1e-10, msg=parameter)


def test_the_head_may_be_an_mlp(make_batch, small_model):
    config, columns = small_model
    model, batch = make_model(config.model_copy(update={"head": "mlp"}), columns).double(), make_batch(LENGTHS, COUNTS)
    assert type(model.head).__name__ == "MLPHead"
    loss, gradients = loss_and_gradients(model, batch)
    expanded_loss, expanded_gradients = loss_and_gradients(model, batch.expand())
    torch.testing.assert_close(loss, expanded_loss, rtol=1e-10, atol=1e-10)
    for parameter, gradient in gradients.items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(gradient, expanded_gradients[parameter], rtol=1e-10, atol=1e-10, msg=parameter)


@every_model
def test_a_request_scores_alone_as_it_does_in_a_batch(make_batch, model_of, name):
    model, batch = model_of(name), make_batch(LENGTHS, COUNTS)
    together = model(batch)
    for request in range(len(LENGTHS)):
        alone, targets = without_targets_of_others(batch, request)
        torch.testing.assert_close(model(alone), together[targets], rtol=1e-10, atol=1e-10)


@every_model
def test_a_target_does_not_depend_on_other_targets_of_its_request(make_batch, model_of, name):
    model, batch = model_of(name), make_batch([30], [4])
    other = batch.targets | {"item_id": batch.targets["item_id"] + torch.tensor([0, 1, 1, 1])}
    changed = model(replace(batch, targets=other))
    before = model(batch)
    torch.testing.assert_close(changed[0], before[0], rtol=1e-12, atol=1e-12)
    assert not torch.isclose(changed[1:], before[1:]).any()


@every_model
@pytest.mark.parametrize("place", [0, -1])
def test_the_oldest_and_the_newest_event_matter(make_batch, model_of, name, place):
    model, batch = model_of(name), make_batch([41], [2])
    author = batch.history["author_id"].clone()
    author[place] += 1
    changed = model(replace(batch, history=batch.history | {"author_id": author}))
    assert not torch.equal(changed, model(batch))


@every_model
@pytest.mark.parametrize(("lengths", "counts"), [([0, 0], [1, 4]), ([], []), ([5], [0]), ([0], [0])])
def test_empty_histories_and_empty_batches_give_finite_outputs_and_gradients(
    make_batch, model_of, name, lengths, counts
):
    model, batch = model_of(name), make_batch(lengths, counts)
    logits = model(batch)
    assert logits.shape == (sum(counts), 2)
    loss_sum(logits, batch, model.columns.labels).backward()
    assert logits.isfinite().all()
    assert all(p.grad is None or p.grad.to_dense().isfinite().all() for p in model.parameters())


def test_din_pools_in_chunks_as_at_once(make_batch, model_of, monkeypatch):
    model, batch = model_of("din"), make_batch(LENGTHS, COUNTS)
    loss, gradients = loss_and_gradients(model, batch)
    monkeypatch.setattr(pooling, "PAIRS_PER_CHUNK", 50)
    chunked_loss, chunked_gradients = loss_and_gradients(model, batch)
    torch.testing.assert_close(loss, chunked_loss, rtol=1e-12, atol=1e-12)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(gradient, chunked_gradients[parameter], rtol=1e-10, atol=1e-10, msg=parameter)


def test_the_mean_of_events_does_not_know_their_order(make_batch, model_of):
    model, batch = model_of("mean"), make_batch([9], [2])
    turned = {name: values.flip(0) for name, values in batch.history.items()}
    torch.testing.assert_close(model(replace(batch, history=turned)), model(batch))


def test_a_model_of_another_name_is_refused():
    with pytest.raises(ValidationError, match="Input should be 'stca', 'longer', 'transformer', 'din' or 'mean'"):
        ModelConfig(name="gru")


def test_longers_map_of_events_starts_as_the_identity(model_of):
    events = torch.randn(7, 8, dtype=torch.float64) * 5
    torch.testing.assert_close(model_of("longer").side(events), events, rtol=1e-4, atol=1e-4)
