"""``hermes-r``: the residual U-Net of the paper (METHOD section 3), at any base width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hermes.model.blocks import ResidualBlock, in_layout_of, upsample_to
from hermes.model.fusion import PriorFusion
from hermes.model.priors import Prompt
from hermes.model.universal import BackboneOutput

FUSION_DEPTHS = (2, 2, 4, 2, 2)
"""Exchanges per fusion level: encoder 1/4, 1/8, 1/16, decoder 1/8, 1/4."""


class DownLevel(nn.Module):
    """Max-pool by two, then two residual blocks of which the first changes the width."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            ResidualBlock(channels_in, channels_out), ResidualBlock(channels_out, channels_out)
        )

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c2 d2 h2 w2"]:
        """Features at half the resolution."""
        y: Tensor = self.blocks(F.max_pool3d(x, 2))
        return y


class UpLevel(nn.Module):
    """Up-sample to the skip, concatenate ``[skip, upsampled]`` (or the reverse), two residual blocks."""

    def __init__(
        self, channels_low: int, channels_skip: int, channels_out: int, *, skip_first: bool = True
    ) -> None:
        super().__init__()
        self.skip_first = skip_first
        self.blocks = nn.Sequential(
            ResidualBlock(channels_low + channels_skip, channels_out),
            ResidualBlock(channels_out, channels_out),
        )

    def forward(
        self, low: Float[Tensor, "b c d h w"], skip: Float[Tensor, "b c2 d2 h2 w2"]
    ) -> Float[Tensor, "b c3 d2 h2 w2"]:
        """Features at the resolution of ``skip``."""
        fine = upsample_to(low, skip.shape[2:])
        y: Tensor = self.blocks(torch.cat([skip, fine] if self.skip_first else [fine, skip], dim=1))
        return y


class ResidualBackbone(nn.Module):
    """Residual U-Net of five resolutions with prior fusion at the three coarse ones."""

    auxiliary_width: int | None = None

    def __init__(self, width: int, tasks: int, modalities: int) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = width, 2 * width, 4 * width, 8 * width, 10 * width
        self.fusion_widths: Sequence[int] = (c3, c4, c5, c4, c3)
        self.feature_width = c1
        self.stem = nn.Conv3d(1, c1, 3, padding=1, bias=False)
        self.stem_block = ResidualBlock(c1, c1)
        self.down1 = DownLevel(c1, c2)
        self.down2 = DownLevel(c2, c3)
        self.down3 = DownLevel(c3, c4)
        self.down4 = DownLevel(c4, c5)
        self.up1 = UpLevel(c5, c4, c4)
        self.up2 = UpLevel(c4, c3, c3)
        self.up3 = UpLevel(c3, c2, c2)
        self.up4 = UpLevel(c2, c1, c1)
        self.fusions = nn.ModuleList(
            PriorFusion(tasks, modalities, fused, depth)
            for fused, depth in zip(self.fusion_widths, FUSION_DEPTHS, strict=True)
        )

    def forward(self, image: Float[Tensor, "b 1 d h w"], prompt: Prompt) -> BackboneOutput:
        """Full-resolution features and the posterior tokens of the five fusion levels."""
        x1 = in_layout_of(self.stem_block.unit1.conv.weight, self.stem(image))  # (b, c, d, h, w)
        x1 = self.stem_block(x1)
        x2 = self.down1(x1)  # (b, 2c, d/2, h/2, w/2)
        x3, p3 = self.fusions[0](self.down2(x2), prompt)  # (b, 4c, d/4, ...)
        x4, p4 = self.fusions[1](self.down3(x3), prompt)  # (b, 8c, d/8, ...)
        x5, p5 = self.fusions[2](self.down4(x4), prompt)  # (b, 10c, d/16, ...)
        y4, p6 = self.fusions[3](self.up1(x5, x4), prompt)
        y3, p7 = self.fusions[4](self.up2(y4, x3), prompt)
        features = self.up4(self.up3(y3, x2), x1)  # (b, c, d, h, w)
        return BackboneOutput(features, (p3, p4, p5, p6, p7))
