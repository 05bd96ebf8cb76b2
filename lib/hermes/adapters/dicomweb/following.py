"""Runs what a new listing entails beside the listing itself, so that reading many labels makes nobody wait."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from hermes.adapters.dicomweb.background import Background
from hermes.adapters.dicomweb.listing import Listing
from hermes.errors import HermesError

logger = logging.getLogger(__name__)

PATIENCE_S = 1.0
"""How long a refresh waits: mostly the few new labels are read by then, and the next answer tells of them."""


class Follower(Background):
    """Follows the latest listing.

    Args:
        follow: takes a listing and says whether there is more to do with it.
    """

    def __init__(self, follow: Callable[[Listing], bool]) -> None:
        self._follow = follow
        self._listing: Listing | None = None
        self._lock = threading.Lock()
        self._idle = threading.Event()
        self._idle.set()
        super().__init__("hermes-labels")

    def offer(self, listing: Listing) -> None:
        """Take a listing; comes back when it was followed, or at once while earlier ones keep the thread busy."""
        with self._lock:
            was_idle = self._idle.is_set()
            self._listing = listing
            self._idle.clear()
        self.wake()
        if was_idle:
            self._idle.wait(PATIENCE_S)

    def look(self) -> bool:
        """Follow the listing that was offered last; whether there is more to do with it, or a newer one."""
        with self._lock:
            listing, self._listing = self._listing, None
        more = listing is not None and self._followed(listing)
        with self._lock:
            if more and self._listing is None:
                self._listing = listing
            if self._listing is None:
                self._idle.set()
            return self._listing is not None

    def _followed(self, listing: Listing) -> bool:
        try:
            return self._follow(listing)
        except HermesError as error:  # the PACS went away; the next listing comes when it is back
            logger.info("Labels of the PACS cannot be followed now: %s", error)
        except Exception:  # who waits must not wait for what will not come
            logger.exception("Labels of the PACS could not be followed; the next look tries again")
        return False
