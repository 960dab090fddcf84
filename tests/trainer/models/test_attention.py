from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longbatch.loaders.ragged_tensors import offsets_of
from longbatch.trainer.models import tiling
from longbatch.trainer.models.attention import TargetAttention, prefers_reorder, tiled_attention
from longbatch.trainer.models.spans import Spans
from longbatch.trainer.models.tiling import make_tiling

WIDTH, HEADS, HOUR_US = 8, 2, 3_600_000_000

Implementation = Callable[[TargetAttention, Tensor, Tensor, Spans, Tensor], Tensor]


def spans_of(history_lengths: list[int]) -> Spans:
    """Each request's own events, one request after another."""
    offsets = offsets_of(torch.tensor(history_lengths, dtype=torch.int64))
    return Spans(offsets[:-1], offsets[1:], int(offsets[-1]))


def naive(module: TargetAttention, query: Tensor, history: Tensor, spans: Spans, target_offsets: Tensor) -> Tensor:
    return module.attend_naive(query, history, spans, target_offsets)


def projected(module: TargetAttention, query: Tensor, history: Tensor, spans: Spans, target_offsets: Tensor) -> Tensor:
    return module.attend_projected(query, history, tiled_attention(spans, target_offsets, module.heads, WIDTH))


def reordered(module: TargetAttention, query: Tensor, history: Tensor, spans: Spans, target_offsets: Tensor) -> Tensor:
    return module.attend_reordered(query, history, tiled_attention(spans, target_offsets, module.heads, WIDTH))


def outputs_and_gradients(
    implementation: Implementation,
    module: TargetAttention,
    inputs: tuple[Tensor, Tensor],
    spans: Spans,
    offsets: Tensor,
) -> list[Tensor]:
    module.zero_grad()
    query, history = (values.clone().requires_grad_() for values in inputs)
    output = implementation(module, query, history, spans, offsets)
    weights = torch.arange(1, 1 + output.numel(), dtype=torch.float64).view_as(output).sin()
    torch.autograd.backward((output * weights).sum())
    leaves = [query, history, *module.parameters()]
    return [output, *(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves)]


def assert_implementations_agree(
    spans: Spans, target_counts: list[int], time_bias: bool = False, heads: int = HEADS
) -> None:
    torch.manual_seed(0)
    module = TargetAttention(WIDTH, heads, time_bias).double()
    if module.time_bias is not None:
        torch.nn.init.normal_(module.time_bias.weight)
    offsets = offsets_of(torch.tensor(target_counts, dtype=torch.int64))
    query = torch.randn(int(offsets[-1]), WIDTH, dtype=torch.float64) * 3
    history = torch.randn(spans.num_events, WIDTH, dtype=torch.float64) * 3
    expected = outputs_and_gradients(naive, module, (query, history), spans, offsets)
    for implementation in (projected, reordered):
        actual = outputs_and_gradients(implementation, module, (query, history), spans, offsets)
        for left, right in zip(actual, expected, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("history_lengths", "target_counts"),
    [
        ([3], [2]),
        ([0, 5, 0], [1, 2, 3]),
        ([64, 65, 200, 1], [1, 17, 4, 40]),
        ([7, 9], [0, 3]),
        ([0, 0], [2, 1]),
        ([4], [0]),
        ([], []),
    ],
)
@pytest.mark.parametrize("heads", [1, 2, 8])
def test_all_implementations_give_the_same_output_and_gradients(
    history_lengths: list[int], target_counts: list[int], heads: int
) -> None:
    assert_implementations_agree(spans_of(history_lengths), target_counts, heads=heads)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 20)), max_size=4))
def test_all_implementations_agree_on_any_ragged_batch(requests: list[tuple[int, int]]) -> None:
    assert_implementations_agree(spans_of([length for length, _ in requests]), [count for _, count in requests])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 150), st.integers(0, 20)), max_size=5))
def test_all_implementations_agree_on_overlapping_spans_with_a_time_bias(requests: list[tuple[int, int, int]]) -> None:
    edges = torch.tensor([sorted(edges) for *edges, _ in requests], dtype=torch.int64).view(-1, 2)
    event_time = torch.arange(150) * HOUR_US
    request_time = event_time.new_tensor([end * HOUR_US + 1 for _, end in edges.tolist()])
    spans = Spans(edges[:, 0], edges[:, 1], 150, request_time, event_time)
    assert_implementations_agree(spans, [count for *_, count in requests], time_bias=True)


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "VALUES_PER_CHUNK", 9000)
    spans, counts = spans_of([300, 0, 70, 10]), [2, 3, 40, 1]
    assert len(make_tiling(spans, offsets_of(torch.tensor(counts)), HEADS, WIDTH).chunks) > 2
    assert_implementations_agree(spans, counts)
    hours = torch.arange(spans.num_events) * HOUR_US
    timed = replace(spans, request_time_R=hours[-1] + hours[1 : len(counts) + 1], event_time_T=hours)
    assert_implementations_agree(timed, counts, time_bias=True)


def test_a_target_without_history_gets_zeros() -> None:
    module = TargetAttention(WIDTH, HEADS)
    attend = tiled_attention(spans_of([0]), torch.tensor([0, 1]), HEADS, WIDTH)
    assert module.attend_projected(torch.randn(1, WIDTH), torch.zeros(0, WIDTH), attend).tolist() == [[0.0] * WIDTH]


def test_large_scores_do_not_overflow() -> None:
    module = TargetAttention(WIDTH, HEADS)
    attend = tiled_attention(spans_of([100]), torch.tensor([0, 2]), HEADS, WIDTH)
    output = module.attend_projected(torch.randn(2, WIDTH) * 1e4, torch.randn(100, WIDTH) * 1e4, attend)
    assert output.isfinite().all()


@pytest.mark.parametrize(
    ("width", "heads", "targets", "reorder"),
    [(1024, 16, 68, True), (1024, 16, 69, False), (32, 4, 10, True), (32, 4, 11, False), (32, 1, 9999, True)],
)
def test_the_implementation_with_fewer_operations_is_chosen(
    width: int, heads: int, targets: int, reorder: bool
) -> None:
    assert prefers_reorder(width, heads, targets) is reorder
