"""Losses for partial labels: only what was annotated counts (arXiv 2306.02416).

The weight tensor W says what each voxel of each task counts; 0 means "not annotated". A channel whose W is
zero everywhere is left out of every average, and so gives its logits a gradient of exactly zero.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from hermes.errors import BadRequestError

MODALITY_LOSS_WEIGHT = 0.01
"""Weight of :func:`modality_loss` beside the segmentation losses."""

_EPS = 1e-6
_ALPHA_RANGE = (0.2, 0.8)


def segmentation_losses(
    logits: Float[Tensor, "b n d h w"],
    masks: Shaped[Tensor, "b n d h w"],
    weights: Float[Tensor, "b n"] | Float[Tensor, "b n d h w"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Dice and cross-entropy losses, each averaged over the channels that W does not leave out.

    With ``P = sigmoid(logits)``, per channel: TP = sum W P G, FP = sum W P (1 - G), FN = sum W (1 - P) G;
    alpha = FP / (FP + FN + 1e-6) within [0.2, 0.8];
    dice = 1 - TP / (TP + alpha FP + (1 - alpha) FN + 1e-6); bce = sum(W bce) / sum(W).
    Gradients flow through alpha, as published. An empty mask has Dice loss 1 with zero gradient.

    Args:
        logits: any float type; the losses are computed in float32.
        masks: 1 where the structure is, 0 elsewhere; any type. Not read where W is 0 over a whole channel.
        weights: W in [0, 1], per channel or per voxel.

    Returns:
        Two scalars; both 0 with zero gradient when W is zero everywhere.

    Raises:
        BadRequestError: the shapes do not agree.
    """
    if masks.shape != logits.shape or weights.shape not in (logits.shape, logits.shape[:2]):
        msg = (
            f"Expected masks like logits {tuple(logits.shape)} and weights per channel or per voxel, "
            f"got masks {tuple(masks.shape)} and weights {tuple(weights.shape)}."
        )
        raise BadRequestError(msg)
    w = weights.flatten(2) if weights.ndim > 2 else weights[..., None]  # (b, n, voxels or 1)
    active = (w > 0).any(dim=-1)  # (b, n)
    x = logits.flatten(2)[active].float()  # (channels, voxels)
    g = masks.flatten(2)[active].to(x.dtype)
    w = w[active].to(x.dtype).expand_as(x)
    channels = max(1, x.shape[0])
    return _dice_losses(x, g, w).sum() / channels, _bce_losses(x, g, w).sum() / channels


def _dice_losses(x: Tensor, g: Tensor, w: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    tp = (w * p * g).sum(dim=-1)
    fp = (w * p * (1 - g)).sum(dim=-1)
    fn = (w * (1 - p) * g).sum(dim=-1)
    alpha = (fp / (fp + fn + _EPS)).clamp(*_ALPHA_RANGE)
    return 1 - tp / (tp + alpha * fp + (1 - alpha) * fn + _EPS)


def _bce_losses(x: Tensor, g: Tensor, w: Tensor) -> Tensor:
    bce = F.binary_cross_entropy_with_logits(x, g, reduction="none")
    return (w * bce).sum(dim=-1) / w.sum(dim=-1)


def distillation_loss(
    logits: Float[Tensor, "b n d h w"],
    targets: Float[Tensor, "b n d h w"],
    distilled: Bool[Tensor, "b n"],
) -> Float[Tensor, ""]:
    """How far the probabilities are from a teacher's: the sum over the distilled channels, 0 where they agree.

    Per channel, with P = sigmoid(logits) and T = targets: the mean of BCE(P, T) - BCE(T, T), plus
    1 - (2 sum P T + 1) / (sum P P + sum T T + 1), the Dice loss that is lowest at P = T and not at hard masks.
    Other channels get a gradient of exactly zero.
    """
    x = logits.flatten(2)[distilled].float()  # (channels, voxels)
    t = targets.flatten(2)[distilled].float()
    p = torch.sigmoid(x)
    # xlogy and not a BCE of T with itself: 0 log 0 is 0.
    entropy = -(torch.xlogy(t, t) + torch.xlogy(1 - t, 1 - t))
    bce = (F.binary_cross_entropy_with_logits(x, t, reduction="none") - entropy).mean(dim=-1)
    overlap = (2 * (p * t).sum(dim=-1) + 1) / ((p * p).sum(dim=-1) + (t * t).sum(dim=-1) + 1)
    return (bce + 1 - overlap).sum()


def modality_loss(logits: Float[Tensor, "b classes"], rows: Tensor, known: Tensor) -> Float[Tensor, ""]:
    """Cross-entropy of the modality logits, averaged over the samples whose modality is known.

    Not yet multiplied by :data:`MODALITY_LOSS_WEIGHT`. 0 with zero gradient when none is known.
    """
    total = F.cross_entropy(logits[known].float(), rows[known], reduction="sum")
    return total / max(1, int(known.sum()))
