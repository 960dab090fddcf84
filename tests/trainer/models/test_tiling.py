from __future__ import annotations

import pytest
import torch

from longbatch.trainer.models import tiling
from longbatch.trainer.models.spans import Spans
from longbatch.trainer.models.tiling import make_tiling


def test_the_example_of_the_docstring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "TARGETS_PER_TILE", 2)
    monkeypatch.setattr(tiling, "EVENTS_PER_TILE", 4)
    spans = Spans(torch.tensor([0, 5]), torch.tensor([5, 7]), 7)
    result = make_tiling(spans, torch.tensor([0, 3, 4]), heads=1, width=8)
    (chunk,) = result.chunks
    assert chunk.targets_QA[:, 0].tolist() == [0, 2, 3]
    assert chunk.target_tile_P.tolist() == [0, 0, 1, 1, 2]
    events = [row[~hidden].tolist() for row, hidden in zip(chunk.events_PB, chunk.hidden_PB, strict=True)]
    assert events == [[0, 1, 2, 3], [4], [0, 1, 2, 3], [4], [5, 6]]
    assert result.padded_index_G.tolist() == [0, 1, 2, 4]


def test_padding_is_at_most_one_tile_per_request() -> None:
    lengths = torch.tensor([10_000, *[1] * 31])
    ends = lengths.cumsum(0)
    result = make_tiling(Spans(ends - lengths, ends, int(ends[-1])), torch.arange(33) * 4, heads=2, width=8)
    padded_events = sum(chunk.events_PB.numel() for chunk in result.chunks)
    assert padded_events <= int(lengths.sum()) + 32 * tiling.EVENTS_PER_TILE
