from __future__ import annotations

import pytest
import torch

from longbatch.trainer.config import TrainConfig
from longbatch.trainer.lr_schedule import lr_factor, set_learning_rates


def test_learning_rates_are_constant_by_default() -> None:
    assert [lr_factor(step, 10, TrainConfig()) for step in (0, 5, 9)] == [1, 1, 1]


def test_learning_rates_rise_in_the_warm_up_and_fall_along_a_cosine() -> None:
    config = TrainConfig(warmup_steps=4, lr_schedule="cosine")
    assert [lr_factor(step, 12, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert lr_factor(4, 12, config) == 1
    assert lr_factor(8, 12, config) == pytest.approx(0.5)
    assert lr_factor(12, 12, config) == pytest.approx(0)
    assert lr_factor(99, 12, config) == pytest.approx(0)


def test_each_parameter_group_keeps_its_own_learning_rate() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": weights[:1], "lr": 1.0}, {"params": weights[1:], "lr": 0.1}])
    set_learning_rates([optimizer], 0.5)
    set_learning_rates([optimizer], 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]
