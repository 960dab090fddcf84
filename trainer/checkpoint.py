"""A trained model on disk: one file, written atomically, read without executing code from it.

`RUN/checkpoint.pt` contains the format version, the weights, the states of the optimizers, the random-number state of
each rank, the number of steps done, the training config and the model's columns as JSON, where evaluation starts, and
the fingerprint of the dataset. Evaluating and resuming need nothing else. With `keep_checkpoints` above 1 the older
ones are next to it as `checkpoint-STEPS.pt`.
"""

from __future__ import annotations

import logging
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longbatch.schemas.errors import DatasetError
from longbatch.schemas.storage.local_folders import atomic_file
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


def save(checkpoint: Checkpoint, run_dir: Path | str) -> Path:
    """Write a run's checkpoint atomically: a reader sees the previous file or the new one, never a part.

    Args:
        checkpoint: What to write.
        run_dir: The run's folder, created if missing.

    Returns:
        The path of the file.
    """
    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
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
    with atomic_file(path) as file:
        torch.save(content, file)
        # the file replaces the newest checkpoint when the block ends, so that one is linked first
        _rotate(path, checkpoint.config.keep_checkpoints - 1, checkpoint.steps)
    logger.debug("saved %s at step %d", path, checkpoint.steps)
    return path


def _rotate(path: Path, keep_older: int, steps: int) -> None:
    """Link the existing checkpoint under the name of its steps, if older ones are kept, and delete the oldest."""
    if keep_older and path.is_file() and (previous := _read(path, "cpu", mmap=True)["steps"]) != steps:
        older = path.with_name(f"checkpoint-{previous:09d}.pt")
        older.unlink(missing_ok=True)
        # a hard link costs no copy, and the newest checkpoint has its name at every moment
        os.link(path, older)
    for surplus in sorted(path.parent.glob("checkpoint-*.pt"), reverse=True)[keep_older:]:
        surplus.unlink()


def load(run_dir: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint.

    Args:
        run_dir: A run's folder, for its newest checkpoint, or a checkpoint file.
        device: Where to put the model.

    Returns:
        The checkpoint.

    Raises:
        DatasetError: There is no checkpoint, or it is damaged or of another version.

    Example:
        >>> load("run").config.model.name
        'stca'
    """
    path = Path(run_dir) if Path(run_dir).is_file() else Path(run_dir) / FILE_NAME
    content = _read(path, device)
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


def _read(path: Path, device: torch.device | str, *, mmap: bool = False) -> dict[str, Any]:
    """The content of a checkpoint. With mmap only the weights that are accessed are read."""
    if not path.is_file():
        raise DatasetError(f"checkpoint not found: {path}; train first, or pass the folder of a training run")
    try:
        content = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise DatasetError(f"{path} is damaged ({type(error).__name__}); restore it or train again") from error
    if not isinstance(content, dict):
        raise DatasetError(
            f"{path} is not a longbatch checkpoint: it contains a {type(content).__name__}; "
            "pass the folder of a training run"
        )
    return content
