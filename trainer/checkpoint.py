"""A trained model on disk: one file, written whole or not at all, read without running its content.

`RUN/checkpoint.pt` holds the format version, the weights, the optimisers, the state of the random numbers, the steps
done, and as JSON the training config and the columns of the model; where evaluation starts and which dataset it was
trained on. A reader needs nothing else, and neither does who goes on training.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longbatch.schemas.errors import DatasetError
from longbatch.trainer.config import ModelColumns, TrainConfig
from longbatch.trainer.model import RequestModel
from longbatch.trainer.models import make_model

VERSION = 2
FILE_NAME = "checkpoint.pt"


@dataclass(frozen=True)
class Run:
    """A model with what is needed to evaluate it.

    evaluate_from_us: the request time, in microseconds since 1970 UTC, up to which it was trained; None
    where it was trained on everything.  fingerprint: of the dataset it was trained on.
    steps: done since the first one.  optimisers: their `state_dict`s, in the order of `make_optimisers`.
    """

    model: RequestModel
    config: TrainConfig
    evaluate_from_us: int | None
    fingerprint: str
    steps: int
    optimisers: tuple[dict[str, Any], ...]


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
        "optimisers": list(run.optimisers),
        "random": torch.get_rng_state(),
    }
    try:
        with partial.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def load(run_dir: Path | str, device: torch.device | str = "cpu") -> Run:
    """Read a run; DatasetError where there is none, or it is damaged or of another version."""
    path = Path(run_dir) / FILE_NAME
    content = _read(path, device)
    if content.get("version") != VERSION:
        raise DatasetError(
            f"{path} has version {content.get('version')}, and this longbatch reads version {VERSION}; "
            "train again, or use the longbatch that wrote it"
        )
    config = TrainConfig.model_validate_json(content["config"])
    model = make_model(config.model, ModelColumns.model_validate_json(content["columns"]))
    model.load_state_dict(content["model"])
    return Run(
        model=model.to(device),
        config=config,
        evaluate_from_us=content["evaluate_from_us"],
        fingerprint=content["fingerprint"],
        steps=content["steps"],
        optimisers=tuple(content["optimisers"]),
    )


def restore_random(run_dir: Path | str) -> None:
    """Set PyTorch's random numbers on the CPU to where they stood when the run was saved."""
    torch.set_rng_state(_read(Path(run_dir) / FILE_NAME, "cpu")["random"])


def _read(path: Path, device: torch.device | str) -> dict[str, Any]:
    if not path.is_file():
        raise DatasetError(f"{path} is not there; train first, or give the folder a training run wrote")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise DatasetError(f"{path} is damaged ({type(error).__name__}); restore it or train again") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path} is no checkpoint of longbatch; give the folder a training run wrote")
    return content
