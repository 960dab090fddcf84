"""FlexAttention computes what attention by tiles computes.

The kernel is not compiled here, because PyTorch cannot compile it for training on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex_attention
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from training_data import make_batch, small_model

from longbatch.loaders.ragged_tensors import offsets_of
from longbatch.trainer.models import flex_attention
from longbatch.trainer.models.attention import AttentionFunction, TargetAttention, tiled_attention
from longbatch.trainer.models.flex_attention import (
    EVENTS_PER_BLOCK,
    ROWS_PER_BLOCK,
    FlexAttention,
    attended_blocks,
)
from longbatch.trainer.models.request_model import segment_ids
from longbatch.trainer.models.spans import Spans

# the compiler reads .grad of tensors that are not leaves, which warns
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")]
WIDTH, HOUR_US = 16, 3_600_000_000


@pytest.fixture(scope="module")
def uncompiled() -> Iterator[None]:
    """Replaces the compiled kernel by PyTorch's eager implementation."""
    with pytest.MonkeyPatch.context() as patch:
        # PyTorch refuses gradients on CPUs, although the eager code has them, and warns that it is not compiled
        patch.setattr(torch_flex_attention, "_validate_device", lambda *tensors: None)
        patch.setattr(torch_flex_attention, "_warn_once", lambda *message, **options: None)
        patch.setattr(flex_attention, "_kernel", lambda: torch_flex_attention.flex_attention)
        yield


def timed_spans(edges: list[tuple[int, int]], events: int) -> Spans:
    """Spans [start, end) of events an hour apart, each request a moment after its last event."""
    starts, ends = torch.tensor(edges, dtype=torch.int64).view(-1, 2).unbind(1)
    return Spans(starts, ends, events, ends * HOUR_US + 1, torch.arange(events) * HOUR_US)


def outputs_and_gradients(
    module: TargetAttention, reorder: bool, attend: AttentionFunction, inputs: tuple[Tensor, Tensor]
) -> list[Tensor]:
    module.zero_grad()
    query, history = (values.clone().requires_grad_() for values in inputs)
    output = (module.attend_reordered if reorder else module.attend_projected)(query, history, attend)
    weights = torch.arange(1, 1 + output.numel(), dtype=output.dtype).view_as(output).sin()
    torch.autograd.backward((output * weights).sum())
    leaves = [query, history, *module.parameters()]
    return [output, *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)]


def assert_same_as_tiled(spans: Spans, counts: list[int], heads: int, time_bias: bool) -> None:
    torch.manual_seed(0)
    module = TargetAttention(WIDTH, heads, time_bias).double()
    if module.time_bias is not None:
        torch.nn.init.normal_(module.time_bias.weight)
    offsets = offsets_of(torch.tensor(counts, dtype=torch.int64))
    query = torch.randn(int(offsets[-1]), WIDTH, dtype=torch.float64) * 3
    history = torch.randn(spans.num_events, WIDTH, dtype=torch.float64) * 3
    tiled, flex = tiled_attention(spans, offsets, heads, WIDTH), FlexAttention(spans, segment_ids(offsets))
    for reorder in (False, True):
        expected = outputs_and_gradients(module, reorder, tiled, (query, history))
        actual = outputs_and_gradients(module, reorder, flex, (query, history))
        for left, right in zip(actual, expected, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(("heads", "time_bias"), [(1, False), (4, True)])
@pytest.mark.parametrize(
    ("edges", "counts", "events"),
    [
        ([(0, 3)], [2], 3),
        ([(0, 0), (0, 5), (5, 5)], [1, 2, 3], 5),
        ([(0, 140), (140, 141), (141, 300)], [40, 1, 30], 300),  # several blocks of rows and of events
        ([(0, 200), (5, 260), (100, 300)], [3, 4, 2], 300),  # a timeline that requests share
        ([(0, 0)], [2], 0),
        ([(0, 4)], [0], 4),
    ],
)
def test_flex_attention_gives_the_output_and_gradients_of_tiles(
    edges: list[tuple[int, int]], counts: list[int], events: int, heads: int, time_bias: bool
) -> None:
    assert_same_as_tiled(timed_spans(edges, events), counts, heads, time_bias)


@pytest.mark.usefixtures("uncompiled")
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(0, 30)), min_size=1, max_size=5))
def test_flex_attention_agrees_on_any_spans(requests: list[tuple[int, int, int]]) -> None:
    edges = [(min(a, b), max(a, b)) for a, b, _ in requests]
    assert_same_as_tiled(timed_spans(edges, 300), [count for *_, count in requests], 2, True)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900)), min_size=1, max_size=400))
def test_a_block_is_attended_if_any_row_attends_to_any_of_its_events(edges: list[tuple[int, int]]) -> None:
    starts, ends = torch.tensor([sorted(pair) for pair in edges]).unbind(1)
    events = torch.arange(900)
    attended = (events >= starts[:, None]) & (events < ends[:, None])
    blocks = attended_blocks(starts, ends, 900)
    for rows, row_of_blocks in zip(torch.split(attended, ROWS_PER_BLOCK), blocks, strict=True):
        expected = [bool(part.any()) for part in torch.split(rows, EVENTS_PER_BLOCK, dim=1)]
        assert row_of_blocks.tolist() == expected


def test_ragged_batches_share_a_few_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = CompileCounter()
    kernel = torch.compile(torch_flex_attention.flex_attention, backend=graphs, fullgraph=True)
    monkeypatch.setattr(flex_attention, "_kernel", lambda: kernel)
    module = TargetAttention(32, 4)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(6):
            lengths = torch.randint(100, 400, (3,), generator=random)
            ends, counts = lengths.cumsum(0), torch.randint(20, 60, (3,), generator=random)
            spans, targets = Spans(ends - lengths, ends, int(ends[-1])), int(counts.sum())
            attend = FlexAttention(spans, segment_ids(offsets_of(counts)))
            module.attend_projected(torch.randn(targets, 32), torch.randn(spans.num_events, 32), attend)
    assert 1 <= graphs.frame_count <= 4


def test_a_bias_without_times_is_rejected() -> None:
    spans = Spans(torch.tensor([0]), torch.tensor([3]), 3)
    attend = FlexAttention(spans, torch.tensor([0]))
    with pytest.raises(ValueError, match="needs the times of requests and events, but these spans have none"):
        attend(torch.ones(1, 1, 4), torch.ones(3, 1, 4), torch.ones(3, 1, 4), 1.0, torch.ones(162, 1))


def test_a_model_on_a_cpu_uses_tiles_whatever_its_config() -> None:
    batch = make_batch([70, 0, 3], [3, 2, 1])
    assert torch.equal(small_model(attention="tiled")(batch), small_model(attention="flex")(batch))
