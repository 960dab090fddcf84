"""Token embedding: from ids, features and times to one D-vector per event, target, request and user.

Shapes: R requests, G targets, T events, N values of any of them, D width.

Every column has an embedding table of width D. A token is the LayerNorm of the sum over its columns, which equals a
linear map of their concatenation with the map folded into the tables. An event token has its item, its features and
the time delta, the time from the event to the request (STCA, arXiv 2511.06077, side information), in logarithmic
bins; with `time_encoding = "attention_bias"` attention has the time delta instead. How the paper fuses the columns
is not published; the sum is this library's choice. Columns with the same name and feature type share a table, so
targets have the item and author embeddings of the history.

Tables start at different scales. A category that both events and targets have starts large, because it is what
attention can compare from the first step on. Ids start near zero: while most of them have been seen rarely, they are
noise in a sum of D numbers. So do columns that only one side has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from longbatch.loaders.batch import RequestBatch
from longbatch.trainer.config import NUMERIC_ROWS, Column, ModelColumns, ModelConfig

MAX_DENSE_ROWS = 4096  # larger tables have sparse gradients, so that a step costs only the rows it touches
# standard deviations of initial weights: a category of events and targets, any other category or number, an id
MATCHED_STD, OTHER_STD, ID_STD = 0.3, 0.03, 0.01
_FIBONACCI_MULTIPLIER = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / golden ratio, as a signed int64


def hashed_rows(ids_N: Tensor, rows: int) -> Tensor:
    """Map ids to table rows by Fibonacci hashing: multiply modulo 2^64, fold the high bits, take the remainder.

    Args:
        ids_N: Integers (N,) of any width, negative ones included.
        rows: Number of rows of the table.

    Returns:
        Rows (N,) int64, from 0 to `rows` - 1. Different ids may share a row.
    """
    mixed_N = ids_N.long() * _FIBONACCI_MULTIPLIER
    # the low bits of a product depend on the low bits of the id alone, so the high ones are folded in
    return torch.remainder(mixed_N ^ (mixed_N >> 32), rows)


def numeric_rows(values_N: Tensor) -> Tensor:
    """Map numbers to table rows: two bins per octave of the magnitude, from 2^-10 to 2^30.

    Row 0 is (almost) zero, rows 1 to 80 grow with positive values and rows 81 to 161 with the magnitude of negative
    ones. The last row is NaN, which represents a null.

    Args:
        values_N: Integers or floats of any shape.

    Returns:
        Rows int64 of the same shape, from 0 to NUMERIC_ROWS - 1.

    Example:
        >>> numeric_rows(torch.tensor([0.0, 1.0, 1.5, 2.0, -2.0])).tolist()
        [0, 21, 22, 23, 104]
    """
    floats_N = values_N.to(torch.float32)
    # clamped one octave below the range, so that 0 and tiny numbers fall to row 0 instead of minus infinity
    octave_N = torch.log2(floats_N.abs().clamp(2.0**-11, 2.0**30))
    # NaN has no integer value: it gets any row here and its own below
    magnitude_N = (2 * (octave_N + 10)).floor().clamp(-1, 79).nan_to_num(-1).long() + 1
    rows_N = torch.where(floats_N < 0, magnitude_N + 81, magnitude_N)
    return torch.where(floats_N.isnan(), NUMERIC_ROWS - 1, rows_N)


def time_delta_rows(request_time_N: Tensor, event_time_N: Tensor) -> Tensor:
    """Map the times from events to requests to table rows.

    Args:
        request_time_N: int64 microseconds since 1970 UTC.
        event_time_N: int64 microseconds since 1970 UTC, of the same or a broadcastable shape.

    Returns:
        Rows of `numeric_rows` of the difference in seconds.
    """
    return numeric_rows((request_time_N - event_time_N).to(torch.float32) / 1e6)


def column_rows(column: Column, values_N: Tensor) -> Tensor:
    """Map a column's values to rows of its table.

    Args:
        column: The column; its feature type decides the map.
        values_N: Its values (N,).

    Returns:
        Rows (N,) int64.
    """
    if column.feature_type == "numeric":
        return numeric_rows(values_N)
    if column.feature_type == "category":
        return torch.remainder(values_N.long(), column.rows)
    return hashed_rows(values_N, column.rows)


class TokenEmbedding(nn.Module):
    """All embedding tables, and the event, target, request and user tokens built from them.

    Args:
        config: Width, size of the id tables, and where the time delta is encoded.
        columns: The features of each token.
    """

    def __init__(self, config: ModelConfig, columns: ModelColumns) -> None:
        super().__init__()
        self.columns = columns
        self.item = Column(name="item_id", feature_type="id", rows=config.id_table_rows)
        self.user = Column(name="user_id", feature_type="id", rows=config.id_table_rows)
        self.time_delta = Column(name="time_since_event", feature_type="numeric", rows=NUMERIC_ROWS)
        self.embeds_time_delta = config.time_encoding == "event_feature"
        times = (self.time_delta,) if self.embeds_time_delta else ()
        used = (self.item, self.user, *times, *columns.history, *columns.targets, *columns.requests)
        matched = {c.table for c in columns.history} & {c.table for c in columns.targets}
        self.tables = nn.ModuleDict({c.table: _table(c, config.width, c.table in matched) for c in used})
        self.request_bias = nn.Parameter(torch.randn(config.width) * 0.1)
        roles = ("history", "targets", "requests", "user")
        self.norms = nn.ModuleDict({role: nn.LayerNorm(config.width) for role in roles})

    def event_tokens(self, batch: RequestBatch) -> Tensor:
        """Embed the events of a batch.

        Args:
            batch: With per-request histories, unless attention has the time delta.

        Returns:
            Event tokens (T, D).
        """
        token_TD = self._sum([(column, batch.history[column.name]) for column in (self.item, *self.columns.history)])
        if self.embeds_time_delta:
            # with the output size a GPU need not be asked for it
            request_time_T = torch.repeat_interleave(
                batch.request_time, batch.history_offsets.diff(), output_size=batch.num_events
            )
            rows_T = time_delta_rows(request_time_T, batch.history["event_time"])
            token_TD = token_TD + self.tables[self.time_delta.table](rows_T)
        return self._normalize("history", token_TD)

    def target_tokens(self, targets: Mapping[str, Tensor]) -> Tensor:
        """Embed targets.

        Args:
            targets: `item_id` and the target features, each (G,).

        Returns:
            Target tokens (G, D).
        """
        columns = (self.item, *self.columns.targets)
        return self._normalize("targets", self._sum([(column, targets[column.name]) for column in columns]))

    def request_tokens(self, batch: RequestBatch) -> Tensor:
        """Embed requests.

        Args:
            batch: The requests.

        Returns:
            Request tokens (R, D), identical where requests have no features.
        """
        values = [(column, batch.requests[column.name]) for column in self.columns.requests]
        token_RD = self.request_bias.expand(batch.num_requests, -1)
        return self._normalize("requests", token_RD + self._sum(values) if values else token_RD)

    def user_tokens(self, batch: RequestBatch) -> Tensor:
        """Embed the user of each request.

        Args:
            batch: The requests.

        Returns:
            User tokens (R, D).
        """
        return self._normalize("user", self._sum([(self.user, batch.user_id)]))

    def _sum(self, values: Sequence[tuple[Column, Tensor]]) -> Tensor:
        """The sum (N, D) of one or more columns' embeddings."""
        (first, first_N), *others = values
        total_ND: Tensor = self.tables[first.table](column_rows(first, first_N))
        for column, values_N in others:
            total_ND = total_ND + self.tables[column.table](column_rows(column, values_N))
        return total_ND

    def _normalize(self, role: str, token_ND: Tensor) -> Tensor:
        normalized_ND: Tensor = self.norms[role](token_ND)
        return normalized_ND


def _table(column: Column, width: int, matched: bool) -> nn.Embedding:
    table = nn.Embedding(column.rows, width, sparse=column.rows > MAX_DENSE_ROWS)
    std = ID_STD if column.feature_type == "id" else MATCHED_STD if matched else OTHER_STD
    nn.init.normal_(table.weight, std=std)
    return table
