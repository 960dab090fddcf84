from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training_data import make_batch, small_model

from longbatch.trainer.config import ModelName
from longbatch.trainer.models.flops import request_flops
from longbatch.trainer.models.registry import MODELS
from longbatch.trainer.models.request_model import RequestModel
from longbatch.trainer.serving import Scorer

every_model = pytest.mark.parametrize("name", MODELS)


def double_model(name: ModelName) -> RequestModel:
    return small_model(name, layers=3).double()


@every_model
@pytest.mark.parametrize("length", [0, 70])
def test_scores_equal_the_logits_of_the_training_forward_pass(name: ModelName, length: int) -> None:
    model, batch = double_model(name), make_batch([length], [23])
    for chunk in (1, 7, 512):
        scorer = Scorer(model, candidates_per_chunk=chunk)
        scores = scorer.score_targets(scorer.encode_history(batch), batch.targets)
        torch.testing.assert_close(scores, model(batch), rtol=1e-10, atol=1e-10)


@every_model
def test_scoring_does_not_encode_the_history_again(name: ModelName, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = double_model(name), make_batch([64], [48])
    scorer = Scorer(model)
    cache = scorer.encode_history(batch)
    for module, method in ((model, "history_states"), (model.tokens, "event_tokens"), (model.tokens, "user_tokens")):
        monkeypatch.setattr(module, method, lambda *_: pytest.fail("the history was encoded again"))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        scorer.score_targets(cache, batch.targets)
    # 48 targets fill STCA's tiles and exceed its break-even, so the cache has projected keys and values
    assert counter.get_total_flops() == 48 * request_flops(model.config, 64, 48, labels=2).target


def test_no_candidates_have_no_scores() -> None:
    scorer = Scorer(double_model("stca"))
    batch = make_batch([5], [0])
    assert scorer.score_targets(scorer.encode_history(batch), batch.targets).shape == (0, 2)


def test_batches_of_several_requests_and_empty_chunks_are_rejected() -> None:
    with pytest.raises(ValueError, match="the batch has 2 requests, but a scorer encodes one at a time"):
        Scorer(double_model("mean")).encode_history(make_batch([5, 4], [1, 1]))
    with pytest.raises(ValueError, match="candidates_per_chunk must be at least 1, found 0"):
        Scorer(double_model("mean"), candidates_per_chunk=0)
