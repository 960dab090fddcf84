from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from training_data import make_batch, small_model, tiny

from longbatch.loaders import RequestBatch, RequestDataset
from longbatch.schemas.errors import DataError, SpecError
from longbatch.trainer.config import ModelName, TrainConfig
from longbatch.trainer.fit import TrainingState, TrainReport, fit, train_step
from longbatch.trainer.models.head import RankMixerHead
from longbatch.trainer.models.registry import MODELS
from longbatch.trainer.models.request_model import RequestModel
from longbatch.trainer.optimizers import dense_parameters, make_optimizers
from longbatch.trainer.train import new_model


def fit_small_model(batches: Iterable[RequestBatch], config: TrainConfig, name: ModelName = "stca") -> TrainReport:
    return fit(TrainingState.initial(small_model(name), config), batches, config)


def poison(model: RequestModel) -> None:
    """Make all logits NaN."""
    assert isinstance(model.head, RankMixerHead)
    torch.nn.init.constant_(model.head.logits.bias, float("nan"))


def test_training_stops_at_the_limit_of_steps_or_seconds() -> None:
    def endless() -> Iterator[RequestBatch]:
        while True:
            yield make_batch([5, 0], [2, 3])

    assert fit_small_model(endless(), TrainConfig(max_steps=3)).steps == 3
    report = fit_small_model(endless(), TrainConfig(max_seconds=0.05))
    assert report.stopped_by == "max_seconds"
    assert report.targets == report.steps * 5


def test_padding_batches_do_not_change_the_training() -> None:
    batches = [make_batch([5, 0], [2, 3]), make_batch([], []), make_batch([5, 0], [2, 3])]
    report = fit_small_model(batches, TrainConfig())
    assert report.targets == 10
    assert np.isfinite(report.losses[0][1])


def test_labels_other_than_zero_and_one_are_rejected() -> None:
    batch = make_batch([3], [2])
    batch.labels["click"][:] = torch.tensor([0, 2])
    with pytest.raises(SpecError, match="label 'click' must be 0 or 1, found values from 0 to 2"):
        fit_small_model([batch], TrainConfig())


def test_labels_are_checked_before_the_batch_is_copied_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(RequestBatch, "to")
    batch = make_batch([3], [2])
    batch.labels["click"][:] = torch.tensor([0, 2])
    with pytest.raises(SpecError, match="label 'click' must be 0 or 1"):
        fit_small_model([batch], TrainConfig())


def test_a_loss_that_is_not_finite_stops_training() -> None:
    model, config = small_model(), TrainConfig()
    poison(model)
    with pytest.raises(DataError, match="the loss is nan at step 1"):
        fit(TrainingState.initial(model, config), [make_batch([3], [2])], config)


def test_weights_with_a_loss_that_is_not_finite_are_not_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    saved: list[int] = []

    def poison_fourth_step(
        model: RequestModel,
        optimizers: Sequence[torch.optim.Optimizer],
        batches: Sequence[RequestBatch],
        config: TrainConfig,
    ) -> torch.Tensor:
        totals = train_step(model, optimizers, batches, config)
        steps.append(len(steps) + 1)
        if steps[-1] == 4:
            poison(model)
        return totals

    monkeypatch.setattr("longbatch.trainer.fit.train_step", poison_fourth_step)
    config = TrainConfig(checkpoint_steps=3)
    state = TrainingState.initial(small_model(), config)
    with pytest.raises(DataError, match="the loss is nan at step 6"):
        fit(state, [make_batch([3], [2])] * 9, config, save=saved.append)
    assert saved == [3]


def test_clipping_limits_the_norm_of_dense_gradients() -> None:
    config, model = TrainConfig(max_grad_norm=0.01), small_model()
    train_step(model, make_optimizers(model, config), [make_batch([9, 3], [2, 3])], config)
    gradients = [parameter.grad for parameter in dense_parameters(model) if parameter.grad is not None]
    assert torch.stack([gradient.norm() for gradient in gradients]).norm() == pytest.approx(0.01, rel=1e-3)
    tables = [table for table in model.tokens.tables.values() if isinstance(table, torch.nn.Embedding)]
    assert any(table.weight.grad is not None and table.weight.grad.is_sparse for table in tables)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_trains_nearly_as_float32(name: ModelName) -> None:
    losses: dict[bool, float] = {}
    for bf16 in (False, True):
        config, model = TrainConfig(bf16=bf16, max_steps=3), small_model(name)
        batches = [make_batch([70, 0, 9], [2, 3, 4])] * 3
        losses[bf16] = fit(TrainingState.initial(model, config), batches, config).losses[-1][1]
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert losses[True] != losses[False]
    assert losses[True] == pytest.approx(losses[False], rel=0.05)


def test_accumulated_batches_equal_one_batch_of_all_their_requests(dataset: Path) -> None:
    """Batches of any size follow the order of the dataset."""
    weights = []
    for batch_size, accumulation in ((4, 4), (16, 1)):
        config = tiny(batch_size=batch_size, gradient_accumulation_steps=accumulation)
        data = RequestDataset(dataset, batch_size=batch_size, history_length=10)
        model = new_model(data, config).double()
        train_step(model, make_optimizers(model, config), list(data)[:accumulation], config)
        weights.append(model.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-10, atol=1e-10)
