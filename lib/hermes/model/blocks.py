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
    """``x`` with zero mean and unit variance per sample and channel; no affine part.

    Keeps the channels-last layout on a CPU where no gradient is asked for.
    """
    needs_gradient = torch.is_grad_enabled() and x.requires_grad
    if _is_channels_last(x) and x.dtype == torch.float32 and not needs_gradient:
        each = [_normalise_by_planes(sample, eps) for sample in x.split(1)]
        return torch.cat(each) if len(each) > 1 else each[0]
    return F.instance_norm(x, eps=eps)


def _is_channels_last(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last_3d)


def _normalise_by_planes(x: Float[Tensor, "1 c d h w"], eps: float) -> Float[Tensor, "1 c d h w"]:
    """Instance norm of one channels-last sample, as exact as ``F.instance_norm`` and without its copies.

    torch sums a channels-last array in one long chain of additions, which costs three digits in a large
    volume. Sums over planes are short, and a plane stays in the cache while it is read twice.
    """
    planes = [torch.batch_norm_update_stats(plane, None, None, 0.0) for plane in x.split(1, dim=2)]
    means = torch.stack([mean for mean, _ in planes])  # (d, c)
    mean = means.mean(dim=0)
    variance = torch.stack([variance for _, variance in planes]).mean(dim=0) + (means - mean).square().mean(
        dim=0
    )
    return F.batch_norm(x, mean, variance, training=False, eps=eps)


def fast_instance_norm(x: Float[Tensor, "b c d h w"], eps: float) -> Float[Tensor, "b c d h w"]:
    """:func:`instance_norm` that keeps the channels-last layout on a CPU, a little less exact there.

    ``F.instance_norm`` copies to channels-first and the next convolution copies back; a batch norm of one
    sample is the same function in either layout (a group norm too, but its backward takes ten times as long
    there). Its channels-last kernel accumulates with less care, which costs the published networks their
    parity (1e-3 instead of 1e-4): they do not use this.
    """
    if _is_channels_last(x):
        each = [F.batch_norm(sample, None, None, training=True, eps=eps) for sample in x.split(1)]
        return torch.cat(each) if len(each) > 1 else each[0]
    return F.instance_norm(x, eps=eps)


def in_layout_of(weights: Tensor, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
    """``x`` in channels-last layout if the ``weights`` of the next convolution are; later layers keep it.

    On a CPU that is the faster one: :func:`hermes.device.in_fast_layout` puts a network into it. In their
    default layout the published networks repeat the published sums in the published order.
    """
    if weights.is_contiguous() or not weights.is_contiguous(memory_format=torch.channels_last_3d):
        return x
    return x.contiguous(memory_format=torch.channels_last_3d)


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

    def prepare(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        """What the convolution sees."""
        x = self.norm(x, UNIT_NORM_EPS)
        return F.relu_(x) if self.activate else x

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c2 d2 h2 w2"]:
        """The convolved feature map."""
        convolved: Tensor = self.conv(self.prepare(x))
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
        """``unit2(unit1(x)) + shortcut(x)``; a shortcut that is a unit sees what the first unit sees."""
        prepared = self.unit1.prepare(x)
        beside = self.shortcut.conv(prepared) if isinstance(self.shortcut, ConvUnit) else x
        inner: Tensor = self.unit1.conv(prepared)
        del prepared  # the largest array here, when no gradient keeps it
        y: Tensor = self.unit2(inner)
        return y.add_(beside) if y.dtype == beside.dtype else y + beside  # autocast may give two types


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
