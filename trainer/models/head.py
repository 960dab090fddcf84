"""The head: from the tokens of a target to its logits. All models use the same one.

Sources: RankMixer (arXiv 2507.15551) is the head of STCA (arXiv 2511.06077). The MLP is the usual alternative.

Shapes: G targets, N tokens, D width, K = expansion * D hidden units, B labels.

The four tokens are z (the model's view of the target in its history), target, user and request. `rankmixer` applies one
RankMixer block, averages the tokens and maps the mean to one logit per label. `mlp` concatenates the tokens and
applies one hidden layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from longbatch.trainer.config import HEAD_TOKENS, ModelConfig


class RankMixer(nn.Module):
    """One RankMixer block (arXiv 2507.15551): parameter-free token mixing, then one feed-forward layer per token.

    Mixing gives token n the n-th part of every token. Both halves have a residual connection and a LayerNorm.

    Args:
        tokens: Number of tokens N, which must divide the width.
        width: Width D.
        expansion: Hidden units per unit of width.
    """

    def __init__(self, tokens: int, width: int, expansion: int) -> None:
        super().__init__()
        self.tokens, hidden = tokens, expansion * width
        self.mixed_norm, self.output_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up_NDK = nn.Parameter(torch.randn(tokens, width, hidden) * width**-0.5)
        self.down_NKD = nn.Parameter(torch.randn(tokens, hidden, width) * hidden**-0.5)

    def forward(self, tokens_GND: Tensor) -> Tensor:
        """Mix the tokens of each target.

        Args:
            tokens_GND: Tokens (G, N, D).

        Returns:
            Tokens (G, N, D).
        """
        targets, tokens, width = tokens_GND.shape
        # token mixing is a transpose: N = 2, [a b], [c d] -> [a c], [b d], where a to d are halves of a token
        parts_GNNP = tokens_GND.view(targets, tokens, tokens, width // tokens)
        mixed_GND = self.mixed_norm(tokens_GND + parts_GNNP.transpose(1, 2).flatten(2))
        hidden_GNK = nn.functional.gelu(torch.einsum("gnd,ndk->gnk", mixed_GND, self.up_NDK))
        output_GND: Tensor = self.output_norm(mixed_GND + torch.einsum("gnk,nkd->gnd", hidden_GNK, self.down_NKD))
        return output_GND


class Head(nn.Module, ABC):
    """Maps the tokens of targets to logits."""

    @abstractmethod
    def forward(self, z_GD: Tensor, target_GD: Tensor, user_GD: Tensor, request_GD: Tensor) -> Tensor:
        """Compute the logits of targets.

        Args:
            z_GD: The model's output for each target (G, D).
            target_GD: Target tokens (G, D).
            user_GD: The user token of each target's request (G, D).
            request_GD: The request token of each target's request (G, D).

        Returns:
            Logits (G, B).
        """


class RankMixerHead(Head):
    """Mixes the tokens by a RankMixer block.

    Args:
        config: The model's size.
        labels: Number of labels B.
    """

    def __init__(self, config: ModelConfig, labels: int) -> None:
        super().__init__()
        self.mixer = RankMixer(HEAD_TOKENS, config.width, config.expansion)
        self.logits = nn.Linear(config.width, labels)

    def forward(self, z_GD: Tensor, target_GD: Tensor, user_GD: Tensor, request_GD: Tensor) -> Tensor:
        """Compute the logits of targets; see `Head.forward`."""
        mixed_GND = self.mixer(torch.stack([z_GD, target_GD, user_GD, request_GD], dim=1))
        logits_GB: Tensor = self.logits(mixed_GND.mean(dim=1))
        return logits_GB


class MLPHead(Head):
    """Concatenates the tokens and applies one hidden layer.

    Args:
        config: The model's size.
        labels: Number of labels B.
    """

    def __init__(self, config: ModelConfig, labels: int) -> None:
        super().__init__()
        hidden = config.expansion * config.width
        self.layers = nn.Sequential(nn.Linear(HEAD_TOKENS * config.width, hidden), nn.GELU(), nn.Linear(hidden, labels))

    def forward(self, z_GD: Tensor, target_GD: Tensor, user_GD: Tensor, request_GD: Tensor) -> Tensor:
        """Compute the logits of targets; see `Head.forward`."""
        logits_GB: Tensor = self.layers(torch.cat([z_GD, target_GD, user_GD, request_GD], dim=-1))
        return logits_GB


def make_head(config: ModelConfig, labels: int) -> Head:
    """Make the head that the config names.

    Args:
        config: Its `head` is "rankmixer" or "mlp".
        labels: Number of labels B.

    Returns:
        The head with random initial weights.
    """
    return RankMixerHead(config, labels) if config.head == "rankmixer" else MLPHead(config, labels)
