"""The process that trains, beside the one that answers."""

from __future__ import annotations

import os
import threading
import time


def end_with_parent(*, every_s: float = 1.0) -> None:
    """End this process at once when its parent is gone: a trainer without its server writes nothing more.

    Everything that a round writes is atomic, so ending at any moment loses what came after the last saved state
    and nothing else.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every_s)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
