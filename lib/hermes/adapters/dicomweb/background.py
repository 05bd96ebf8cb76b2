"""What goes on beside the requests: threads that look for something to do until the server ends."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
STOP_TIMEOUT_S = 5.0


class Background(ABC):
    """A thread of the server process that looks every second, or at once when it is woken.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._wake, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin; ends with the process."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after what it is at."""
        self._ended.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)

    def wake(self) -> None:
        """Look at once."""
        self._wake.set()

    @abstractmethod
    def look(self) -> bool:
        """Do what is due; whether to look again at once."""

    def _run(self) -> None:
        while not self._ended.is_set():
            self._wake.clear()
            try:
                while not self._ended.is_set() and self.look():
                    pass
            except Exception:  # the thread must outlive a full disk or a locked database
                logger.exception("%s met an error and goes on", self._thread.name)
            self._wake.wait(INTERVAL_S)
