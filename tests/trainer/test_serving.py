from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from longbatch.trainer.models.flops import request_flops
from longbatch.trainer.models.registry import MODELS, make_model
from longbatch.trainer.serving import Scorer

every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture
def model_of(small_model):
    def make(name, **changes):
        torch.manual_seed(0)
        wanted = {"name": name, "newest": 5, "layers": 3, **changes}
        return make_model(small_model[0].model_copy(update=wanted), small_model[1]).double()

    return make


@every_model
@pytest.mark.parametrize("length", [0, 70])
def test_scores_are_the_logits_of_the_training_forward(make_batch, model_of, name, length):
    model, batch = model_of(name), make_batch([length], [23])
    for chunk in (1, 7, 512):
        scorer = Scorer(model, candidates_per_chunk=chunk)
        scores = scorer.score(scorer.encode(batch), batch.targets)
        torch.testing.assert_close(scores, model(batch), rtol=1e-10, atol=1e-10)


@every_model
def test_scoring_does_no_work_of_the_history_side(make_batch, model_of, name, monkeypatch):
    model, batch = model_of(name), make_batch([64], [48])
    scorer = Scorer(model)
    encoded = scorer.encode(batch)
    for module, method in ((model, "history_side"), (model.tokens, "history"), (model.tokens, "users")):
        monkeypatch.setattr(module, method, lambda *_: pytest.fail("the history was encoded again"))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        scorer.score(encoded, batch.targets)
    # 48 targets fill STCA's tiles and are above its break-even, so keys and values were kept projected
    assert counter.get_total_flops() == 48 * request_flops(model.config, 64, 48, labels=2).target


def test_no_candidates_have_no_scores(make_batch, model_of):
    scorer = Scorer(model_of("stca"))
    batch = make_batch([5], [0])
    assert scorer.score(scorer.encode(batch), batch.targets).shape == (0, 2)


def test_batches_of_several_requests_and_empty_chunks_are_refused(make_batch, model_of):
    with pytest.raises(ValueError, match="the batch has 2 requests; a scorer encodes one at a time"):
        Scorer(model_of("mean")).encode(make_batch([5, 4], [1, 1]))
    with pytest.raises(ValueError, match="candidates_per_chunk is 0; give 1 or more"):
        Scorer(model_of("mean"), candidates_per_chunk=0)
