"""Tokens: how ids, features and times become one D-vector per event, target, request and user.

Shapes: R requests, G targets, T events, N values of any of them, D width.

Every column has an embedding table of width D; a token is the LayerNorm of the sum over its columns,
which equals a linear map of their concatenation with the map folded into the tables. An event token has
its item, its features and the time from the event to the request (STCA's time delta, in logarithmic
buckets) unless attention has that (`ModelConfig.elapsed`). How the paper fuses them is not published; this is our choice. Tables of one name and kind are
shared: the items and authors of targets are those of the history.

Tables start at different scales. A category that events and targets both have starts large: it is what
attention can compare from the first step. Ids start near zero, for as long as nothing is known of most of
them they are noise in a sum of D numbers; so do columns that only one side has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from longbatch.loaders.batch import RequestBatch
from longbatch.trainer.config import MEASURE_ROWS, Column, ModelColumns, ModelConfig

DENSE_ROWS = 4096  # larger tables have sparse gradients: a step costs what it touches
MATCHED_STD, OTHER_STD, ID_STD = 0.3, 0.03, 0.01  # of the initial weights
_MIX = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio, as a signed int64


def hashed_rows(ids_N: Tensor, rows: int) -> Tensor:
    """Table rows (N,) of int64 ids: Fibonacci hashing, products wrapping at 64 bits, then modulo."""
    mixed_N = ids_N.long() * _MIX
    return torch.remainder(mixed_N ^ (mixed_N >> 32), rows)


def measure_rows(values_N: Tensor) -> Tensor:
    """Table rows (N,) of quantities: two buckets per octave of the magnitude from 2^-10 to 2^30.

    Row 0 is (almost) zero, rows 1 to 80 grow with positive values, 81 to 161 with negative ones, the
    last is NaN, which stands for a null.
    """
    floats_N = values_N.to(torch.float32)
    octave_N = torch.log2(floats_N.abs().clamp(2.0**-11, 2.0**30))
    magnitude_N = (2 * (octave_N + 10)).floor().clamp(-1, 79).nan_to_num(-1).long() + 1
    rows_N = torch.where(floats_N < 0, magnitude_N + 81, magnitude_N)
    return torch.where(floats_N.isnan(), MEASURE_ROWS - 1, rows_N)


def elapsed_rows(request_time_N: Tensor, event_time_N: Tensor) -> Tensor:
    """Buckets (N,) of `measure_rows` of the seconds from events to requests, whose times are int64 microseconds."""
    return measure_rows((request_time_N - event_time_N).to(torch.float32) / 1e6)


def column_rows(column: Column, values_N: Tensor) -> Tensor:
    """Table rows (N,) of a column's values."""
    if column.kind == "measure":
        return measure_rows(values_N)
    if column.kind == "category":
        return torch.remainder(values_N.long(), column.rows)
    return hashed_rows(values_N, column.rows)


class Tokens(nn.Module):
    """All embedding tables, and the four kinds of tokens made of them."""

    def __init__(self, config: ModelConfig, columns: ModelColumns) -> None:
        super().__init__()
        self.columns = columns
        self.item = Column(name="item_id", kind="id", rows=config.id_rows)
        self.user = Column(name="user_id", kind="id", rows=config.id_rows)
        self.elapsed = Column(name="time_since_event", kind="measure", rows=MEASURE_ROWS)
        self.has_elapsed = config.elapsed == "event"
        times = (self.elapsed,) if self.has_elapsed else ()
        used = (self.item, self.user, *times, *columns.history, *columns.targets, *columns.requests)
        matched = {c.table for c in columns.history} & {c.table for c in columns.targets}
        self.tables = nn.ModuleDict({c.table: _table(c, config.width, c.table in matched) for c in used})
        self.request_bias = nn.Parameter(torch.randn(config.width) * 0.1)
        roles = ("history", "targets", "requests", "user")
        self.norms = nn.ModuleDict({role: nn.LayerNorm(config.width) for role in roles})

    def history(self, batch: RequestBatch) -> Tensor:
        """Event tokens (T, D)."""
        token_TD = self._sum([(column, batch.history[column.name]) for column in (self.item, *self.columns.history)])
        if self.has_elapsed:
            request_time_T = torch.repeat_interleave(batch.request_time, batch.history_offsets.diff())
            rows_T = elapsed_rows(request_time_T, batch.history["event_time"])
            token_TD = token_TD + self.tables[self.elapsed.table](rows_T)
        return self._normed("history", token_TD)

    def targets(self, targets: Mapping[str, Tensor]) -> Tensor:
        """Target tokens (G, D) of the columns of targets (G,)."""
        columns = (self.item, *self.columns.targets)
        return self._normed("targets", self._sum([(column, targets[column.name]) for column in columns]))

    def requests(self, batch: RequestBatch) -> Tensor:
        """Request tokens (R, D); all alike where requests have no features."""
        values = [(column, batch.requests[column.name]) for column in self.columns.requests]
        token_RD = self.request_bias.expand(batch.num_requests, -1)
        return self._normed("requests", token_RD + self._sum(values) if values else token_RD)

    def users(self, batch: RequestBatch) -> Tensor:
        """User tokens (R, D)."""
        return self._normed("user", self._sum([(self.user, batch.user_id)]))

    def _sum(self, values: Sequence[tuple[Column, Tensor]]) -> Tensor:
        """The sum (N, D) of one or more columns' embeddings."""
        (first, first_N), *others = values
        total_ND: Tensor = self.tables[first.table](column_rows(first, first_N))
        for column, values_N in others:
            total_ND = total_ND + self.tables[column.table](column_rows(column, values_N))
        return total_ND

    def _normed(self, role: str, token_ND: Tensor) -> Tensor:
        normed_ND: Tensor = self.norms[role](token_ND)
        return normed_ND


def _table(column: Column, width: int, matched: bool) -> nn.Embedding:
    table = nn.Embedding(column.rows, width, sparse=column.rows > DENSE_ROWS)
    std = ID_STD if column.kind == "id" else MATCHED_STD if matched else OTHER_STD
    nn.init.normal_(table.weight, std=std)
    return table
