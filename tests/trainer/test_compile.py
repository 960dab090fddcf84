from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from training_data import tiny

from longbatch.schemas.errors import MachineError
from longbatch.trainer import compile as compiling
from longbatch.trainer.models.registry import MODELS, make_model
from longbatch.trainer.models.request_model import loss_sum
from longbatch.trainer.train import train

# PyTorch's tracer looks at .grad of what it traces, and hides the warning unless warnings are errors
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture
def graphs(monkeypatch):
    """Compile without generating code, counting the graphs."""
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(compiling, "BACKEND", counter)
    return counter


@pytest.mark.parametrize("name", MODELS)
def test_ragged_batches_of_any_size_do_not_compile_anew(make_batch, small_model, graphs, name):
    config, columns = small_model
    config = config.model_copy(update={"name": name, "newest": 5})
    torch.manual_seed(0)
    plain, compiled = (make_model(config, columns) for _ in range(2))
    compiled.load_state_dict(plain.state_dict())
    compiling.compile_rows(compiled)
    counts = []
    for size in range(2, 12):
        batch = make_batch([10 * size, 3, 7 + size], [size, 2, 3])
        torch.testing.assert_close(compiled(batch), plain(batch), rtol=1e-5, atol=1e-5)
        loss_sum(compiled(batch), batch, columns.labels).backward()
        counts.append(graphs.frame_count)
    assert counts[0] >= 1
    assert counts[-1] == counts[1], "later batches compiled anew"
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_the_switch_compiles_the_model_of_a_run(dataset, tmp_path, graphs):
    report = train(dataset, tmp_path, tiny(compile=True, max_steps=4, train_before=None))
    assert report.steps == 4
    assert graphs.frame_count >= 1


def test_compiling_without_a_compiler_is_refused(make_batch, small_model, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MachineError, match=r"compile = true needs a C\+\+ compiler on a CPU; install g\+\+"):
        compiling.compile_rows(make_model(*small_model))
