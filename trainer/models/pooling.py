"""Baselines that pool the events without attention: DIN (arXiv 1706.06978) and the mean.

Shapes: R requests, G targets, T events, P pairs of a target and an event of its history, D width, A hidden units.

DIN weighs each event for each target by an MLP of [t, e, t - e, t * e], sums without softmax, as published. The first
map of [t, e, t - e] is linear in t and in e, so its event part is computed once per event; t * e takes P maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longbatch.loaders.batch import offsets_of, ragged_index
from longbatch.trainer.config import ModelColumns, ModelConfig

from .request_model import Encoded, Kept, RequestModel, owners

HIDDEN_UNITS = 36  # of DIN's activation unit, as published
PAIRS_PER_CHUNK = 1 << 18


class _Pooled(RequestModel):
    """z from a pooled history, the target and their product."""

    def __init__(self, config: ModelConfig, columns: ModelColumns) -> None:
        super().__init__(config, columns)
        width, hidden = config.width, 2 * config.expansion * config.width
        self.norm = nn.LayerNorm(width)
        self.final = nn.Sequential(nn.Linear(3 * width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def row_modules(self) -> Iterator[nn.Module]:
        """Besides the head the map to z."""
        yield from super().row_modules()
        yield self.final

    def _z(self, pooled_GD: Tensor, target_GD: Tensor) -> Tensor:
        pooled_GD = self.norm(pooled_GD)
        z_GD: Tensor = self.final(torch.cat([pooled_GD, target_GD, pooled_GD * target_GD], dim=-1))
        return z_GD


class MeanPooling(_Pooled):
    """The mean of the events, whatever the target; zeros for an empty history."""

    def history_side(self, history_TD: Tensor, offsets: Tensor, user_RD: Tensor, targets_per_event: float) -> Kept:
        """The mean event (R, D)."""
        sums_RD = history_TD.new_zeros(len(offsets) - 1, history_TD.shape[-1])
        sums_RD = sums_RD.index_add(0, owners(offsets), history_TD)
        return (sums_RD / offsets.diff().clamp(min=1)[:, None],)

    def target_side(self, encoded: Encoded, target_GD: Tensor, target_offsets: Tensor) -> Tensor:
        """z (G, D)."""
        return self._z(encoded.kept[0].index_select(0, owners(target_offsets)), target_GD)


class DIN(_Pooled):
    """A sum of the events, each weighed for the target."""

    def __init__(self, config: ModelConfig, columns: ModelColumns) -> None:
        super().__init__(config, columns)
        width = config.width
        self.from_target, self.from_event = nn.Linear(width, HIDDEN_UNITS), nn.Linear(width, HIDDEN_UNITS, bias=False)
        self.from_difference = nn.Linear(width, HIDDEN_UNITS, bias=False)
        self.from_product = nn.Linear(width, HIDDEN_UNITS, bias=False)
        self.weight = nn.Sequential(nn.SiLU(), nn.Linear(HIDDEN_UNITS, 1))

    def row_modules(self) -> Iterator[nn.Module]:
        """The weight of each pair too."""
        yield from super().row_modules()
        yield self.weight

    def history_side(self, history_TD: Tensor, offsets: Tensor, user_RD: Tensor, targets_per_event: float) -> Kept:
        """The events (T, D) and their part of the hidden units (T, A)."""
        return history_TD, self.from_event(history_TD) - self.from_difference(history_TD)

    def target_side(self, encoded: Encoded, target_GD: Tensor, target_offsets: Tensor) -> Tensor:
        """z (G, D); chunks of targets beyond a single one are recomputed in the backward pass."""
        hidden_GA = self.from_target(target_GD) + self.from_difference(target_GD)
        request_G = owners(target_offsets)
        starts_G, lengths_G = encoded.spans.start_R[request_G], encoded.spans.length_R[request_G]
        pooled = [target_GD.new_zeros(0, target_GD.shape[-1])]
        chunks = _chunks(lengths_G)
        for first, end in pairwise(chunks):
            part = slice(first, end)
            arguments = (*encoded.kept, target_GD[part], hidden_GA[part], starts_G[part], lengths_G[part])
            if len(chunks) > 2 and torch.is_grad_enabled():
                pooled.append(checkpoint(self._pool, *arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                pooled.append(self._pool(*arguments))
        return self._z(torch.cat(pooled), target_GD)

    def _pool(
        self, event_TD: Tensor, hidden_TA: Tensor, target_GD: Tensor, hidden_GA: Tensor, starts: Tensor, lengths: Tensor
    ) -> Tensor:
        """Weighed sums (G, D) of the events of some targets."""
        event_P, target_P = ragged_index(starts, lengths), owners(offsets_of(lengths))
        event_PD = event_TD.index_select(0, event_P)
        product_PA = self.from_product(event_PD * target_GD.index_select(0, target_P))
        hidden_PA = hidden_TA.index_select(0, event_P) + hidden_GA.index_select(0, target_P) + product_PA
        return torch.zeros_like(target_GD).index_add(0, target_P, self.weight(hidden_PA) * event_PD)


def _chunks(lengths_G: Tensor) -> list[int]:
    """Places where runs of targets of about PAIRS_PER_CHUNK pairs start, and the end."""
    run_G = (lengths_G.cumsum(0) - lengths_G) // PAIRS_PER_CHUNK
    starts = torch.nonzero(run_G.diff(prepend=run_G.new_full((1,), -1))).flatten().tolist()
    return [*starts, len(lengths_G)]
