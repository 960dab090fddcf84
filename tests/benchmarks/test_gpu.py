"""The benchmark of GPUs runs in small sizes on a CPU."""

from __future__ import annotations

import pytest
import torch

from longbatch.benchmarks.checks import Results
from longbatch.benchmarks.gpu import Section, bench_gpu, run_section
from longbatch.benchmarks.gpu_attention import relative_error
from longbatch.schemas.errors import MachineError


@pytest.mark.slow
# the compiler reads .grad of tensors that are not leaves, which warns
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_the_small_sizes_run_without_failures_and_attention_is_exact() -> None:
    checks, figures = bench_gpu(quick=True, progress=lambda *progress: None)
    timed = [check for check in checks if "waiting" in check.name]
    assert len(timed) == 3
    assert [check.name for check in checks if check not in timed and not check.holds] == []
    assert sum("error of attention" in check.name for check in checks) == 4
    assert all(figure.value >= 0 for figure in figures)


def test_a_section_that_fails_is_a_check_that_does_not_hold() -> None:
    def run_out_of_memory() -> Results:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    (check,), (figure,) = run_section(Section("train: width 9", run_out_of_memory))
    assert (check.name, check.holds) == ("train: width 9: failures", False)
    assert figure.unit == "OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB"


def test_without_a_device_only_the_small_sizes_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MachineError, match="bench gpu requires a CUDA device, none was found; add --quick"):
        bench_gpu(quick=False, progress=lambda *progress: None)


def test_the_relative_error_is_the_largest_of_all_tensors() -> None:
    zeros, ones = torch.zeros(2), torch.ones(4)
    assert relative_error([zeros, ones * 1.5], [zeros, ones]) == 0.5
    assert relative_error([zeros + 1, ones], [zeros, ones]) == pytest.approx(2**0.5)
