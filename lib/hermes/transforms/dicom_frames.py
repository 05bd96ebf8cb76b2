"""Where every frame of a DICOM series lies, and what tells it from the others: from its attributes alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hermes.errors import BadImageError

TRAITS: dict[str, tuple[tuple[str, str], ...]] = {
    "b-value": (("MRDiffusionSequence", "DiffusionBValue"),),
    "diffusion direction": (("MRDiffusionSequence", "DiffusionGradientOrientation"),),
    "echo": (("MREchoSequence", "EffectiveEchoTime"), ("", "EchoTime")),
    "inversion time": (("MRModifierSequence", "InversionTimes"), ("", "InversionTime")),
    "kind": (
        ("MRImageFrameTypeSequence", "FrameType"),
        ("CTImageFrameTypeSequence", "FrameType"),
        ("", "ImageType"),
    ),
    "stack": (("FrameContentSequence", "StackID"),),
}
"""What may tell two images at one position apart, other than time: (functional group, attribute), first found."""

_TIMES = (
    ("FrameContentSequence", "TemporalPositionIndex"),
    ("", "TemporalPositionIdentifier"),
    ("", "FrameReferenceTime"),
)
_TRIGGERS = (
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    ("CardiacSynchronizationSequence", "TriggerTime"),
)


@dataclass(frozen=True, eq=False)
class Frame:
    """One two-dimensional image of a series.

    Attributes:
        source: index of its dataset in the series as given.
        frame: index within a multi-frame object, from 0; None for a classic one.
        position: (3,) LPS mm of the centre of the first pixel.
        axes: (2, 3): unit directions along a row (x) and along a column (y), LPS.
        pixel_mm: distance of neighbouring pixels along x, along y.
        thickness_mm: spacing between slices where given, else slice thickness, else 1.
        rescale: slope and intercept of the stored values.
        time: what orders images of one position in time; equal where nothing does.
        order: instance number and frame number, the last resort of sorting.
        size: (rows, columns).
        traits: name of a trait -> its value as text; see :data:`TRAITS`.
        acquisition: acquisition number as text.
    """

    source: int
    frame: int | None
    position: NDArray[np.float64]
    axes: NDArray[np.float64]
    pixel_mm: tuple[float, float]
    thickness_mm: float
    rescale: tuple[float, float]
    time: tuple[float, ...]
    order: tuple[float, float]
    size: tuple[int, int]
    traits: dict[str, str]
    acquisition: str

    @property
    def normal(self) -> NDArray[np.float64]:
        """(3,): unit vector along which the slices are sorted, ``x`` cross ``y``."""
        normal: NDArray[np.float64] = np.cross(self.axes[0], self.axes[1])
        return normal


def frames_of(headers: Sequence[Any]) -> list[Frame]:
    """Every frame of the datasets (pixels are not needed), in their order.

    Raises:
        BadImageError: a frame has no position, orientation or pixel spacing.
    """
    return [frame for source, header in enumerate(headers) for frame in _frames(source, header)]


def _frames(source: int, header: Any) -> Iterator[Frame]:
    try:
        groups = header.get("PerFrameFunctionalGroupsSequence")
        if not groups and int(header.get("NumberOfFrames", 1) or 1) > 1:
            msg = "Expected positions for every frame of a multi-frame object, got none. Export it again."
            raise BadImageError(msg)
        for number in range(len(groups) if groups else 1):
            yield _frame(source, header, groups[number] if groups else None, number)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        msg = (
            "Expected position, orientation and pixel spacing in every DICOM image, got an object without "
            "(a projection, a screenshot or a secondary capture?). Give a CT, MR or PET series."
        )
        raise BadImageError(msg) from error


def functional(header: Any, group: Any | None, macro: str, name: str) -> Any:
    """An attribute of a frame: from its functional group, else the shared one, else the object; else None."""
    shared = header.get("SharedFunctionalGroupsSequence")
    for place in (group, shared[0] if shared else None):
        items = place.get(macro) if place is not None and macro else None
        if items and name in items[0]:
            return items[0][name].value
    return header[name].value if name in header else None


def _frame(source: int, header: Any, group: Any | None, number: int) -> Frame:
    def number_of(macro: str, name: str, default: float) -> float:
        value = functional(header, group, macro, name)
        return default if value in (None, "") else float(value)

    cosines = np.array(
        functional(header, group, "PlaneOrientationSequence", "ImageOrientationPatient"), dtype=np.float64
    )
    spacing = [float(value) for value in functional(header, group, "PixelMeasuresSequence", "PixelSpacing")]
    position = np.array(
        functional(header, group, "PlanePositionSequence", "ImagePositionPatient"), dtype=np.float64
    )
    if position.shape != (3,) or cosines.shape != (6,) or len(spacing) != 2 or min(spacing) <= 0:
        msg = "position, orientation or spacing has the wrong length"
        raise ValueError(msg)
    axes = cosines.reshape(2, 3) / np.linalg.norm(cosines.reshape(2, 3), axis=1, keepdims=True)
    if not np.isfinite([*position, *axes.ravel()]).all() or abs(axes[0] @ axes[1]) > 1e-2:
        msg = "directions are not perpendicular"
        raise ValueError(msg)
    thickness = number_of("PixelMeasuresSequence", "SpacingBetweenSlices", 0.0)
    thickness = thickness or number_of("PixelMeasuresSequence", "SliceThickness", 0.0) or 1.0
    return Frame(
        source=source,
        frame=number if group is not None else None,
        position=position,
        axes=axes,
        pixel_mm=(spacing[1], spacing[0]),  # DICOM gives the distance of rows first
        thickness_mm=abs(thickness),
        rescale=_rescale(header, group),
        time=_time(header, group, number_of),
        order=(float(header.get("InstanceNumber") or 0), float(number)),
        size=(int(header.Rows), int(header.Columns)),
        traits={name: _trait(header, group, places) for name, places in TRAITS.items()},
        acquisition=str(header.get("AcquisitionNumber") or ""),
    )


def first_rescale(header: Any) -> tuple[float, float]:
    """Slope and intercept of the first frame of an object."""
    groups = header.get("PerFrameFunctionalGroupsSequence")
    return _rescale(header, groups[0] if groups else None)


def _rescale(header: Any, group: Any | None) -> tuple[float, float]:
    macro = "PixelValueTransformationSequence"
    slope = functional(header, group, macro, "RescaleSlope")
    intercept = functional(header, group, macro, "RescaleIntercept")
    return float(slope or 1.0) or 1.0, float(intercept or 0.0)


def _time(header: Any, group: Any | None, number_of: Any) -> tuple[float, ...]:
    triggers = [number_of(macro, name, 0.0) for macro, name in _TRIGGERS]
    times = [number_of(macro, name, 0.0) for macro, name in _TIMES]
    # In CT and PET nothing else than time is repeated at one position; in MR it may be a diffusion direction.
    clock = ""
    if str(header.get("Modality", "")) in ("CT", "PT"):
        clock = str(functional(header, group, "FrameContentSequence", "FrameAcquisitionDateTime") or "")
        clock = clock or str(header.get("AcquisitionTime") or "")
    digits = "".join(c for c in clock.split("+")[0] if c.isdigit() or c == ".")
    return (*times, triggers[0] or triggers[1], float(digits) if digits.count(".") <= 1 and digits else 0.0)


def _trait(header: Any, group: Any | None, places: Sequence[tuple[str, str]]) -> str:
    for macro, name in places:
        value = functional(header, group, macro, name)
        if value in (None, "", []):
            continue
        if name in ("ImageType", "FrameType"):
            return "/".join(str(part) for part in list(value)[2:])
        try:
            parts = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
            return "/".join(f"{float(part):.4g}" for part in parts)
        except (TypeError, ValueError):
            return str(value)
    return ""
