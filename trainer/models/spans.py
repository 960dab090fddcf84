"""Where the history of each request is among the events of a batch.

Models read spans, so they need not know whether a batch has per-request histories or shared timelines.

Shapes: R requests, T events, N selected requests, B events for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .embedding import time_delta_rows


@dataclass(frozen=True)
class Spans:
    """The histories of R requests among T events: request r reads the events [start_R[r], end_R[r]).

    Attributes:
        start_R: First event of each history, int64.
        end_R: End of each history (exclusive), int64. Spans overlap where requests share a timeline.
        num_events: T.
        request_time_R: int64 microseconds since 1970 UTC; None where attention has no bias by time.
        event_time_T: int64 microseconds since 1970 UTC, or None.
    """

    start_R: Tensor
    end_R: Tensor
    num_events: int
    request_time_R: Tensor | None = None
    event_time_T: Tensor | None = None

    @property
    def length_R(self) -> Tensor:
        """Number of events of each history (R,)."""
        return self.end_R - self.start_R

    def targets_per_event(self, target_offsets: Tensor) -> float:
        """Compute m, the mean number of targets that attend to an event.

        Args:
            target_offsets: Offsets (R + 1,) of each request's targets.

        Returns:
            Pairs of a target and an event, divided by T.
        """
        return float((self.length_R * target_offsets.diff()).sum()) / max(1, self.num_events)

    def time_bins(self, request_N: Tensor, event_NB: Tensor) -> Tensor | None:
        """Find the time bins of the times from events to their requests.

        Args:
            request_N: Requests (N,).
            event_NB: Events (N, B) of each request.

        Returns:
            Time bins (N, B), rows of `embedding.numeric_rows`, or None where the spans have no times.
        """
        if self.request_time_R is None or self.event_time_T is None:
            return None
        return time_delta_rows(self.request_time_R[request_N][:, None], self.event_time_T[event_NB])
