"""The pixels of a segmentation frame by frame: a SEG of a whole body unpacked at once takes gigabytes."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from highdicom.frame import decode_frame
from numpy.typing import NDArray
from pydicom.encaps import generate_pixel_data_frame

from hermes.errors import BadLabelError

_DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
"""Deflated Image Frame Compression (2023), which pydicom 2 does not know."""

FrameReader = Callable[[int], NDArray[Any]]
"""Index of a frame -> its stored values ``(rows, columns)``."""


def frame_reader(dataset: Any) -> FrameReader:
    """Reads single frames of ``dataset``.

    Raises:
        BadLabelError: there are no pixels, or too few.
    """
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    bits, count = int(dataset.BitsAllocated), int(dataset.get("NumberOfFrames", 1) or 1)
    data: bytes = dataset.get("PixelData") or b""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == _DEFLATED_FRAMES:
        return _deflated(list(generate_pixel_data_frame(data, count)), rows, columns, bits)
    if syntax.is_encapsulated:
        return _compressed(dataset, list(generate_pixel_data_frame(data, count)), bits)
    if len(data) * 8 < rows * columns * bits * count:
        msg = f"Expected {count} frames of {rows}x{columns} pixels, got {len(data)} bytes. The object is cut off."
        raise BadLabelError(msg)
    if bits == 1:
        return lambda frame: _unpack(data, frame * rows * columns, rows * columns).reshape(rows, columns)
    kind = np.dtype(f"{'<' if syntax.is_little_endian else '>'}u{bits // 8}")
    size = rows * columns * kind.itemsize
    return lambda frame: np.frombuffer(data, kind, rows * columns, frame * size).reshape(rows, columns)


def _unpack(data: bytes, first_bit: int, count: int) -> NDArray[np.uint8]:
    """``count`` bits from ``first_bit``, the lowest bit of a byte first; a frame may begin within a byte."""
    start, skip = divmod(first_bit, 8)
    length = (skip + count + 7) // 8
    part = np.frombuffer(data, np.uint8, length, start)
    return np.unpackbits(part, bitorder="little")[skip : skip + count]


def _deflated(frames: list[bytes], rows: int, columns: int, bits: int) -> FrameReader:
    def read(frame: int) -> NDArray[Any]:
        data = zlib.decompress(frames[frame], wbits=-zlib.MAX_WBITS)
        if bits == 1:
            return _unpack(data, 0, rows * columns).reshape(rows, columns)
        return np.frombuffer(data, f"<u{bits // 8}", rows * columns).reshape(rows, columns)

    return read


def _compressed(dataset: Any, frames: list[bytes], bits: int) -> FrameReader:
    def read(frame: int) -> NDArray[Any]:
        try:
            return np.asarray(
                decode_frame(
                    frames[frame],
                    transfer_syntax_uid=dataset.file_meta.TransferSyntaxUID,
                    rows=int(dataset.Rows),
                    columns=int(dataset.Columns),
                    samples_per_pixel=1,
                    bits_allocated=bits,
                    bits_stored=int(dataset.BitsStored),
                    photometric_interpretation="MONOCHROME2",
                    pixel_representation=0,
                )
            )
        except (ValueError, RuntimeError, NotImplementedError, IndexError, OSError) as error:
            msg = "Expected a segmentation whose compression is known, got another. Store it uncompressed."
            raise BadLabelError(msg) from error

    return read
