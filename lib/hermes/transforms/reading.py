"""Reading images: NIfTI and FreeSurfer files, NRRD and MetaImage files, DICOM files and folders."""

from __future__ import annotations

import os
import re
import warnings
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import nibabel
import numpy as np
import SimpleITK
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from hermes.errors import BadImageError, BadLabelError
from hermes.geometry import Grid
from hermes.records import LabelMap, Volume
from hermes.transforms.dicom import choose_frame, read_dicom
from hermes.transforms.modality import (
    Guess,
    guess_from_name,
    guess_from_values,
    guess_from_words,
    weigh,
)
from hermes.types import Modality

NIBABEL_SUFFIXES = (".nii.gz", ".nii", ".mgz", ".mgh")
ITK_SUFFIXES = (".nrrd", ".mha")
_ITK_READERS = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO"}
_HEADER_BYTES = 1 << 16
_DETACHED = re.compile(
    rb"^\s*(?:data ?file\s*:|ElementDataFile\s*=(?!\s*LOCAL\s*$))", re.IGNORECASE | re.MULTILINE
)
"""A header line that names another file as the home of the voxels, in NRRD or MetaImage."""
_GZIP = b"\x1f\x8b"
_BLANK_LINE, _NRRD_GZIP = (
    re.compile(rb"\r?\n\r?\n"),
    re.compile(rb"^encoding:\s*gz(ip)?\s*$", re.IGNORECASE | re.MULTILINE),
)
_META_DATA = re.compile(rb"^ElementDataFile\s*=\s*LOCAL[^\n]*\n", re.MULTILINE)
_META_ZLIB = re.compile(rb"^CompressedData\s*=\s*True\s*$", re.IGNORECASE | re.MULTILINE)
_ANY_ZLIB = zlib.MAX_WBITS | 32  # gzip or zlib, as the stream says
_PIECE = 1 << 20


def read_volume(
    path: str | os.PathLike[str], *, modality: Modality | None = None, frame: int | None = None
) -> Volume:
    """Reads one three-dimensional image.

    Args:
        path: a NIfTI, MGZ, NRRD or MHA file, a DICOM file, or a folder with one DICOM series.
        modality: overrides what the image says of itself.
        frame: which time point of a 4D image; the default of a cine is its first, the end of diastole.

    Returns:
        The image as stored (axes not turned), finite: NaN and infinities became the smallest (largest for
        +infinity) finite value.

    Raises:
        BadImageError: the file is missing, corrupt, empty, in colour, or of a kind that is not read here.
    """
    source = Path(path)
    if not source.exists():
        msg = "Expected an image file or a DICOM folder, but there is nothing at the given path."
        raise BadImageError(msg)
    if source.is_dir() or not source.name.lower().endswith(NIBABEL_SUFFIXES + ITK_SUFFIXES):
        array, grid, guess = read_dicom(source, frame)
    elif source.name.lower().endswith(NIBABEL_SUFFIXES):
        is_cine = modality is Modality.CINE
        array, grid, guess = _read_nibabel(source, 0 if frame is None and is_cine else frame)
    else:
        array, grid, guess = _read_itk(source, frame)
    finite = finite_array(array)
    if modality is not None:
        return Volume(finite, grid, modality, "caller", 1.0)
    if guess is None:
        guess = weigh(None if source.is_dir() else guess_from_name(source), guess_from_values(finite))
    if guess is None:
        return Volume(finite, grid)
    return Volume(finite, grid, guess.modality, guess.source, guess.confidence)


def read_label_map(path: str | os.PathLike[str]) -> LabelMap:
    """Reads a label file (NIfTI, MGZ, NRRD or MHA) with the names that a 3D Slicer segmentation carries.

    Returns:
        The smallest unsigned type that holds the values; ``names`` is empty when the file has none.

    Raises:
        BadLabelError: the file cannot be read, or it holds values that are not whole numbers from 0 to 65535.
    """
    source = Path(path)
    try:
        _require_whole(source)
        if source.name.lower().endswith(NIBABEL_SUFFIXES):
            array, grid, _ = _read_nibabel(source, None)
            names: dict[int, str] = {}
        else:
            image = _open_itk(source)
            array, grid = SimpleITK.GetArrayFromImage(image), Grid.from_simpleitk(image)
            names = _segment_names(image)
    except BadImageError as error:
        raise BadLabelError(str(error)) from error
    return LabelMap(np.ascontiguousarray(check_labels(array)), grid, names)


def check_labels(labels: NDArray[Any]) -> NDArray[Any]:
    """``labels`` as the smallest unsigned type that holds them.

    Raises:
        BadLabelError: values that are not whole numbers from 0 to 65535.
    """
    broken = labels[labels != np.rint(labels)] if labels.dtype.kind == "f" else labels[:0].ravel()
    if broken.size:
        msg = (
            f"Expected whole numbers from 0 to 65535 in a label, got {broken[0]!s} ({broken.size} voxels are not whole). "
            "Store a label map, neither probabilities nor interpolated values."
        )
        raise BadLabelError(msg)
    low, high = float(labels.min(initial=0)), float(labels.max(initial=0))
    if low < 0 or high > 65535:
        msg = f"Expected whole numbers from 0 to 65535 in a label, got values from {low:g} to {high:g}."
        raise BadLabelError(msg)
    return labels.astype(np.uint8 if high <= 255 else np.uint16, copy=False)


def finite_array(array: NDArray[Any]) -> NDArray[np.float32]:
    """``array`` as contiguous float32 with NaN and -infinity as its smallest, +infinity as its largest value.

    Raises:
        BadImageError: nothing in it is finite.
    """
    result = np.ascontiguousarray(array, dtype=np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        total = result.sum(dtype=np.float64)  # one pass and no mask: not finite as soon as one voxel is not
    if np.isfinite(total):
        return result
    good = np.isfinite(result)
    if not good.any():
        msg = "Expected an image with finite values, got one with none. Export the image again."
        raise BadImageError(msg)
    low, high = float(result[good].min()), float(result[good].max())
    return np.nan_to_num(result, nan=low, posinf=high, neginf=low)


def _read_nibabel(path: Path, frame: int | None) -> tuple[NDArray[Any], Grid, Guess | None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nibabel warns of harmless header extensions
            image: Any = nibabel.load(path)
            if image.get_data_dtype().fields is not None:
                msg = "Expected one intensity per voxel, got a colour image. Give the grey-valued original."
                raise BadImageError(msg)
            if image.get_data_dtype().kind == "c":
                msg = "Expected real intensities, got complex numbers. Give the magnitude image."
                raise BadImageError(msg)
            guess = _nibabel_guess(image)
            named = guess or guess_from_name(path)
            timed = _fourth_axis_is_time(image) or (named is not None and named.modality is Modality.CINE)
            array = _one_frame_xyz(image.dataobj, tuple(image.shape), frame, timed=timed)
    except (ImageFileError, HeaderDataError) as error:
        raise _unreadable(path) from error
    except (OSError, EOFError, zlib.error, ValueError, OverflowError, MemoryError) as error:
        raise _unreadable(path) from error
    grid = Grid.from_ras((array.shape[2], array.shape[1], array.shape[0]), image.affine)
    return array.transpose(2, 1, 0), grid, guess


def _nibabel_guess(image: Any) -> Guess | None:
    description = bytes(image.header["descrip"]) if "descrip" in image.header else b""
    return guess_from_words(description.split(b"\0")[0].decode("latin-1"), "file", 0.6)


def _fourth_axis_is_time(image: Any) -> bool:
    return hasattr(image.header, "get_xyzt_units") and image.header.get_xyzt_units()[1] in (
        "sec",
        "msec",
        "usec",
    )


def _one_frame_xyz(data: Any, shape: tuple[int, ...], frame: int | None, *, timed: bool) -> NDArray[Any]:
    """The chosen time point of ``data`` (x, y, z, t, ...) as (x, y, z), without reading the others."""
    if 0 in shape or len(shape) < 2:
        msg = f"Expected an image with voxels in three dimensions, got the sizes {shape}."
        raise BadImageError(msg)
    if any(size != 1 for size in shape[4:]):
        msg = f"Expected a 3D image or a 4D image with time as fourth axis, got the sizes {shape}."
        raise BadImageError(msg)
    frames = shape[3] if len(shape) > 3 else 1
    if frames > 1 and frame is None and not timed:
        msg = (
            f"Expected a 3D image or a cine, got a 4D image of {frames} volumes that does not say that its "
            "fourth axis is time (it may be diffusion directions or echoes). Name the frame to use "
            "(`hermes segment --frame`), or give each volume as a file."
        )
        raise BadImageError(msg)
    chosen = choose_frame(frames, frame)
    if len(shape) == 2:
        return np.asarray(data, dtype=np.float32)[:, :, None]
    index = (slice(None),) * 3 + ((chosen,) if len(shape) > 3 else ()) + (0,) * max(0, len(shape) - 4)
    return np.asarray(data[index] if len(shape) > 3 else data, dtype=np.float32)


def _open_itk(path: Path, frame: int | None = None) -> SimpleITK.Image:
    if path.suffix.lower() not in _ITK_READERS:
        raise _unreadable(path)
    _refuse_detached(path)
    try:
        image = SimpleITK.ReadImage(str(path), imageIO=_ITK_READERS[path.suffix.lower()])
    except RuntimeError as error:
        raise _unreadable(path) from error
    if image.GetNumberOfComponentsPerPixel() != 1:
        count = image.GetNumberOfComponentsPerPixel()
        msg = f"Expected one intensity per voxel, got {count} components (colour, vectors or layers)."
        raise BadImageError(msg)
    if image.GetDimension() == 4:
        chosen = choose_frame(image.GetSize()[3], frame)
        return image[:, :, :, chosen]
    if image.GetDimension() == 2:
        return SimpleITK.JoinSeries(image)
    return image


def _refuse_detached(path: Path) -> None:
    """Nothing, if the voxels are in the file itself.

    A header may name any other file instead: an uploaded one could then read whatever the server can.

    Raises:
        BadImageError: the voxels are elsewhere, or there is no end of the header within reason.
    """
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if head.startswith(b"NRRD"):
        header, end, _ = head.replace(b"\r\n", b"\n").partition(b"\n\n")
    else:
        header, end, _ = head.partition(b"ElementDataFile")
        header += end + head[len(header) + len(end) :].partition(b"\n")[0] + b"\n"
    if not end:
        raise _unreadable(path)
    if _DETACHED.search(header):
        msg = "Expected a file that holds its own voxels, got a header that names another file. Export it in one piece."
        raise BadImageError(msg)


def _require_whole(path: Path) -> None:
    """Nothing, if what is compressed in a file has the checksum that it was stored with.

    Readers stop at the last voxel, before the checksum: a damaged file would give a drawing that nobody made.

    Raises:
        BadImageError: it is damaged or cut off.
    """
    try:
        with path.open("rb") as file:
            start = _compressed_from(file.read(_HEADER_BYTES))
            if start is None:
                return
            file.seek(start)
            whole = _is_whole(file)
    except (OSError, zlib.error) as error:
        raise _unreadable(path) from error
    if not whole:
        raise _unreadable(path)


def _compressed_from(head: bytes) -> int | None:
    """Where the gzip or zlib stream of a file begins; None: it has none, or none that this knows."""
    if head.startswith(_GZIP):
        return 0
    if head.startswith(b"NRRD"):
        end = _BLANK_LINE.search(head)
        return end.end() if end and _NRRD_GZIP.search(head[: end.start() + 1]) else None
    end = _META_DATA.search(head)
    return end.end() if end and _META_ZLIB.search(head[: end.start()]) else None


def _is_whole(file: BinaryIO) -> bool:
    """Whether a stream, or several of gzip one after the other, comes to its end; nothing of it is kept."""
    stream = zlib.decompressobj(wbits=_ANY_ZLIB)
    for piece in iter(lambda: file.read(_PIECE), b""):
        rest = piece
        while rest:
            if stream.eof:
                if not rest.startswith(_GZIP):
                    return True  # padding
                stream = zlib.decompressobj(wbits=_ANY_ZLIB)
            stream.decompress(rest, _PIECE)
            rest = stream.unused_data if stream.eof else stream.unconsumed_tail
    stream.flush()  # what was read and did not fit the last piece
    return stream.eof


def _read_itk(path: Path, frame: int | None) -> tuple[NDArray[Any], Grid, Guess | None]:
    image = _open_itk(path, frame)
    keys = [key for key in image.GetMetaDataKeys() if key.lower() in ("modality", "content", "description")]
    guess = guess_from_words(" ".join(image.GetMetaData(key) for key in keys), "file", 0.6)
    return SimpleITK.GetArrayFromImage(image), Grid.from_simpleitk(image), guess


def _segment_names(image: SimpleITK.Image) -> dict[int, str]:
    names = {}
    for key in image.GetMetaDataKeys():
        if key.startswith("Segment") and key.endswith("_Name"):
            value = key[: -len("_Name")] + "_LabelValue"
            if image.HasMetaDataKey(value) and image.GetMetaData(value).strip().isdigit():
                names[int(image.GetMetaData(value))] = image.GetMetaData(key)
    return names


def _unreadable(path: Path) -> BadImageError:
    known = NIBABEL_SUFFIXES + ITK_SUFFIXES  # never the whole name, which may be a patient's
    kind = next((suffix for suffix in known if path.name.lower().endswith(suffix)), "label")
    return BadImageError(
        f"Expected a readable {kind} file, got one that is empty, cut off or of another kind. "
        "Check the file by opening it in a viewer and export it again."
    )
