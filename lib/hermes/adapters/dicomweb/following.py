"""Runs what a new listing entails beside the listing itself, so that reading many labels makes nobody wait."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from hermes.adapters.dicomweb.listing import Listing
from hermes.errors import HermesError

logger = logging.getLogger(__name__)

PATIENCE_S = 1.0
"""How long a refresh waits: mostly the few new labels are read by then, and the next answer tells of them."""
STOP_TIMEOUT_S = 5.0


class Follower:
    """A thread of the server process.

    Args:
        follow: takes a listing and says whether there is more to do with it.
    """

    def __init__(self, follow: Callable[[Listing], bool]) -> None:
        self._follow = follow
        self._listing: Listing | None = None
        self._lock = threading.Lock()
        self._wake, self._ended = threading.Event(), threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name="hermes-labels", daemon=True)

    def start(self) -> None:
        """Begin; ends with the process."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after what it is at."""
        self._ended.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)

    def offer(self, listing: Listing) -> None:
        """Take a listing; comes back when it was followed, or at once while earlier ones keep the thread busy."""
        with self._lock:
            was_idle = self._idle.is_set()
            self._listing = listing
            self._idle.clear()
        self._wake.set()
        if was_idle:
            self._idle.wait(PATIENCE_S)

    def _run(self) -> None:
        while not self._ended.is_set():
            self._wake.wait()
            self._wake.clear()
            more = True
            while more and not self._ended.is_set():
                with self._lock:
                    listing, self._listing = self._listing, None
                    if listing is None:
                        self._idle.set()
                        break
                more = self._look(listing)
                with self._lock:
                    if more and self._listing is None:
                        self._listing = listing
                    more = self._listing is not None
                    if not more:
                        self._idle.set()

    def _look(self, listing: Listing) -> bool:
        try:
            return self._follow(listing)
        except HermesError as error:  # the PACS went away; the next listing comes when it is back
            logger.info("Labels of the PACS cannot be followed now: %s", error)
        except Exception:  # the thread must outlive a full disk or a locked database
            logger.exception("Labels of the PACS could not be followed; the next look tries again")
        return False
