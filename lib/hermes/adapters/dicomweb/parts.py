"""The parts of a multipart answer, written to files as they arrive: a series may not fit in memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

_BOUNDARY = re.compile(r'boundary="?([^";]+)"?', re.IGNORECASE)
_HEADERS_END = b"\r\n\r\n"


class Parts:
    """Writes each part to ``0001.dcm``, ``0002.dcm``, ... in a folder.

    Args:
        content_type: of the answer, with the boundary.
        folder: where the files go.

    Raises:
        ValueError: the answer is not multipart, or (from `finish`) it broke off.
    """

    def __init__(self, content_type: str, folder: Path) -> None:
        found = _BOUNDARY.search(content_type)
        if found is None or not content_type.lower().startswith("multipart/"):
            msg = f"Expected a multipart answer, got {content_type[:60]!r}."
            raise ValueError(msg)
        # A delimiter stands at the beginning of a line; before the first one there may be none.
        self._delimiter = b"\r\n--" + found.group(1).encode()
        self._folder, self._count = folder, 0
        self._waiting = bytearray(b"\r\n")
        self._file: BinaryIO | None = None
        self._in_headers = self._ended = False

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes of the answer."""
        self._waiting += chunk
        while not self._ended and self._step():
            pass

    def finish(self) -> int:
        """The number of parts.

        Raises:
            ValueError: the last delimiter has not come: something is missing.
        """
        if self._file is not None:
            self._file.close()
        if not self._ended:
            msg = "Expected a whole multipart answer, got a part of one."
            raise ValueError(msg)
        return self._count

    def _step(self) -> bool:
        """Consumes what can be consumed; whether there may be more."""
        if self._in_headers:
            return self._headers()
        place = self._waiting.find(self._delimiter)
        if place < 0:
            # The end of what is here may be the beginning of a delimiter.
            self._write(max(0, len(self._waiting) - len(self._delimiter)))
            return False
        after = place + len(self._delimiter)
        if len(self._waiting) < after + 2:
            return False
        self._write(place)
        if self._file is not None:
            self._file.close()
            self._file = None
        self._ended = self._waiting[len(self._delimiter) : len(self._delimiter) + 2] == b"--"
        del self._waiting[: len(self._delimiter)]
        self._in_headers = not self._ended
        return True

    def _headers(self) -> bool:
        end = self._waiting.find(_HEADERS_END)
        if end < 0:
            return False
        del self._waiting[: end + len(_HEADERS_END)]
        self._count += 1
        self._file = (self._folder / f"{self._count:04d}.dcm").open("wb")
        self._in_headers = False
        # An empty part would lack the line break that a delimiter begins with; DICOM objects are never empty.
        return True

    def _write(self, count: int) -> None:
        if self._file is not None and count:
            self._file.write(memoryview(self._waiting)[:count])
        del self._waiting[:count]
