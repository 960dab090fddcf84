"""Serving: a user's history is encoded once, then any number of candidates are scored against it.

The cache contains what the model's `history_states` returned: keys and values per layer of STCA, of LONGER's and of the
Transformer's sequence. In no model does an event attend to a candidate, so nothing of the history is computed again
(KV caching as in LONGER, arXiv 2505.04421, section on serving).

Shapes: G candidates, B labels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from longbatch.loaders.batch import RequestBatch
from longbatch.trainer.models.request_model import HistoryCache, RequestModel

CANDIDATES_PER_CHUNK = 512  # bounds the memory, whatever the number of candidates


class Scorer:
    """Scores candidates of one request at a time, with the code that trained the model.

    A cache is valid for the request time that it was encoded for, because the time since each event is part of the
    event. Encode again when the user acts, or as often as these times should be updated.

    Args:
        model: A trained model; set to evaluation mode.
        candidates_per_chunk: Maximum number of candidates that are scored at once.

    Raises:
        ValueError: `candidates_per_chunk` is below 1.

    Example:
        >>> import longbatch as lb
        >>> scorer = lb.Scorer(lb.load_model("run"))
        >>> request = next(iter(lb.RequestDataset("dataset", batch_size=1)))
        >>> cache = scorer.encode_history(request)  # once
        >>> logits = scorer.score_targets(cache, request.targets)  # for any candidates, any number of times
        >>> logits.shape[0] == request.num_targets
        True
    """

    def __init__(self, model: RequestModel, *, candidates_per_chunk: int = CANDIDATES_PER_CHUNK) -> None:
        if candidates_per_chunk < 1:
            raise ValueError(f"candidates_per_chunk must be at least 1, found {candidates_per_chunk}")
        self.model = model.eval()
        self.candidates_per_chunk = candidates_per_chunk

    @torch.inference_mode()
    def encode_history(self, request: RequestBatch) -> HistoryCache:
        """Encode the history of one request.

        Args:
            request: A batch of one request on the model's device; its targets and labels are not read.

        Returns:
            The cache for `score_targets`.

        Raises:
            ValueError: The batch does not have exactly one request.
        """
        if request.num_requests != 1:
            raise ValueError(
                f"the batch has {request.num_requests} requests, but a scorer encodes one at a time; "
                "pass batch[i : i + 1]"
            )
        return self.model.encode_history(request)

    @torch.inference_mode()
    def score_targets(self, cache: HistoryCache, candidates: Mapping[str, Tensor]) -> Tensor:
        """Score candidates against an encoded history.

        Args:
            cache: From `encode_history`.
            candidates: `item_id` and the target features, each (G,).

        Returns:
            Logits (G, B), labels in the order of `model.columns.labels`.
        """
        total = len(candidates["item_id"])
        chunks = [
            self._score_chunk(cache, candidates, first) for first in range(0, max(1, total), self.candidates_per_chunk)
        ]
        return torch.cat(chunks)

    def _score_chunk(self, cache: HistoryCache, candidates: Mapping[str, Tensor], first: int) -> Tensor:
        chunk = {name: values[first : first + self.candidates_per_chunk] for name, values in candidates.items()}
        offsets = cache.history_offsets.new_tensor([0, len(chunk["item_id"])])
        return self.model.score_targets(cache, chunk, offsets)
