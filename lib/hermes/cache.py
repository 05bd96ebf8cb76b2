"""Prepared images and labels on disk, keyed by content.

An entry is a folder: ``image.zarr`` (blosc-compressed chunks) and ``entry.json``. Its name is a digest of the
image's bytes, of how it is prepared and of the modality that was decided from outside its bytes.

Every byte is covered by a checksum: each chunk has its own, which is compared when it is read, and ``entry.json``
has one over the rest, which is compared when the entry is opened. A damaged entry is removed and made again.

Several processes share a cache without a server: an entry is written beside its place and renamed into it, so
it is there completely or not at all; evicting renames it away before anything is deleted, so a reader that
still finds the entry *after* its read has read it whole. A reader that does not, prepares the image again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import filelock
import numpy as np
import zarr
from numcodecs import CRC32, Blosc
from numpy.typing import NDArray

from hermes.errors import NotFoundError
from hermes.records import Volume
from hermes.transforms.modality import guess_from_name
from hermes.transforms.preparation import (
    PreparationRecord,
    PreparationSpec,
    PreparedVolume,
    prepare,
)
from hermes.transforms.reading import check_labels, read_label_map, read_volume
from hermes.types import Modality

logger = logging.getLogger(__name__)

__all__ = ["LazyArray", "PreparedVolume", "VolumeCache"]

RECENT_BYTES = 256 * 2**20
"""Prepared images that are kept in memory as well, those used last."""
CHUNK = 64
"""Voxels per side of a chunk: a training patch of 128 touches at most 27 of them."""
TOUCH_AFTER_S = 30.0
"""An entry's time of last use is renewed at most this often."""
DEFAULT_LIMIT_BYTES = 200 * 2**30

_FORMAT: dict[str, int] = {} if zarr.__version__.startswith("2.") else {"zarr_format": 2}
"""Python 3.10 has zarr 2 only; zarr 3 is told to write what both read."""

_DIGEST = re.compile("[0-9a-f]{64}")

T = TypeVar("T")


class _UnusableError(Exception):
    """There is no entry, or it cannot be read."""


class LazyArray:
    """A cached array that reads only the chunks that a slice needs.

    Args:
        entry: its folder.
        name: of the array in it.
        repair: makes the entry again if it is damaged; without it a damaged chunk is an error.

    Attributes:
        shape: ``(D, H, W)``.
        dtype: of what slices give.
    """

    def __init__(self, entry: Path, name: str, repair: Callable[[], object] | None = None) -> None:
        self._entry = entry
        self._name = name
        self._repair = repair
        self._array: Any = zarr.open_array(str(entry / name), mode="r")
        self.shape: tuple[int, ...] = tuple(self._array.shape)
        self.dtype: np.dtype[Any] = np.dtype(self._array.dtype)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """The voxels of a slice, as a NumPy array.

        Raises:
            NotFoundError: the entry was evicted meanwhile, or is damaged and what it was made from has changed.
        """
        values = self._read(index)
        # zarr fills a chunk that is gone with zeros; entries vanish whole, so one look afterwards is enough.
        if not _touch(self._entry):
            msg = "A cached image was evicted while it was in use. Raise the size limit of the cache."
            raise NotFoundError(msg)
        return values

    def _read(self, index: Any) -> NDArray[Any]:
        try:
            return np.asarray(self._array[index])
        except (IndexError, MemoryError):
            raise
        except Exception:  # damaged: zarr and its codecs have no common error for that
            if self._repair is None:
                raise
        self._repair()
        try:
            return np.asarray(self._array[index])
        except Exception as error:
            msg = f"A cached image was damaged while it was in use, and its file has changed since ({error}). Start again."
            raise NotFoundError(msg) from error

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[...], dtype=dtype)

    def __reduce__(self) -> tuple[type[LazyArray], tuple[Path, str]]:
        return LazyArray, (self._entry, self._name)


class VolumeCache:
    """Prepared images and labels below ``directory``; safe for several threads and processes.

    Args:
        directory: made when it does not exist.
        limit_bytes: when the entries need more, those used longest ago are removed.
    """

    def __init__(self, directory: str | os.PathLike[str], *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.directory = Path(directory)
        self.limit_bytes = limit_bytes
        self._recent: OrderedDict[str, PreparedVolume] = OrderedDict()
        self._recent_lock = threading.Lock()
        for part in ("entries", "partial", "digests", "locks"):
            (self.directory / part).mkdir(parents=True, exist_ok=True)

    def prepared(
        self,
        source: str | os.PathLike[str] | Volume,
        spec: PreparationSpec,
        *,
        modality: Modality | None = None,
        frame: int | None = None,
        lazy: bool = False,
    ) -> PreparedVolume:
        """The prepared image, from memory or disk when it was prepared before; not to be changed.

        Args:
            source: a file or DICOM folder, or an image in memory.
            spec: how to prepare.
            modality: overrides what the image says of itself.
            frame: time point of a 4D image.
            lazy: give a :class:`LazyArray` instead of an array in memory.

        Raises:
            BadImageError: the image cannot be read or used.
        """
        key = self._key(source, spec, modality, frame)
        if not lazy and (recent := self._recall(key)) is not None:
            return recent

        def make(partial: Path) -> PreparedVolume:
            result = prepare(_read(source, modality, frame), spec)
            _write_entry(partial, "image.zarr", result.array, result.record.to_json())
            return result

        def load_whole(entry: Path) -> PreparedVolume:
            record = PreparationRecord.from_json(_opened(entry, "image.zarr"))
            return PreparedVolume(LazyArray(entry, "image.zarr")[...], record)

        def load_lazy(entry: Path) -> PreparedVolume:
            record = PreparationRecord.from_json(_opened(entry, "image.zarr"))
            return PreparedVolume(LazyArray(entry, "image.zarr", repair), record)

        def repair() -> None:
            now = self._key(
                source, spec, modality, frame
            )  # another one where the file was replaced meanwhile
            self._get(now, make, load_whole, keep_made=True)

        load = load_lazy if lazy else load_whole
        result = self._get(key, make, load, keep_made=not lazy)
        if not lazy:
            self._remember(key, result)
        return result

    def _recall(self, key: str) -> PreparedVolume | None:
        with self._recent_lock:
            if key not in self._recent or not _touch(self.directory / "entries" / key):
                return None
            self._recent.move_to_end(key)
            return self._recent[key]

    def _remember(self, key: str, volume: PreparedVolume) -> None:
        """Keep the image in memory: the one that somebody works on is asked for again and again."""
        with self._recent_lock:
            self._recent[key] = volume
            while sum(kept.array.nbytes for kept in self._recent.values()) > RECENT_BYTES:
                self._recent.popitem(last=False)

    def prepared_labels(
        self,
        labels: str | os.PathLike[str] | NDArray[Any],
        record: PreparationRecord,
        *,
        lazy: bool = False,
    ) -> NDArray[Any] | LazyArray:
        """Labels on the model grid of their image.

        Args:
            labels: a label file, or an array ``(D, H, W)`` on the image's own grid.
            record: of the image's preparation.
            lazy: give a :class:`LazyArray` instead of an array in memory.

        Returns:
            uint8 or uint16 ``(D, H, W)``.

        Raises:
            BadLabelError: the labels cannot be read.
            GeometryMismatchError: they are not on the image's grid.
        """
        key = self._labels_key(labels, record)

        def make(partial: Path) -> NDArray[Any] | LazyArray:
            if isinstance(labels, np.ndarray):
                result = record.prepare_labels(check_labels(labels))
            else:
                label_map = read_label_map(labels)
                result = record.prepare_labels(label_map.array, label_map.grid)
            _write_entry(partial, "labels.zarr", result, {})
            return result

        def load_whole(entry: Path) -> NDArray[Any] | LazyArray:
            _opened(entry, "labels.zarr")
            return LazyArray(entry, "labels.zarr")[...]

        def load_lazy(entry: Path) -> NDArray[Any] | LazyArray:
            _opened(entry, "labels.zarr")
            return LazyArray(entry, "labels.zarr", repair)

        def repair() -> None:
            self._get(self._labels_key(labels, record), make, load_whole, keep_made=True)

        load = load_lazy if lazy else load_whole
        return self._get(key, make, load, keep_made=not lazy)

    def content_sha256(self, path: Path) -> str:
        """SHA-256 (hex) of a file, or over those of all files of a folder; ``absent`` where there is neither.

        A file is read once: its hash is remembered by path, size, time and inode.
        """
        if not path.exists():
            return "absent"  # reading it will say so
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            return _digest_of(*(self.content_sha256(file) for file in files))
        status = path.stat()
        identity = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
        memo = self.directory / "digests" / hashlib.sha256(identity.encode()).hexdigest()
        with suppress(FileNotFoundError, UnicodeDecodeError):
            if _DIGEST.fullmatch(known := memo.read_text()):
                return known
        digest = _file_digest(path)
        partial = self.directory / "partial" / uuid.uuid4().hex
        partial.write_text(digest)
        partial.replace(memo)
        return digest

    def size_bytes(self) -> int:
        """What all entries take on disk."""
        return sum(_size(entry) for entry in self._entries())

    def clear(self) -> None:
        """Removes every entry."""
        for entry in self._entries():
            self._remove(entry)

    def _get(self, key: str, make: Callable[[Path], T], load: Callable[[Path], T], *, keep_made: bool) -> T:
        entry = self.directory / "entries" / key
        with suppress(_UnusableError):
            return _load(entry, load)
        # One of 256 locks, so that two requests for one image do not prepare it twice.
        with filelock.FileLock(self.directory / "locks" / key[:2]):
            try:
                return _load(entry, load)
            except _UnusableError as error:
                if entry.exists():
                    logger.warning("An entry of the cache is damaged and made again: %s (%s)", entry, error)
                    self._remove(entry)
            partial = self.directory / "partial" / uuid.uuid4().hex
            partial.mkdir()
            try:
                made = make(partial)
                partial.rename(entry)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            result = made if keep_made else load(entry)
        self._evict(keep=entry)
        return result

    def _evict(self, keep: Path) -> None:
        with filelock.FileLock(self.directory / "locks" / "evict"):
            sizes = {entry: _size(entry) for entry in self._entries()}
            excess = sum(sizes.values()) - self.limit_bytes
            for entry in sorted(sizes, key=_last_use):
                if excess <= 0:
                    return
                if entry != keep:
                    self._remove(entry)
                    excess -= sizes[entry]

    def _remove(self, entry: Path) -> None:
        grave = self.directory / "partial" / uuid.uuid4().hex
        try:
            entry.rename(grave)
        except FileNotFoundError:  # another process was faster
            return
        shutil.rmtree(grave, ignore_errors=True)

    def _entries(self) -> list[Path]:
        return list((self.directory / "entries").iterdir())

    def _key(
        self,
        source: str | os.PathLike[str] | Volume,
        spec: PreparationSpec,
        modality: Modality | None,
        frame: int | None,
    ) -> str:
        if isinstance(source, Volume):
            content = _array_digest(source.array, source.grid.affine.tobytes())
            said = f"{source.modality} {source.modality_source} {source.modality_confidence}"
        else:
            path = Path(source)
            content = self.content_sha256(path)
            # The name is no content, yet may decide the modality: only what it says of it enters the key.
            said = str(guess_from_name(path)) if path.is_file() else ""
        return _digest_of("image", content, spec.digest(), said, str(modality), str(frame))

    def _labels_key(self, labels: str | os.PathLike[str] | NDArray[Any], record: PreparationRecord) -> str:
        content = (
            _array_digest(labels) if isinstance(labels, np.ndarray) else self.content_sha256(Path(labels))
        )
        return _digest_of("labels", content, json.dumps(record.to_json()))


def _read(source: str | os.PathLike[str] | Volume, modality: Modality | None, frame: int | None) -> Volume:
    if not isinstance(source, Volume):
        return read_volume(source, modality=modality, frame=frame)
    if modality is None:
        return source
    return Volume(source.array, source.grid, modality, "caller", 1.0)


def _write_entry(partial: Path, name: str, array: NDArray[Any], record: Mapping[str, Any]) -> None:
    _write_array(partial / name, array)
    noted = {"record": record, "checksum": _checksum(partial / name, record)}
    (partial / "entry.json").write_text(json.dumps(noted))


def _opened(entry: Path, name: str) -> dict[str, Any]:
    """The record of an entry whose array is as it was written, as far as can be seen without its chunks.

    Raises:
        ValueError: it is not.
        OSError: a file is missing.
    """
    noted = json.loads((entry / "entry.json").read_text())
    if not isinstance(noted, dict) or not isinstance(noted.get("record"), dict):
        msg = "Expected an entry.json with a record, got another one."
        raise ValueError(msg)
    record: dict[str, Any] = noted["record"]
    if noted.get("checksum") != _checksum(entry / name, record):
        msg = "Expected the entry as it was written, got another checksum."
        raise ValueError(msg)
    return record


def _checksum(array: Path, record: Mapping[str, Any]) -> int:
    """Of the record, of what the array says of itself, and of its chunks' names: one that is gone is read as zeros."""
    names = sorted(file.name for file in array.iterdir())
    return zlib.crc32(json.dumps([record, names]).encode() + (array / ".zarray").read_bytes())


def _write_array(path: Path, array: NDArray[Any]) -> None:
    stored = zarr.open_array(
        str(path),
        mode="w",
        shape=array.shape,
        chunks=tuple(min(CHUNK, size) for size in array.shape),
        dtype=array.dtype,
        # Compressed first, so that the checksum is of what lies on disk.
        filters=[Blosc("lz4", clevel=1, shuffle=Blosc.SHUFFLE)],
        compressor=CRC32(),
        **_FORMAT,
    )
    stored[...] = array


def _load(entry: Path, load: Callable[[Path], T]) -> T:
    """What is in the entry.

    Raises:
        _UnusableError: nothing that can be read.
    """
    if not _touch(entry):
        msg = "there is no entry.json"
        raise _UnusableError(msg)
    try:
        return load(entry)
    except MemoryError:
        raise
    except Exception as error:  # evicted since, or damaged: zarr and its codecs have no common error for that
        msg = f"{type(error).__name__}: {error}"
        raise _UnusableError(msg) from error


def _touch(entry: Path) -> bool:
    """Renews the time of last use; False when the entry is not there."""
    mark = entry / "entry.json"
    try:
        now = time.time()
        if now - mark.stat().st_mtime > TOUCH_AFTER_S:
            os.utime(mark, (now, now))  # the kernel's own clock ticks in milliseconds
    except FileNotFoundError:
        return False
    return True


def _last_use(entry: Path) -> float:
    try:
        return (entry / "entry.json").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(entry: Path) -> int:
    total = 0
    for file in entry.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:  # being evicted
            continue
    return total


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _array_digest(array: NDArray[Any], more: bytes = b"") -> str:
    digest = hashlib.sha256(f"{array.shape} {array.dtype}".encode() + more)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _digest_of(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
