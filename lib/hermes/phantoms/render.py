"""From a list of solids to an image: partial volume at the edges and an exact map of what lies where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hermes.phantoms.shapes import Points, Shape, waves

WARP_ROOM_MM = 12.0
"""By how much the warp of a body can carry a point out of the box of its solid."""


@dataclass(frozen=True)
class Part:
    """One solid of a body.

    Attributes:
        tissue: what it is made of; a key of the contrast in use.
        shape: where it lies.
        region: what a drawing protocol may call on; empty where nobody draws it. A later part takes the
            voxels that it covers away from the earlier ones.
    """

    tissue: str
    shape: Shape
    region: str = ""


@dataclass(frozen=True)
class Rendering:
    """What a scanner without noise would see.

    Attributes:
        image: ``(D, H, W)`` float64 in the unit of the contrast.
        regions: ``(D, H, W)`` uint8: 0 or 1 + index into ``names``.
        names: region names.
    """

    image: NDArray[np.float64]
    regions: NDArray[np.uint8]
    names: tuple[str, ...]

    def mask(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """Where any of the regions ``names`` lies; a region that the body lacks lies nowhere."""
        table = np.zeros(256, dtype=bool)
        table[[1 + self.names.index(n) for n in names if n in self.names]] = True
        return np.asarray(table[self.regions])


def body_points(
    shape: tuple[int, int, int],
    body_from_voxel: NDArray[np.float64],
    rng: np.random.Generator,
    warp_mm: float,
) -> Points:
    """Body coordinates in mm of every voxel, ``(3, D, H, W)``, bent smoothly by about ``warp_mm``."""
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij", sparse=True)
    m = body_from_voxel
    points = np.stack([m[i, 0] * x + m[i, 1] * y + m[i, 2] * z + m[i, 3] for i in range(3)])
    bends = [waves(rng, 260.0, count=3) for _ in range(3)]
    shifts = [bend(points) for bend in bends] if warp_mm else []
    for axis, shift in enumerate(shifts):
        points[axis] += np.clip(warp_mm * shift, -WARP_ROOM_MM, WARP_ROOM_MM)
    return np.asarray(points)


def _window(
    solid: Shape, voxel_from_body: NDArray[np.float64], shape: tuple[int, int, int]
) -> tuple[slice, slice, slice] | None:
    low = np.asarray(solid.low) - WARP_ROOM_MM
    high = np.asarray(solid.high) + WARP_ROOM_MM
    corners = np.array(np.meshgrid(*zip(low, high, strict=True), indexing="ij")).reshape(3, -1)
    voxels = voxel_from_body[:3, :3] @ corners + voxel_from_body[:3, 3:]
    first = np.floor(voxels.min(axis=1)).astype(int)[::-1]
    last = np.ceil(voxels.max(axis=1)).astype(int)[::-1] + 1
    box = [slice(max(a, 0), min(b, n)) for a, b, n in zip(first, last, shape, strict=True)]
    return None if any(s.stop <= s.start for s in box) else (box[0], box[1], box[2])


def render(
    parts: Sequence[Part],
    contrast: Mapping[str, float],
    points: Points,
    body_from_voxel: NDArray[np.float64],
    background: float,
) -> Rendering:
    """Paints ``parts`` in order.

    An edge is spread over one voxel, which is what averaging inside a voxel does to a flat surface.

    Args:
        parts: solids, the later ones over the earlier ones.
        contrast: value per tissue.
        points: ``(3, D, H, W)`` body coordinates in mm (see :func:`body_points`).
        body_from_voxel: (4, 4), voxel (x, y, z) to body mm, without the warp.
        background: value where there is nothing.
    """
    shape = (points.shape[1], points.shape[2], points.shape[3])
    image = np.full(shape, background, dtype=np.float64)
    regions = np.zeros(shape, dtype=np.uint8)
    names = tuple(dict.fromkeys(p.region for p in parts if p.region))
    voxel_from_body = np.linalg.inv(body_from_voxel)
    edge = float(np.abs(np.linalg.det(body_from_voxel[:3, :3])) ** (1.0 / 3.0))
    for part in parts:
        box = _window(part.shape, voxel_from_body, shape)
        if box is None:
            continue
        depth = part.shape.depth(points[:, box[0], box[1], box[2]])
        share = np.clip(0.5 + depth / edge, 0.0, 1.0)
        view = image[box]
        view += share * (contrast[part.tissue] - view)
        regions[box][depth > 0] = 1 + names.index(part.region) if part.region else 0
    return Rendering(image, regions, names)
