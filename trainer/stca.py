"""STCA (arXiv 2511.06077): stacked target-to-history cross attention, history encoded once per request.

Shapes: R requests, G targets, T events, D width, I layers, N tokens of the head, B labels.

Layer i: `X_i = LN(SwiGLU_i(X))` of the raw event tokens, never chained, so it does not depend on the
target; `q_1 = LN(SwiGLU_1(x))` of the target token, `q_i = LN(SwiGLU_i([o_1 || .. || o_(i-1) || x] WC))`
after (dense fusion, no residual); `o_i` is the attention of q_i over X_i. At last
`z = SwiGLU([o_1 || .. || o_I || x] WZ)`, without a LayerNorm.

Choices where the paper is silent: the history's and the query's SwiGLU have their own weights, expansion
r = 2, no biases in the linear maps; the head is one RankMixer block over the tokens z, target, user and
request, their mean and a linear map to one logit per label.

Initial weights are chosen so that attention starts by similarity: a query's SwiGLU starts as a copy of the
history's, fusion starts near x alone, and WK as a copy of WQ. From independent random weights, that events
like the target matter took thousands of steps to be found, where it was found at all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longbatch.loaders.batch import RequestBatch
from longbatch.trainer.attention import TargetAttention, Tiling, make_tiling
from longbatch.trainer.config import ModelColumns, ModelConfig
from longbatch.trainer.embedding import Tokens

HEAD_TOKENS = 4


class SwiGLU(nn.Module):
    """`((x Wu) * swish(x Wv)) Wo`, after `x W` where the input is wider than the output (fusion).

    It starts as a monotone map of each coordinate in a random basis: with `Wu = Wv = [Q, -Q]`, orthogonal,
    the hidden units are h(v) = v swish(v) and h(-v), whose difference is odd, `v^2 tanh(v / 2)`, and whose sum
    is even, nearly v^2. `Wo = [Q^T, -Q^T]` takes the difference, which keeps alike what was alike; the model's
    output instead mixes both at random, so that the squares are there to be read (see `STCA`).
    """

    def __init__(self, inputs: int, width: int, expansion: int) -> None:
        super().__init__()
        self.fuse = nn.Identity() if inputs == width else _fusion(inputs, width)
        self.up_and_gate = nn.Linear(width, 2 * expansion * width, bias=False)
        self.down = nn.Linear(expansion * width, width, bias=False)
        with torch.no_grad():
            signed_KD = _signed_bases(width, expansion)
            self.up_and_gate.weight.copy_(torch.cat([signed_KD, signed_KD]))
            self.down.weight.copy_(signed_KD.T)

    def start_as(self, other: SwiGLU) -> None:
        """Copy the other's initial weights but for the fusion, whose shape depends on the inputs."""
        self.up_and_gate.load_state_dict(other.up_and_gate.state_dict())
        self.down.load_state_dict(other.down.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) to (N, D)."""
        up, gate = self.up_and_gate(self.fuse(x)).chunk(2, dim=-1)
        output: Tensor = self.down(up * nn.functional.silu(gate))
        return output


def _signed_bases(width: int, expansion: int) -> Tensor:
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


class Layer(nn.Module):
    """One layer: its own view of the history, a query from all that came before, attention."""

    def __init__(self, config: ModelConfig, before: int) -> None:
        super().__init__()
        width = config.width
        history = SwiGLU(width, width, config.expansion)
        query = SwiGLU((before + 1) * width, width, config.expansion)
        self.history = nn.Sequential(history, nn.LayerNorm(width))
        self.query = nn.Sequential(query, nn.LayerNorm(width))
        self.attention = TargetAttention(width, config.heads)
        query.start_as(history)

    def forward(self, seen_GD: list[Tensor], history_TD: Tensor, tiling: Tiling) -> Tensor:
        """o_i (G, D), from [o_1, .., o_(i-1), x] and the raw event tokens (T, D)."""
        output_GD: Tensor = self.attention(self.query(torch.cat(seen_GD, dim=-1)), self.history(history_TD), tiling)
        return output_GD


class RankMixer(nn.Module):
    """One RankMixer block (arXiv 2507.15551) over N tokens: parameter-free mixing, per-token FFNs.

    Mixing gives token n the n-th part of every token; both halves have a residual and a LayerNorm.
    """

    def __init__(self, tokens: int, width: int, expansion: int) -> None:
        super().__init__()
        self.tokens, hidden = tokens, expansion * width
        self.mixed_norm, self.output_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up_NDK = nn.Parameter(torch.randn(tokens, width, hidden) * width**-0.5)
        self.down_NKD = nn.Parameter(torch.randn(tokens, hidden, width) * hidden**-0.5)

    def forward(self, tokens_GND: Tensor) -> Tensor:
        """(G, N, D) to (G, N, D)."""
        targets, tokens, width = tokens_GND.shape
        parts_GNNP = tokens_GND.view(targets, tokens, tokens, width // tokens)
        mixed_GND = self.mixed_norm(tokens_GND + parts_GNNP.transpose(1, 2).flatten(2))
        hidden_GNK = nn.functional.gelu(torch.einsum("gnd,ndk->gnk", mixed_GND, self.up_NDK))
        output_GND: Tensor = self.output_norm(mixed_GND + torch.einsum("gnk,nkd->gnd", hidden_GNK, self.down_NKD))
        return output_GND


def _output_map(config: ModelConfig) -> SwiGLU:
    """The map to z. It starts at the sum of x and all o_i, whose square holds their products x o_i:

    how much of its history is like a target can be read off at the first step, whatever the target is.
    """
    final = SwiGLU((config.layers + 1) * config.width, config.width, config.expansion)
    with torch.no_grad():
        if isinstance(final.fuse, nn.Linear):
            final.fuse.weight.copy_(torch.eye(config.width).repeat(1, config.layers + 1))
        final.down.reset_parameters()
    return final


class STCA(nn.Module):
    """The model: a RequestBatch to one logit per target and label."""

    def __init__(self, config: ModelConfig, columns: ModelColumns) -> None:
        super().__init__()
        width = config.width
        self.config, self.columns = config, columns
        self.tokens = Tokens(config, columns)
        self.layers = nn.ModuleList(Layer(config, before) for before in range(config.layers))
        self.final = _output_map(config)
        self.mixer = RankMixer(HEAD_TOKENS, width, config.expansion)
        self.logits = nn.Linear(width, len(columns.labels))

    def forward(self, batch: RequestBatch) -> Tensor:
        """Logits (G, B), labels in the order of `columns.labels`."""
        tiling = make_tiling(batch.history_offsets, batch.target_offsets, self.config.heads)
        history_TD, target_GD = self.tokens.history(batch), self.tokens.targets(batch)
        outputs_GD: list[Tensor] = []
        for layer in self.layers:
            outputs_GD.append(layer([*outputs_GD, target_GD], history_TD, tiling))
        z_GD = self.final(torch.cat([*outputs_GD, target_GD], dim=-1))
        logits_GB: Tensor = self.logits(self._mixed(batch, z_GD, target_GD).mean(dim=1))
        return logits_GB

    def _mixed(self, batch: RequestBatch, z_GD: Tensor, target_GD: Tensor) -> Tensor:
        """The head's tokens (G, N, D) after mixing: z, target, user, request."""
        requests = torch.arange(batch.num_requests, device=z_GD.device)
        owner_G = torch.repeat_interleave(requests, batch.target_offsets.diff())
        user_GD, request_GD = (
            token_RD.index_select(0, owner_G) for token_RD in (self.tokens.users(batch), self.tokens.requests(batch))
        )
        mixed_GND: Tensor = self.mixer(torch.stack([z_GD, target_GD, user_GD, request_GD], dim=1))
        return mixed_GND


def loss_sum(logits_GB: Tensor, batch: RequestBatch, labels: tuple[str, ...]) -> Tensor:
    """Binary cross entropy summed over targets and averaged over labels.

    Divided by the number of targets (of all ranks) it is the loss of point-wise training, whatever the
    number of targets per request; per-request means would not be.
    """
    labels_GB = torch.stack([batch.labels[name] for name in labels], dim=1).to(logits_GB.dtype)
    total = nn.functional.binary_cross_entropy_with_logits(logits_GB, labels_GB, reduction="sum")
    return total / len(labels)


def parameter_count(model: nn.Module) -> tuple[int, int]:
    """Numbers of (dense, embedding) parameters."""
    tables = {id(table.weight) for table in model.modules() if isinstance(table, nn.Embedding)}
    sizes = [(parameter.numel(), id(parameter) in tables) for parameter in model.parameters()]
    return sum(n for n, is_table in sizes if not is_table), sum(n for n, is_table in sizes if is_table)
