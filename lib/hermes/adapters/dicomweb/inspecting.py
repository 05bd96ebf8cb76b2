"""New series are looked at in the background: which volumes they hold, and whether anything in them can be used."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from hermes.adapters.dicomweb.background import Background
from hermes.adapters.dicomweb.listing import Listing, SeriesInfo
from hermes.adapters.dicomweb.series import SeriesFiles
from hermes.campaign.campaign import Campaign
from hermes.errors import NotFoundError, PacsError

logger = logging.getLogger(__name__)

AGAIN_AFTER_S = 30.0
"""A series that the PACS could not tell about is asked for again after this time."""


class Inspector(Background):
    """A series with nothing usable is quarantined with the reason.

    Args:
        campaign: where images are quarantined.
        files: of the PACS.
        listing: gives what the PACS holds.
    """

    def __init__(self, campaign: Campaign, files: SeriesFiles, listing: Callable[[], Listing]) -> None:
        self._campaign, self._files, self._listing = campaign, files, listing
        self._not_before: dict[str, float] = {}
        self._said: dict[str, str | None] = {}
        super().__init__("hermes-inspector")

    def look(self) -> bool:
        """Look at every series that was not looked at as it is now; what comes meanwhile waits for the next time."""
        for series in self._listing().series.values():
            if self._ended.is_set():
                break
            if self._files.inspected(series) is None and time.monotonic() >= self._not_before.get(
                series.uid, 0
            ):
                self._inspect(series)
            self._quarantine(series)
        return False

    def _inspect(self, series: SeriesInfo) -> None:
        try:
            self._files.inspect(series)
        except PacsError as error:
            self._not_before[series.uid] = time.monotonic() + AGAIN_AFTER_S
            logger.info("A series could not be looked at: %s", error)

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
