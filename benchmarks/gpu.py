"""`longbatch bench gpu`: the trainer on a CUDA device: errors of attention, throughput, memory, waiting for the device.

A section that fails, for example because the memory is not sufficient, is reported as a check that does not hold, and
the others go on.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from longbatch.schemas.errors import MachineError
from longbatch.schemas.types import ProgressCallback
from longbatch.trainer.models.flex_attention import MAX_HEAD_WIDTH

from . import loader_data
from .checks import WORK_PREFIX, Check, Figure, Results, run_parts
from .gpu_attention import Attention, AttentionCase, attention_errors, eager_flex_attention
from .gpu_training import Amount, TrainingCase, requests_against_samples, training
from .loader_data import Size

FULL, TINY = Amount(length=10_000, steps=15, workers=8), Amount(length=100, steps=2, workers=0)
MESSAGE_CHARACTERS = 500  # of the error of a section


class Section(NamedTuple):
    """A part of the benchmark that may fail on its own.

    Attributes:
        title: What is measured.
        measure: Measures it.
    """

    title: str
    measure: Callable[[], Results]


def bench_gpu(*, quick: bool, progress: ProgressCallback) -> Results:
    """Measure the trainer on a CUDA device.

    Args:
        quick: Run small sizes, on a CPU if there is no CUDA device: this shows that the benchmark works.
        progress: Called after each section.

    Returns:
        Errors, waiting and failed sections as checks, throughput and memory as figures.

    Raises:
        MachineError: There is no CUDA device, and `quick` is False.
    """
    on_gpu = torch.cuda.is_available()
    if not quick and not on_gpu:
        raise MachineError(
            "bench gpu requires a CUDA device, none was found; add --quick to run small sizes on the CPU"
        )
    size = Size(users=6, requests=4, targets=8) if quick else Size(users=160, requests=8, targets=8)
    with tempfile.TemporaryDirectory(prefix=WORK_PREFIX) as folder, nullcontext() if on_gpu else eager_flex_attention():
        path = loader_data.write(Path(folder) / "d", size, "none")
        measured = [partial(run_section, section) for section in (tiny_sections(path) if quick else sections(path))]
        return run_parts("gpu", measured, progress)


def run_section(section: Section) -> Results:
    """Run a section.

    Args:
        section: The section.

    Returns:
        Its results; a check that does not hold and the error if it failed.
    """
    try:
        return section.measure()
    except Exception as error:
        message = f"{type(error).__name__}: {str(error)[:MESSAGE_CHARACTERS]}"
    gc.collect()
    torch.cuda.empty_cache()
    return Results([Check(f"{section.title}: failures", 1, 0)], [Figure(f"{section.title}: failed", 1, message)])


def tiny_sections(path: Path) -> list[Section]:
    """List sections of all types in small sizes.

    Args:
        path: The dataset.

    Returns:
        The sections.
    """
    return [
        _errors(AttentionCase(16, 2, "tiled", "fp32")),
        _errors(AttentionCase(16, 2, "flex", "bf16", time_bias=True)),
        _samples(path, "flex", TINY),
        _training(path, TrainingCase(16, 2, 2, 4), TINY),
        _training(path, TrainingCase(16, 2, 2, 4, attention="flex", precision="bf16"), TINY),
        _training(path, TrainingCase(16, 2, 2, 4, precision="tf32", time_encoding="attention_bias"), TINY),
    ]


def sections(path: Path) -> list[Section]:
    """List the sections, those that compile little first.

    Args:
        path: The dataset, with at least 19 batches of 64 requests.

    Returns:
        The sections.
    """
    implementations: tuple[Attention, ...] = ("tiled", "flex")
    small = TrainingCase(width=32, heads=4, layers=2, requests=64)
    middle = TrainingCase(width=512, heads=8, layers=4, requests=32)
    large = TrainingCase(width=1024, heads=16, layers=4, requests=8)
    cases = [
        *(replace(case, precision="bf16") for case in (small, middle, large)),
        *(replace(case, precision="bf16", attention="flex") for case in (small, middle, large)),
        *(replace(case, precision=precision) for case in (small, large) for precision in ("tf32", "fp32")),
        # the growth of memory with the batch
        *(
            replace(large, precision="bf16", attention=attention, requests=requests)
            for attention in implementations
            for requests in (32, 64)
        ),
        replace(small, precision="bf16", time_encoding="attention_bias"),
        replace(large, precision="bf16", compile=True),
    ]
    return [
        *(_errors(AttentionCase(32, 4, attention, "fp32")) for attention in implementations),
        _samples(path, "tiled", FULL),
        *(_training(path, case, FULL) for case in cases),
        _samples(path, "flex", FULL),
        *(_errors(AttentionCase(32, 4, attention, "bf16", time_bias=True)) for attention in implementations),
        _errors(AttentionCase(MAX_HEAD_WIDTH, 8, "flex", "fp32")),
        *(_errors(AttentionCase(512, 8, attention, "bf16")) for attention in implementations),
        *(_errors(AttentionCase(1024, 16, attention, "bf16")) for attention in implementations),
    ]


def _errors(case: AttentionCase) -> Section:
    return Section(case.title, partial(attention_errors, case))


def _samples(path: Path, attention: Attention, amount: Amount) -> Section:
    title = f"requests against samples, {attention}"
    return Section(title, partial(requests_against_samples, title, path, attention, amount))


def _training(path: Path, case: TrainingCase, amount: Amount) -> Section:
    return Section(case.title, partial(training, path, case, amount))
