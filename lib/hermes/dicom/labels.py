"""What DICOM labels say once read: named regions of the image's grid, which may overlap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hermes.dicom.coding import structure_of
from hermes.errors import BadLabelError, BadRequestError
from hermes.geometry import Grid
from hermes.records import LabelMap

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Mask:
    """A region of a grid, kept as its bounding box: seventy structures of a CT do not fit in memory whole.

    Attributes:
        start: (z, y, x) of the first voxel of ``voxels`` in the grid.
        voxels: ``(d, h, w)`` bool.
    """

    start: tuple[int, int, int]
    voxels: NDArray[np.bool_]

    @classmethod
    def of(cls, full: NDArray[Any]) -> Mask:
        """The region of what is not zero in ``full`` ``(D, H, W)``."""
        set_ = np.asarray(full) != 0
        box = []
        for axis in range(3):
            lines = np.flatnonzero(set_.any(axis=tuple(other for other in range(3) if other != axis)))
            box.append(slice(int(lines[0]), int(lines[-1]) + 1) if lines.size else slice(0, 0))
        return cls((box[0].start, box[1].start, box[2].start), set_[box[0], box[1], box[2]].copy())

    @property
    def box(self) -> Box:
        """Where ``voxels`` lie in an array of the grid's shape."""
        z, y, x = (
            slice(start, start + size) for start, size in zip(self.start, self.voxels.shape, strict=True)
        )
        return z, y, x

    @property
    def count(self) -> int:
        """Number of voxels."""
        return int(np.count_nonzero(self.voxels))

    def full(self, shape: tuple[int, int, int]) -> NDArray[np.bool_]:
        """``(D, H, W)`` bool: the region in an array of ``shape``."""
        array = np.zeros(shape, dtype=np.bool_)
        array[self.box] = self.voxels
        return array

    def union(self, other: Mask) -> Mask:
        """The voxels of either."""
        start = np.minimum(self.start, other.start)
        ends = [np.add(mask.start, mask.voxels.shape) for mask in (self, other)]
        voxels = np.zeros(np.maximum(*ends) - start, dtype=np.bool_)
        for mask in (self, other):
            z, y, x = (
                slice(a, a + n)
                for a, n in zip(np.subtract(mask.start, start), mask.voxels.shape, strict=True)
            )
            voxels[z, y, x] |= mask.voxels
        return Mask((int(start[0]), int(start[1]), int(start[2])), voxels)


@dataclass(frozen=True, eq=False)
class Segment:
    """One structure as drawn in a DICOM object.

    Attributes:
        name: as resolved (see `hermes.dicom.coding`).
        label: as written in the object.
        mask: its voxels on the image's grid; not empty.
        algorithm_type: MANUAL, SEMIAUTOMATIC or AUTOMATIC; "" where not said.
        algorithm: name and version of the algorithm; "" where not said.
        tracking_id: "" where not said.
        tracking_uid: "" where not said.
        creator: who drew it; "" where not said.
        created: ``YYYYMMDDhhmmss.ffffff`` of the object; "" where not said.
        sop_instance_uid: the object it comes from.
        number: segment or ROI number in that object.
        exact: False when the object lies on another grid and was resampled (nearest voxel).
        voxels_outside: drawn voxels of a SEG beyond the edge of the image, which are lost.
    """

    name: str
    label: str
    mask: Mask
    algorithm_type: str
    algorithm: str
    tracking_id: str
    tracking_uid: str
    creator: str
    created: str
    sop_instance_uid: str
    number: int
    exact: bool = True
    voxels_outside: int = 0


@dataclass(frozen=True)
class Refusal:
    """A label object that was not read, and why."""

    sop_instance_uid: str
    reason: str


@dataclass(frozen=True, eq=False)
class DicomLabels:
    """The labels of one image.

    Attributes:
        grid: of the image.
        segments: at most one per name, each the newest; they may overlap.
        absent: names that the newest object to speak of them says were looked for and are not there.
        empty: names that the newest object lists without a voxel: neither drawn nor declared absent.
        refused: objects that could not be read onto the grid.
    """

    grid: Grid
    segments: tuple[Segment, ...]
    absent: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The drawn structures, in order."""
        return tuple(segment.name for segment in self.segments)

    def mask(self, name: str) -> NDArray[np.bool_]:
        """``(D, H, W)`` bool of one structure.

        Raises:
            BadRequestError: it is not drawn.
        """
        for segment in self.segments:
            if segment.name == name:
                return segment.mask.full(self.grid.shape)
        msg = f"Expected one of the drawn structures {list(self.names)}, got {name!r}."
        raise BadRequestError(msg)

    def overlapping_voxels(self) -> int:
        """Number of voxels that belong to more than one structure."""
        times = np.zeros(self.grid.shape, dtype=np.uint8)
        for segment in self.segments:
            part = times[segment.mask.box]
            np.add(part, segment.mask.voxels, out=part, where=part < 2)
        return int(np.count_nonzero(times > 1))

    def label_map(self, values: Mapping[str, int] | None = None) -> LabelMap:
        """The segments as one label map.

        Where structures overlap, one that lies within the other (liver tumour in liver) wins; else the
        one with fewer voxels; else the later one.

        Args:
            values: name -> value; the default numbers the segments from 1 in their order.

        Raises:
            BadLabelError: a drawn structure has no value, or a value is outside 1 to 65535.
        """
        numbers = dict(values) if values is not None else {name: n for n, name in enumerate(self.names, 1)}
        unnumbered = [name for name in self.names if not 1 <= numbers.get(name, 0) <= 65535]
        if unnumbered:
            msg = f"Expected a value from 1 to 65535 for every drawn structure, got none for {unnumbered}."
            raise BadLabelError(msg)
        kind = np.uint8 if max(numbers.values(), default=0) <= 255 else np.uint16
        array: NDArray[Any] = np.zeros(self.grid.shape, dtype=kind)
        for segment in self._painting_order():
            array[segment.mask.box][segment.mask.voxels] = numbers[segment.name]
        return LabelMap(array, self.grid, {value: name for name, value in numbers.items()})

    def covered(self, label: LabelMap) -> dict[str, str]:
        """What overlap has cost: name -> a phrase like "liver: 1000 of 6000 voxels lie under spleen".

        Args:
            label: the segments as `label_map` gives them; names without a voxel may be missing.
        """
        values = {name: value for value, name in label.names.items()}
        told = {}
        for segment in self.segments:
            drawn = label.array[segment.mask.box][segment.mask.voxels]
            own = values.get(segment.name, 0)
            lost = int(np.count_nonzero(drawn != own))
            if lost:
                over = [label.names[int(value)] for value in np.unique(drawn) if value != own]
                rest = "" if lost < drawn.size else ", so that nothing of it is left"
                told[segment.name] = (
                    f"{segment.name}: {lost} of {drawn.size} voxels lie under {', '.join(over)}{rest}"
                )
        return told

    def _painting_order(self) -> list[Segment]:
        """The segments so that the ones that win come last."""
        present = {segment.name: segment for segment in self.segments}
        order: dict[str, Segment] = {}

        def add(segment: Segment) -> None:
            for outer in _containers(segment.name) & present.keys() - order.keys():
                add(present[outer])
            order[segment.name] = segment

        for segment in sorted(self.segments, key=lambda s: -s.mask.count):
            add(segment)
        return list(order.values())


def _containers(name: str) -> frozenset[str]:
    """Every structure that contains ``name``, at any distance."""
    try:
        found: set[str] = set(structure_of(name).within)
    except BadRequestError:  # a name of a foreign object that no campaign could use
        return frozenset()
    for outer in tuple(found):
        found |= _containers(outer)
    return frozenset(found)
