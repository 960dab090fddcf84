"""What TensorBoard shows of a run: what progress tells, and the metrics at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longbatch.schemas.errors import MachineError

from .predictions import Metrics, Progress, ProgressCallback

SHOWN = ("auc", "log_loss", "ne", "gauc", "gauc_by_request")


class Board:
    """Writes `RUN/tensorboard` as training goes on; MachineError where TensorBoard is not installed.

    train/loss, and per second since the last report: train/targets_per_second, train/events_per_second.  train/waiting: the share
    of the time spent waiting for batches.  evaluation/METRIC/LABEL/LENGTH: metrics on the newer requests.
    """

    def __init__(self, run_dir: Path, forward: ProgressCallback | None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MachineError("tensorboard = true needs TensorBoard; install longbatch[tensorboard]") from None
        self._writer = SummaryWriter(str(run_dir / "tensorboard"))
        self._forward = forward
        self._before = Progress("train", 0, 0, 0.0, 0)

    def __call__(self, now: Progress) -> None:
        """Show progress, and tell it to who else wants it."""
        if now.stage == "train":
            seconds = max(now.seconds - self._before.seconds, 1e-9)
            self._add("train/loss", now.loss, now.step)
            self._add("train/targets_per_second", (now.targets - self._before.targets) / seconds, now.step)
            self._add("train/events_per_second", (now.events - self._before.events) / seconds, now.step)
            self._add("train/waiting", now.waiting, now.step)
            self._before = now
        if self._forward:
            self._forward(now)

    def close(self, metrics: Sequence[Metrics], step: int) -> None:
        """Show the metrics, and finish the file."""
        for row in metrics:
            for name in SHOWN:
                self._add(f"evaluation/{name}/{row['label']}/{row['history_length']}", float(row[name]), step)
        self._writer.close()

    def _add(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)
