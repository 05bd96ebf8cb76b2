"""Notices images and labels that somebody else puts into a folder, or takes out of it.

MONAI Label's own watch follows everything below the folder of studies, the campaign's database, cache and logs included,
and matches each opening and closing of a file against its patterns: twice the work of answering a request that writes
to the database. It also misses files that are renamed into place, which is how careful programs write.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from watchdog.events import (
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver
from watchdog.observers.polling import PollingObserver

logger = logging.getLogger(__name__)

_NOTICED: list[type[FileSystemEvent]] = [
    FileCreatedEvent,
    FileDeletedEvent,
    FileModifiedEvent,
    FileMovedEvent,
]


class _Changes(FileSystemEventHandler):
    """Passes on what concerns files of some names."""

    def __init__(
        self,
        patterns: Sequence[str],
        index: Path,
        come_or_gone: Callable[[FileSystemEvent], None],
        index_changed: Callable[[FileSystemEvent], None],
    ) -> None:
        self._patterns, self._index = patterns, str(index)
        self._come_or_gone, self._index_changed = come_or_gone, index_changed

    def dispatch(self, event: FileSystemEvent) -> None:
        """Called by the observer."""
        paths = [str(path) for path in (event.src_path, event.dest_path) if path]
        if isinstance(event, FileModifiedEvent):
            if self._index in paths:
                self._index_changed(event)
        elif any(fnmatch(Path(path).name, pattern) for path in paths for pattern in self._patterns):
            self._come_or_gone(event)


def watch_folder(
    images: Path,
    labels: Path,
    index: Path,
    patterns: Sequence[str],
    *,
    come_or_gone: Callable[[FileSystemEvent], None],
    index_changed: Callable[[FileSystemEvent], None],
    poll: bool,
) -> BaseObserver | None:
    """Begin to watch; None, with a line in the log, where the system cannot.

    Args:
        images: the folder of the images; not what is below it.
        labels: the folder with a folder of labels per tag.
        index: MONAI Label's file about both.
        patterns: of the names of images and labels, as ``*.nii.gz``.
        come_or_gone: called when such a file appears, disappears or is renamed.
        index_changed: called when the index was written to.
        poll: look every second, for file systems that tell nothing.
    """
    changes = _Changes(patterns, index, come_or_gone, index_changed)
    observer: BaseObserver = PollingObserver() if poll else Observer()
    try:
        for folder in dict.fromkeys((images, index.parent)):
            observer.schedule(changes, str(folder), recursive=False, event_filter=_NOTICED)
        observer.schedule(changes, str(labels), recursive=True, event_filter=_NOTICED)
        observer.start()
    except OSError as error:
        logger.error("New files in the folder will not be noticed before the next start: %s", error)
        return None
    return observer
