from __future__ import annotations

import torch
from training_data import make_batch, small_model

from longbatch.trainer.models.head import MLPHead
from longbatch.trainer.models.request_model import loss_sum


def test_an_mlp_head_trains_all_parameters_as_sample_level_training_does() -> None:
    model, batch = small_model(head="mlp").double(), make_batch([70, 0, 3, 20], [3, 2, 0, 5])
    assert isinstance(model.head, MLPHead)
    results = []
    for variant in (batch, batch.expand()):
        model.zero_grad()
        loss = loss_sum(model(variant), variant, model.columns.labels)
        torch.autograd.backward(loss)
        gradients = {name: p.grad.to_dense() for name, p in model.named_parameters() if p.grad is not None}
        results.append((loss.detach(), gradients))
    (loss, gradients), (expanded_loss, expanded_gradients) = results
    torch.testing.assert_close(loss, expanded_loss, rtol=1e-10, atol=1e-10)
    assert gradients.keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients.items():
        assert gradient.abs().sum() > 0
        torch.testing.assert_close(gradient, expanded_gradients[name], rtol=1e-10, atol=1e-10, msg=name)
