"""FlexAttention computes what attention by tiles does. Here its kernel is not compiled: PyTorch has none for training on a CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.attention.flex_attention as of_torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch._dynamo.testing import CompileCounter

from longbatch.loaders.batch import offsets_of
from longbatch.trainer.config import ModelConfig
from longbatch.trainer.models import flex_attention as flex
from longbatch.trainer.models.attention import TargetAttention, tiled
from longbatch.trainer.models.flex_attention import EVENTS_PER_BLOCK, ROWS_PER_BLOCK, FlexAttend, meeting_blocks
from longbatch.trainer.models.registry import make_model
from longbatch.trainer.models.spans import Spans

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # the compiler looks
WIDTH, HOUR = 16, 3_600_000_000


@pytest.fixture
def uncompiled(monkeypatch):
    monkeypatch.setattr(
        of_torch, "_validate_device", lambda *tensors: None
    )  # it has gradients here, but says it has not
    monkeypatch.setattr(of_torch, "_warn_once", lambda *message, **more: None)  # that it is not compiled
    monkeypatch.setattr(flex, "_kernel", lambda: of_torch.flex_attention)


def timed(edges, events):
    """Spans [start, end) of events an hour apart, each request a moment after its last."""
    starts, ends = torch.tensor(edges, dtype=torch.int64).view(-1, 2).unbind(1)
    return Spans(starts, ends, events, ends * HOUR + 1, torch.arange(events) * HOUR)


def outputs_and_gradients(module, form, attend, query, history):
    module.zero_grad()
    query, history = query.clone().requires_grad_(), history.clone().requires_grad_()
    output = getattr(module, form)(query, history, attend)
    (output * torch.arange(1, 1 + output.numel(), dtype=output.dtype).view_as(output).sin()).sum().backward()
    inputs = [query, history, *module.parameters()]
    return [output, *(torch.zeros_like(p) if p.grad is None else p.grad for p in inputs)]


def assert_both_agree(edges, counts, events, heads, elapsed):
    torch.manual_seed(0)
    module = TargetAttention(WIDTH, heads, elapsed).double()
    if elapsed:
        torch.nn.init.normal_(module.elapsed.weight)
    spans, target_offsets = timed(edges, events), offsets_of(torch.tensor(counts, dtype=torch.int64))
    query = torch.randn(int(target_offsets[-1]), WIDTH, dtype=torch.float64) * 3
    history = torch.randn(events, WIDTH, dtype=torch.float64) * 3
    for form in ("projected", "reordered"):
        ways = tiled(spans, target_offsets, heads, WIDTH), FlexAttend(spans, target_offsets)
        wanted, found = (outputs_and_gradients(module, form, attend, query, history) for attend in ways)
        for left, right in zip(found, wanted, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("heads", "elapsed"), [(1, False), (4, True)])
@pytest.mark.parametrize(
    ("edges", "counts", "events"),
    [
        ([(0, 3)], [2], 3),
        ([(0, 0), (0, 5), (5, 5)], [1, 2, 3], 5),
        ([(0, 300), (300, 301), (301, 700)], [90, 1, 140], 700),  # several blocks both ways
        ([(0, 200), (5, 260), (100, 300)], [3, 4, 2], 300),  # a timeline that requests share
        ([(0, 0)], [2], 0),
        ([(0, 4)], [0], 4),
    ],
)
def test_it_gives_the_output_and_the_gradients_of_tiles(uncompiled, edges, counts, events, heads, elapsed):
    assert_both_agree(edges, counts, events, heads, elapsed)


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(0, 50)), min_size=1, max_size=5))
def test_it_agrees_on_any_spans(uncompiled, requests):
    edges = [tuple(sorted(edges)) for *edges, _ in requests]
    assert_both_agree(edges, [count for *_, count in requests], 400, 2, True)


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(0, 900)), min_size=1, max_size=400))
def test_blocks_meet_where_a_row_sees_an_event(edges):
    starts, ends = torch.tensor([sorted(pair) for pair in edges]).unbind(1)
    events = torch.arange(900)
    seen = (events >= starts[:, None]) & (events < ends[:, None])
    found = meeting_blocks(starts, ends, 900)
    for rows, meets in zip(seen.split(ROWS_PER_BLOCK), found, strict=True):
        assert meets.tolist() == [bool(part.any()) for part in rows.split(EVENTS_PER_BLOCK, dim=1)]


def test_ragged_batches_share_a_few_graphs(monkeypatch):
    graphs = CompileCounter()
    kernel = torch.compile(of_torch.flex_attention, backend=graphs, fullgraph=True)
    monkeypatch.setattr(flex, "_kernel", lambda: kernel)
    module = TargetAttention(32, 4)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(10):
            lengths = torch.randint(100, 400, (3,), generator=random)
            ends, counts = lengths.cumsum(0), torch.randint(20, 60, (3,), generator=random)
            spans, targets = Spans(ends - lengths, ends, int(ends[-1])), int(counts.sum())
            attend = FlexAttend(spans, offsets_of(counts))
            module.projected(torch.randn(targets, 32), torch.randn(spans.num_events, 32), attend)
    assert 1 <= graphs.frame_count <= 4


def test_a_bias_without_times_is_refused():
    spans = Spans(torch.tensor([0]), torch.tensor([3]), 3)
    attend = FlexAttend(spans, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="needs the times of requests and events"):
        attend(torch.ones(1, 1, 4), torch.ones(3, 1, 4), torch.ones(3, 1, 4), 1.0, torch.ones(162, 1))


def test_a_model_on_a_cpu_attends_by_tiles_whatever_its_config(make_batch, small_model):
    config, columns = small_model
    batch = make_batch([70, 0, 3], [3, 2, 1])
    outputs = []
    for attention in ("tiled", "flex"):
        torch.manual_seed(0)
        outputs.append(make_model(config.model_copy(update={"attention": attention}), columns)(batch))
    assert torch.equal(*outputs)


def test_only_stca_has_flex_attention():
    with pytest.raises(ValidationError, match='attention = "flex" is for stca; din has attention of its own'):
        ModelConfig(name="din", attention="flex")
