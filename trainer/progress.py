"""The progress of training and evaluation, as callbacks receive it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingProgress:
    """The state of a run at a report.

    Attributes:
        stage: "train" or "evaluate".
        step: Steps done.
        total_steps: Steps in all; 0 where unknown.
        seconds: Seconds since the stage started.
        targets: Targets processed.
        loss: Mean loss per target since the last report; NaN in evaluation.
        events: History events trained on.
        waiting_share: Share of the time spent waiting for batches, between 0 and 1.
    """

    stage: str
    step: int
    total_steps: int
    seconds: float
    targets: int
    loss: float = float("nan")
    events: int = 0
    waiting_share: float = 0.0


TrainingProgressCallback = Callable[[TrainingProgress], None]
