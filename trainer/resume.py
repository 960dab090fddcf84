"""Where training starts: from new weights, or from a run's checkpoint.

The order of the data is a function of the seed and the epoch, so the number of steps done determines the next batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longbatch.schemas.errors import SpecError
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.storage.store import Store
from longbatch.trainer.models.request_model import RequestModel

from . import checkpoint
from .checkpoint import Checkpoint
from .config import TrainConfig
from .devices import best_device
from .fit import TrainingState
from .optimizers import make_optimizers

# Keys that may differ when a run is resumed, because they do not change what a step computes
CHANGEABLE_KEYS = frozenset(
    {
        "epochs",
        "max_steps",
        "max_seconds",
        "checkpoint_steps",
        "keep_checkpoints",
        "evaluate_before",
        "evaluate_requests",
        "num_workers",
        "tensorboard",
    }
)


@dataclass(frozen=True)
class RunContext:
    """What identifies a run, and this process's part in it.

    Attributes:
        store: The run's folder.
        config: Its config.
        fingerprint: Fingerprint of the dataset.
        evaluate_from_us: Request time before which requests are trained on, in microseconds since 1970 UTC; None for
            all.
        rank: This process's rank.
        world_size: Number of ranks.
    """

    store: Store
    config: TrainConfig
    fingerprint: str
    evaluate_from_us: int | None
    rank: int = 0
    world_size: int = 1


def start_run(context: RunContext, new_model: RequestModel) -> TrainingState:
    """Start a run from new weights.

    Args:
        context: The run.
        new_model: A model with its initial weights.

    Returns:
        The model on this process's device, at step 0.

    Raises:
        SpecError: The folder already contains a run.
        MachineError: The store cannot be reached or written.
    """
    if checkpoint.exists(context.store):
        raise SpecError(
            f"{context.store.location} already contains a training run; continue it with --resume, or choose another "
            "folder"
        )
    _check_writable(context)
    model = new_model.to(best_device())
    return TrainingState(model, make_optimizers(model, context.config))


def resume_run(context: RunContext) -> TrainingState:
    """Continue a run from its checkpoint, and restore this rank's random-number state.

    Args:
        context: The run, with the config to continue with.

    Returns:
        The model, its optimizers and the steps done.

    Raises:
        SpecError: The run was trained on another dataset, up to another time, with another number of ranks, or with a
            config that differs in more than CHANGEABLE_KEYS.
        DatasetError: There is no checkpoint, or it is damaged or of another version.
        MachineError: The store cannot be reached or written.
    """
    saved = checkpoint.load(context.store, best_device())
    _check_writable(context)
    _check_same_run(saved, context)
    # the implementation of attention may have changed (_check_same_run)
    saved.model.config = context.config.model
    optimizers = make_optimizers(saved.model, context.config)
    for optimizer, state in zip(optimizers, saved.optimizer_states, strict=True):
        optimizer.load_state_dict(state)
    # after the model and optimizers, whose construction draws random numbers
    torch.set_rng_state(saved.rng_states[context.rank])
    return TrainingState(saved.model, optimizers, saved.steps)


def _check_writable(context: RunContext) -> None:
    """Write to a store that is not a disk, so that missing permissions are found before training, not after it."""
    if context.rank == 0 and not isinstance(context.store, LocalStore):
        context.store.check_writable()


def _check_same_run(saved: Checkpoint, context: RunContext) -> None:
    run_dir, config = context.store.location, context.config
    if saved.fingerprint != context.fingerprint:
        raise SpecError(f"{run_dir} was trained on another dataset; resume it with that dataset, or start a new run")
    changeable = set(CHANGEABLE_KEYS)
    if config.lr_schedule != "constant":
        changeable -= {"epochs", "max_steps"}  # they determine the learning rates
    if config.gradient_accumulation_steps > 1:
        changeable -= {"epochs"}  # a step may contain batches of two epochs, and the last step fewer
    before, now = saved.config.model_dump(exclude=changeable), config.model_dump(exclude=changeable)
    before["model"]["attention"] = now["model"]["attention"]  # both implementations compute the same numbers
    if changed := sorted(name for name in now if now[name] != before[name]):
        details = ", ".join(f"{name} was {before[name]!r}, now {now[name]!r}" for name in changed)
        raise SpecError(f"{run_dir} was trained with another config: {details}; resume it with the same values")
    if saved.evaluate_from_us != context.evaluate_from_us:
        raise SpecError(
            f"{run_dir} was trained on requests before another time; resume it with the same evaluate_before"
        )
    if len(saved.rng_states) != context.world_size:
        raise SpecError(
            f"{run_dir} was trained with {len(saved.rng_states)} ranks, but this is a run of {context.world_size}; "
            "start the same number of processes"
        )
