"""What the server does by itself, beside answering.

It takes over new images, starts training when a round is full, prepares labelled cases ahead of it, and scores the
pool after a publication.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from monailabel.interfaces.datastore import Datastore

from hermes.adapters.images import paths_of
from hermes.campaign.campaign import Campaign
from hermes.campaign.records import RunState
from hermes.campaign.runs import PROCESS_DIED
from hermes.pool import PoolScorer
from hermes.rounds import Ahead
from hermes.workspace import Workspace

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
STOP_TIMEOUT_S = 10.0


def training_due(campaign: Campaign, labels_per_round: int) -> bool:
    """Whether so many images have new labels that a round should begin.

    A round that failed, or that somebody stopped, is not tried again with the same labels: it takes as many
    more. One whose process died with its server is. Labels of held-out images count, but not alone.
    """
    if labels_per_round <= 0 or campaign.labels_since_last_training() < labels_per_round:
        return False
    if not campaign.labelled_ids() & campaign.training_ids():
        return False
    runs = campaign.runs()
    last = runs[-1] if runs else None
    if last is None or last.state is RunState.DONE or last.reason == PROCESS_DIED:
        return True
    return sum(label.id not in last.label_ids for label in campaign.labels()) >= labels_per_round


class Supervisor:
    """A thread of the server process."""

    def __init__(
        self,
        workspace: Workspace,
        datastore: Datastore,
        scorer: PoolScorer,
        *,
        patient_of: Callable[[str], str | None],
        start_training: Callable[[], None],
        is_training: Callable[[], bool],
    ) -> None:
        self._workspace, self._datastore, self._scorer = workspace, datastore, scorer
        self._patient_of = patient_of
        self._start_training, self._is_training = start_training, is_training
        self._ahead = Ahead(workspace, paths_of(datastore))
        self._tried: frozenset[int] = frozenset()
        self._wake, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="hermes-supervisor", daemon=True)

    def start(self) -> None:
        """Begin; ends with the process."""
        # A thread that is inside the network when the interpreter goes would abort the process.
        atexit.register(self.stop)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, giving up the image that is being scored."""
        self._ended.set()
        self._wake.set()
        self._thread.join(STOP_TIMEOUT_S)

    def wake(self) -> None:
        """Look at once: a label has come in."""
        self._wake.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self.look()
            except Exception:  # the thread must outlive a full disk or a locked database
                logger.exception("The supervisor met an error and goes on")
            self._wake.wait(INTERVAL_S)
            if not self._ended.is_set():
                self._wake.clear()

    def look(self) -> None:
        """Do what is due now."""
        campaign = self._workspace.campaign
        campaign.sync_images(self._datastore.list_images(), self._patient_of)
        if self._is_training() or campaign.current_run() is not None:
            self._ahead.prepare(should_stop=self._ended.is_set)
            return
        if training_due(campaign, self._workspace.settings.labels_per_round):
            labels = frozenset(label.id for label in campaign.labels())
            # A process that dies before it can note its run would else be started again every few seconds.
            if labels != self._tried:
                self._tried = labels
                logger.info("A round is full: training starts")
                self._start_training()
                return
        self._ahead.prepare(should_stop=self._ended.is_set)
        images = {i: Path(self._datastore.get_image_uri(i)) for i in self._datastore.get_unlabeled_images()}
        for _ in self._scorer.score(images, should_stop=self._wake.is_set):
            if self._wake.is_set():
                return
