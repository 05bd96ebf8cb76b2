"""Regions of interest: boxes in the patient, given in millimetres."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import product

import numpy as np

from hermes.errors import BadRequestError
from hermes.geometry import Grid
from hermes.inference.windows import Box
from hermes.records import LabelMap


@dataclass(frozen=True)
class Region:
    """A box along the patient's axes.

    Attributes:
        low_mm: smallest LPS coordinates (x, y, z).
        high_mm: largest.
    """

    low_mm: tuple[float, float, float]
    high_mm: tuple[float, float, float]

    @classmethod
    def around(cls, label_map: LabelMap, values: Collection[int], margin_mm: float) -> Region:
        """The box around some values of a (coarse or earlier) label map.

        Raises:
            BadRequestError: none of the values occurs.
        """
        places = np.argwhere(np.isin(label_map.array, list(values)))  # z, y, x
        if not len(places):
            msg = f"Expected a label map with one of the values {sorted(values)}, got one without."
            raise BadRequestError(msg)
        low, high = places.min(axis=0)[::-1], places.max(axis=0)[::-1]
        corners = label_map.grid.to_mm(list(product(*zip(low - 0.5, high + 0.5, strict=True))))
        x, y, z = (float(value) for value in corners.min(axis=0) - margin_mm)
        x1, y1, z1 = (float(value) for value in corners.max(axis=0) + margin_mm)
        return cls((x, y, z), (x1, y1, z1))

    def on(self, grid: Grid) -> Box:
        """The voxels of ``grid`` that the box touches.

        Raises:
            BadRequestError: the box lies outside the image.
        """
        corners = grid.to_index(list(product(*zip(self.low_mm, self.high_mm, strict=True))))[:, ::-1]
        low = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
        high = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 1, grid.shape)
        if (low >= high).any():
            box = f"{self.low_mm} to {self.high_mm} mm (LPS)"
            msg = f"Expected a region of interest within the image, got {box}."
            raise BadRequestError(msg)
        z, y, x = ((int(first), int(last)) for first, last in zip(low, high, strict=True))
        return z, y, x
