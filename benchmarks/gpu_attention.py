"""Errors of the attention implementations on a device, compared with the naive loop in float64 on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest import mock

import torch
import torch.nn.attention.flex_attention as torch_flex_attention
from torch import Tensor

from longbatch.loaders.ragged_tensors import offsets_of
from longbatch.trainer.devices import best_device
from longbatch.trainer.models import flex_attention
from longbatch.trainer.models.attention import AttentionFunction, TargetAttention, tiled_attention
from longbatch.trainer.models.flex_attention import MAX_HEAD_WIDTH, FlexAttention
from longbatch.trainer.models.request_model import segment_ids
from longbatch.trainer.models.spans import Spans

from .checks import Check, Results

Attention = Literal["tiled", "flex"]
Attend = Callable[[TargetAttention, Tensor, Tensor], Tensor]

HOUR_US = 3_600_000_000
# events and targets of each request: empty histories, requests without targets, one tile and a little more
EVENTS, TARGETS = (0, 5, 64, 65, 130, 700, 0, 1), (2, 3, 1, 17, 0, 40, 1, 8)
LIMITS = {"fp32": 1e-5, "bf16": 3e-2}


@dataclass(frozen=True)
class AttentionCase:
    """An attention implementation, its size and precision.

    Attributes:
        width: Width D.
        heads: Number of heads H.
        attention: As in `ModelConfig`.
        precision: "fp32", or "bf16" for autocast.
        time_bias: Whether attention has a bias by the time delta.
    """

    width: int
    heads: int
    attention: Attention
    precision: Literal["fp32", "bf16"]
    time_bias: bool = False

    @property
    def title(self) -> str:
        """What is measured."""
        bias = ", time bias" if self.time_bias else ""
        return f"error of attention, width {self.width}, {self.attention}, {self.precision}{bias}"


@dataclass(frozen=True)
class _Inputs:
    """A module and its inputs: G targets of R requests, T events."""

    module: TargetAttention
    query_GD: Tensor
    history_TD: Tensor
    spans: Spans
    target_offsets: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> _Inputs:
        """Copy to a device, with the numbers in another precision."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self.spans).items() if isinstance(value, Tensor)
        }
        return _Inputs(
            deepcopy(self.module).to(device, dtype),
            self.query_GD.to(device, dtype),
            self.history_TD.to(device, dtype),
            replace(self.spans, **tensors),
            self.target_offsets.to(device),
        )


def attention_errors(case: AttentionCase) -> Results:
    """Compare attention, projected and (where its heads are not too wide) reordered, with the naive loop.

    Args:
        case: The implementation, its size and precision.

    Returns:
        A check for projected and one for reordered: the largest relative error of the output and the gradients, see
        `relative_error`.
    """
    exact = _random_inputs(case)
    inputs = exact.to(best_device(), torch.float32)
    expected = _output_and_gradients(
        exact, lambda module, *values: module.attend_naive(*values, exact.spans, exact.target_offsets)
    )
    checks = []
    too_wide = case.attention == "flex" and case.width > MAX_HEAD_WIDTH
    for reorder in (False,) if too_wide else (False, True):
        actual = _output_and_gradients(inputs, _attention(case, inputs, reorder))
        name = f"{case.title}: {'reordered' if reorder else 'projected'}"
        checks.append(Check(name, relative_error(actual, expected), LIMITS[case.precision]))
    return Results(checks, [])


def relative_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Compare tensors by the norm of their difference, ||x - y|| / ||y||.

    Args:
        actual: Tensors on any device, in any precision.
        expected: Tensors of the same shapes.

    Returns:
        The largest error of any pair; a difference from zeros counts as it is.
    """
    errors = [0.0]
    for x, y in zip(actual, expected, strict=True):
        reference = y.detach().double().cpu()
        norm = float(reference.norm())
        errors.append(float((x.detach().double().cpu() - reference).norm()) / (norm or 1.0))
    return max(errors)


@contextmanager
def eager_flex_attention() -> Iterator[None]:
    """Replace the compiled FlexAttention by PyTorch's eager implementation.

    On a CPU only this one has gradients, although PyTorch refuses them there.
    """
    with (
        mock.patch.object(torch_flex_attention, "_validate_device", _do_nothing),
        mock.patch.object(torch_flex_attention, "_warn_once", _do_nothing),
        mock.patch.object(flex_attention, "_kernel", _eager_kernel),
    ):
        yield


def _do_nothing(*arguments: object, **options: object) -> None:
    pass


def _eager_kernel() -> Callable[..., Tensor]:
    kernel: Callable[..., Tensor] = torch_flex_attention.flex_attention
    return kernel


def _random_inputs(case: AttentionCase) -> _Inputs:
    """Weights and inputs in float64 on the CPU; events are an hour apart."""
    torch.manual_seed(0)
    module = TargetAttention(case.width, case.heads, case.time_bias).double()
    if module.time_bias is not None:
        torch.nn.init.normal_(module.time_bias.weight)
    lengths = torch.tensor(EVENTS)
    ends, events = lengths.cumsum(0), sum(EVENTS)
    spans = Spans(ends - lengths, ends, events, ends * HOUR_US + 1, torch.arange(events) * HOUR_US)
    query_GD = torch.randn(sum(TARGETS), case.width, dtype=torch.float64)
    history_TD = torch.randn(events, case.width, dtype=torch.float64)
    return _Inputs(module, query_GD, history_TD, spans, offsets_of(torch.tensor(TARGETS)))


def _attention(case: AttentionCase, inputs: _Inputs, reorder: bool) -> Attend:
    attend: AttentionFunction
    if case.attention == "flex":
        attend = FlexAttention(inputs.spans, segment_ids(inputs.target_offsets))
    else:
        attend = tiled_attention(inputs.spans, inputs.target_offsets, case.heads, case.width)

    def run(module: TargetAttention, query_GD: Tensor, history_TD: Tensor) -> Tensor:
        method = module.attend_reordered if reorder else module.attend_projected
        with torch.autocast(query_GD.device.type, torch.bfloat16, enabled=case.precision == "bf16"):
            return method(query_GD, history_TD, attend)

    return run


def _output_and_gradients(inputs: _Inputs, attend: Attend) -> list[Tensor]:
    """The output (G, D), and the gradients of queries, events and weights for arbitrary gradients of the output."""
    inputs.module.zero_grad()
    query_GD, history_TD = (values.clone().requires_grad_() for values in (inputs.query_GD, inputs.history_TD))
    output_GD = attend(inputs.module, query_GD, history_TD)
    gradient = torch.arange(1, 1 + output_GD.numel(), device=output_GD.device).view_as(output_GD).sin()
    torch.autograd.backward(output_GD, gradient.to(output_GD.dtype))
    leaves = [query_GD, history_TD, *inputs.module.parameters()]
    # a module's bias has no gradient where no bin occurs
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone() for leaf in leaves]
    return [output_GD, *gradients]
