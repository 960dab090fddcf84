from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from training_data import make_batch, small_model, tiny

from longbatch.schemas.errors import MachineError
from longbatch.trainer import compile as compile_module
from longbatch.trainer.config import ModelName
from longbatch.trainer.models.registry import MODELS
from longbatch.trainer.models.request_model import loss_sum
from longbatch.trainer.train import train

# PyTorch's tracer reads .grad of tensors that are not leaves, which warns
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Counts the graphs; compiles without generating code."""
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(compile_module, "BACKEND", counter)
    return counter


@pytest.mark.parametrize("name", MODELS)
def test_ragged_batches_of_any_size_do_not_recompile(graphs: CompileCounter, name: ModelName) -> None:
    plain, compiled = small_model(name), small_model(name)
    compile_module.compile_rowwise_modules(compiled)
    counts = []
    for size in (2, 3, 7, 11):  # the second batch makes sizes dynamic
        batch = make_batch([10 * size, 3, 7 + size], [size, 2, 3])
        logits = compiled(batch)
        torch.testing.assert_close(logits, plain(batch), rtol=1e-5, atol=1e-5)
        torch.autograd.backward(loss_sum(logits, batch, compiled.columns.labels))
        counts.append(graphs.frame_count)
    assert counts[0] >= 1
    assert counts[-1] == counts[1], "later batches recompiled"
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_the_config_key_compiles_the_model_of_a_run(dataset: Path, tmp_path: Path, graphs: CompileCounter) -> None:
    report = train(dataset, tmp_path, tiny(compile=True, max_steps=2, train_before=None))
    assert report.steps == 2
    assert graphs.frame_count >= 1


def test_compiling_without_a_compiler_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MachineError, match=r"compile = true requires a C\+\+ compiler on a CPU, none was found"):
        compile_module.compile_rowwise_modules(small_model())
