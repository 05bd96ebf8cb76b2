"""What the viewer stores in the PACS, kept on disk while it passes, and looked at: is it a label of the campaign?"""

from __future__ import annotations

import io
import itertools
import logging
import re
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError
from starlette.concurrency import run_in_threadpool

from hermes.dicom.seg_read import LABEL_MAP_STORAGE, SEGMENTATION_STORAGE
from hermes.dicom.structure_set import STRUCTURE_SET_STORAGE

logger = logging.getLogger(__name__)

LABEL_STORAGES = frozenset({SEGMENTATION_STORAGE, LABEL_MAP_STORAGE, STRUCTURE_SET_STORAGE})
_IN_MEMORY_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20
_HEAD_BYTES = 1 << 13
_BOUNDARY = re.compile(r'boundary="?([^";]+)"?', re.IGNORECASE)
_HEADERS_END = b"\r\n\r\n"


class Spool:
    """The body of a request, in a file that nobody else sees and that is gone when it is closed."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115  # closed by `close`
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self.size = 0

    async def write(self, chunk: bytes) -> None:
        """Takes the next bytes."""
        self._waiting.append(chunk)
        self._waiting_bytes += len(chunk)
        self.size += len(chunk)
        if self._waiting_bytes >= _CHUNK_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        await run_in_threadpool(self._file.writelines, waiting)

    async def finish(self) -> None:
        """Everything has come."""
        await self._flush()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body again, from its beginning."""
        self._file.seek(0)
        while chunk := await run_in_threadpool(self._file.read, _CHUNK_BYTES):
            yield chunk

    def label_objects(self, content_type: str) -> list[Any]:
        """The DICOM segmentations and structure sets in a multipart body, as ``pydicom.Dataset``.

        Everything else, and what cannot be read, is left for the PACS to judge.
        """
        found = _BOUNDARY.search(content_type)
        if found is None or not content_type.lower().startswith("multipart/related"):
            return []
        delimiters = list(self._places(b"--" + found.group(1).encode()))
        pairs = itertools.pairwise(delimiters)
        return [dataset for start, end in pairs if (dataset := self._label_object(start, end)) is not None]

    def _places(self, delimiter: bytes) -> Iterator[int]:
        """Where the delimiter stands at the beginning of a line, without holding the body in memory."""
        line = b"\r\n" + delimiter
        self._file.seek(0)
        before, begin = b"\r\n", -2  # the first delimiter may have no line before it
        while chunk := self._file.read(_CHUNK_BYTES):
            text = before + chunk
            place = text.find(line)
            while place >= 0:
                yield begin + place + 2
                place = text.find(line, place + 1)
            kept = min(len(text), len(line) - 1)
            before, begin = text[len(text) - kept :], begin + len(text) - kept

    def _label_object(self, start: int, end: int) -> Any | None:
        """The label object between two delimiters; None where there is another object, or none."""
        self._file.seek(start)
        head = self._file.read(min(end - start, _HEAD_BYTES))
        headers_end = head.find(_HEADERS_END)
        if headers_end < 0 or not any(uid.encode() in head for uid in LABEL_STORAGES):
            return None  # the file meta information, at the beginning, names the kind
        begin = start + headers_end + len(_HEADERS_END)
        self._file.seek(begin)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pydicom warns of every odd value
                dataset = pydicom.dcmread(io.BytesIO(self._file.read(end - 2 - begin)))
        except (
            InvalidDicomError, OSError, ValueError, KeyError, AttributeError, NotImplementedError
        ) as error:  # fmt: skip
            logger.info("A stored object looks like a label and cannot be read: %s", type(error).__name__)
            return None
        return dataset if str(dataset.get("SOPClassUID", "")) in LABEL_STORAGES else None

    def close(self) -> None:
        """Forgets the body."""
        self._file.close()
