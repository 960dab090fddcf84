from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longbatch.loaders.batch import offsets_of
from longbatch.trainer.models import attention
from longbatch.trainer.models.attention import TargetAttention, make_tiling, prefers_reorder, tiled
from longbatch.trainer.models.spans import Spans

WIDTH, HEADS = 8, 2


def spans_of(history_lengths):
    """Each request's own events, one after another."""
    offsets = offsets_of(torch.tensor(history_lengths, dtype=torch.int64))
    return Spans(offsets[:-1], offsets[1:], int(offsets[-1]))


def outputs_and_gradients(form, module, query, history, spans, target_offsets):
    module.zero_grad()
    query, history = query.clone().requires_grad_(), history.clone().requires_grad_()
    output = form(module, query, history, spans, target_offsets)
    (output * torch.arange(1, 1 + output.numel(), dtype=torch.float64).view_as(output).sin()).sum().backward()
    inputs = [query, history, *module.parameters()]
    return [output, *(torch.zeros_like(p) if p.grad is None else p.grad for p in inputs)]


def naive(module, query, history, spans, target_offsets):
    return module.naive(query, history, spans, target_offsets)


def projected(module, query, history, spans, target_offsets):
    return module.projected(query, history, tiled(spans, target_offsets, module.heads, WIDTH))


def reordered(module, query, history, spans, target_offsets):
    return module.reordered(query, history, tiled(spans, target_offsets, module.heads, WIDTH))


def assert_all_forms_agree(spans, target_counts, elapsed=False, heads=HEADS):
    torch.manual_seed(0)
    module = TargetAttention(WIDTH, heads, elapsed).double()
    if elapsed:
        torch.nn.init.normal_(module.elapsed.weight)
    target_offsets = offsets_of(torch.tensor(target_counts, dtype=torch.int64))
    query = torch.randn(int(target_offsets[-1]), WIDTH, dtype=torch.float64) * 3
    history = torch.randn(spans.num_events, WIDTH, dtype=torch.float64) * 3
    wanted = outputs_and_gradients(naive, module, query, history, spans, target_offsets)
    for form in (projected, reordered):
        found = outputs_and_gradients(form, module, query, history, spans, target_offsets)
        for left, right in zip(found, wanted, strict=True):
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
def test_every_form_gives_the_same_output_and_gradients(history_lengths, target_counts, heads):
    assert_all_forms_agree(spans_of(history_lengths), target_counts, heads=heads)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 20)), max_size=4))
def test_every_form_agrees_on_any_ragged_batch(requests):
    assert_all_forms_agree(spans_of([length for length, _ in requests]), [count for _, count in requests])


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 150), st.integers(0, 150), st.integers(0, 20)), max_size=5))
def test_every_form_agrees_on_spans_that_overlap_with_a_bias_by_elapsed_time(requests):
    edges = torch.tensor([sorted(edges) for *edges, _ in requests], dtype=torch.int64).view(-1, 2)
    event_time = torch.arange(150) * 3_600_000_000
    request_time = event_time.new_tensor([end * 3_600_000_000 + 1 for _, end in edges.tolist()])
    spans = Spans(edges[:, 0], edges[:, 1], 150, request_time, event_time)
    assert_all_forms_agree(spans, [count for *_, count in requests], elapsed=True)


def test_chunks_do_not_change_the_result(monkeypatch):
    monkeypatch.setattr(attention, "VALUES_PER_CHUNK", 9000)
    spans, counts = spans_of([300, 0, 70, 10]), [2, 3, 40, 1]
    assert len(make_tiling(spans, offsets_of(torch.tensor(counts)), HEADS, WIDTH).chunks) > 2
    assert_all_forms_agree(spans, counts)
    hours = torch.arange(spans.num_events) * 3_600_000_000
    timed = replace(spans, request_time_R=hours[-1] + hours[1 : len(counts) + 1], event_time_T=hours)
    assert_all_forms_agree(timed, counts, elapsed=True)


def test_a_target_without_history_gets_zeros():
    module = TargetAttention(WIDTH, HEADS)
    attend = tiled(spans_of([0]), torch.tensor([0, 1]), HEADS, WIDTH)
    assert module.projected(torch.randn(1, WIDTH), torch.zeros(0, WIDTH), attend).tolist() == [[0.0] * WIDTH]


def test_large_scores_stay_finite():
    module = TargetAttention(WIDTH, HEADS)
    attend = tiled(spans_of([100]), torch.tensor([0, 2]), HEADS, WIDTH)
    output = module.projected(torch.randn(2, WIDTH) * 1e4, torch.randn(100, WIDTH) * 1e4, attend)
    assert output.isfinite().all()


def test_padding_is_bounded_by_one_tile_per_request():
    lengths = torch.tensor([10_000, *[1] * 31])
    tiling = make_tiling(spans_of(lengths.tolist()), torch.arange(33) * 4, HEADS, WIDTH)
    assert tiling.events_IB.numel() <= int(lengths.sum()) + 32 * attention.EVENTS_PER_TILE


@pytest.mark.parametrize(
    ("width", "heads", "targets", "reorder"),
    [(1024, 16, 68, True), (1024, 16, 69, False), (32, 4, 10, True), (32, 4, 11, False), (32, 1, 9999, True)],
)
def test_the_form_is_chosen_by_the_break_even(width, heads, targets, reorder):
    assert prefers_reorder(width, heads, targets) is reorder


def test_targets_per_event_weighs_requests_by_their_events():
    assert spans_of([30, 10]).targets_per_event(torch.tensor([0, 1, 6])) == (30 * 1 + 10 * 5) / 40
