from __future__ import annotations

import torch
from training_data import small_model

from longbatch.trainer.models.longer import Longer


def test_the_event_mlp_starts_as_the_identity() -> None:
    model = small_model("longer").double()
    assert isinstance(model, Longer)
    events = torch.randn(7, 8, dtype=torch.float64) * 5
    torch.testing.assert_close(model.event_mlp(events), events, rtol=1e-4, atol=1e-4)
