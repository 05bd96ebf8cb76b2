"""New series are looked at in the background: which volumes they hold, and whether anything in them can be used."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from hermes.adapters.dicomweb.listing import Listing, SeriesInfo
from hermes.adapters.dicomweb.series import SeriesFiles
from hermes.campaign.campaign import Campaign
from hermes.errors import NotFoundError, PacsError

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
AGAIN_AFTER_S = 30.0
"""A series that the PACS could not tell about is asked for again after this time."""
STOP_TIMEOUT_S = 5.0


class Inspector:
    """A thread of the server process. A series with nothing usable is quarantined with the reason.

    Args:
        campaign: where images are quarantined.
        files: of the PACS.
        listing: gives what the PACS holds.
    """

    def __init__(self, campaign: Campaign, files: SeriesFiles, listing: Callable[[], Listing]) -> None:
        self._campaign, self._files, self._listing = campaign, files, listing
        self._not_before: dict[str, float] = {}
        self._said: dict[str, str | None] = {}
        self._wake, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="hermes-inspector", daemon=True)

    def start(self) -> None:
        """Begin; ends with the process."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the series that it looks at."""
        self._ended.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)

    def wake(self) -> None:
        """Look at once."""
        self._wake.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._wake.clear()
            try:
                self.look()
            except Exception:  # the thread must outlive a full disk or a locked database
                logger.exception("The inspector of the PACS met an error and goes on")
            self._wake.wait(INTERVAL_S)

    def look(self) -> int:
        """Look at every series that was not looked at as it is now; how many that were."""
        count = 0
        for series in self._listing().series.values():
            if self._ended.is_set():
                break
            if self._files.inspected(series) is None and time.monotonic() >= self._not_before.get(
                series.uid, 0
            ):
                count += self._inspect(series)
            self._quarantine(series)
        return count

    def _inspect(self, series: SeriesInfo) -> int:
        try:
            self._files.inspect(series)
        except PacsError as error:
            self._not_before[series.uid] = time.monotonic() + AGAIN_AFTER_S
            logger.info("A series could not be looked at: %s", error)
            return 0
        return 1

    def _quarantine(self, series: SeriesInfo) -> None:
        """Let the campaign know of a refusal, and of its end: a series may be sent again, whole this time."""
        found = self._files.inspected(series)
        if found is None or (series.uid in self._said and self._said[series.uid] == found.refusal):
            return
        if series.uid not in self._said and found.refusal is None:
            self._said[series.uid] = None
            return
        try:
            self._campaign.quarantine(series.uid, found.refusal)
        except NotFoundError:  # the campaign takes new images over in a moment
            return
        self._said[series.uid] = found.refusal
        if found.refusal is not None:
            logger.warning("A series is left out of the campaign: %s", found.refusal)
