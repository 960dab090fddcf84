"""Baselines that pool the events without attention: DIN and mean pooling.

Source: DIN (arXiv 1706.06978), section on the local activation unit.

Shapes: R requests, G targets, T events, P pairs of a target and an event of its history, D width, A hidden units.

DIN weights each event for each target by an MLP of [t, e, t - e, t * e] and sums the weighted events without a
softmax, as published. The first map of [t, e, t - e] is linear in t and in e, so its event part is computed once per
event; the part of t * e takes P products.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from longbatch.loaders.ragged_tensors import offsets_of, ragged_index
from longbatch.trainer.config import ModelColumns, ModelConfig

from .request_model import HistoryCache, HistoryStates, RequestModel, segment_ids

HIDDEN_UNITS = 36  # of DIN's activation unit, as published
PAIRS_PER_CHUNK = 1 << 18  # bounds the memory of (P, D) products


class _PoolingModel(RequestModel):
    """Computes z from a pooled history, the target and their product."""

    def __init__(self, config: ModelConfig, columns: ModelColumns) -> None:
        super().__init__(config, columns)
        width, hidden = config.width, 2 * config.expansion * config.width
        self.norm = nn.LayerNorm(width)
        self.output_map = nn.Sequential(nn.Linear(3 * width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def rowwise_modules(self) -> Iterator[nn.Module]:
        """Iterate over the head and the output map.

        Yields:
            Modules whose only dynamic size is the number of rows.
        """
        yield from super().rowwise_modules()
        yield self.output_map

    def _z(self, pooled_GD: Tensor, target_GD: Tensor) -> Tensor:
        pooled_GD = self.norm(pooled_GD)
        z_GD: Tensor = self.output_map(torch.cat([pooled_GD, target_GD, pooled_GD * target_GD], dim=-1))
        return z_GD


class MeanPooling(_PoolingModel):
    """The mean of the events, whatever the target; zeros for an empty history.

    Args:
        config: The model's size.
        columns: The columns that it reads.
    """

    def history_states(
        self, history_TD: Tensor, offsets: Tensor, user_RD: Tensor, targets_per_event: float
    ) -> HistoryStates:
        """Compute the mean event (R, D); see `RequestModel.history_states`."""
        sums_RD = history_TD.new_zeros(len(offsets) - 1, history_TD.shape[-1])
        sums_RD = sums_RD.index_add(0, segment_ids(offsets), history_TD)
        return (sums_RD / offsets.diff().clamp(min=1)[:, None],)

    def attend_targets(self, cache: HistoryCache, target_GD: Tensor, target_offsets: Tensor) -> Tensor:
        """Compute z (G, D); see `RequestModel.attend_targets`."""
        return self._z(cache.states[0].index_select(0, segment_ids(target_offsets)), target_GD)


class DIN(_PoolingModel):
    """Deep Interest Network: a sum of the events, each weighted for the target.

    Args:
        config: The model's size.
        columns: The columns that it reads.
    """

    def __init__(self, config: ModelConfig, columns: ModelColumns) -> None:
        super().__init__(config, columns)
        width = config.width
        self.from_target, self.from_event = nn.Linear(width, HIDDEN_UNITS), nn.Linear(width, HIDDEN_UNITS, bias=False)
        self.from_difference = nn.Linear(width, HIDDEN_UNITS, bias=False)
        self.from_product = nn.Linear(width, HIDDEN_UNITS, bias=False)
        self.event_weight = nn.Sequential(nn.SiLU(), nn.Linear(HIDDEN_UNITS, 1))

    def rowwise_modules(self) -> Iterator[nn.Module]:
        """Iterate over the head, the output map and the weight of each pair.

        Yields:
            Modules whose only dynamic size is the number of rows.
        """
        yield from super().rowwise_modules()
        yield self.event_weight

    def history_states(
        self, history_TD: Tensor, offsets: Tensor, user_RD: Tensor, targets_per_event: float
    ) -> HistoryStates:
        """Compute the events (T, D) and their part of the hidden units (T, A); see `RequestModel.history_states`."""
        # W1 e + W2 (t - e) = (W1 - W2) e + W2 t, whose event part needs no target
        return history_TD, self.from_event(history_TD) - self.from_difference(history_TD)

    def attend_targets(self, cache: HistoryCache, target_GD: Tensor, target_offsets: Tensor) -> Tensor:
        """Compute z (G, D), in chunks that are recomputed in the backward pass; see `RequestModel.attend_targets`."""
        hidden_GA = self.from_target(target_GD) + self.from_difference(target_GD)
        request_G = segment_ids(target_offsets)
        starts_G, lengths_G = cache.spans.start_R[request_G], cache.spans.length_R[request_G]
        pooled = [target_GD.new_zeros(0, target_GD.shape[-1])]
        splits = _chunk_splits(lengths_G)
        for first, end in pairwise(splits):
            part = slice(first, end)
            arguments = (*cache.states, target_GD[part], hidden_GA[part], starts_G[part], lengths_G[part])
            if len(splits) > 2 and torch.is_grad_enabled():
                pooled.append(checkpoint(self._pool, *arguments, use_reentrant=False, preserve_rng_state=False))
            else:
                pooled.append(self._pool(*arguments))
        return self._z(torch.cat(pooled), target_GD)

    def _pool(
        self, event_TD: Tensor, hidden_TA: Tensor, target_GD: Tensor, hidden_GA: Tensor, starts: Tensor, lengths: Tensor
    ) -> Tensor:
        """Weighted sums (G, D) of the events of some targets.

        Example with two targets that read the events [0, 3) and [3, 5):
            event_P  = [0 1 2 3 4]
            target_P = [0 0 0 1 1]
            output   = [w_0 e_0 + w_1 e_1 + w_2 e_2, w_3 e_3 + w_4 e_4]
        """
        event_P, target_P = ragged_index(starts, lengths), segment_ids(offsets_of(lengths))
        event_PD = event_TD.index_select(0, event_P)
        product_PA = self.from_product(event_PD * target_GD.index_select(0, target_P))
        hidden_PA = hidden_TA.index_select(0, event_P) + hidden_GA.index_select(0, target_P) + product_PA
        return torch.zeros_like(target_GD).index_add(0, target_P, self.event_weight(hidden_PA) * event_PD)


def _chunk_splits(lengths_G: Tensor) -> list[int]:
    """Targets at which runs of about PAIRS_PER_CHUNK pairs start, and the number of targets."""
    run_G = (lengths_G.cumsum(0) - lengths_G) // PAIRS_PER_CHUNK
    starts = torch.nonzero(run_G.diff(prepend=run_G.new_full((1,), -1))).flatten().tolist()
    return [*starts, len(lengths_G)]
