"""From an image as stored to the array that the network sees, and back.

The steps, each recorded: turn to axes that grow to superior, posterior and left; crop the air around the
body; resample; clip and z-score. An oblique remainder of the axes is kept (see
:class:`hermes.transforms.orientation.Turn`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hermes.errors import BadImageError, BadRequestError, GeometryMismatchError
from hermes.geometry import Grid
from hermes.records import ModalitySource, Volume
from hermes.transforms.body import Body, Box, find_body
from hermes.transforms.intensity import CT_WINDOW_HU, PERCENTILES, Intensity, normalise
from hermes.transforms.orientation import Turn
from hermes.transforms.resample import AxisMap, AxisMaps, Interpolation, resample, take_nearest
from hermes.types import Modality

MOST_VOXELS = 2**31
"""A model grid with more voxels comes from a wrong spacing in a header, not from a scanner."""
_VERSION = 1  # part of the key of cached entries: raise it when prepared arrays change


@dataclass(frozen=True)
class PreparationSpec:
    """How images are prepared; part of a model's manifest.

    Attributes:
        spacing_mm: of the model grid, along (z, y, x); one number means isotropic.
        interpolation: of images; labels always take the nearest voxel.
        crop_body: whether air around the body is cut off.
        margin_mm: kept around the body.
        min_extent_mm: an axis is never cropped below this (128 voxels of 1.5 mm by default).
        ct_window: HU that CT is clipped to.
        percentiles: percent of the voxels in the crop that other modalities are clipped to.
    """

    spacing_mm: float | tuple[float, float, float] = 1.5
    interpolation: Interpolation = "linear"
    crop_body: bool = True
    margin_mm: float = 15.0
    min_extent_mm: float = 192.0
    ct_window: tuple[float, float] = CT_WINDOW_HU
    percentiles: tuple[float, float] = PERCENTILES

    def __post_init__(self) -> None:
        if min(self.spacing_zyx_mm) <= 0:
            msg = f"Expected positive spacings in mm, got {self.spacing_mm}."
            raise BadRequestError(msg)

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        """The spacing along (z, y, x)."""
        if isinstance(self.spacing_mm, tuple):
            return self.spacing_mm
        return (float(self.spacing_mm),) * 3

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` takes back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PreparationSpec:
        """The specification that ``data`` holds."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in data.items()
        }
        return cls(**values)

    def digest(self) -> str:
        """A name for this specification and for the version of the code that carries it out."""
        text = json.dumps([_VERSION, self.to_json()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class PreparationRecord:
    """What was done to one image; inverts it.

    Attributes:
        grid: of the image as stored.
        turn: of its axes.
        crop: start and stop along (z, y, x) of the turned array.
        maps: resampling of the crop along (z, y, x).
        intensity: how values were mapped.
        air_level: prepared intensity below which a voxel is air; None when the body was not found.
        modality: that the intensities were prepared for.
        modality_source: who said so.
        modality_confidence: 0..1.
    """

    grid: Grid
    turn: Turn
    crop: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    maps: AxisMaps
    intensity: Intensity
    air_level: float | None
    modality: Modality | None
    modality_source: ModalitySource
    modality_confidence: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(D, H, W)`` of the model grid."""
        z, y, x = self.maps
        return z.size_out, y.size_out, x.size_out

    @property
    def model_grid(self) -> Grid:
        """Where the voxels of the prepared array lie in the patient."""
        turned = self.turn.apply_to_grid(self.grid)
        affine = turned.affine.copy()
        for index_axis in range(3):  # x, y, z
            axis = 2 - index_axis
            column = turned.affine[:3, index_axis]
            affine[:3, index_axis] = column * self.maps[axis].step
            affine[:3, 3] += column * (self.crop[axis][0] + float(self.maps[axis].positions()[0]))
        return Grid(self.shape, affine)

    def restore(self, array: NDArray[Any], fill: float = 0) -> NDArray[Any]:
        """An array of the model grid on the image's own grid, each voxel taking the nearest one.

        Voxels outside the crop get ``fill``. Exact where nothing was resampled.

        Args:
            array: ``(D, H, W)`` of the model grid: a label map or a map of scores.
            fill: value of what the network did not see.

        Raises:
            GeometryMismatchError: another shape.
        """
        if tuple(array.shape) != self.shape:
            msg = f"Expected an array of the model grid {self.shape} (z, y, x), got {tuple(array.shape)}."
            raise GeometryMismatchError(msg)
        z, y, x = self.maps
        crop = take_nearest(array, (z.nearest_out(), y.nearest_out(), x.nearest_out()))
        turned_shape = tuple(self.grid.shape[axis] for axis in self.turn.axes)
        if crop.shape == turned_shape:
            return np.ascontiguousarray(self.turn.undo(crop))
        stored = np.full(self.grid.shape, fill, dtype=array.dtype)
        self.turn.apply(stored)[self._crop_slices()] = crop  # a view: writes straight into the stored order
        return stored

    def prepare_labels(self, labels: NDArray[Any], grid: Grid | None = None) -> NDArray[Any]:
        """Labels of the image, on the model grid, each voxel taking the nearest one.

        Args:
            labels: integers ``(D, H, W)`` as stored.
            grid: where they lie, to be checked against the image's grid.

        Raises:
            GeometryMismatchError: they are not on the grid of the image.
        """
        difference = None if grid is None else self.grid.difference(grid)
        if difference is None and tuple(labels.shape) != self.grid.shape:
            difference = f"The sizes (z, y, x) differ: {self.grid.shape} against {tuple(labels.shape)}."
        if difference is not None:
            msg = f"Expected a label on the grid of its image. {difference} Draw or resample it on the image."
            raise GeometryMismatchError(msg)
        z, y, x = self.maps
        crop = self.turn.apply(labels)[self._crop_slices()]
        return np.ascontiguousarray(take_nearest(crop, (z.nearest_in(), y.nearest_in(), x.nearest_in())))

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` takes back without loss."""
        return {
            "shape": self.grid.shape,
            "affine": self.grid.affine.tolist(),
            "axes": self.turn.axes,
            "flips": self.turn.flips,
            "crop": self.crop,
            "maps": [dataclasses.astuple(axis_map) for axis_map in self.maps],
            "intensity": dataclasses.astuple(self.intensity),
            "air_level": self.air_level,
            "modality": None if self.modality is None else self.modality.value,
            "modality_source": self.modality_source,
            "modality_confidence": self.modality_confidence,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PreparationRecord:
        """The record that ``data`` holds."""
        z, y, x = (AxisMap(*values) for values in data["maps"])
        crop_z, crop_y, crop_x = ((int(low), int(high)) for low, high in data["crop"])
        return cls(
            grid=Grid(tuple(data["shape"]), np.array(data["affine"])),
            turn=Turn(tuple(data["axes"]), tuple(data["flips"])),
            crop=(crop_z, crop_y, crop_x),
            maps=(z, y, x),
            intensity=Intensity(*data["intensity"]),
            air_level=data["air_level"],
            modality=None if data["modality"] is None else Modality(data["modality"]),
            modality_source=data["modality_source"],
            modality_confidence=float(data["modality_confidence"]),
        )

    def _crop_slices(self) -> Box:
        z, y, x = (slice(low, high) for low, high in self.crop)
        return z, y, x


@dataclass(frozen=True, eq=False)
class PreparedVolume:
    """An image as the network sees it.

    Attributes:
        array: ``(D, H, W)`` float32 on the model grid, z-scored; anything that slices to NumPy arrays.
        record: what was done.
    """

    array: Any
    record: PreparationRecord


def prepare(volume: Volume, spec: PreparationSpec) -> PreparedVolume:
    """Prepares an image; the volume itself is left as it is.

    Raises:
        BadImageError: the spacing in the header asks for an impossible number of voxels.
    """
    turn = Turn.to_lps(volume.grid)
    turned = turn.apply(volume.array)
    spacing_mm = turn.apply_to_grid(volume.grid).spacing_mm
    body = _body(turned, spacing_mm, volume.modality, spec)
    sizes = [part.stop - part.start for part in body.box]
    z, y, x = (
        AxisMap.between(size, before, after)
        for size, before, after in zip(sizes, spacing_mm, spec.spacing_zyx_mm, strict=True)
    )
    if z.size_out * y.size_out * x.size_out > MOST_VOXELS:
        msg = (
            f"Expected an image of at most {MOST_VOXELS} voxels at {spec.spacing_mm} mm, got one that is "
            f"{[round(size * step) for size, step in zip(sizes, spacing_mm, strict=True)]} mm large. "
            "Check the spacing in its header."
        )
        raise BadImageError(msg)
    array = np.array(resample(turned[body.box], (z, y, x), spec.interpolation), dtype=np.float32, order="C")
    intensity = normalise(array, volume.modality, ct_window=spec.ct_window, percentiles=spec.percentiles)
    crop_z, crop_y, crop_x = ((part.start, part.stop) for part in body.box)
    record = PreparationRecord(
        grid=volume.grid,
        turn=turn,
        crop=(crop_z, crop_y, crop_x),
        maps=(z, y, x),
        intensity=intensity,
        air_level=None if body.air_below is None else intensity.of(body.air_below),
        modality=volume.modality,
        modality_source=volume.modality_source,
        modality_confidence=volume.modality_confidence,
    )
    return PreparedVolume(array, record)


def _body(
    turned: NDArray[np.float32],
    spacing_mm: tuple[float, float, float],
    modality: Modality | None,
    spec: PreparationSpec,
) -> Body:
    body = find_body(turned, spacing_mm, modality, margin_mm=spec.margin_mm, min_extent_mm=spec.min_extent_mm)
    if spec.crop_body:
        return body
    z, y, x = (slice(0, size) for size in turned.shape)
    return Body((z, y, x), body.air_below)
