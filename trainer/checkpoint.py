"""A trained model on disk: one file, written whole or not at all, read without running its content.

`RUN/checkpoint.pt` holds the format version, the weights, the optimizers, the state of each rank's random numbers, the steps
done, and as JSON the training config and the columns of the model; where evaluation starts and which dataset it was
trained on. A reader needs nothing else, and neither does who goes on training. Of several that are kept, the older ones lie beside it as
`checkpoint-STEPS.pt`.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longbatch.schemas.errors import DatasetError
from longbatch.trainer.models.registry import make_model
from longbatch.trainer.models.request_model import RequestModel

from .config import ModelColumns, TrainConfig

VERSION = 3
FILE_NAME = "checkpoint.pt"


@dataclass(frozen=True)
class Run:
    """A model with what is needed to evaluate it.

    evaluate_from_us: the request time, in microseconds since 1970 UTC, up to which it was trained; None
    where it was trained on everything.  fingerprint: of the dataset it was trained on.
    steps: done since the first one.  optimizers: their `state_dict`s, in the order of `make_optimizers`.
    random: the state of each rank's random numbers on the CPU, by rank.
    """

    model: RequestModel
    config: TrainConfig
    evaluate_from_us: int | None
    fingerprint: str
    steps: int
    optimizers: tuple[dict[str, Any], ...]
    random: tuple[torch.Tensor, ...]


def save(run: Run, run_dir: Path | str) -> Path:
    """Write the run's checkpoint atomically and return its path; the folder is made where missing."""
    folder = Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path, partial = folder / FILE_NAME, folder / f".{FILE_NAME}.{os.getpid()}"
    content = {
        "version": VERSION,
        "model": run.model.state_dict(),
        "config": run.config.model_dump_json(),
        "columns": run.model.columns.model_dump_json(),
        "evaluate_from_us": run.evaluate_from_us,
        "fingerprint": run.fingerprint,
        "steps": run.steps,
        "optimizers": list(run.optimizers),
        "random": list(run.random),
    }
    try:
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        _keep(path, run.config.keep_checkpoints - 1, run.steps)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _keep(path: Path, older: int, steps: int) -> None:
    """Give the checkpoint that is there the name of its steps, where older ones are kept, and remove what is more than those."""
    if older and path.is_file() and (before := _read(path, "cpu", mmap=True)["steps"]) != steps:
        kept = path.with_name(f"checkpoint-{before:09d}.pt")
        kept.unlink(missing_ok=True)
        os.link(path, kept)
    for more in sorted(path.parent.glob("checkpoint-*.pt"), reverse=True)[older:]:
        more.unlink()


def load(run_dir: Path | str, device: torch.device | str = "cpu") -> Run:
    """Read a run's newest checkpoint, or the one whose file is given.

    Raises DatasetError where there is none, or it is damaged or of another version.
    """
    path = Path(run_dir) if Path(run_dir).is_file() else Path(run_dir) / FILE_NAME
    content = _read(path, device)
    if content.get("version") != VERSION:
        raise DatasetError(
            f"{path} has version {content.get('version')}, and this longbatch reads version {VERSION}; "
            "train again, or use the longbatch that wrote it"
        )
    config = TrainConfig.model_validate_json(content["config"])
    model = make_model(config.model, ModelColumns.model_validate_json(content["columns"]))
    try:
        model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise DatasetError(
            f"{path} has other weights than {config.model.name} has in this longbatch; "
            f"train again, or use the longbatch that wrote it ({error})"
        ) from None
    return Run(
        model=model.to(device),
        config=config,
        evaluate_from_us=content["evaluate_from_us"],
        fingerprint=content["fingerprint"],
        steps=content["steps"],
        optimizers=tuple(content["optimizers"]),
        random=tuple(state.cpu() for state in content["random"]),
    )


def _read(path: Path, device: torch.device | str, *, mmap: bool = False) -> dict[str, Any]:
    """The content of a checkpoint; mmap: of weights only what is looked at."""
    if not path.is_file():
        raise DatasetError(f"{path} is not there; train first, or give the folder a training run wrote")
    try:
        content = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise DatasetError(f"{path} is damaged ({type(error).__name__}); restore it or train again") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} is no checkpoint of longbatch; give the folder a training run wrote")
    return content
