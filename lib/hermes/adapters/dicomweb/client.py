"""The calls to a DICOMweb server: QIDO-RS, WADO-RS and STOW-RS, with time limits and a reason for every failure."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
import requests
from dicomweb_client import DICOMwebClient
from pydicom.errors import InvalidDicomError
from urllib3.exceptions import ProtocolError

from hermes.adapters.dicomweb.parts import Parts
from hermes.errors import BadLabelError, ConflictError, PacsError

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 60.0
"""Longest silence of the server; a large series may take longer in total."""
PAGE = 1000
_CHUNK_BYTES = 1 << 20
_PREAMBLE, _MAGIC, _META_GROUP = b"\0" * 128, b"DICM", b"\x02\x00"
_NOT_OFFERED = (400, 403, 404, 405, 501)
"""Answers to a DELETE after which trying again is of no use; 405 is Orthanc's."""
_MORE_RESULTS = "299"
"""Code of the warning with which a server says that it has more than it sent."""


@dataclass(frozen=True)
class Access:
    """Where the server is and who we are there.

    Attributes:
        url: root of its DICOMweb services.
        user: for HTTP basic authentication; "" for none.
        password: of the user.
        qido_prefix: path of the search service below the root, where it has one of its own.
        wado_prefix: of the retrieve service.
        stow_prefix: of the store service.
    """

    url: str
    user: str = ""
    password: str = ""
    qido_prefix: str | None = None
    wado_prefix: str | None = None
    stow_prefix: str | None = None


class _Session(requests.Session):
    """A session in which no call waits for ever, and a kept connection that the server just closed fails no GET."""

    def request(self, method: str | bytes, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs.setdefault("timeout", (CONNECT_TIMEOUT_S, READ_TIMEOUT_S))
        try:
            return super().request(method, *args, **kwargs)
        except requests.ConnectionError as error:
            hung_up = bool(error.args) and isinstance(error.args[0], ProtocolError)
            if method != "GET" or not hung_up:
                raise
        return super().request(method, *args, **kwargs)


class PacsClient:
    """A DICOMweb server. Methods may be called from any thread; each thread has its own connection.

    Attributes:
        calls: how many HTTP requests were made so far.
    """

    def __init__(self, access: Access) -> None:
        self.access = access
        self.calls = 0
        self._local = threading.local()
        self._count = threading.Lock()

    # -------------------------------------------------------------------- QIDO

    def series(self, filters: Mapping[str, str], fields: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The series that match, each as DICOM JSON.

        Raises:
            PacsError: no answer, or one that cannot be understood.
        """
        return self._search("search_for_series", filters, fields)

    def instances(self, filters: Mapping[str, str], fields: Sequence[str] = ()) -> list[dict[str, Any]]:
        """The instances that match, each as DICOM JSON; raises as `series`."""
        return self._search("search_for_instances", filters, fields)

    def has_instance(self, study_uid: str, sop_instance_uid: str) -> bool:
        """Whether the server has an object; raises as `series`."""
        found = self.instances({"StudyInstanceUID": study_uid, "SOPInstanceUID": sop_instance_uid})
        return any(text_of(item, "00080018") == sop_instance_uid for item in found)

    def _search(self, method: str, filters: Mapping[str, str], fields: Sequence[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            with self._failing("was searched"):
                page = getattr(self._client(), method)(
                    search_filters=dict(filters),
                    fields=list(fields) or None,
                    limit=PAGE,
                    offset=len(found) or None,
                )
            found += page
            if not page or (len(page) < PAGE and not self._local.more):
                return found

    # -------------------------------------------------------------------- WADO

    def metadata(self, study_uid: str, series_uid: str) -> list[pydicom.Dataset]:
        """The attributes of all instances of a series, without pixels; raises as `series`."""
        with self._failing("was asked for the attributes of a series"):
            found = self._client().retrieve_series_metadata(study_uid, series_uid)
            return [pydicom.Dataset.from_json(item, _no_pixels) for item in found]

    def fetch_series(self, study_uid: str, series_uid: str, folder: Path) -> int:
        """Stores every instance of a series as ``0001.dcm``, ... in ``folder``; how many there were.

        What the server sends goes to disk as it comes, in the transfer syntax in which it is stored.

        Raises:
            PacsError: no answer, or the transfer broke off.
        """
        return self._fetch(f"/studies/{study_uid}/series/{series_uid}", folder)

    def instance(self, study_uid: str, series_uid: str, sop_instance_uid: str, folder: Path) -> Any:
        """One object as a ``pydicom.Dataset``; its file comes into ``folder``.

        Raises:
            PacsError: no answer.
            BadLabelError: what came is no DICOM object.
        """
        self._fetch(f"/studies/{study_uid}/series/{series_uid}/instances/{sop_instance_uid}", folder)
        try:
            return pydicom.dcmread(next(iter(sorted(folder.iterdir()))))
        except (StopIteration, InvalidDicomError, OSError, ValueError, KeyError, AttributeError) as error:
            msg = "Expected a DICOM object from the PACS, got something that cannot be read. Export it again."
            raise BadLabelError(msg) from error

    def _fetch(self, path: str, folder: Path) -> int:
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        prefix = f"/{self.access.wado_prefix.strip('/')}" if self.access.wado_prefix else ""
        folder.mkdir(parents=True, exist_ok=True)
        with self._failing("was asked for a series"):
            client = self._client()
            with client._session.get(
                f"{self.access.url}{prefix}{path}", headers={"Accept": accept}, stream=True
            ) as response:
                response.raise_for_status()
                parts = Parts(response.headers.get("Content-Type", ""), folder)
                for chunk in response.iter_content(_CHUNK_BYTES):
                    parts.feed(chunk)
                count = parts.finish()
        for file in folder.iterdir():
            _complete(file)
        return count

    # -------------------------------------------------------------------- STOW

    def store(self, dataset: pydicom.Dataset) -> None:
        """Stores one object.

        Raises:
            PacsError: no answer; trying again may help.
            BadLabelError: the server refuses the object.
        """
        if not getattr(dataset, "preamble", None):
            dataset.preamble = _PREAMBLE  # without it servers store, and give back, what is no DICOM file
        with self._failing("was given a label"):
            answer = self._client().store_instances([dataset])
        failed = answer.get("FailedSOPSequence") or ()
        if failed:
            reason = int(failed[0].get("FailureReason", 0) or 0)
            msg = f"The PACS refused the object with failure reason 0x{reason:04X}. Its log says more."
            raise BadLabelError(msg)

    # ------------------------------------------------------------------ DELETE

    def delete_instance(self, study_uid: str, series_uid: str, sop_instance_uid: str) -> None:
        """Removes one object.

        Raises:
            PacsError: no answer; trying again may help.
            NotOfferedError: the server does not remove objects on request, or not for us.
        """
        prefix = f"/{self.access.wado_prefix.strip('/')}" if self.access.wado_prefix else ""
        path = f"/studies/{study_uid}/series/{series_uid}/instances/{sop_instance_uid}"
        with self._failing("was asked to remove a label"):
            answer = self._client()._session.delete(f"{self.access.url}{prefix}{path}")
            if answer.status_code in _NOT_OFFERED:
                msg = (
                    f"The PACS does not remove objects by DICOMweb (HTTP {answer.status_code}). Remove it there, "
                    "if it should go."
                )
                raise NotOfferedError(msg)
            answer.raise_for_status()

    # ------------------------------------------------------------------- below

    def token(self) -> str | None:
        """Something cheap that changes with every change in the server; None where it has nothing of the kind.

        Orthanc counts its changes; the count is far cheaper than its lists, which it makes by opening files.

        Raises:
            PacsError: no answer.
        """
        root = self.access.url.rsplit("/", 1)[0]
        with self._failing("was asked for its last change"):
            session = self._client()._session
            answers = [session.get(f"{root}/{page}") for page in ("changes?last", "statistics")]
            if not all(answer.ok for answer in answers):
                return None
            try:
                last, sums = (answer.json() for answer in answers)
                return f"{last['Last']} {sums['CountInstances']} {sums['CountSeries']}"
            except (ValueError, KeyError, TypeError):
                return None

    def _client(self) -> DICOMwebClient:
        client: DICOMwebClient | None = getattr(self._local, "client", None)
        if client is None:
            session = _Session()
            session.hooks["response"].append(self._tick)
            if self.access.user:
                session.auth = (self.access.user, self.access.password)
            client = DICOMwebClient(
                url=self.access.url,
                session=session,
                qido_url_prefix=self.access.qido_prefix,
                wado_url_prefix=self.access.wado_prefix,
                stow_url_prefix=self.access.stow_prefix,
            )
            client.set_http_retry_params(retry=False)
            self._local.client = client
        return client

    def _tick(self, response: requests.Response, *_: Any, **__: Any) -> None:
        self._local.more = response.headers.get("Warning", "").startswith(_MORE_RESULTS)
        with self._count:
            self.calls += 1

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        """Failures of the network as `PacsError`, with a reason that names no patient."""
        try:
            yield
        except requests.HTTPError as error:
            raise _refused(error.response.status_code if error.response is not None else 0, what) from error
        except requests.RequestException as error:
            msg = f"The PACS {what} and did not answer ({_kind(error)}). Look whether it runs; what waits is sent later."
            raise PacsError(msg) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            msg = f"The PACS {what} and answered something else than DICOMweb ({type(error).__name__}). Check the URL."
            raise PacsError(msg) from error


class NotOfferedError(ConflictError):
    """The server has no such service, or not for this user."""


class StoreRefusedError(BadLabelError):
    """The server will not take the object, however often it is sent."""


def _complete(file: Path) -> None:
    """Puts the preamble before an object that was stored without: Orthanc gives back what it was given."""
    with file.open("rb") as stream:
        head = stream.read(len(_PREAMBLE) + len(_MAGIC))
        if head.endswith(_MAGIC) or not head.startswith(_META_GROUP):
            return
        whole = file.with_suffix(".whole")
        with whole.open("wb") as target:
            target.write(_PREAMBLE + _MAGIC + head)
            shutil.copyfileobj(stream, target)
    whole.replace(file)


def _no_pixels(tag: str, vr: str, uri: str) -> None:
    """What stands for a value that the server keeps elsewhere."""


def _refused(status: int, what: str) -> PacsError | BadLabelError:
    if status in (401, 403):
        msg = (
            f"The PACS {what} and refused access (HTTP {status}). Set MONAI_LABEL_DICOMWEB_USERNAME and "
            "MONAI_LABEL_DICOMWEB_PASSWORD."
        )
        return PacsError(msg)
    if status in (400, 409, 413, 415, 422) and what == "was given a label":
        return StoreRefusedError(f"The PACS refused the object (HTTP {status}). Its log says more.")
    return PacsError(
        f"The PACS {what} and answered HTTP {status}. Its log says more; what waits is sent later."
    )


def _kind(error: requests.RequestException) -> str:
    if isinstance(error, requests.ConnectTimeout | requests.ReadTimeout):
        return "time is up"
    return "no connection" if isinstance(error, requests.ConnectionError) else "transfer broken off"


def text_of(item: Mapping[str, Any], tag: str) -> str:
    """The first value of an attribute in DICOM JSON as text; "" where there is none."""
    attribute = item.get(tag)
    values = attribute.get("Value") if isinstance(attribute, Mapping) else None
    value = values[0] if isinstance(values, list) and values else ""
    return str(value.get("Alphabetic", "")) if isinstance(value, Mapping) else str(value).strip()
