"""Where the body is: the box around it, and below which value a voxel is air."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hermes.types import Modality

COARSE_MM = 4.0
"""The body is looked for on a grid of about this spacing: enough for a box with a margin, and fast."""
CT_BODY_ABOVE = -400.0
"""HU: skin and everything inside except lung and gas."""
CT_AIR_BELOW = -700.0
"""HU: air with noise; a window without a voxel above it holds no tissue (lung has vessels everywhere)."""
PART_OF_BRIGHT = {Modality.PET: 0.03}
"""Body against background as a part of the 99th percentile; beside the hot spots of PET its body is dim."""
PART_OF_BRIGHT_MR = 0.1
SMALLEST_PART = 0.1
"""Components below this part of the largest one are table, wires and noise."""
LEAST_BODY = 0.005
"""With less of the field of view than this the search has failed."""

Box = tuple[slice, slice, slice]
"""Slices along z, y, x."""


@dataclass(frozen=True)
class Body:
    """What was found.

    Attributes:
        box: with its margin, within the array.
        air_below: value (of the image) below which a voxel is air; None when the search failed.
    """

    box: Box
    air_below: float | None


def find_body(
    array: NDArray[np.float32],
    spacing_mm: tuple[float, float, float],
    modality: Modality | None,
    *,
    margin_mm: float,
    min_extent_mm: float,
) -> Body:
    """The box around the body in ``array`` (D, H, W); the whole array where none can be told.

    Args:
        array: the image in its own units.
        spacing_mm: along z, y, x.
        modality: Hounsfield units have a fixed threshold, all others one relative to their bright voxels.
        margin_mm: kept around the body.
        min_extent_mm: an axis is never cut below this: small fields of view were chosen by someone.
    """
    whole: Box = (slice(0, array.shape[0]), slice(0, array.shape[1]), slice(0, array.shape[2]))
    strides = [max(1, round(COARSE_MM / spacing)) for spacing in spacing_mm]
    coarse = np.ascontiguousarray(array[:: strides[0], :: strides[1], :: strides[2]])
    threshold = _threshold(coarse, modality)
    mask = coarse > threshold
    parts = _large_parts(mask)
    if not LEAST_BODY <= parts.mean() <= 1.0 or not parts.any():
        return Body(whole, None)
    axes = []
    for axis in range(3):
        touched = np.flatnonzero(parts.any(axis=tuple(other for other in range(3) if other != axis)))
        low, high = int(touched[0]) * strides[axis], (int(touched[-1]) + 1) * strides[axis]
        margin = int(np.ceil(margin_mm / spacing_mm[axis])) + strides[axis] - 1
        axes.append(_widen(low - margin, high + margin, array.shape[axis], min_extent_mm / spacing_mm[axis]))
    air = CT_AIR_BELOW if modality is Modality.CT else threshold
    return Body((axes[0], axes[1], axes[2]), air)


def _threshold(coarse: NDArray[np.float32], modality: Modality | None) -> float:
    if modality is Modality.CT:
        return CT_BODY_ABOVE
    dark, bright = np.percentile(coarse, (1, 99))
    part = PART_OF_BRIGHT_MR if modality is None else PART_OF_BRIGHT.get(modality, PART_OF_BRIGHT_MR)
    return float(dark + part * (bright - dark))


def _large_parts(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask without noise and small components; opening is skipped where the array is too thin for it."""
    if min(mask.shape) >= 3:
        opened = ndimage.binary_opening(mask, iterations=1, structure=ndimage.generate_binary_structure(3, 1))
        mask = opened if opened.any() else mask
    labels, count = ndimage.label(mask)
    if count <= 1:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    keep = sizes >= SMALLEST_PART * sizes.max()
    parts: NDArray[np.bool_] = keep[labels]
    return parts


def _widen(low: int, high: int, size: int, least: float) -> slice:
    """``[low, high)`` grown to ``least`` voxels around its centre, within ``[0, size)``."""
    low, high = max(low, 0), min(high, size)
    if size <= least:
        return slice(0, size)
    missing = int(np.ceil(least)) - (high - low)
    if missing > 0:
        low = max(0, low - missing // 2)
        high = min(size, max(high, low + int(np.ceil(least))))
        low = max(0, min(low, high - int(np.ceil(least))))
    return slice(low, high)
