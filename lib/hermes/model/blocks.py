"""Convolutional building blocks that every member of the family shares.

Feature maps are ``(B, C, D, H, W)``. No convolution has a bias: an instance norm follows or precedes it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

UNIT_NORM_EPS = 1e-4
"""Epsilon of the instance norms inside convolution units (the published networks depend on it)."""


def instance_norm(x: Float[Tensor, "b c d h w"], eps: float) -> Float[Tensor, "b c d h w"]:
    """``x`` with zero mean and unit variance per sample and channel; no affine part."""
    return F.instance_norm(x, eps=eps)


def fast_instance_norm(x: Float[Tensor, "b c d h w"], eps: float) -> Float[Tensor, "b c d h w"]:
    """:func:`instance_norm` that keeps the channels-last layout on a CPU, a little less exact there.

    ``F.instance_norm`` copies to channels-first and the next convolution copies back; a batch norm of one
    sample is the same function in either layout (a group norm too, but its backward takes ten times as long
    there). Its channels-last kernel accumulates with less care, which costs the published networks their
    parity (1e-3 instead of 1e-4): they do not use this.
    """
    if x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last_3d):
        each = [F.batch_norm(sample, None, None, training=True, eps=eps) for sample in x.split(1)]
        return torch.cat(each) if len(each) > 1 else each[0]
    return F.instance_norm(x, eps=eps)


def fast_layout(x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
    """``x`` in the memory layout in which its device convolves fastest (channels last on a CPU).

    Values and shape are the same; later layers keep the layout they are given.
    """
    return x.contiguous(memory_format=torch.channels_last_3d) if x.device.type == "cpu" else x


def upsample_to(x: Float[Tensor, "b c d h w"], size: torch.Size) -> Float[Tensor, "b c d2 h2 w2"]:
    """``x`` interpolated trilinearly to the spatial ``size``, corner voxels on corner voxels.

    The interpolation runs in float32 whatever autocast says, because its weights lose up to half a voxel
    in bfloat16; the result has the type of ``x`` again.
    """
    with torch.autocast(device_type=x.device.type, enabled=False):
        fine = F.interpolate(x.float(), size=size, mode="trilinear", align_corners=True)
    return fine.to(x.dtype)


class ConvUnit(nn.Module):
    """Pre-activated convolution: instance norm, ReLU (optional), convolution with "same" padding.

    ``fast`` chooses :func:`fast_instance_norm`.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        activate: bool = True,
        fast: bool = False,
    ) -> None:
        super().__init__()
        self.activate = activate
        self.norm = fast_instance_norm if fast else instance_norm
        self.conv = nn.Conv3d(
            channels_in, channels_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c2 d2 h2 w2"]:
        """The convolved feature map."""
        x = self.norm(x, UNIT_NORM_EPS)
        if self.activate:
            x = F.relu(x)
        convolved: Tensor = self.conv(x)
        return convolved


class ResidualBlock(nn.Module):
    """Two convolution units beside a skip; the skip is itself a unit when the width changes."""

    def __init__(
        self, channels_in: int, channels_out: int, *, shortcut_kernel: int = 3, fast: bool = False
    ) -> None:
        super().__init__()
        self.unit1 = ConvUnit(channels_in, channels_out, fast=fast)
        self.unit2 = ConvUnit(channels_out, channels_out, fast=fast)
        self.shortcut: nn.Module = (
            nn.Identity()
            if channels_in == channels_out
            else ConvUnit(channels_in, channels_out, kernel=shortcut_kernel, fast=fast)
        )

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c2 d h w"]:
        """``unit2(unit1(x)) + shortcut(x)``."""
        y: Tensor = self.unit2(self.unit1(x)) + self.shortcut(x)
        return y


class Mlp(nn.Module):
    """Linear, GELU (exact), linear, over the last axis."""

    def __init__(self, width_in: int, width_hidden: int, width_out: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width_in, width_hidden)
        self.fc2 = nn.Linear(width_hidden, width_out)

    def forward(self, x: Float[Tensor, "*axes w"]) -> Float[Tensor, "*axes w2"]:
        """The two-layer map of every vector of the last axis."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y
