"""Reading a DICOM series: sorted by position, checked for what would make its geometry a lie."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from numpy.typing import NDArray
from pydicom.errors import InvalidDicomError

from hermes.errors import BadImageError
from hermes.geometry import Grid
from hermes.transforms.dicom_frames import Frame, first_rescale
from hermes.transforms.dicom_volumes import SeriesVolume, choose_volume, volumes_of
from hermes.transforms.modality import Guess, guess_from_dicom
from hermes.transforms.suv import suv_factor

_NOT_IMAGES = ("SEG", "RTDOSE", "PR", "KO", "SR")  # have rows, or lie beside the images in a study's folder


def read_dicom(
    path: Path, frame: int | None = None, volume: str | None = None
) -> tuple[NDArray[np.float32], Grid, Guess | None]:
    """Reads a DICOM file or the one series in a folder.

    Args:
        path: a file (classic or multi-frame) or a folder, searched with its sub-folders.
        frame: which time point, where a position has several; the default is the first.
        volume: id of the volume (:func:`series_volumes`), for a series that holds several.

    Returns:
        ``(D, H, W)`` after rescaling (HU; SUV body weight for PET where the attributes allow), its grid with
        the slices sorted along the normal, and the modality that the attributes state.

    Raises:
        BadImageError: no image, several series, several volumes and none named, colour, a localiser, missing
            or unevenly spaced slices, pixels that cannot be decoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of every odd value; what matters is checked here
        files, headers = series_headers(path)
        chosen = choose_volume(volumes_of(headers), volume)
        stack = chosen.phases[choose_frame(len(chosen.phases), frame)]
        first = headers[stack[0].source]
        array = _pixels(stack, files, headers)
        factor = suv_factor(first)
        if factor is not None:
            array *= np.float32(factor)
        return array, chosen.usable_grid(), guess_from_dicom(first, len(chosen.phases))


def series_volumes(path: Path) -> tuple[SeriesVolume, ...]:
    """The volumes of the series at ``path``, usable or not; see :func:`read_dicom` for the arguments.

    Raises:
        BadImageError: nothing at ``path`` can be placed in space.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return volumes_of(series_headers(path)[1])


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


def series_headers(path: Path) -> tuple[list[Path], list[Any]]:
    """The image files at ``path`` and their attributes without pixels.

    Raises:
        BadImageError: there is no DICOM image.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    headers = [(file, header) for file in files if (header := _header(file)) is not None]
    found = [(file, header) for file, header in headers if _is_image(header)]
    if not found:
        others = sorted({str(header.get("Modality", "") or "unknown") for _, header in headers})
        what = "no DICOM image among its files" if path.is_dir() else "a file of another kind"
        what = f"only DICOM objects that are no images ({', '.join(others)})" if others else what
        msg = f"Expected a NIfTI, MGZ, NRRD, MHA or DICOM image with three dimensions, got {what}."
        raise BadImageError(msg)
    return [file for file, _ in found], [header for _, header in found]


def _is_image(header: Any) -> bool:
    return "Rows" in header and str(header.get("Modality", "")) not in _NOT_IMAGES


def _header(file: Path) -> Any | None:
    """The attributes of a DICOM object; None for any other file."""
    try:
        return pydicom.dcmread(file, stop_before_pixels=True)
    except (InvalidDicomError, OSError, EOFError, ValueError, KeyError, AttributeError, NotImplementedError):
        return None


def _pixels(stack: Sequence[Frame], files: Sequence[Path], headers: Sequence[Any]) -> NDArray[np.float32]:
    """``(D, H, W)`` of the frames, each by its own rescaling."""
    array = np.empty((len(stack), *stack[0].size), dtype=np.float32)
    source = -1
    decoded: NDArray[Any] = np.empty(0)
    rescaled = (1.0, 0.0)
    for number, item in enumerate(stack):
        if item.source != source:  # a multi-frame object is decoded once for all of its frames
            decoded, by_codec = _decode(files[item.source])
            # GDCM applies the rescaling of the first frame to all.
            rescaled = first_rescale(headers[item.source]) if by_codec else (1.0, 0.0)
            source = item.source
        plane = decoded if decoded.ndim == 2 else decoded[item.frame or 0]
        if plane.shape != item.size:
            msg = f"Expected {item.size} pixels (rows, columns), got {plane.shape}. The file is damaged."
            raise BadImageError(msg)
        array[number] = plane
        if item.rescale != rescaled:
            factor = item.rescale[0] / rescaled[0]
            array[number] *= np.float32(factor)
            array[number] += np.float32(item.rescale[1] - rescaled[1] * factor)
    return array


def _decode(path: Path) -> tuple[NDArray[Any], bool]:
    """``((frames,) rows, columns)`` and whether the rescaling of the first frame was applied already.

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
