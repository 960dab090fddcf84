from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training_data import make_batch, small_model

from longbatch.trainer.config import ModelConfig, ModelName
from longbatch.trainer.models.flops import layer_flops, merged_layer_flops, request_flops
from longbatch.trainer.models.registry import MODELS

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


def count_flops(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> tuple[int, Result]:
    """What PyTorch counts, attention by its matrix products, and the function's result."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = function(*args, **kwargs)
    return counter.get_total_flops(), result


def test_the_published_counts_of_longer_are_reproduced() -> None:
    vanilla, merged = layer_flops(2048, 32), merged_layer_flops(2048, 32, 4)
    assert vanilla == 24 * 2048 * 32**2 + 4 * 2048**2 * 32
    assert (round(vanilla / 1e6), round(merged / 1e6)) == (587, 336)
    assert 100 * (merged / vanilla - 1) == pytest.approx(-42.8, abs=0.1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("targets", [1, 5])
@pytest.mark.parametrize("head", ["rankmixer", "mlp"])
def test_the_count_equals_that_of_pytorch(name: ModelName, targets: int, head: str) -> None:
    model, batch = small_model(name, layers=3, query_tokens=4, head=head), make_batch([64], [targets])
    expected = request_flops(model.config, 64, targets, labels=2)
    history, cache = count_flops(model.encode_history, batch, batch.target_offsets)
    target, _ = count_flops(model.score_targets, cache, batch.targets, batch.target_offsets)
    assert (history, target) == (expected.history, targets * expected.target)
    assert count_flops(model.forward, batch)[0] == expected.request


def test_targets_of_a_request_share_nearly_all_of_the_cost_of_stca() -> None:
    large = ModelConfig(width=1024, heads=16, layers=4)
    request = request_flops(large, 10_000, 8)
    assert request.history == pytest.approx(0.5e12, rel=0.05)
    assert request.target == pytest.approx(2.6e9, rel=0.2)
    assert request.shared_share > 0.95


def test_only_self_attention_grows_with_the_square_of_the_length() -> None:
    growth = {}
    for name in MODELS:
        config = ModelConfig(name=name, width=32, layers=2)
        growth[name] = request_flops(config, 80_000, 8).request / request_flops(config, 40_000, 8).request
    assert growth["transformer"] > 3.8
    assert all(growth[name] < 2.01 for name in ("stca", "longer", "din", "mean"))
