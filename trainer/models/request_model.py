"""The interface of all models: token embedding, history encoding, target scoring, head.

Shapes: R requests, G targets, T events, D width, B labels.

A model splits its forward pass in two. `encode_history` computes what does not depend on the targets, once per
request. `score_targets` computes the logits of targets from it. Training runs one after the other; serving keeps the
`HistoryCache` and calls `score_targets` as often as needed (`serving.py`), with the very code that was trained. In no
model does an event attend to a target; hence a batch of requests gives the same loss as its expansion to one
target per request (request-level batching, RLB in STCA, arXiv 2511.06077).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longbatch.loaders.batch import RequestBatch
from longbatch.trainer.config import ModelColumns, ModelConfig

from .embedding import TokenEmbedding
from .head import make_head
from .spans import Spans

HistoryStates = tuple[Tensor, ...]


@dataclass(frozen=True)
class HistoryCache:
    """Everything a model needs of R requests to score any targets for them.

    Attributes:
        history_offsets: Offsets (R + 1,) of the histories; of the timelines where requests share them.
        spans: Where the history of each request is among the events.
        user_RD: User tokens (R, D).
        request_RD: Request tokens (R, D).
        states: What the model's `history_states` returned, such as keys and values per layer.
    """

    history_offsets: Tensor
    spans: Spans
    user_RD: Tensor
    request_RD: Tensor
    states: HistoryStates


class RequestModel(nn.Module, ABC):
    """Maps a RequestBatch to one logit per target and label.

    The public methods do what all models share, and each calls one abstract method, the model's own part:

    | public | shared work | abstract, one per model |
    |---|---|---|
    | `encode_history` | event, user and request tokens; spans | `history_states`: keys and values, or similar |
    | `score_targets` | target tokens; the head | `attend_targets`: targets and states to z |

    To add a model:

    1. Write a file in `trainer/models` with a subclass that implements `history_states` and `attend_targets`.
    2. Add its name to `config.ModelName`, and any sizes of its own to `ModelConfig`.
    3. Add the class to `registry.MODELS`.
    4. Add its operations to `flops._COUNTS`.
    5. Add a test in `tests/trainer/models`; `test_request_model.py` covers every name in `MODELS`.

    Args:
        config: The model's size.
        columns: The columns that it reads.
    """

    def __init__(self, config: ModelConfig, columns: ModelColumns) -> None:
        super().__init__()
        self.config, self.columns = config, columns
        self.tokens = TokenEmbedding(config, columns)
        self.head = make_head(config, len(columns.labels))

    @abstractmethod
    def history_states(
        self, history_TD: Tensor, offsets: Tensor, user_RD: Tensor, targets_per_event: float
    ) -> HistoryStates:
        """Compute what targets read of the histories: the model's part of `encode_history`.

        Args:
            history_TD: Event tokens (T, D).
            offsets: Offsets (R + 1,) of the histories in the events.
            user_RD: User tokens (R, D).
            targets_per_event: Mean number of targets that attend to an event (m); decides which implementation is
                cheaper.

        Returns:
            Tensors for `attend_targets`; their shapes are the model's own.
        """

    @abstractmethod
    def attend_targets(self, cache: HistoryCache, target_GD: Tensor, target_offsets: Tensor) -> Tensor:
        """Compute z, each target's view of the history of its request: the model's part of `score_targets`.

        Args:
            cache: The encoded histories.
            target_GD: Target tokens (G, D).
            target_offsets: Offsets (R + 1,) of each request's targets.

        Returns:
            z (G, D).
        """

    def rowwise_modules(self) -> Iterator[nn.Module]:
        """Iterate over the modules that map rows (N, inputs) one by one: those that compile well for ragged batches.

        Yields:
            Modules whose only dynamic size is N.
        """
        yield self.head

    def encode_history(self, batch: RequestBatch, target_offsets: Tensor | None = None) -> HistoryCache:
        """Encode the requests of a batch without reading their targets.

        Shared timelines are first copied to per-request histories where event tokens depend on the request.

        Args:
            batch: The requests.
            target_offsets: Offsets (R + 1,) of the targets that will be scored, which decide how STCA attends;
                None for many targets.

        Returns:
            The cache for `score_targets`.
        """
        batch = batch if self.config.shares_timelines else batch.to_per_request()
        # only a bias by the time delta reads the times; other models have the delta in the event tokens
        times = (batch.request_time, batch.history["event_time"]) if self.config.shares_timelines else (None, None)
        spans, user_RD = Spans(*batch.spans, batch.num_events, *times), self.tokens.user_tokens(batch)
        targets_per_event = math.inf if target_offsets is None else spans.targets_per_event(target_offsets)
        history_TD = self.tokens.event_tokens(batch)
        states = self.history_states(history_TD, batch.history_offsets, user_RD, targets_per_event)
        return HistoryCache(batch.history_offsets, spans, user_RD, self.tokens.request_tokens(batch), states)

    def score_targets(self, cache: HistoryCache, targets: Mapping[str, Tensor], target_offsets: Tensor) -> Tensor:
        """Score targets against encoded histories.

        Args:
            cache: The encoded requests.
            targets: `item_id` and the target features, each (G,).
            target_offsets: Offsets (R + 1,) of each request's targets.

        Returns:
            Logits (G, B).
        """
        target_GD = self.tokens.target_tokens(targets)
        request_G = segment_ids(target_offsets, len(target_GD))
        z_GD = self.attend_targets(cache, target_GD, target_offsets)
        # the tokens of a request are repeated for each of its targets only here, after the costly part
        user_GD, request_GD = (token.index_select(0, request_G) for token in (cache.user_RD, cache.request_RD))
        logits_GB: Tensor = self.head(z_GD, target_GD, user_GD, request_GD)
        return logits_GB

    def forward(self, batch: RequestBatch) -> Tensor:
        """Score the targets of a batch.

        Args:
            batch: The requests, with per-request histories or shared timelines.

        Returns:
            Logits (G, B), labels in the order of `columns.labels`.
        """
        cache = self.encode_history(batch, batch.target_offsets)
        return self.score_targets(cache, batch.targets, batch.target_offsets)


def segment_ids(offsets: Tensor, num_values: int | None = None) -> Tensor:
    """Find the row that each ragged value belongs to.

    Args:
        offsets: Offsets (R + 1,).
        num_values: The last offset N, if it is known; otherwise it is read from the device, which waits for a GPU.

    Returns:
        Rows (N,) int64.

    Example:
        >>> segment_ids(torch.tensor([0, 2, 2, 5])).tolist()
        [0, 0, 2, 2, 2]
    """
    rows = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return torch.repeat_interleave(rows, offsets.diff(), output_size=num_values)


def loss_sum(logits_GB: Tensor, batch: RequestBatch, labels: tuple[str, ...]) -> Tensor:
    """Sum the binary cross entropy over targets and average it over labels.

    Divided by the number of targets (of all ranks) this is the loss of point-wise training, whatever the number of
    targets per request. The mean over requests of per-request means would not be.

    Args:
        logits_GB: Logits (G, B).
        batch: The batch with the labels, 0 or 1.
        labels: The names of the B labels.

    Returns:
        A scalar, in nats.
    """
    labels_GB = torch.stack([batch.labels[name] for name in labels], dim=1).to(logits_GB.dtype)
    total = nn.functional.binary_cross_entropy_with_logits(logits_GB, labels_GB, reduction="sum")
    return total / len(labels)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Count the parameters of a model.

    Args:
        model: Any module.

    Returns:
        The numbers of dense parameters and of parameters in embedding tables.
    """
    # parameters are compared by id, because == of tensors is elementwise
    tables = {id(table.weight) for table in model.modules() if isinstance(table, nn.Embedding)}
    sizes = [(parameter.numel(), id(parameter) in tables) for parameter in model.parameters()]
    return sum(n for n, is_table in sizes if not is_table), sum(n for n, is_table in sizes if is_table)
