"""The image series that a DICOM label belongs to: its frames in the order of its grid, and how to point at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hermes.errors import BadImageError
from hermes.geometry import Grid
from hermes.transforms.dicom_frames import Frame
from hermes.transforms.dicom_volumes import choose_volume, volumes_of


@dataclass(frozen=True)
class Reference:
    """One frame of an image: its object and, in a multi-frame object, its number from 1."""

    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int | None


@dataclass(frozen=True, eq=False)
class SourceSeries:
    """A volume of a series.

    Attributes:
        headers: ``pydicom.Dataset`` of every instance; pixels are not needed.
        frames: of the volume (of one time point), sorted along the normal: the planes of the grid.
        grid: where the voxels lie, as :func:`hermes.transforms.dicom.read_dicom` gives it.
    """

    headers: tuple[Any, ...]
    frames: tuple[Frame, ...]
    grid: Grid

    @classmethod
    def of(cls, headers: Sequence[Any], *, volume: str | None = None, phase: int = 0) -> SourceSeries:
        """The series of ``headers`` (any order; pixels are not needed).

        Args:
            headers: every instance of the series.
            volume: id of the volume where the series holds several.
            phase: which time point labels are drawn on.

        Raises:
            BadImageError: the series cannot be used; the message says why.
        """
        chosen = choose_volume(volumes_of(headers), volume)
        if not 0 <= phase < len(chosen.phases):
            msg = f"Expected a time point from 0 to {len(chosen.phases) - 1}, got {phase}."
            raise BadImageError(msg)
        return cls(tuple(headers), chosen.phases[phase], chosen.usable_grid())

    @property
    def series_uid(self) -> str:
        """The SeriesInstanceUID."""
        return str(self.headers[0].get("SeriesInstanceUID", ""))

    @property
    def frame_of_reference(self) -> str:
        """The FrameOfReferenceUID; "" where the series does not say."""
        return str(self.headers[self.frames[0].source].get("FrameOfReferenceUID", "") or "")

    @cached_property
    def references(self) -> tuple[Reference, ...]:
        """How to point at each plane of the grid."""
        return tuple(
            Reference(
                str(self.headers[frame.source].get("SOPClassUID", "")),
                str(self.headers[frame.source].get("SOPInstanceUID", "")),
                None if frame.frame is None else frame.frame + 1,
            )
            for frame in self.frames
        )

    @cached_property
    def planes(self) -> dict[tuple[str, int | None], int]:
        """Object and frame number (None for a classic one) -> index of the plane in the grid."""
        return {
            (reference.sop_instance_uid, reference.frame_number): index
            for index, reference in enumerate(self.references)
        }
