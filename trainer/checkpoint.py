"""A trained model in one file, written atomically, read without executing code from it.

`RUN/checkpoint.pt` contains the format version, the weights, the states of the optimizers, the random-number state of
each rank, the number of steps done, the training config and the model's columns as JSON, where evaluation starts, and
the fingerprint of the dataset. Evaluating and resuming need nothing else. With `keep_checkpoints` above 1 the older
ones are next to it as `checkpoint-STEPS.pt`. In an object store the newest one is there under its number too.
"""

from __future__ import annotations

import logging
import os
import pickle
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.storage.local_copy import local_copy
from longbatch.schemas.storage.local_store import LocalStore
from longbatch.schemas.storage.open_store import Location, is_file, is_url, open_file, open_store
from longbatch.schemas.storage.store import Store
from longbatch.trainer.models.registry import make_model
from longbatch.trainer.models.request_model import RequestModel

from .config import ModelColumns, TrainConfig

logger = logging.getLogger(__name__)

VERSION = 4
FILE_NAME = "checkpoint.pt"
OptimizerState = dict[str, Any]  # PyTorch's own record: the `state_dict` of an optimizer


@dataclass(frozen=True)
class Checkpoint:
    """A model with what is needed to evaluate it and to continue its training.

    Attributes:
        model: The model.
        config: The run's config.
        evaluate_from_us: The request time, in microseconds since 1970 UTC, before which the model was trained; None
            where it was trained on everything.
        fingerprint: Fingerprint of the dataset that it was trained on.
        steps: Steps done since the start of the run.
        optimizer_states: The optimizers' `state_dict`s, in the order of `make_optimizers`.
        rng_states: The state of the CPU's random-number generator of each rank.
    """

    model: RequestModel
    config: TrainConfig
    evaluate_from_us: int | None
    fingerprint: str
    steps: int
    optimizer_states: tuple[OptimizerState, ...]
    rng_states: tuple[torch.Tensor, ...]


def save(checkpoint: Checkpoint, run: Location) -> None:
    """Write a run's checkpoint atomically: a reader sees the previous file or the new one, never a part.

    Args:
        checkpoint: What to write.
        run: Folder or URL of the run; a folder is created if missing.

    Raises:
        MachineError: The disk is full, or the store cannot be written.
    """
    store = open_store(run)
    content = {
        "version": VERSION,
        "model": checkpoint.model.state_dict(),
        "config": checkpoint.config.model_dump_json(),
        "columns": checkpoint.model.columns.model_dump_json(),
        "evaluate_from_us": checkpoint.evaluate_from_us,
        "fingerprint": checkpoint.fingerprint,
        "steps": checkpoint.steps,
        "optimizer_states": list(checkpoint.optimizer_states),
        "rng_states": list(checkpoint.rng_states),
    }
    keep_older = checkpoint.config.keep_checkpoints - 1
    if not isinstance(store, LocalStore) and keep_older:
        # An object cannot be linked under a second name, so the newest checkpoint is written under both of its names.
        with store.open_replacement(_name_of_step(checkpoint.steps)) as file:
            torch.save(content, file)
    with store.open_replacement(FILE_NAME) as file:
        torch.save(content, file)
        if isinstance(store, LocalStore):
            # the file replaces the newest checkpoint when the block ends, so that one is linked first
            _link_previous(store, keep_older, checkpoint.steps)
    _delete_surplus(store, keep_older)
    logger.debug("saved %s at step %d", store.name(FILE_NAME), checkpoint.steps)


def _name_of_step(steps: int) -> str:
    return f"checkpoint-{steps:09d}.pt"


def _link_previous(store: LocalStore, keep_older: int, steps: int) -> None:
    """Link the existing checkpoint under the name of its steps, if older ones are kept."""
    path = store.path(FILE_NAME)
    if keep_older and path.is_file() and (previous := _read(store, FILE_NAME, "cpu", mmap=True)["steps"]) != steps:
        older = store.path(_name_of_step(previous))
        older.unlink(missing_ok=True)
        # a hard link costs no copy, and the newest checkpoint has its name at every moment
        os.link(path, older)


def _delete_surplus(store: Store, keep_older: int) -> None:
    """Delete the oldest numbered checkpoints. A store that is not a disk also has the newest one under a number."""
    if isinstance(store, LocalStore):
        names, keep = [path.name for path in store.root.glob("checkpoint-*.pt")], keep_older
    else:
        names = [file.path for file in store.list_files() if fnmatchcase(file.path, "checkpoint-*.pt")]
        keep = keep_older + 1 if keep_older else 0
    store.delete(sorted(names, reverse=True)[keep:])


def load(run: Location, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint.

    Args:
        run: Folder or URL of a run, for its newest checkpoint, or of a checkpoint file (`.pt`).
        device: Where to put the model.

    Returns:
        The checkpoint.

    Raises:
        DatasetError: There is no checkpoint, or it is damaged or of another version.

    Example:
        >>> load("run").config.model.name
        'stca'
    """
    store, name = _open_checkpoint(run)
    path = store.name(name)
    content = _read(store, name, device)
    if content.get("version") != VERSION:
        raise DatasetError(
            f"{path} has checkpoint version {content.get('version')}, but this release reads version {VERSION}; "
            "train again, or use the release of longbatch that wrote it"
        )
    config = TrainConfig.model_validate_json(content["config"])
    model = make_model(config.model, ModelColumns.model_validate_json(content["columns"]))
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise DatasetError(
            f"the weights in {path} do not match the model {config.model.name} of this release; "
            f"train again, or use the release of longbatch that wrote it ({error})"
        ) from None
    return Checkpoint(
        model=model.to(device),
        config=config,
        evaluate_from_us=content["evaluate_from_us"],
        fingerprint=content["fingerprint"],
        steps=content["steps"],
        optimizer_states=tuple(content["optimizer_states"]),
        # load puts all tensors on the device, but random-number states must be on the CPU
        rng_states=tuple(state.cpu() for state in content["rng_states"]),
    )


def exists(run: Location) -> bool:
    """Whether a folder contains a training run.

    Args:
        run: Folder or URL.

    Raises:
        MachineError: The store cannot be reached or read.
    """
    try:
        open_store(run).size(FILE_NAME)
    except FileNotFoundError:
        return False
    return True


def _open_checkpoint(run: Location) -> tuple[Store, str]:
    """The folder and the name of the checkpoint that is meant."""
    # a URL is a checkpoint file by its name, because a store has no folders to tell it from
    if not isinstance(run, Store) and (str(run).endswith(".pt") if is_url(run) else is_file(run)):
        return open_file(run)
    return open_store(run), FILE_NAME


def _read(store: Store, name: str, device: torch.device | str, *, mmap: bool = False) -> dict[str, Any]:
    """The content of a checkpoint. With mmap only the weights that are accessed are read."""
    path = store.name(name)
    try:
        with local_copy(store, name) as file:
            content = torch.load(file, map_location=device, weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise DatasetError(f"checkpoint not found: {path}; train first, or pass the folder of a training run") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise DatasetError(f"{path} is damaged ({type(error).__name__}); restore it or train again") from error
    if not isinstance(content, dict):
        raise DatasetError(
            f"{path} is not a longbatch checkpoint: it contains a {type(content).__name__}; "
            "pass the folder of a training run"
        )
    return content
