"""``hermes-c``: the member of the family for machines without a GPU.

Same priors, same fusion, same heads and same resolutions as ``hermes-r``. What differs is where the
arithmetic goes: one convolution and one residual block at full resolution, strided convolutions instead of
pooling, and skips that are added instead of concatenated at the two fine resolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hermes.model.blocks import ConvUnit, ResidualBlock, in_layout_of, upsample_to
from hermes.model.fusion import PriorFusion
from hermes.model.priors import Prompt
from hermes.model.universal import BackboneOutput

FUSION_DEPTHS = (1, 2, 2, 2, 1)
"""Exchanges per fusion level: encoder 1/4, 1/8, 1/16, decoder 1/8, 1/4."""


def _down(channels_in: int, channels_out: int, blocks: int) -> nn.Sequential:
    """Strided convolution unit that halves the resolution, then residual blocks."""
    return nn.Sequential(
        ConvUnit(channels_in, channels_out, stride=2, fast=True),
        *(ResidualBlock(channels_out, channels_out, fast=True) for _ in range(blocks)),
    )


class AddUp(nn.Module):
    """Narrow by a 1x1x1 convolution, up-sample, add to the skip, one residual block."""

    def __init__(self, channels_low: int, channels_skip: int) -> None:
        super().__init__()
        self.narrow = nn.Conv3d(channels_low, channels_skip, 1, bias=False)
        self.block = ResidualBlock(channels_skip, channels_skip, fast=True)

    def forward(
        self, low: Float[Tensor, "b c d h w"], skip: Float[Tensor, "b c2 d2 h2 w2"]
    ) -> Float[Tensor, "b c2 d2 h2 w2"]:
        """Features at the resolution of ``skip``."""
        y: Tensor = self.block(skip + upsample_to(self.narrow(low), skip.shape[2:]))
        return y


class ConcatUp(nn.Module):
    """Up-sample, concatenate ``[skip, upsampled]``, one residual block with a 1x1x1 shortcut."""

    def __init__(self, channels_low: int, channels_skip: int) -> None:
        super().__init__()
        self.block = ResidualBlock(channels_low + channels_skip, channels_skip, shortcut_kernel=1, fast=True)

    def forward(
        self, low: Float[Tensor, "b c d h w"], skip: Float[Tensor, "b c2 d2 h2 w2"]
    ) -> Float[Tensor, "b c2 d2 h2 w2"]:
        """Features at the resolution of ``skip``."""
        y: Tensor = self.block(torch.cat([skip, upsample_to(low, skip.shape[2:])], dim=1))
        return y


class CompactBackbone(nn.Module):
    """U-Net of widths c, 3c, 6c, 8c, 10c whose full-resolution part is one stem and one block."""

    auxiliary_width: int | None = None

    def __init__(self, width: int, tasks: int, modalities: int) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = width, 3 * width, 6 * width, 8 * width, 10 * width
        self.fusion_widths: Sequence[int] = (c3, c4, c5, c4, c3)
        self.feature_width = c1
        self.stem = nn.Conv3d(1, c1, 3, padding=1, bias=False)
        self.down1 = _down(c1, c2, blocks=1)
        self.down2 = _down(c2, c3, blocks=2)
        self.down3 = _down(c3, c4, blocks=2)
        self.down4 = _down(c4, c5, blocks=2)
        self.up1 = ConcatUp(c5, c4)
        self.up2 = ConcatUp(c4, c3)
        self.up3 = AddUp(c3, c2)
        self.up4 = AddUp(c2, c1)
        self.fusions = nn.ModuleList(
            PriorFusion(tasks, modalities, fused, depth)
            for fused, depth in zip(self.fusion_widths, FUSION_DEPTHS, strict=True)
        )

    def forward(self, image: Float[Tensor, "b 1 d h w"], prompt: Prompt) -> BackboneOutput:
        """Full-resolution features and the posterior tokens of the five fusion levels."""
        x1 = in_layout_of(self.up4.block.unit1.conv.weight, self.stem(image))  # (b, c, d, h, w)
        x2 = self.down1(x1)  # (b, 3c, d/2, h/2, w/2)
        x3, p3 = self.fusions[0](self.down2(x2), prompt)  # (b, 6c, d/4, ...)
        x4, p4 = self.fusions[1](self.down3(x3), prompt)  # (b, 8c, d/8, ...)
        x5, p5 = self.fusions[2](self.down4(x4), prompt)  # (b, 10c, d/16, ...)
        y4, p6 = self.fusions[3](self.up1(x5, x4), prompt)
        y3, p7 = self.fusions[4](self.up2(y4, x3), prompt)
        features = self.up4(self.up3(y3, x2), x1)  # (b, c, d, h, w)
        return BackboneOutput(features, (p3, p4, p5, p6, p7))
