from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_data import DAY, START, TrainedRun, tiny

from longbatch.schemas.errors import DatasetError, SpecError
from longbatch.trainer import checkpoint
from longbatch.trainer.config import SampledLength
from longbatch.trainer.progress import TrainingProgress
from longbatch.trainer.train import train

pytestmark = pytest.mark.slow


def interrupt_at_step_10(progress: TrainingProgress) -> None:
    """Press Ctrl-C at the 10th step."""
    if progress.step == 10:
        signal.raise_signal(signal.SIGINT)


def is_same(a: object, b: object) -> bool:
    """Whether two nested states are equal to the last bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(is_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(is_same, a, b))
    return a == b


def assert_same_weights_and_optimizers(run: Path, other: Path) -> None:
    contents = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (run, other)]
    assert is_same(contents[0]["model"], contents[1]["model"])
    assert is_same(contents[0]["optimizer_states"], contents[1]["optimizer_states"])


@pytest.mark.parametrize("stop", [7, 35])
def test_a_resumed_run_equals_one_that_never_stopped_to_the_last_bit(dataset: Path, tmp_path: Path, stop: int) -> None:
    config = tiny(max_steps=40, evaluate_requests=16, history_length=SampledLength(minimum=0, maximum=16))
    uninterrupted = train(dataset, tmp_path / "uninterrupted", config)
    train(dataset, tmp_path / "resumed", config.model_copy(update={"max_steps": stop}))
    torch.manual_seed(123)
    resumed = train(dataset, tmp_path / "resumed", config, resume=True)
    assert (resumed.steps, resumed.metrics) == (uninterrupted.steps, uninterrupted.metrics)
    assert_same_weights_and_optimizers(tmp_path / "uninterrupted", tmp_path / "resumed")


def test_a_run_with_a_learning_rate_schedule_resumes_to_the_last_bit(dataset: Path, tmp_path: Path) -> None:
    config = tiny(epochs=1, warmup_steps=5, lr_schedule="cosine", gradient_accumulation_steps=2, train_before=None)
    train(dataset, tmp_path / "uninterrupted", config)
    saving = config.model_copy(update={"checkpoint_steps": 3})
    first = train(dataset, tmp_path / "resumed", saving, progress=interrupt_at_step_10)
    assert first.stopped_by == "interrupt"
    train(dataset, tmp_path / "resumed", config, resume=True)
    assert_same_weights_and_optimizers(tmp_path / "uninterrupted", tmp_path / "resumed")


def test_ctrl_c_saves_after_the_current_step_and_the_run_can_be_resumed(dataset: Path, tmp_path: Path) -> None:
    report = train(dataset, tmp_path, tiny(max_steps=20), progress=interrupt_at_step_10)
    assert report.stopped_by == "interrupt"
    assert report.metrics == []
    assert checkpoint.load(tmp_path).steps == report.steps == 11
    assert train(dataset, tmp_path, tiny(max_steps=20), resume=True).steps == 20


def test_a_finished_run_is_not_trained_further(dataset: Path, tmp_path: Path) -> None:
    config = tiny(max_steps=3, train_before=None)
    train(dataset, tmp_path, config)
    report = train(dataset, tmp_path, config, resume=True)
    assert (report.steps, report.targets, report.stopped_by) == (3, 0, "max_steps")


def test_a_run_can_be_resumed_with_another_attention_implementation(dataset: Path, tmp_path: Path) -> None:
    train(dataset, tmp_path, tiny(max_steps=2, train_before=None))
    model = tiny().model.model_copy(update={"attention": "flex"})
    assert train(dataset, tmp_path, tiny(max_steps=3, train_before=None, model=model), resume=True).steps == 3
    assert checkpoint.load(tmp_path).config.model.attention == "flex"


def test_a_folder_with_a_run_is_not_overwritten(trained: TrainedRun, dataset: Path) -> None:
    with pytest.raises(
        SpecError, match="already contains a training run; continue it with --resume, or choose another"
    ):
        train(dataset, trained.folder, tiny())


def test_a_run_is_not_resumed_with_another_config_or_dataset(
    trained: TrainedRun, dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=r"batch_size was 16, now 8, learning_rate was 0\.005, now 0\.001"):
        train(dataset, trained.folder, tiny(batch_size=8, learning_rate=1e-3), resume=True)
    run = checkpoint.load(trained.folder)
    checkpoint.save(replace(run, fingerprint="another"), tmp_path)
    with pytest.raises(SpecError, match="was trained on another dataset"):
        train(dataset, tmp_path, tiny(), resume=True)
    with pytest.raises(DatasetError, match="checkpoint not found"):
        train(dataset, tmp_path / "none", tiny(), resume=True)
    with pytest.raises(SpecError, match="was trained on requests before another time"):
        train(dataset, trained.folder, tiny(evaluate_before=START + 9 * DAY), resume=True)
    checkpoint.save(replace(run, rng_states=(*run.rng_states, *run.rng_states)), tmp_path)
    with pytest.raises(SpecError, match="was trained with 2 ranks, but this is a run of 1"):
        train(dataset, tmp_path, tiny(), resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr_schedule": "cosine"}, "epochs was 4, now 9, max_steps was None, now 99;"),
        ({"gradient_accumulation_steps": 2}, "another config: epochs was 4, now 9;"),
    ],
)
def test_limits_that_determine_learning_rates_or_groups_of_batches_cannot_change(
    trained: TrainedRun, dataset: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    checkpoint.save(replace(checkpoint.load(trained.folder), config=tiny(**changes)), tmp_path)
    with pytest.raises(SpecError, match=message):
        train(dataset, tmp_path, tiny(epochs=9, max_steps=99, **changes), resume=True)
