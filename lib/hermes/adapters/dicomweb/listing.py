"""What the PACS holds: image series and label objects, known anew after a second or two, by few calls.

A refresh asks one question per modality of images, one for SEG and one for RTSTRUCT, however many series there
are. Where the server counts its changes, a refresh that finds the count unchanged asks nothing else.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hermes.adapters.dicomweb.client import PacsClient, text_of
from hermes.errors import PacsError
from hermes.publish import write_atomically

logger = logging.getLogger(__name__)

LABEL_KINDS = ("SEG", "RTSTRUCT")
FULL_AFTER_S = 60.0
"""A list is made anew after this time even where the server says that nothing has changed."""
PATIENCE_S = 2.0
"""How long an answer waits for a refresh that is under way; then it takes what was known before."""
_MUCH_OLDER = 3.0
_SERIES_FIELDS = (
    "NumberOfSeriesRelatedInstances", "PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SeriesDescription",
    "StudyDescription", "StudyDate", "BodyPartExamined",
)  # fmt: skip
_OBJECT_FIELDS = ("ContentDate", "ContentTime", "StructureSetDate", "StructureSetTime")


@dataclass(frozen=True)
class SeriesInfo:
    """An image series as the PACS lists it; ``instances`` is 0 where it does not count them."""

    uid: str
    study_uid: str
    modality: str
    instances: int
    patient_id: str = field(default="", repr=False)
    issuer: str = field(default="", repr=False)
    description: str = ""
    study_description: str = ""
    study_date: str = ""


@dataclass(frozen=True)
class ObjectInfo:
    """A label object as the PACS lists it; ``stamp`` changes where its content does."""

    sop_uid: str
    study_uid: str
    series_uid: str
    kind: str
    stamp: str


@dataclass(frozen=True)
class Listing:
    """Everything, at one moment. ``made_at`` is in seconds since 1970; 0 where nothing was ever listed."""

    series: Mapping[str, SeriesInfo] = field(default_factory=dict)
    objects: Mapping[str, ObjectInfo] = field(default_factory=dict)
    made_at: float = 0.0


class PacsIndex:
    """Keeps the listing. One refresh runs at a time, in a thread of its own; everybody else waits for it a little.

    Args:
        client: of the server.
        modalities: of the image series.
        filters: further QIDO conditions on image series.
        file: where the listing is kept for the next start.
        max_age_s: how old a listing may be.
    """

    def __init__(
        self,
        client: PacsClient,
        *,
        modalities: Sequence[str],
        filters: Mapping[str, str],
        file: Path,
        max_age_s: float,
    ) -> None:
        self._client, self._modalities, self._filters = client, tuple(modalities), dict(filters)
        self._file, self.max_age_s = file, max_age_s
        self._lock = threading.Lock()
        self._running: threading.Event | None = None
        self._checked_at = -float("inf")  # monotonic: when a refresh last ended
        self._took_s = 0.0
        self._full_at = -float("inf")
        self._token: str | None = None
        self._has_token = True
        self.listing = _load(file)
        self.error: str | None = None
        self.on_change: Callable[[Listing], None] = lambda _: None
        """Called in the refreshing thread with every listing that was looked up, before those who wait go on."""
        self.on_return: Callable[[], None] = lambda: None
        """Called when the server answers again after it did not."""

    def current(
        self, *, max_age_s: float | None = None, patience_s: float = PATIENCE_S, wait: bool = False
    ) -> Listing:
        """The listing. An older one than ``max_age_s`` is refreshed; who asks waits for that, at most ``patience_s``.

        Where the last look is not much longer ago, nobody waits unless ``wait`` is said: on a busy server somebody
        always refreshes.
        """
        limit = self.max_age_s if max_age_s is None else max_age_s
        with self._lock:
            age = time.monotonic() - self._checked_at
            if age < max(limit, min(self._took_s, limit * _MUCH_OLDER)):
                return self.listing  # a slow server is not asked all the time
            if self._running is None:
                self._running = threading.Event()
                threading.Thread(
                    target=self._refresh, args=(self._running,), name="hermes-pacs", daemon=True
                ).start()
            ended = self._running
        if wait or age >= _MUCH_OLDER * limit:
            ended.wait(patience_s)
        return self.listing

    def expire(self) -> None:
        """The next look is a fresh one: something was stored."""
        with self._lock:
            self._checked_at = -float("inf")

    def _refresh(self, ended: threading.Event) -> None:
        began = time.monotonic()
        try:
            self._look()
            if self.error is not None:
                logger.info("The PACS answers again")
                self.on_return()
            self.error = None
        except PacsError as error:
            if self.error is None:
                logger.warning("%s What was known before is served.", error)
            self.error = str(error)
        except Exception:  # the next refresh must be possible
            logger.exception("The lists of the PACS could not be read")
            self.error = "The lists of the PACS could not be read. The log says more."
        finally:
            with self._lock:
                self._checked_at = time.monotonic()
                self._took_s = self._checked_at - began
                self._running = None
            ended.set()

    def _look(self) -> None:
        token = self._client.token() if self._has_token else None
        self._has_token = token is not None or self._token is not None
        fresh = time.monotonic() - self._full_at < FULL_AFTER_S
        if token is not None and token == self._token and fresh:
            self.on_change(self.listing)
            return
        found = self._list()
        if (found.series, found.objects) != (self.listing.series, self.listing.objects):
            _save(self._file, found)
        self.listing = found
        self._full_at, self._token = time.monotonic(), token
        self.on_change(found)

    def _list(self) -> Listing:
        series: dict[str, SeriesInfo] = {}
        for modality in self._modalities:
            for item in self._client.series({**self._filters, "Modality": modality}, _SERIES_FIELDS):
                info = _series(item, modality)
                if info.uid and info.study_uid:
                    series[info.uid] = info
        objects: dict[str, ObjectInfo] = {}
        for kind in LABEL_KINDS:
            for item in self._client.instances({"Modality": kind}, _OBJECT_FIELDS):
                label = _object(item, kind)
                if label.sop_uid and label.series_uid and label.study_uid:
                    objects[label.sop_uid] = label
        return Listing(series, objects, time.time())


def _series(item: Mapping[str, Any], modality: str) -> SeriesInfo:
    count = text_of(item, "00201209")
    return SeriesInfo(
        uid=text_of(item, "0020000E"),
        study_uid=text_of(item, "0020000D"),
        modality=text_of(item, "00080060") or modality,
        instances=int(count) if count.isdecimal() else 0,
        patient_id=text_of(item, "00100020"),
        issuer=text_of(item, "00100021"),
        description=text_of(item, "0008103E"),
        study_description=text_of(item, "00081030"),
        study_date=text_of(item, "00080020"),
    )


def _object(item: Mapping[str, Any], kind: str) -> ObjectInfo:
    date, moment = ("00080023", "00080033") if kind == "SEG" else ("30060008", "30060009")
    return ObjectInfo(
        sop_uid=text_of(item, "00080018"),
        study_uid=text_of(item, "0020000D"),
        series_uid=text_of(item, "0020000E"),
        kind=kind,
        stamp=f"{text_of(item, date)}{text_of(item, moment)}"[:64],
    )


def _load(file: Path) -> Listing:
    """The listing of the last run: a server that starts while the PACS is down knows its images all the same."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return Listing(
            {item["uid"]: SeriesInfo(**item) for item in stored["series"]},
            {item["sop_uid"]: ObjectInfo(**item) for item in stored["objects"]},
            float(stored["made_at"]),
        )
    except FileNotFoundError:
        return Listing()
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("The kept list of the PACS cannot be read and is made anew: %s", error)
        return Listing()


def _save(file: Path, listing: Listing) -> None:
    text = json.dumps(
        {
            "series": [asdict(info) for info in listing.series.values()],
            "objects": [asdict(info) for info in listing.objects.values()],
            "made_at": listing.made_at,
        }
    )
    write_atomically(file, text)
