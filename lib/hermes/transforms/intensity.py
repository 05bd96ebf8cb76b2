"""Intensities as the network wants them: clipped by modality, then a z-score within the crop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hermes.types import Modality

CT_WINDOW_HU = (-991.0, 500.0)
"""What the published networks were trained with."""
PERCENTILES = (2.0, 98.0)
"""Clipping of every other modality, in percent of the voxels of the crop."""


@dataclass(frozen=True)
class Intensity:
    """The mapping ``(clip(value, low, high) - mean) / deviation``."""

    low: float
    high: float
    mean: float
    deviation: float

    def of(self, value: float) -> float:
        """The prepared intensity of one value of the image."""
        return (min(max(value, self.low), self.high) - self.mean) / self.deviation


def normalise(
    array: NDArray[np.float32],
    modality: Modality | None,
    *,
    ct_window: tuple[float, float] = CT_WINDOW_HU,
    percentiles: tuple[float, float] = PERCENTILES,
) -> Intensity:
    """Clips and z-scores ``array`` in place and returns the mapping; a constant image becomes zeros.

    The statistics are those of the clipped array as given, in double precision.
    """
    if modality is Modality.CT:
        low, high = ct_window
    else:
        low, high = (float(value) for value in np.percentile(array, percentiles))
    np.clip(array, low, high, out=array)
    mean = float(array.mean(dtype=np.float64))
    array -= np.float32(mean)
    # After the mean is gone, so that the sum of squares needs no double-precision copy of the array.
    flat = array.reshape(-1)
    square = sum(float(np.dot(part, part)) for part in np.array_split(flat, max(1, flat.size // 65536)))
    deviation = float(np.sqrt(square / flat.size))
    if deviation <= 1e-6 * max(1.0, abs(mean)):
        array[...] = 0.0
        return Intensity(low, high, mean, 1.0)
    array /= np.float32(deviation)
    return Intensity(low, high, mean, deviation)
