"""Image series on disk: downloaded whole or not at all, looked at once, removed when they take too much room."""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import nibabel
import numpy as np

from hermes.adapters.dicomweb.client import PacsClient
from hermes.adapters.dicomweb.listing import SeriesInfo
from hermes.campaign.pacs_objects import InspectedSeries, PacsObjects
from hermes.dicom import SourceSeries
from hermes.errors import BadImageError, PacsError
from hermes.geometry import Grid
from hermes.transforms.dicom import read_dicom, series_headers
from hermes.transforms.dicom_volumes import SeriesVolume, volumes_of
from hermes.transforms.reading import read_volume

logger = logging.getLogger(__name__)

IN_USE_S = 600.0
"""What was used within this time is not removed: somebody may be reading it."""
_GIVEN_NAME = "image.nii.gz"
_SIZE = "bytes"


@dataclass(frozen=True)
class Image:
    """An image of the campaign.

    Attributes:
        id: the SeriesInstanceUID, or the id of a further volume of a series.
        series: where it lies.
        volume: id of its volume where the series holds several; None for the only one.
    """

    id: str
    series: SeriesInfo
    volume: str | None = None


class SeriesFiles:
    """The series of one PACS below a directory; safe for several threads and processes.

    Args:
        directory: made when it does not exist.
        client: of the server.
        known: what was found in series before.
        limit_bytes: when the downloads need more, those used longest ago are removed.
    """

    def __init__(self, directory: Path, client: PacsClient, known: PacsObjects, *, limit_bytes: int) -> None:
        self.directory, self._client, self._known = directory, client, known
        self._limit_bytes = limit_bytes
        for part in ("series", "partial", "locks"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        self._inspected = known.series()

    # --------------------------------------------------------------- downloads

    def folder(self, series: SeriesInfo) -> Path:
        """The folder with every instance of a series, downloaded if it is not here or has grown.

        Raises:
            PacsError: it is not here and the PACS does not answer, or sends less than it lists.
        """
        target = self._place(series)
        if _touch(target):
            return target
        with self._lock(series):
            if _touch(target):
                return target
            partial = self.directory / "partial" / uuid.uuid4().hex
            try:
                count = self._client.fetch_series(series.study_uid, series.uid, partial / "dicom")
                if count < max(series.instances, 1):
                    msg = f"The PACS sent {count} of {series.instances} images of a series. Trying again may help."
                    raise PacsError(msg)
                target.parent.mkdir(parents=True, exist_ok=True)
                for older in target.parent.iterdir():
                    self._remove(older)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        self._evict(keep=target)
        return target

    def is_here(self, series: SeriesInfo) -> bool:
        """Whether the series can be read without the PACS."""
        return self._place(series).is_dir()

    def image(self, image: Image) -> Path:
        """What Hermes reads an image from: the DICOM folder of its series, or a file of its one volume.

        Raises:
            PacsError: it is not here and the PACS does not answer.
            BadImageError: the volume cannot be read.
        """
        return self.folder(image.series) / "dicom" if image.volume is None else self.file(image)

    def file(self, image: Image) -> Path:
        """The image as a NIfTI file for clients that want one; raises as `image`."""
        folder = self.folder(image.series)
        target = folder / "nifti" / (image.volume or image.series.uid) / _GIVEN_NAME
        if target.is_file():
            return target
        with self._lock(image.series):
            if not target.is_file():
                _write_nifti(folder / "dicom", image.volume, target)
                (folder / _SIZE).unlink(missing_ok=True)
        return target

    # ----------------------------------------------------------------- insides

    def inspected(self, series: SeriesInfo) -> InspectedSeries | None:
        """What the series holds, if it was looked at as it is now."""
        found = self._inspected.get(series.uid)
        return found if found is not None and found.instances == series.instances else None

    def inspect(self, series: SeriesInfo) -> InspectedSeries:
        """What the series holds, from its attributes; a refusal is believed only when the files confirm it.

        Raises:
            PacsError: the PACS does not answer.
        """
        found = self.inspected(series)
        if found is not None:
            return found
        before = self._inspected.get(series.uid)
        found = self._look(series, before.main if before is not None else None)
        self._known.put_series(found)
        self._inspected = {**self._inspected, series.uid: found}
        return found

    def _look(self, series: SeriesInfo, main: str | None) -> InspectedSeries:
        if not self.is_here(series):
            try:
                found = _describe(series, self._metadata(series), main)
                if found.refusal is None:
                    return found
            except PacsError as error:  # some servers cannot tell attributes, or only a part of them
                logger.info("A series is looked at by its files: %s", error)
        folder = self.folder(series)
        try:
            headers = _headers(folder / "dicom")
        except BadImageError as error:
            return InspectedSeries(series.uid, series.instances, None, (), str(error))
        return _describe(series, headers, main)

    def source(self, image: Image) -> SourceSeries:
        """The frames of an image, to draw on and to point at.

        Raises:
            PacsError: the series is not here and the PACS does not answer.
            BadImageError: it cannot be used.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.is_here(image.series):
                return SourceSeries.of(_headers(self.folder(image.series) / "dicom"), volume=image.volume)
            try:
                return SourceSeries.of(self._metadata(image.series), volume=image.volume)
            except BadImageError:
                return SourceSeries.of(_headers(self.folder(image.series) / "dicom"), volume=image.volume)

    def grid(self, image: Image) -> Grid:
        """Where the voxels of an image lie; raises as `source`."""
        found = self.inspect(image.series)
        wanted = image.volume or found.main
        for volume in found.volumes:
            if volume["id"] == wanted and volume["refusal"] is None:
                depth, height, width = volume["shape"]
                return Grid((depth, height, width), np.array(volume["affine"], dtype=np.float64))
        raise BadImageError(
            found.refusal or "Expected a usable volume in the series, there is none any more."
        )

    def _metadata(self, series: SeriesInfo) -> list[Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self._client.metadata(series.study_uid, series.uid)
        return [header for header in found if "Rows" in header]

    # ------------------------------------------------------------------- below

    def _place(self, series: SeriesInfo) -> Path:
        return self.directory / "series" / series.uid / str(series.instances)

    def _lock(self, series: SeriesInfo) -> filelock.BaseFileLock:
        return filelock.FileLock(self.directory / "locks" / series.uid)

    def _evict(self, keep: Path) -> None:
        places = [place for uid in (self.directory / "series").iterdir() for place in uid.iterdir()]
        sizes = {place: _size(place) for place in places}
        excess = sum(sizes.values()) - self._limit_bytes
        now = time.time()
        for place in sorted(places, key=_last_use):
            if excess <= 0:
                return
            if place != keep and now - _last_use(place) > IN_USE_S:
                self._remove(place)
                excess -= sizes[place]

    def _remove(self, place: Path) -> None:
        grave = self.directory / "partial" / uuid.uuid4().hex
        try:
            place.rename(grave)
        except FileNotFoundError:  # another process was faster
            return
        shutil.rmtree(grave, ignore_errors=True)


def images_of(series: SeriesInfo, found: InspectedSeries | None) -> list[Image]:
    """The images that a series gives: the SeriesInstanceUID stands for its only or its largest volume.

    A series that was not looked at yet, or in which nothing is usable, is one image.
    """
    usable = [volume for volume in found.volumes if volume["refusal"] is None] if found else []
    if found is None or len(found.volumes) < 2 or not usable:
        return [Image(series.uid, series)]
    others = [
        Image(str(volume["id"]), series, volume["id"]) for volume in usable if volume["id"] != found.main
    ]
    return [Image(series.uid, series, found.main), *others]


def _headers(folder: Path) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return series_headers(folder)[1]


def _describe(series: SeriesInfo, headers: Sequence[Any], main: str | None) -> InspectedSeries:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            volumes = volumes_of(headers)
    except BadImageError as error:
        return InspectedSeries(series.uid, series.instances, None, (), str(error))
    usable = [volume for volume in volumes if volume.grid is not None]
    told = tuple(_volume(volume) for volume in volumes)
    if not usable:
        reasons = dict.fromkeys(volume.refusal or "" for volume in volumes)
        return InspectedSeries(series.uid, series.instances, None, told, " ".join(reasons))
    # What the SeriesInstanceUID stands for never changes while it is there: labels were drawn on it.
    chosen = next((volume.id for volume in usable if volume.id == main), None) or _largest(usable).id
    return InspectedSeries(series.uid, series.instances, chosen, told, None)


def _largest(volumes: Sequence[SeriesVolume]) -> SeriesVolume:
    return max(volumes, key=lambda volume: int(np.prod(volume.usable_grid().shape)))  # of several, the first


def _volume(volume: SeriesVolume) -> Mapping[str, Any]:
    grid = volume.grid
    return {
        "id": volume.id,
        "title": volume.title,
        "refusal": volume.refusal,
        "shape": list(grid.shape) if grid is not None else None,
        "affine": grid.affine.tolist() if grid is not None else None,
        "phases": len(volume.phases),
    }


def _write_nifti(folder: Path, volume: str | None, target: Path) -> None:
    """The image as Hermes reads it; its modality, which NIfTI cannot say, stands in the description."""
    if volume is None:
        read = read_volume(folder)
        array, grid, modality = read.array, read.grid, read.modality
    else:
        array, grid, guess = read_dicom(folder, volume=volume)
        modality = guess.modality if guess is not None else None
    whole = np.rint(array)
    small = np.abs(whole).max(initial=0) < 2**15 and bool((whole == array).all())
    image = nibabel.Nifti1Image(
        (whole.astype(np.int16) if small else array).transpose(2, 1, 0), grid.affine_ras
    )
    image.set_sform(grid.affine_ras, code=1)
    image.set_qform(grid.affine_ras, code=1 if grid.is_orthogonal else 0)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = (modality.value if modality else "").encode()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{uuid.uuid4().hex}.nii.gz")
    try:
        nibabel.save(image, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _touch(place: Path) -> bool:
    """Marks a folder as used now; False where there is none."""
    try:
        os.utime(place)
    except FileNotFoundError:
        return False
    return True


def _last_use(place: Path) -> float:
    try:
        return place.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(place: Path) -> int:
    """Bytes below a folder, added up once and noted in it: a PACS has hundreds of thousands of files."""
    note = place / _SIZE
    try:
        return int(note.read_text())
    except (FileNotFoundError, ValueError):
        pass
    total = 0
    for file in place.rglob("*"):
        try:
            total += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:
            continue
    with suppress(FileNotFoundError):  # removed meanwhile
        used = _last_use(place)
        note.write_text(str(total))
        os.utime(place, (used, used))  # to be measured is not to be used
    return total
