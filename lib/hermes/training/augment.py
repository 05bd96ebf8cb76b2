"""Augmentation of arXiv 2306.02416: random numbers are drawn first, then applied.

``draw`` holds all randomness; ``warp`` and ``shade`` are deterministic given its result, so a patch is a
pure function of (seed, step, place in the batch).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray

from hermes.types import Modality


@dataclass(frozen=True)
class AugmentationRanges:
    """How often and how far; the defaults are the published ones.

    Attributes:
        affine_probability: of one rotation and scaling per patch.
        rotation_degrees: about each axis, in both directions.
        scaling: the factor lies in 1 +- this.
        shade_probability_mr: of each intensity change in MR (and where the modality is unknown).
        shade_probability_other: the same in CT and PET.
    """

    affine_probability: float = 0.5
    rotation_degrees: float = 30.0
    scaling: float = 0.3
    shade_probability_mr: float = 0.2
    shade_probability_other: float = 0.1


@dataclass(frozen=True)
class Shading:
    """Intensity changes of one patch; ``None`` = this one is not applied."""

    brightness_factor: float | None = None
    brightness_shift: float | None = None
    gamma: float | None = None
    contrast: float | None = None
    blur_sigma_voxels: float | None = None
    noise_sigma: float | None = None
    noise_seed: int = 0


@dataclass(frozen=True)
class Augmentation:
    """All draws for one patch; ``matrix`` maps offsets from the patch centre (z, y, x) to image offsets."""

    matrix: NDArray[np.float64] | None
    shading: Shading


NO_AUGMENTATION = Augmentation(matrix=None, shading=Shading())


def draw(
    modality: Modality | None,
    generator: np.random.Generator,
    ranges: AugmentationRanges = AugmentationRanges(),
) -> Augmentation:
    """Random affine and shading for one patch of an image of this modality."""
    matrix = None
    if generator.random() < ranges.affine_probability:
        angles = np.deg2rad(generator.uniform(-ranges.rotation_degrees, ranges.rotation_degrees, 3))
        matrix = _rotation(angles) * generator.uniform(1 - ranges.scaling, 1 + ranges.scaling)
    mr = modality in (Modality.T1, Modality.T2, Modality.CINE, None)
    probability = ranges.shade_probability_mr if mr else ranges.shade_probability_other
    return Augmentation(matrix, _draw_shading(probability, generator))


def _draw_shading(probability: float, generator: np.random.Generator) -> Shading:
    # Every number is drawn, used or not, so that the stream does not depend on earlier decisions.
    chosen = generator.random(6) < probability
    values = (
        generator.uniform(0.7, 1.3), generator.normal(0.0, 0.1), generator.uniform(0.7, 1.5),
        generator.uniform(0.7, 1.3), generator.uniform(0.5, 1.0), generator.uniform(0.0, 0.1),
    )  # fmt: skip
    factor, shift, gamma, contrast, blur, noise = (
        float(value) if use else None for value, use in zip(values, chosen, strict=True)
    )
    return Shading(factor, shift, gamma, contrast, blur, noise, noise_seed=int(generator.integers(2**31)))


def _rotation(angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 3) rotation about the z, y and x axes, applied in this order."""
    out = np.eye(3)
    for axis, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        i, j = [a for a in range(3) if a != axis]
        one = np.eye(3)
        one[i, i], one[i, j], one[j, i], one[j, j] = c, -s, s, c
        out = one @ out
    return out


def warp(
    array: torch.Tensor,
    centre: NDArray[np.float64],
    matrix: NDArray[np.float64],
    patch: tuple[int, int, int],
    *,
    nearest: bool,
) -> torch.Tensor:
    """The patch of ``array`` around ``centre``, rotated and scaled; outside the array it is 0.

    Args:
        array: (D, H, W) float32.
        centre: (z, y, x) voxel index of the patch centre in ``array``, may be fractional.
        matrix: (3, 3) from offsets in the patch to offsets in the array, in voxels, (z, y, x).
        patch: (D, H, W) of the result.
        nearest: nearest neighbour (labels) instead of trilinear.
    """
    axes = [torch.arange(p, dtype=torch.float32) - (p - 1) / 2 for p in patch]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # (d, h, w, 3) as z, y, x
    source = offsets @ torch.from_numpy(matrix.T.astype(np.float32)) + torch.from_numpy(
        centre.astype(np.float32)
    )
    size = torch.tensor(array.shape, dtype=torch.float32)
    normalised = (2 * source + 1) / size - 1
    grid = normalised.flip(-1)[None]  # grid_sample wants x, y, z
    mode = "nearest" if nearest else "bilinear"
    return nnf.grid_sample(array[None, None], grid, mode=mode, padding_mode="zeros", align_corners=False)[
        0, 0
    ]


def shade(image: torch.Tensor, shading: Shading) -> torch.Tensor:
    """The patch (D, H, W) with the drawn intensity changes."""
    if shading.brightness_factor is not None:
        image = image * shading.brightness_factor
    if shading.brightness_shift is not None:
        image = image + shading.brightness_shift
    if shading.gamma is not None:
        low, high = image.min(), image.max()
        span = (high - low).clamp_min(1e-6)
        image = ((image - low) / span) ** shading.gamma * span + low
    if shading.contrast is not None:
        mean = image.mean()
        image = (image - mean) * shading.contrast + mean
    if shading.blur_sigma_voxels is not None:
        image = _blur(image, shading.blur_sigma_voxels)
    if shading.noise_sigma is not None:
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(shading.noise_seed))
        image = image + shading.noise_sigma * noise
    return image


def _blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    radius = max(1, int(3 * sigma + 0.5))
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    out = image[None, None]
    for axis in range(3):
        shape = [1, 1, 1, 1, 1]
        shape[2 + axis] = -1
        padding = [0, 0, 0]
        padding[axis] = radius
        pads = [p for pad in reversed(padding) for p in (pad, pad)]
        out = nnf.conv3d(nnf.pad(out, pads, mode="replicate"), kernel.reshape(shape))
    return out[0, 0]
