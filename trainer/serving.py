"""Serving: a user's history encoded once, any number of candidates scored against it.

What is kept is what the model's history side returns (`model.py`): STCA's keys and values per layer, LONGER's and the
Transformer's keys and values of the sequence. No model's history side sees a candidate, so nothing of it is done again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from longbatch.loaders.batch import RequestBatch
from longbatch.trainer.models.request_model import Encoded, RequestModel

CANDIDATES_PER_CHUNK = 512  # bounds what is live at once, whatever the number of candidates


class Scorer:
    """Scores candidates of one request at a time, with the code that trained the model.

    What was encoded holds at the request time it was encoded for: the time since each event is part of an event. Encode
    again when the user acts, or as often as these times shall be fresh.
    """

    def __init__(self, model: RequestModel, *, candidates_per_chunk: int = CANDIDATES_PER_CHUNK) -> None:
        if candidates_per_chunk < 1:
            raise ValueError(f"candidates_per_chunk is {candidates_per_chunk}; give 1 or more")
        self.model = model.eval()
        self.candidates_per_chunk = candidates_per_chunk

    @torch.inference_mode()
    def encode(self, request: RequestBatch) -> Encoded:
        """The history side of a batch of one request; its targets and labels are not read.

        Raises ValueError for a batch of several.
        """
        if request.num_requests != 1:
            raise ValueError(f"the batch has {request.num_requests} requests; a scorer encodes one at a time")
        return self.model.encode(request)

    @torch.inference_mode()
    def score(self, encoded: Encoded, candidates: Mapping[str, Tensor]) -> Tensor:
        """Logits (G, B) of candidates: `item_id` and the target features, each (G,)."""
        total = len(candidates["item_id"])
        parts = [
            self._chunk(encoded, candidates, first) for first in range(0, max(1, total), self.candidates_per_chunk)
        ]
        return torch.cat(parts)

    def _chunk(self, encoded: Encoded, candidates: Mapping[str, Tensor], first: int) -> Tensor:
        chunk = {name: values[first : first + self.candidates_per_chunk] for name, values in candidates.items()}
        offsets = encoded.history_offsets.new_tensor([0, len(chunk["item_id"])])
        return self.model.score(encoded, chunk, offsets)
