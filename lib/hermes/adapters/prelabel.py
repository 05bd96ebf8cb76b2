"""Waiting images labelled ahead: what the serving version offers lies ready as an ``original`` label."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fastapi import HTTPException
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from hermes.adapters.infer import HermesInferTask, run_infer
from hermes.errors import CancelledError, GaveWayError
from hermes.inference.predictor import is_wanted
from hermes.pool import POLL_S, PoolScorer
from hermes.resident import ResidentModel
from hermes.types import CaseId
from hermes.workspace import Workspace

logger = logging.getLogger(__name__)

ORIGINAL = DefaultLabelTag.ORIGINAL.value
FROM = "prelabel"
"""Name of the infer task in whose name offers are kept beside those that annotators ask for."""


class Prelabeller:
    """Gives each waiting image an ``original`` label by the serving version, the likeliest to be offered first.

    One by an earlier version is replaced. One that was not made by this server stays as it is, and so does that of an
    image which somebody is working on. Every request of an annotator goes first.
    """

    def __init__(
        self, workspace: Workspace, resident: ResidentModel, datastore: Datastore, scorer: PoolScorer
    ) -> None:
        self._workspace, self._resident, self._datastore, self._scorer = (
            workspace,
            resident,
            datastore,
            scorer,
        )
        self._done: dict[CaseId, str] = {}

    def missing(self) -> list[CaseId]:
        """The images whose label should be made now, in order."""
        if not self._workspace.settings.prelabel or not self._workspace.bindings().trained:
            return []
        campaign, version = self._workspace.campaign, self._workspace.versions.serving().name
        open_images = [i for i in self._datastore.list_images() if self._done.get(i) != version]
        if not open_images:
            return []  # asked every second: the quick way out
        usable = {i.id for i in campaign.images() if not i.quarantined_reason} - campaign.labelled_ids()
        held = {lease.image_id for lease in campaign.assignments.leases()}
        waiting = []
        for image_id in open_images:
            if image_id in held:
                continue  # looked at again when it is free
            made_by = self._made_by(image_id) if image_id in usable else None
            if made_by in (None, version):
                self._done[image_id] = version
            else:
                waiting.append(image_id)
        return self._scorer.in_order(waiting)

    def _made_by(self, image_id: CaseId) -> str | None:
        """The version that made an image's label; "" where there is none, None where it came from elsewhere."""
        if ORIGINAL not in {str(tag) for tag in self._datastore.get_labels_by_image_id(image_id)}:
            return ""
        params = self._datastore.get_label_info(image_id, ORIGINAL).get("params")
        version = params.get("model_version") if isinstance(params, dict) else None
        return version if isinstance(version, str) else None

    def work(self, *, should_stop: Callable[[], bool]) -> Iterator[CaseId]:
        """Make what is missing, yielding each image; one that fails is left until the next publication."""
        task = HermesInferTask(self._workspace, self._resident, background=should_stop)
        for image_id in self.missing():
            if should_stop():
                return
            version = self._workspace.versions.serving().name
            try:
                self._label(task, image_id, should_stop)
            except CancelledError:
                return
            except HTTPException as error:
                logger.warning("Image %s is not labelled ahead: %s", image_id, error.detail)
            else:
                yield image_id
            self._done[image_id] = version

    def _label(self, task: HermesInferTask, image_id: CaseId, should_stop: Callable[[], bool]) -> None:
        """Make one label; tried again after each request that it gave way to.

        Raises:
            CancelledError: asked to stop.
            HTTPException: the image cannot be segmented.
        """
        request = {"model": FROM, "image": image_id, "save_label": True, "label_tag": ORIGINAL}
        device = self._resident.predictor().device
        while True:
            try:
                answer = run_infer(task, request, self._datastore, None)
            except HTTPException as error:
                if not isinstance(error.__cause__, CancelledError):
                    raise
                if not isinstance(error.__cause__, GaveWayError):
                    raise error.__cause__ from None
                while is_wanted(device):
                    if should_stop():
                        raise error.__cause__ from None
                    time.sleep(POLL_S)
            else:
                if answer["file"]:
                    Path(answer["file"]).unlink(missing_ok=True)
                return
