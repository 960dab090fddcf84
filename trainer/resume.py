"""Where training starts, anew or from a checkpoint, and how Ctrl-C ends it between two steps.

The order of the data is a function of seed and epoch, so the number of steps done says which batch comes next.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from longbatch.schemas.errors import SpecError
from longbatch.trainer.models.request_model import RequestModel

from . import checkpoint
from .config import TrainConfig
from .optimizers import make_optimizers
from .predictions import best_device

BUDGETS = (
    "epochs",
    "max_steps",
    "max_seconds",
    "checkpoint_steps",
    "keep_checkpoints",
    "evaluate_before",
    "evaluate_requests",
    "num_workers",
    "tensorboard",
)


@dataclass(frozen=True)
class Start:
    """A model with its optimizers and the steps they have done."""

    model: RequestModel
    optimizers: list[torch.optim.Optimizer]
    step: int


def start(
    run_dir: Path | str,
    fresh: RequestModel,
    config: TrainConfig,
    fingerprint: str,
    split_us: int | None,
    resume: bool,
    rank: int = 0,
    world_size: int = 1,
) -> Start:
    """The fresh model at step 0 or, to resume, the run's model where it was saved.

    Raises SpecError where the run was trained on another dataset, up to another time (split_us), on another number of ranks, or by a
    config that differs in more than BUDGETS; and, to train anew, where the folder holds a run.
    """
    if not resume:
        if (Path(run_dir) / checkpoint.FILE_NAME).exists():
            raise SpecError(f"{run_dir} holds a run; go on from it with --resume, or choose another folder")
        model = fresh.to(best_device())
        return Start(model, make_optimizers(model, config), 0)
    run = checkpoint.load(run_dir, best_device())
    _check(run, config, fingerprint, run_dir)
    run.model.config = config.model
    if run.evaluate_from_us != split_us:
        raise SpecError(
            f"{run_dir} was trained on requests up to another time; resume it with the same evaluate_before"
        )
    if len(run.random) != world_size:
        raise SpecError(f"{run_dir} was trained on {len(run.random)} ranks, and there are {world_size}; use as many")
    optimizers = make_optimizers(run.model, config)
    for optimizer, state in zip(optimizers, run.optimizers, strict=True):
        optimizer.load_state_dict(state)
    if rank < len(run.random):
        torch.set_rng_state(run.random[rank])
    return Start(run.model, optimizers, run.steps)


def _check(run: checkpoint.Run, config: TrainConfig, fingerprint: str, run_dir: Path | str) -> None:
    if run.fingerprint != fingerprint:
        raise SpecError(f"{run_dir} was trained on another dataset; resume it on that one, or train anew")
    free = set(BUDGETS)
    if config.decay != "constant":
        free -= {"epochs", "max_steps"}  # which say how learning rates fall
    if config.accumulate > 1:
        free -= {"epochs"}  # a step may hold batches of two epochs, and the last step fewer
    before, now = run.config.model_dump(exclude=free), config.model_dump(exclude=free)
    before["model"]["attention"] = now["model"]["attention"]  # which changes no number
    if changed := sorted(name for name in now if now[name] != before[name]):
        raise SpecError(f"{run_dir} was trained with another {', '.join(changed)}; resume it with the same config")


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Within it the first Ctrl-C only makes the yielded function true; the second interrupts as ever."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set  # only the main thread may handle signals
        return
    previous = signal.getsignal(signal.SIGINT)

    def ask(_number: int, _frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
