"""SwiGLU: the feed-forward map of STCA, and what all models with attention make their output of.

Shapes: N rows, D width, K hidden units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """`((x Wu) * swish(x Wv)) Wo`, after `x W` where the input is wider than the output (fusion).

    It starts as a monotone map of each coordinate in a random basis: with `Wu = Wv = [Q, -Q]`, orthogonal,
    the hidden units are h(v) = v swish(v) and h(-v), whose difference is odd, `v^2 tanh(v / 2)`, and whose sum
    is even, nearly v^2. `Wo = [Q^T, -Q^T]` takes the difference, which keeps alike what was alike; the model's
    output instead mixes both at random, so that the squares are there to be read (`output_map`).
    """

    def __init__(self, inputs: int, width: int, expansion: int) -> None:
        super().__init__()
        self.fuse = nn.Identity() if inputs == width else _fusion(inputs, width)
        self.up_and_gate = nn.Linear(width, 2 * expansion * width, bias=False)
        self.down = nn.Linear(expansion * width, width, bias=False)
        with torch.no_grad():
            signed_KD = signed_bases(width, expansion)
            self.up_and_gate.weight.copy_(torch.cat([signed_KD, signed_KD]))
            self.down.weight.copy_(signed_KD.T)

    def start_as(self, other: SwiGLU) -> None:
        """Copy the other's initial weights but for the fusion, whose shape depends on the inputs."""
        self.up_and_gate.load_state_dict(other.up_and_gate.state_dict())
        self.down.load_state_dict(other.down.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) to (N, D)."""
        fused = self.fuse(x)
        up, gate = (nn.functional.linear(fused, half) for half in self.up_and_gate.weight.chunk(2))
        output: Tensor = self.down(up * nn.functional.silu(gate))
        return output


def signed_bases(width: int, expansion: int) -> Tensor:
    """(expansion * D, D): random orthogonal bases, each followed by its negative."""
    bases = [nn.init.orthogonal_(torch.empty(width, width)) for _ in range((expansion + 1) // 2)]
    return torch.cat([sign * basis for basis in bases for sign in (1, -1)][:expansion])


def _fusion(inputs: int, width: int) -> nn.Linear:
    """A map of [o_1 || .. || x] that starts near x, the last `width` inputs."""
    linear = nn.Linear(inputs, width, bias=False)
    with torch.no_grad():
        linear.weight.mul_(0.1)
        linear.weight[:, -width:] += torch.eye(width)
    return linear


def output_map(inputs: int, width: int, expansion: int) -> SwiGLU:
    """The map to z of a target x and what it read, [o_1 || .. || x] or their sum.

    It starts at the sum of x and all o, whose square holds their products x o: how much of its history is like a
    target can be read off at the first step, whatever the target is.
    """
    final = SwiGLU(inputs, width, expansion)
    with torch.no_grad():
        if isinstance(final.fuse, nn.Linear):
            final.fuse.weight.copy_(torch.eye(width).repeat(1, inputs // width))
        final.down.reset_parameters()
    return final
