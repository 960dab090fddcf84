"""From what a model says of a target to its logits; the same for every model.

Shapes: R requests, G targets, D width, N tokens, B labels.

Its tokens are z (the model's view of the target in its history), target, user and request. Either one RankMixer block over them,
their mean, and a linear map to one logit per label; or an MLP of the four side by side, with one hidden layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from longbatch.trainer.config import ModelConfig

HEAD_TOKENS = 4


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


class Head(nn.Module, ABC):
    """The tokens of a target to its logits."""

    @abstractmethod
    def forward(self, z_GD: Tensor, target_GD: Tensor, user_GD: Tensor, request_GD: Tensor) -> Tensor:
        """Logits (G, B)."""


class MixerHead(Head):
    """Tokens mixed by a RankMixer block."""

    def __init__(self, config: ModelConfig, labels: int) -> None:
        super().__init__()
        self.mixer = RankMixer(HEAD_TOKENS, config.width, config.expansion)
        self.logits = nn.Linear(config.width, labels)

    def forward(self, z_GD: Tensor, target_GD: Tensor, user_GD: Tensor, request_GD: Tensor) -> Tensor:
        """Logits (G, B)."""
        mixed_GND = self.mixer(torch.stack([z_GD, target_GD, user_GD, request_GD], dim=1))
        logits_GB: Tensor = self.logits(mixed_GND.mean(dim=1))
        return logits_GB


class MLPHead(Head):
    """Tokens side by side through one hidden layer."""

    def __init__(self, config: ModelConfig, labels: int) -> None:
        super().__init__()
        hidden = config.expansion * config.width
        self.layers = nn.Sequential(nn.Linear(HEAD_TOKENS * config.width, hidden), nn.GELU(), nn.Linear(hidden, labels))

    def forward(self, z_GD: Tensor, target_GD: Tensor, user_GD: Tensor, request_GD: Tensor) -> Tensor:
        """Logits (G, B)."""
        logits_GB: Tensor = self.layers(torch.cat([z_GD, target_GD, user_GD, request_GD], dim=-1))
        return logits_GB


def make_head(config: ModelConfig, labels: int) -> Head:
    """The head that the config names."""
    return MixerHead(config, labels) if config.head == "rankmixer" else MLPHead(config, labels)
