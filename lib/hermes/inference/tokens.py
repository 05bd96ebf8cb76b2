"""Posterior tokens of an image: what its windows' tokens come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hermes.inference.reduction import BOUNDARY

STRIDE = 4
"""Of the voxels at which a window is asked whether it sees a structure: one in 64."""


@dataclass(frozen=True, eq=False)
class TokenSums:
    """Sums over windows.

    Attributes:
        weighted: ``(n, e)`` tokens times how much of its structure the window sees.
        seen: ``(n,)`` the sum of those weights.
        plain: ``(n, e)`` tokens.
        chances: ``(classes,)`` probabilities of the modality head.
        windows: how many.
    """

    weighted: NDArray[np.float64]
    seen: NDArray[np.float64]
    plain: NDArray[np.float64]
    chances: NDArray[np.float64]
    windows: int

    def plus(self, other: TokenSums | None) -> TokenSums:
        """The sums over the windows of both."""
        if other is None:
            return self
        return TokenSums(
            self.weighted + other.weighted,
            self.seen + other.seen,
            self.plain + other.plain,
            self.chances + other.chances,
            self.windows + other.windows,
        )

    def means(self) -> ImageTokens:
        """The means over all windows; a structure that no window sees has the mean of its token over all of them."""
        seen = self.seen[:, None]
        means = np.where(seen > 0, self.weighted / np.maximum(seen, 1e-12), self.plain / self.windows)
        return ImageTokens(means.astype(np.float32), self.chances / self.windows)


@dataclass(frozen=True, eq=False)
class ImageTokens:
    """What the windows of an image come to: ``tokens (n, e)`` float32, ``chances (classes,)`` of the modality head."""

    tokens: NDArray[np.float32]
    chances: NDArray[np.float64]


@torch.no_grad()
def token_sums(encoded: Any) -> TokenSums:
    """The sums over the windows of one pass, ``hermes.model.Encoded`` of a batch.

    Tokens are layer-normalised first, as the segmentation head sees them: no fusion level outweighs the others.
    """
    tokens = encoded.task_tokens.float()  # (b, n, e)
    tokens = torch.nn.functional.layer_norm(tokens, tokens.shape[-1:])
    coarse = encoded.features[:, :, ::STRIDE, ::STRIDE, ::STRIDE].float().flatten(2)  # (b, c, voxels)
    chance = torch.bmm(encoded.class_weights.float(), coarse).sigmoid_()  # (b, n, voxels)
    seen = chance.mul_(chance >= BOUNDARY).sum(dim=2)  # (b, n)
    modality = encoded.modality_logits.float().softmax(dim=1)
    return TokenSums(
        weighted=_numpy(torch.einsum("bn,bne->ne", seen, tokens)),
        seen=_numpy(seen.sum(dim=0)),
        plain=_numpy(tokens.sum(dim=0)),
        chances=_numpy(modality.sum(dim=0)),
        windows=len(tokens),
    )


def _numpy(tensor: torch.Tensor) -> NDArray[np.float64]:
    values: NDArray[np.float64] = tensor.cpu().numpy().astype(np.float64)
    return values
