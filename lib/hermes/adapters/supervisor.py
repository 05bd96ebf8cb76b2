"""What the server does by itself, beside answering.

It takes over new images, starts training when a round is full, prepares labelled cases ahead of it, scores the pool
after a publication, and labels waiting images ahead where the settings ask for it.
"""

from __future__ import annotations

import atexit
import functools
import logging
import threading
from collections.abc import Callable

from monailabel.interfaces.datastore import Datastore

from hermes.adapters.images import path_of, paths_of
from hermes.adapters.prelabel import Prelabeller
from hermes.campaign.campaign import Campaign
from hermes.campaign.records import RunState
from hermes.campaign.runs import PROCESS_DIED
from hermes.pool import PoolScorer
from hermes.rounds import Ahead
from hermes.workspace import Workspace

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
STOP_TIMEOUT_S = 10.0


def training_due(campaign: Campaign, labels_per_round: int, round_hours: float = 0.0) -> bool:
    """Whether a round should begin: so many images have new labels, or so much time has passed with one that has.

    A round that failed, or that somebody stopped, is not tried again with the same labels: it takes as many
    more. One whose process died with its server is. Labels of held-out images count, but not alone.
    """
    new = campaign.labels_since_last_training()
    if not new or not (0 < labels_per_round <= new or _time_is_up(campaign, round_hours)):
        return False
    labels, trainable = campaign.training_labels(), campaign.training_ids()
    if not any(label.image_id in trainable for label in labels):
        return False
    runs = campaign.runs()
    last = runs[-1] if runs else None
    if last is None or last.state in (RunState.DONE, RunState.IMPORTED) or last.reason == PROCESS_DIED:
        return True
    unseen = sum(label.id not in last.label_ids for label in labels)
    return unseen >= labels_per_round > 0 or (unseen > 0 and _time_is_up(campaign, round_hours))


def _time_is_up(campaign: Campaign, round_hours: float) -> bool:
    """Whether the last round began (or, where there was none, the first label came) so many hours ago."""
    if round_hours <= 0:
        return False
    runs = campaign.runs()
    began = runs[-1].started_at if runs else min(label.submitted_at for label in campaign.training_labels())
    return campaign.now() - began >= 3600 * round_hours


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
        prelabeller: Prelabeller | None = None,
    ) -> None:
        self._workspace, self._datastore, self._scorer = workspace, datastore, scorer
        self._patient_of, self._prelabeller = patient_of, prelabeller
        self._start_training, self._is_training = start_training, is_training
        self._ahead = Ahead(workspace, paths_of(datastore))
        self._tried: frozenset[int] = frozenset()
        self._synced: list[str] | None = None
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
        images = self._images()
        if images != self._synced:  # looked at every second, and mostly nothing has changed
            campaign.sync_images(images, self._patient_of)
            self._synced = images
        if self._is_training() or campaign.current_run() is not None:
            self._ahead.prepare(should_stop=self._ended.is_set)
            return
        settings = self._workspace.settings
        if training_due(campaign, settings.labels_per_round, settings.round_hours):
            labels = frozenset(label.id for label in campaign.training_labels())
            # A process that dies before it can note its run would else be started again every few seconds.
            if labels != self._tried:
                self._tried = labels
                logger.info("A round is full: training starts")
                self._start_training()
                return
        self._ahead.prepare(should_stop=self._ended.is_set)
        path = functools.partial(path_of, self._datastore)
        for _ in self._scorer.score(images, path, should_stop=self._wake.is_set):
            if self._wake.is_set():
                return
        if self._prelabeller is not None:
            made = sum(1 for _ in self._prelabeller.work(should_stop=self._wake.is_set))
            if made:
                logger.info("Labelled %d waiting images ahead", made)

    def _images(self) -> list[str]:
        """Ids of the images; those of a PACS as they were some seconds ago, since this is asked every second."""
        known: Callable[[], list[str]] = getattr(self._datastore, "known_images", self._datastore.list_images)
        return known()
