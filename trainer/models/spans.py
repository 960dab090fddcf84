"""Where the histories of a batch lie among its events: what models read of the batch's form.

Shapes: R requests, T events, N of the requests, B events for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .embedding import elapsed_rows


@dataclass(frozen=True)
class Spans:
    """Where the histories of R requests lie among T events: [start, end), and, for a bias by it, when everything was.

    request_time_R, event_time_T: int64 microseconds, or None.
    """

    start_R: Tensor
    end_R: Tensor
    num_events: int
    request_time_R: Tensor | None = None
    event_time_T: Tensor | None = None

    @property
    def length_R(self) -> Tensor:
        """Events of each history."""
        return self.end_R - self.start_R

    def targets_per_event(self, target_offsets: Tensor) -> float:
        """m, the mean number of targets that share an event."""
        return float((self.length_R * target_offsets.diff()).sum()) / max(1, self.num_events)

    def elapsed(self, request_N: Tensor, event_NB: Tensor) -> Tensor | None:
        """Buckets (N, B) of the times from events to their requests (N,)."""
        if self.request_time_R is None or self.event_time_T is None:
            return None
        return elapsed_rows(self.request_time_R[request_N][:, None], self.event_time_T[event_NB])
