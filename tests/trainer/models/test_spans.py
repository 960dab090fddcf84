from __future__ import annotations

import torch

from longbatch.trainer.models.spans import Spans


def test_targets_per_event_weights_requests_by_their_events() -> None:
    spans = Spans(torch.tensor([0, 30]), torch.tensor([30, 40]), 40)
    assert spans.targets_per_event(torch.tensor([0, 1, 6])) == (30 * 1 + 10 * 5) / 40
