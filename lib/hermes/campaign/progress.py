"""How many images of a datastore are to be labelled, and how many are: one rule for files and for a PACS."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from hermes.campaign.board import Board
from hermes.types import CaseId


@dataclass(frozen=True)
class Progress:
    """Counts of images.

    Attributes:
        total: that can be labelled.
        completed: of these, those with a label that counts: neither taken back nor rejected.
        quarantined: that are left out and are not in ``total``.
    """

    total: int
    completed: int
    quarantined: int


class Counting:
    """Counts from a picture of the images' states; safe from several threads.

    Args:
        board: that nobody else uses.
    """

    def __init__(self, board: Board) -> None:
        self._board, self._lock = board, threading.Lock()

    def of(self, images: Iterable[CaseId]) -> Progress:
        """How far the labelling of these images is; one that the campaign takes over in a moment can be labelled."""
        with self._lock:
            self._board.look()
            states = [self._board.states.get(image) for image in images]
        usable = [state for state in states if state is None or state.usable]
        completed = sum(state is not None and bool(state.labelled) for state in usable)
        return Progress(len(usable), completed, len(states) - len(usable))
