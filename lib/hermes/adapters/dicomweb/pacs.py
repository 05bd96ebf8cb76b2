"""Everything of a campaign that talks to its PACS, put together."""

from __future__ import annotations

import atexit
import logging
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.config import settings as monai_settings

from hermes.adapters.dicomweb.client import Access, PacsClient
from hermes.adapters.dicomweb.following import Follower
from hermes.adapters.dicomweb.inspecting import Inspector
from hermes.adapters.dicomweb.labels_in import LabelsIn
from hermes.adapters.dicomweb.listing import Listing, PacsIndex
from hermes.adapters.dicomweb.series import SeriesFiles
from hermes.adapters.dicomweb.store import Behind, HermesDicomWebDatastore
from hermes.adapters.dicomweb.uploading import Uploader
from hermes.adapters.submitting import Intake, sha256_of
from hermes.campaign.records import LabelRecord
from hermes.campaign.uploads import UploadState
from hermes.submission import Submission
from hermes.workspace import Workspace

logger = logging.getLogger(__name__)

_ENDED = (UploadState.DONE, UploadState.CANCELLED, UploadState.WITHDRAWN, UploadState.KEPT)
MOST_LISTED = 200
"""Uploads and objects that one answer lists, the latest ones."""

RecordImported = Callable[[str, Path, str, Submission, str], LabelRecord]
"""Enters a label of somebody else: (image id, archived file, sha256, submission, annotator)."""


def access_of(url: str) -> Access:
    """How the environment says that the server is reached; the older names of MONAI Label win."""
    given = monai_settings
    return Access(
        url.strip().rstrip("/"),
        given.MONAI_LABEL_DICOMWEB_USERNAME or given.MONAI_LABEL_DATASTORE_USERNAME,
        given.MONAI_LABEL_DICOMWEB_PASSWORD or given.MONAI_LABEL_DATASTORE_PASSWORD,
        given.MONAI_LABEL_QIDO_PREFIX,
        given.MONAI_LABEL_WADO_PREFIX,
        given.MONAI_LABEL_STOW_PREFIX,
    )


class Pacs:
    """The PACS of a campaign: its datastore, and in the server process the threads that keep both sides alike.

    Attributes:
        store: what MONAI Label sees.
        client: the calls to the server.
        index: what the server holds.
        files: its series on disk.
        uploader: takes labels to it.
    """

    def __init__(
        self, workspace: Workspace, access: Access, intake: Intake, *, record_imported: RecordImported
    ) -> None:
        """Open the PACS at ``access``; no call is made yet."""
        settings, campaign = workspace.settings, workspace.campaign
        self._campaign, self._intake, self._record_imported = campaign, intake, record_imported
        home = workspace.directory / "pacs"
        home.mkdir(parents=True, exist_ok=True)
        self.client = PacsClient(access)
        self.index = PacsIndex(
            self.client,
            modalities=settings.pacs_modalities,
            filters=dict(pair.split("=", 1) for pair in settings.pacs_filter.split("&") if pair),
            file=home / "listing.json",
            max_age_s=settings.pacs_refresh_seconds,
        )
        self.files = SeriesFiles(
            home, self.client, campaign.pacs, limit_bytes=int(settings.pacs_cache_gib * 2**30)
        )
        behind = Behind(
            self.index, self.files, campaign, intake, workspace.directory, settings.pacs_upload_predictions
        )
        self.store = HermesDicomWebDatastore(behind, url=access.url)
        self.uploader = Uploader(
            campaign.uploads,
            self.client,
            self.files,
            image=self.store.require_image,
            directory=workspace.directory,
        )
        self._inspector = Inspector(campaign, self.files, lambda: self.index.listing)
        self._labels: LabelsIn | None = None
        self._follower: Follower | None = None

    def start(self, changed: Callable[[], None]) -> None:
        """Begin to follow the PACS and to send labels; ends with the process.

        Args:
            changed: called when a label came from the PACS or went there.
        """
        self._labels = LabelsIn(
            self._campaign,
            self._intake.archive,
            self.client,
            self.files,
            directory=self.files.directory / "objects",
            images=self.store.images,
            structures=self._intake.structures,
            being_stored=self.store.being_stored,
            import_label=self._import,
            changed=changed,
        )
        self._follower = Follower(self._labels.follow)
        self.index.on_change = self._listed
        self.index.on_return = self._returned
        self.store.queued = self.uploader.wake
        atexit.register(self.stop)
        missing = self.store.queue_missing()
        if missing:
            logger.warning("%d submitted labels were not in the upload queue and are now", missing)
        self.uploader.start()
        self._inspector.start()
        self._follower.start()
        self.index.current()

    def stop(self) -> None:
        """End the threads."""
        self.uploader.stop()
        self._inspector.stop()
        if self._follower is not None:
            self._follower.stop()

    def _listed(self, listing: Listing) -> None:
        self._inspector.wake()
        if self._follower is not None:
            self._follower.offer(listing)

    def _returned(self) -> None:
        self._campaign.uploads.retry(failed=False)
        self.uploader.wake()

    def _import(self, image_id: str, submission: Submission, annotator: str) -> LabelRecord:
        path = self._intake.archive.write(image_id, submission)
        return self._record_imported(image_id, path, sha256_of(path), submission, annotator)

    def retry(self) -> int:
        """Try every waiting and failed upload now; how many that are."""
        count = self._campaign.uploads.retry()
        self.uploader.wake()
        return count

    def state(self) -> dict[str, Any]:
        """How the PACS does: for people who look why something is not where they expect it."""
        listing = self.index.current(patience_s=0.2)
        uploads = self._campaign.uploads.all()
        unfinished = [u for u in uploads if u.state not in _ENDED]
        kept = [u for u in uploads if u.state is UploadState.KEPT]
        objects = list(self._campaign.pacs.all().values())
        return {
            "url": re.sub(r"//[^/@]*@", "//", self.client.access.url),  # without a password in it
            "reachable": self.index.error is None,
            "error": self.index.error,
            "listed_seconds_ago": round(time.time() - listing.made_at, 1) if listing.made_at else None,
            "calls": self.client.calls,
            "series": len(listing.series),
            "images": len(self.store.images(listing)),
            "waiting_to_be_inspected": self.store.waiting_to_be_inspected(),
            "label_objects": len(listing.objects),
            "waiting_to_be_read": self._labels.waiting if self._labels is not None else 0,
            "uploads": {
                **self._campaign.uploads.counts(),
                "unfinished": [_upload(upload) for upload in unfinished[-MOST_LISTED:]],
                "left_in_pacs": [
                    {"image": u.image_id, "object": u.sop_instance_uid, "reason": u.last_error}
                    for u in kept[-MOST_LISTED:]
                ],
            },
            "not_used": [
                {"object": o.sop_instance_uid, "kind": o.kind, "image": o.image_id, "reason": o.reason}
                for o in objects
                if o.reason and o.gone_at is None
            ][-MOST_LISTED:],
            "refused_volumes": self._refused_volumes(),
        }

    def _refused_volumes(self) -> list[dict[str, Any]]:
        """Parts of series that cannot be used though others of the same series can."""
        found = []
        for series in self.index.listing.series.values():
            inspected = self.files.inspected(series)
            for volume in inspected.volumes if inspected is not None and inspected.refusal is None else ():
                if volume["refusal"]:
                    found.append(
                        {"series": series.uid, "volume": volume["title"], "reason": volume["refusal"]}
                    )
        return found[-MOST_LISTED:]


def _upload(upload: Any) -> Mapping[str, Any]:
    return {
        "image": upload.image_id,
        "tag": upload.tag,
        "object": upload.sop_instance_uid,
        "state": upload.state.value,
        "attempts": upload.attempts,
        "next_try_in_seconds": max(0.0, round(upload.next_try_at - time.time(), 1)),
        "error": upload.last_error,
    }
