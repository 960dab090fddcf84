"""SwiGLU: the feed-forward map of STCA, and the output map of every model with attention.

Source: STCA (arXiv 2511.06077), "history at layer i": `SwiGLU(x) = ((x Wu) * swish(x Wv)) Wo`.
The initial weights are this library's choice; the paper does not publish its own.

Shapes: N rows, D width, K = expansion * D hidden units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SwiGLU(nn.Module):
    """`((x Wu) * swish(x Wv)) Wo`, after a linear fusion `x W` where the input is wider than the output.

    The initial map is monotone in each coordinate of a random orthogonal basis Q. With `Wu = Wv = [Q, -Q]` the hidden
    units are `h(v) = v swish(v)` and `h(-v)`. Their difference `v^2 tanh(v / 2)` is odd and their sum is nearly
    `v^2`. `Wo = [Q^T, -Q^T]` takes the difference, so inputs that are similar stay similar. The output map of a
    model mixes both at random instead, so that the squares can be read as well (`make_output_map`).

    Args:
        inputs: Width of the input.
        width: Width D of the output.
        expansion: Hidden units per unit of width.
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

    def copy_initial_weights(self, other: SwiGLU) -> None:
        """Copy another module's weights, except the fusion, whose shape depends on the input width.

        Args:
            other: A module of the same width and expansion.
        """
        self.up_and_gate.load_state_dict(other.up_and_gate.state_dict())
        self.down.load_state_dict(other.down.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        """Map rows one by one.

        Args:
            x: Rows (N, inputs).

        Returns:
            Rows (N, D).
        """
        fused = self.fuse(x)
        up, gate = (nn.functional.linear(fused, half) for half in self.up_and_gate.weight.chunk(2))
        output: Tensor = self.down(up * nn.functional.silu(gate))
        return output


def signed_bases(width: int, expansion: int) -> Tensor:
    """Draw random orthogonal bases, each followed by its negative.

    Args:
        width: Width D.
        expansion: Number of D x D matrices to return.

    Returns:
        The matrices, stacked: (expansion * D, D).
    """
    bases = [nn.init.orthogonal_(torch.empty(width, width)) for _ in range((expansion + 1) // 2)]
    return torch.cat([sign * basis for basis in bases for sign in (1, -1)][:expansion])


def _fusion(inputs: int, width: int) -> nn.Linear:
    """A map of [o_1 || .. || x] that is initially close to x, the last `width` inputs."""
    linear = nn.Linear(inputs, width, bias=False)
    with torch.no_grad():
        linear.weight.mul_(0.1)
        linear.weight[:, -width:] += torch.eye(width)
    return linear


def make_output_map(inputs: int, width: int, expansion: int) -> SwiGLU:
    """Make the map from a target x and its attention outputs, [o_1 || .. || x] or their sum, to z.

    Initially it fuses them to the sum of x and all o. The square of that sum contains the products x o, so how similar
    the history is to the target can be read from the first step on, whatever the target is.

    Args:
        inputs: Width of the input, a multiple of `width`.
        width: Width D of z.
        expansion: Hidden units per unit of width.

    Returns:
        The module (N, inputs) -> (N, D), without a LayerNorm on z.
    """
    output_map = SwiGLU(inputs, width, expansion)
    with torch.no_grad():
        if isinstance(output_map.fuse, nn.Linear):
            # [I I .. I]: the sum of x and all o
            output_map.fuse.weight.copy_(torch.eye(width).repeat(1, inputs // width))
        output_map.down.reset_parameters()
    return output_map
