from __future__ import annotations

import pytest
import torch

from longbatch.trainer.config import TrainConfig
from longbatch.trainer.lr_schedule import factor, set_rates


def test_rates_are_constant_unless_asked_otherwise():
    assert [factor(step, 10, TrainConfig()) for step in (0, 5, 9)] == [1, 1, 1]


def test_rates_rise_over_the_first_steps_and_fall_along_a_cosine():
    config = TrainConfig(warmup_steps=4, decay="cosine")
    assert [factor(step, 12, config) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert factor(4, 12, config) == 1
    assert factor(8, 12, config) == pytest.approx(0.5)
    assert factor(12, 12, config) == pytest.approx(0)
    assert factor(99, 12, config) == pytest.approx(0)


def test_each_group_keeps_its_own_rate():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": weights[:1], "lr": 1.0}, {"params": weights[1:], "lr": 0.1}])
    set_rates([optimizer], 0.5)
    set_rates([optimizer], 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]
