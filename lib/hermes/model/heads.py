"""Heads: posterior tokens become classifier weights and modality logits."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hermes.model.blocks import Mlp


class SegmentationHead(nn.Module):
    """One sigmoid classifier per task token: ``(B, n, E)`` to weights ``(B, n, c)``."""

    def __init__(self, token_width: int, feature_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(token_width)
        self.reduce = Mlp(token_width, token_width, feature_width)
        self.refine = Mlp(feature_width, feature_width, feature_width)

    def forward(self, task_tokens: Float[Tensor, "b n e"]) -> Float[Tensor, "b n c"]:
        """The classifier's weight on each feature channel."""
        weights: Tensor = self.refine(self.reduce(self.norm(task_tokens)))
        return weights


class ModalityHead(nn.Module):
    """Modality logits ``(B, M + 1)`` of the mean modality token; the last one stands for "unknown"."""

    def __init__(self, token_width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(token_width)
        self.mlp = Mlp(token_width, token_width, classes)

    def forward(self, modality_tokens: Float[Tensor, "b 10 e"]) -> Float[Tensor, "b classes"]:
        """One logit per modality."""
        logits: Tensor = self.mlp(self.norm(modality_tokens).mean(dim=1))
        return logits


def contract(
    features: Float[Tensor, "b c d h w"], class_weights: Float[Tensor, "b n c"]
) -> Float[Tensor, "b n d h w"]:
    """One logit map per task: the features weighted by that task's classifier."""
    logits = torch.bmm(class_weights, features.flatten(2).to(class_weights.dtype))
    return logits.view(*logits.shape[:2], *features.shape[2:])
