"""Labels to the PACS, as DICOM Segmentations, in the background: what cannot be stored now is stored later."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pydicom

from hermes.adapters.dicomweb.background import Background
from hermes.adapters.dicomweb.client import NotOfferedError, PacsClient, StoreRefusedError
from hermes.adapters.dicomweb.series import Image, SeriesFiles
from hermes.campaign.uploads import Upload, Uploads, UploadState
from hermes.dicom import write_segmentation
from hermes.dicom.seg_write import LONGEST_LO
from hermes.errors import BadImageError, BadRequestError, HermesError, PacsError
from hermes.submission import ABSENT, Submission
from hermes.transforms.reading import read_label_map

logger = logging.getLogger(__name__)


def about_label(
    submission: Submission,
    *,
    annotator: str,
    model_version: str | None,
    predicted: bool,
    drawn: Collection[str] | None,
    number: int,
    at: float,
) -> dict[str, Any]:
    """What a DICOM object says of a label beside its voxels, as it is kept in the queue.

    Args:
        submission: what was submitted.
        annotator: who did.
        model_version: of the prediction that was corrected; None where it was drawn from nothing.
        predicted: whether nobody has corrected it.
        drawn: structures that the model has drawn in this image; None where that is not known, and all count as such.
        number: of the label version.
        at: when, in seconds since 1970.
    """
    kind: Any = "AUTOMATIC" if predicted else "SEMIAUTOMATIC" if model_version else "MANUAL"
    if kind == "SEMIAUTOMATIC" and drawn is not None:
        kind = {name: kind if name in drawn else "MANUAL" for name in submission.annotated}
    return {
        "names": {str(value): name for value, name in submission.label_map.names.items()},
        "absent": [name for name, state in submission.annotated.items() if state == ABSENT],
        "annotator": annotator,
        "model_version": model_version,
        "algorithm_type": kind,
        "number": number,
        "at": at,
    }


def description_of(about: Mapping[str, Any]) -> str:
    """By what an object is told from others in a viewer's list: whose label, or which version's prediction.

    At most 64 characters; a name that is too long ends in "...".
    """
    if about["algorithm_type"] == "AUTOMATIC":
        begin, who = "Hermes prediction", str(about["model_version"] or "")
    else:
        begin, who = f"Hermes label {about['number']}", str(about["annotator"] or "")
    if not who:
        return begin
    room = LONGEST_LO - len(begin) - len(" by ")
    return f"{begin} by {who if len(who) <= room else who[: room - 3] + '...'}"


def new_uid() -> str:
    """A UID for an object that is to be made."""
    return f"2.25.{uuid.uuid4().int}"


def series_uid_of(sop_instance_uid: str) -> str:
    """The series of an object of ours: the same at every try."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, sop_instance_uid).int}"


class Uploader(Background):
    """Empties the queue.

    Args:
        uploads: the queue.
        client: of the PACS.
        files: its series.
        image: image id -> where it lies; raises `NotFoundError`.
        directory: that paths in the queue are relative to.
    """

    def __init__(
        self,
        uploads: Uploads,
        client: PacsClient,
        files: SeriesFiles,
        *,
        image: Callable[[str], Image],
        directory: Path,
    ) -> None:
        self._uploads, self._client, self._files = uploads, client, files
        self._image, self._directory = image, directory
        super().__init__("hermes-uploads")

    def start(self) -> None:
        """Begin, with what an earlier server left; ends with the process."""
        self._uploads.resume()
        self._uploads.retry(failed=False)
        super().start()

    def look(self) -> bool:
        """Try the next upload that is due; whether there was one."""
        upload = self._uploads.claim()
        if upload is None:
            return False
        taken_back = upload.state is UploadState.WITHDRAWING
        try:
            self._remove(upload) if taken_back else self._send(upload)
        except NotOfferedError as error:
            self._uploads.keep(upload.id, str(error))
            logger.warning("The object of a deleted label stays in the PACS: %s", error)
        except PacsError as error:
            self._uploads.postpone(upload.id, str(error))
            logger.warning("A label waits for the PACS (try %d): %s", upload.attempts, error)
        except (StoreRefusedError, BadRequestError, BadImageError) as error:
            self._uploads.fail(upload.id, str(error))
            logger.error("A label cannot be stored in the PACS: %s", error)
        except HermesError as error:  # the image is not listed now, for example
            self._uploads.postpone(upload.id, str(error))
        except Exception as error:
            self._uploads.postpone(upload.id, f"Unexpected: {type(error).__name__}. The log says more.")
            raise
        else:
            self._uploads.withdrawn(upload.id) if taken_back else self._uploads.done(upload.id)
        return True

    def _remove(self, upload: Upload) -> None:
        """Remove what this campaign has stored; comes back when the PACS does not have it (any more)."""
        study, uid = self._image(upload.image_id).series.study_uid, upload.sop_instance_uid
        if not self._client.has_instance(study, uid):
            return
        try:
            self._client.delete_instance(study, series_uid_of(uid), uid)
        except NotOfferedError:
            if self._client.has_instance(study, uid):
                raise  # and it was not somebody else who removed it at this moment

    def _send(self, upload: Upload) -> None:
        image = self._image(upload.image_id)
        if upload.attempts > 1 and self._client.has_instance(image.series.study_uid, upload.sop_instance_uid):
            return  # the last try came through, its answer did not
        self._client.store(self._segmentation(upload, image))

    def _segmentation(self, upload: Upload, image: Image) -> pydicom.Dataset:
        about: Mapping[str, Any] = upload.about
        label = read_label_map(self._directory / upload.path)
        names = {int(value): str(name) for value, name in about["names"].items()}
        return write_segmentation(
            replace(label, names=names),
            self._files.source(image),
            algorithm_type=about["algorithm_type"],
            model_version=about["model_version"],
            annotator=about["annotator"],
            absent=about["absent"],
            created=datetime.fromtimestamp(about["at"]),
            series_instance_uid=series_uid_of(upload.sop_instance_uid),
            sop_instance_uid=upload.sop_instance_uid,
            instance_number=int(about["number"]),
            series_description=description_of(about),
        )
