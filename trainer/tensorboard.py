"""A run's TensorBoard log: the progress of training, and the metrics at its end."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from longbatch.schemas.errors import MachineError
from longbatch.schemas.storage.output_folder import output_folder
from longbatch.schemas.storage.store import Store

from .predictions import Metrics
from .progress import TrainingProgress, TrainingProgressCallback


class TensorBoardLog:
    """A progress callback that writes `RUN/tensorboard`, and a context manager that closes it.

    Scalars: train/loss; train/targets_per_second and train/events_per_second since the last report; train/waiting, the
    share of the time spent waiting for batches; evaluation/METRIC/LABEL/LENGTH, the metrics on the evaluated requests.

    TensorBoard writes to a disk. The log of a run in an object store is uploaded when it is closed, also after an
    error.

    Args:
        store: The run's folder.
        forward: Another callback to pass the progress to.

    Raises:
        MachineError: TensorBoard is not installed.
    """

    def __init__(self, store: Store, forward: TrainingProgressCallback | None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MachineError(
                "tensorboard = true requires TensorBoard, which is not installed; "
                "run pip install 'longbatch[tensorboard]'"
            ) from None
        self._stack = ExitStack()
        folder = self._stack.enter_context(output_folder(store, "tensorboard", keep_others=True))
        self._writer = SummaryWriter(str(folder))
        self._stack.callback(self._writer.close)
        self._forward = forward
        self._previous = TrainingProgress("train", 0, 0, 0.0, 0)

    def __enter__(self) -> TensorBoardLog:
        return self

    def __exit__(self, *error: object) -> None:
        """Close the log; the stack does not see the error, so the log is uploaded also after one."""
        self._stack.close()

    def __call__(self, progress: TrainingProgress) -> None:
        """Write one report of training and forward it.

        Args:
            progress: The report.
        """
        if progress.stage == "train":
            previous = self._previous
            seconds = max(progress.seconds - previous.seconds, 1e-9)
            self._add("train/loss", progress.loss, progress.step)
            self._add("train/targets_per_second", (progress.targets - previous.targets) / seconds, progress.step)
            self._add("train/events_per_second", (progress.events - previous.events) / seconds, progress.step)
            self._add("train/waiting", progress.waiting_share, progress.step)
            self._previous = progress
        if self._forward:
            self._forward(progress)

    def write_metrics(self, metrics: Sequence[Metrics], step: int) -> None:
        """Write the metrics of the evaluation.

        Args:
            metrics: The run's metrics.
            step: Steps done.
        """
        for row in metrics:
            values = {
                "auc": row["auc"],
                "log_loss": row["log_loss"],
                "ne": row["ne"],
                "gauc": row["gauc"],
                "gauc_by_request": row["gauc_by_request"],
            }
            for name, value in values.items():
                self._add(f"evaluation/{name}/{row['label']}/{row['history_length']}", value, step)

    def _add(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)
