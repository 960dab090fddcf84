from __future__ import annotations

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from longbatch.trainer.config import ModelConfig
from longbatch.trainer.models.flops import layer_flops, merged_layer_flops, request_flops
from longbatch.trainer.models.registry import MODELS, make_model


def counted(function, *arguments):
    """What PyTorch counts, attention by its matrix products."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = function(*arguments)
    return counter.get_total_flops(), result


def test_longers_published_figures_come_out_of_the_counter():
    vanilla, merged = layer_flops(2048, 32), merged_layer_flops(2048, 32, 4)
    assert vanilla == 24 * 2048 * 32**2 + 4 * 2048**2 * 32
    assert (round(vanilla / 1e6), round(merged / 1e6)) == (587, 336)
    assert 100 * (merged / vanilla - 1) == pytest.approx(-42.8, abs=0.1)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("targets", [1, 5])
@pytest.mark.parametrize("head", ["rankmixer", "mlp"])
def test_the_count_is_what_pytorch_counts(make_batch, small_model, name, targets, head):
    config = small_model[0].model_copy(update={"name": name, "layers": 3, "newest": 4, "head": head})
    model, batch = make_model(config, small_model[1]), make_batch([64], [targets])
    wanted = request_flops(config, 64, targets, labels=2)
    history, encoded = counted(model.encode, batch, batch.target_offsets)
    target, _ = counted(model.score, encoded, batch.targets, batch.target_offsets)
    assert (history, target) == (wanted.history, targets * wanted.target)
    assert counted(model, batch)[0] == wanted.request


def test_nearly_all_of_stcas_cost_is_shared_by_the_targets_of_a_request():
    large = ModelConfig(width=1024, heads=16, layers=4)
    request = request_flops(large, 10_000, 8)
    assert request.history == pytest.approx(0.5e12, rel=0.05)
    assert request.target == pytest.approx(2.6e9, rel=0.2)
    assert request.shared_share > 0.95


def test_only_self_attention_grows_with_the_square_of_the_length():
    growth = {}
    for name in MODELS:
        config = ModelConfig(name=name, width=32, layers=2)
        growth[name] = request_flops(config, 80_000, 8).request / request_flops(config, 40_000, 8).request
    assert growth["transformer"] > 3.8
    assert all(growth[name] < 2.01 for name in ("stca", "longer", "din", "mean"))
