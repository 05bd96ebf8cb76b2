"""Reading a DICOM series: sorted by position, checked for what would make its geometry a lie."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from hermes.errors import BadImageError
from hermes.geometry import Grid
from hermes.transforms.modality import Guess, guess_from_dicom
from hermes.transforms.suv import suv_factor

SAME_POSITION_MM = 1e-2
"""Slices nearer than this along the normal are at one position (several time points)."""
SPACING_TOLERANCE = 0.05
"""Largest deviation of a slice gap from the median gap, as a part of it: decimal strings are rounded."""
SAME_DIRECTION = 1e-3
"""Largest difference of direction cosines within one series."""

_NOT_IMAGES = ("SEG", "RTDOSE", "PR", "KO", "SR")  # have rows, or lie beside the images in a study's folder


@dataclass(frozen=True, eq=False)
class _Slice:
    """One frame: where it lies and how to get its pixels."""

    path: Path
    frame: int | None  # index within a multi-frame object; None for a classic one
    position: NDArray[np.float64]  # (3,) LPS mm of the first pixel's centre
    axes: NDArray[np.float64]  # (2, 3): direction along a row (x), along a column (y)
    pixel_mm: tuple[float, float]  # distance along x, along y
    thickness_mm: float
    rescale: tuple[float, float]
    order: tuple[float, ...]  # time within one position
    size: tuple[int, int]  # (rows, columns)


def read_dicom(path: Path, frame: int | None = None) -> tuple[NDArray[np.float32], Grid, Guess | None]:
    """Reads a DICOM file or the one series in a folder.

    Args:
        path: a file (classic or multi-frame) or a folder, searched with its sub-folders.
        frame: which time point, where a position has several; the default is the first.

    Returns:
        ``(D, H, W)`` after rescaling (HU; SUV body weight for PET where the attributes allow), its grid with
        the slices sorted along the normal, and the modality that the attributes state.

    Raises:
        BadImageError: no image, several series, colour, mixed orientations or sizes, missing or unevenly
            spaced slices, pixels that cannot be decoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of every odd value; what matters is checked here
        return _read_series(path, frame)


def _read_series(path: Path, frame: int | None) -> tuple[NDArray[np.float32], Grid, Guess | None]:
    headers = _headers(path)
    first = headers[0][1]
    slices = [item for file, header in headers for item in _slices(file, header)]
    _check_alike(slices)
    by_position = _sorted_by_position(slices)
    counts = {len(group) for group in by_position}
    if len(counts) > 1:
        msg = (
            "Expected the same number of images at each slice position, got between "
            f"{min(counts)} and {max(counts)}. Files are missing or two acquisitions are mixed."
        )
        raise BadImageError(msg)
    positions = counts.pop()
    guess = guess_from_dicom(first, positions)
    if positions > 1 and frame is None and not _is_temporal(slices):
        msg = (
            f"Expected one image per slice position, got {positions} that are not time points "
            "(echoes, b-values or parameter maps?). Split the series or name the frame to use."
        )
        raise BadImageError(msg)
    chosen = choose_frame(positions, frame)
    stack = [group[chosen] for group in by_position]
    grid = _grid(stack)
    array = _pixels(stack)
    factor = suv_factor(first)
    if factor is not None:
        array *= np.float32(factor)
    return array, grid, guess


def choose_frame(frames: int, frame: int | None) -> int:
    """The index of the time point to read: ``frame``, or the first.

    Raises:
        BadImageError: there is no such time point.
    """
    chosen = 0 if frame is None else frame
    if not 0 <= chosen < frames:
        msg = f"Expected a frame from 0 to {frames - 1}, got {chosen}."
        raise BadImageError(msg)
    return chosen


def _headers(path: Path) -> list[tuple[Path, Any]]:
    """All images of the one series at ``path``, without pixels."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    found = [(file, header) for file in files if (header := _header(file)) is not None]
    if not found:
        what = "no DICOM image among its files" if path.is_dir() else "a file of another kind"
        msg = f"Expected a NIfTI, MGZ, NRRD, MHA or DICOM image with three dimensions, got {what}."
        raise BadImageError(msg)
    series = {str(header.get("SeriesInstanceUID", "")) for _, header in found}
    if len(series) > 1:
        msg = f"Expected one series in the DICOM folder, got {len(series)}. Give the folder of one series."
        raise BadImageError(msg)
    if any(int(header.get("SamplesPerPixel", 1)) != 1 for _, header in found):
        msg = "Expected one intensity per pixel, got colour images. Give the grey-valued original."
        raise BadImageError(msg)
    return found


def _header(file: Path) -> Any | None:
    """The attributes of a DICOM image; None for anything else (reports, plans, other files)."""
    try:
        header = pydicom.dcmread(file, stop_before_pixels=True)
        is_image = "Rows" in header and str(header.get("Modality", "")) not in _NOT_IMAGES
    except (InvalidDicomError, OSError, EOFError, ValueError, KeyError, AttributeError, NotImplementedError):
        return None
    return header if is_image else None


def _slices(file: Path, header: Any) -> Iterator[_Slice]:
    try:
        frames = header.get("PerFrameFunctionalGroupsSequence")
        if frames is None and int(header.get("NumberOfFrames", 1) or 1) > 1:
            msg = "Expected positions for every frame of a multi-frame object, got none. Export it again."
            raise BadImageError(msg)
        for number in range(len(frames) if frames else 1):
            yield _slice(file, header, frames[number] if frames else None, number)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        msg = (
            "Expected position, orientation and pixel spacing in every DICOM image, got an object without "
            "(a projection, a screenshot or a secondary capture?). Give a CT, MR or PET series."
        )
        raise BadImageError(msg) from error


def _slice(file: Path, header: Any, group: Any | None, number: int) -> _Slice:
    def attribute(macro: str, name: str) -> Any:
        """From the frame's functional groups, else the shared ones, else the object itself."""
        shared = header.get("SharedFunctionalGroupsSequence")
        for place in (group, shared[0] if shared else None):
            items = place.get(macro) if place is not None else None
            if items and name in items[0]:
                return items[0][name].value
        return header[name].value if name in header else None

    def number_of(macro: str, name: str, default: float) -> float:
        value = attribute(macro, name)
        return default if value in (None, "") else float(value)

    cosines = np.array(attribute("PlaneOrientationSequence", "ImageOrientationPatient"), dtype=np.float64)
    spacing = [float(value) for value in attribute("PixelMeasuresSequence", "PixelSpacing")]
    position = np.array(attribute("PlanePositionSequence", "ImagePositionPatient"), dtype=np.float64)
    if position.shape != (3,) or cosines.shape != (6,) or len(spacing) != 2 or min(spacing) <= 0:
        msg = "position, orientation or spacing has the wrong length"
        raise ValueError(msg)
    thickness = number_of("PixelMeasuresSequence", "SpacingBetweenSlices", 0.0)
    thickness = thickness or number_of("PixelMeasuresSequence", "SliceThickness", 0.0) or 1.0
    values = "PixelValueTransformationSequence"
    time = (
        number_of("FrameContentSequence", "TemporalPositionIndex", 0.0),
        number_of("", "TemporalPositionIdentifier", 0.0),
        number_of("CardiacSynchronizationSequence", "TriggerTime", 0.0)
        or number_of("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", 0.0),
    )
    return _Slice(
        path=file,
        frame=number if group is not None else None,
        position=position,
        axes=cosines.reshape(2, 3) / np.linalg.norm(cosines.reshape(2, 3), axis=1, keepdims=True),
        pixel_mm=(spacing[1], spacing[0]),  # DICOM gives the distance of rows first
        thickness_mm=abs(thickness),
        rescale=(number_of(values, "RescaleSlope", 1.0) or 1.0, number_of(values, "RescaleIntercept", 0.0)),
        order=(*time, float(header.get("InstanceNumber") or 0), float(number)),
        size=(int(header.Rows), int(header.Columns)),
    )


def _is_temporal(slices: Sequence[_Slice]) -> bool:
    """Whether a tag of time tells the images at one position apart."""
    return len({item.order[:3] for item in slices}) > 1


def _check_alike(slices: Sequence[_Slice]) -> None:
    first = slices[0]
    for item in slices[1:]:
        if item.size != first.size or not np.allclose(item.pixel_mm, first.pixel_mm, rtol=1e-3):
            msg = "Expected one image size and pixel spacing in the series, got several. Split the series."
            raise BadImageError(msg)
        if np.abs(item.axes - first.axes).max() > SAME_DIRECTION:
            msg = "Expected one orientation in the series, got several (a localiser?). Split the series."
            raise BadImageError(msg)


def _sorted_by_position(slices: Sequence[_Slice]) -> list[list[_Slice]]:
    """The slices along the normal, those of one position together and in order of time."""
    normal = np.cross(slices[0].axes[0], slices[0].axes[1])
    groups: list[list[_Slice]] = []
    last = -np.inf
    for item in sorted(slices, key=lambda item: float(item.position @ normal)):
        here = float(item.position @ normal)
        if not groups or here - last > SAME_POSITION_MM:
            groups.append([])
            last = here
        groups[-1].append(item)
    return [sorted(group, key=lambda item: item.order) for group in groups]


def _grid(stack: Sequence[_Slice]) -> Grid:
    """The grid of evenly spaced slices; a gantry tilt becomes a sheared slice axis.

    Raises:
        BadImageError: the steps between neighbouring slices are not all the same.
    """
    first = stack[0]
    normal = np.cross(first.axes[0], first.axes[1])
    step = normal * first.thickness_mm
    if len(stack) > 1:
        steps = np.diff(np.stack([item.position for item in stack]), axis=0)
        gap = float(np.median(steps @ normal))
        off = np.abs(steps - np.median(steps, axis=0)).max(axis=1)
        wrong = off > max(SPACING_TOLERANCE * gap, SAME_POSITION_MM)
        if wrong.any():
            gaps = steps @ normal
            msg = (
                f"Expected evenly spaced slices, got gaps from {gaps.min():.3g} to {gaps.max():.3g} mm "
                f"(the usual one is {gap:.3g} mm). Slices are missing or the series must be resampled first."
            )
            raise BadImageError(msg)
        step = (stack[-1].position - first.position) / (len(stack) - 1)
    affine = np.eye(4)
    affine[:3, 0] = first.axes[0] * first.pixel_mm[0]
    affine[:3, 1] = first.axes[1] * first.pixel_mm[1]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return Grid((len(stack), *first.size), affine)


def _pixels(stack: Sequence[_Slice]) -> NDArray[np.float32]:
    array = np.empty((len(stack), *stack[0].size), dtype=np.float32)
    path: Path | None = None
    decoded: NDArray[Any] = np.empty(0)
    rescaled = False
    for number, item in enumerate(stack):
        if item.path != path:  # a multi-frame object is decoded once for all of its frames
            decoded, rescaled = _decode(item.path)
            path = item.path
        plane = decoded if decoded.ndim == 2 else decoded[item.frame or 0]
        if plane.shape != item.size:
            msg = f"Expected {item.size} pixels (rows, columns), got {plane.shape}. The file is damaged."
            raise BadImageError(msg)
        array[number] = plane
        if not rescaled and item.rescale != (1.0, 0.0):
            array[number] *= np.float32(item.rescale[0])
            array[number] += np.float32(item.rescale[1])
    return array


def _decode(path: Path) -> tuple[NDArray[Any], bool]:
    """``((frames,) rows, columns)`` and whether the rescaling was applied already.

    pydicom decodes what needs no codec; other transfer syntaxes go through ITK's GDCM, which rescales.
    """
    try:
        header = pydicom.dcmread(path)
        syntax = header.file_meta.TransferSyntaxUID
        if not syntax.is_compressed or syntax == pydicom.uid.RLELossless:
            return header.pixel_array, False
    except (AttributeError, ValueError, KeyError, NotImplementedError, RuntimeError, OSError) as error:
        raise _undecodable() from error
    try:
        image = SimpleITK.ReadImage(str(path), imageIO="GDCMImageIO")
    except RuntimeError as error:
        raise _undecodable() from error
    pixels = SimpleITK.GetArrayFromImage(image)
    return (pixels[0] if pixels.ndim == 3 and pixels.shape[0] == 1 else pixels), True


def _undecodable() -> BadImageError:
    return BadImageError(
        "Expected pixels that can be decoded, got a cut-off file or an unknown compression. Export the "
        "series again, uncompressed if possible."
    )
