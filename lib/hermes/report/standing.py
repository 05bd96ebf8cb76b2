"""How far the queue is, for everybody and for one annotator."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from hermes.campaign.campaign import Campaign
from hermes.queueing import Queue


@dataclass(frozen=True)
class Standing:
    """Counts of images.

    Attributes:
        images: that can be used.
        complete: of which nothing more is wished.
        partly: that have a label and are not complete.
        reserved: that somebody works on now.
        skipped: that at least one annotator did not want, and that are not complete.
        revisits: open wishes to look again.
        unusable: that are gone or cannot be read.
        free_for_annotator: that the asking annotator could get now; None where nobody was named.
        full_quotas: structure -> whether its quota is full.
    """

    images: int
    complete: int
    partly: int
    reserved: int
    skipped: int
    revisits: int
    unusable: int
    free_for_annotator: int | None
    full_quotas: dict[str, bool]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return dataclasses.asdict(self)


def standing(queue: Queue, campaign: Campaign, annotator: str = "") -> Standing:
    """How far the queue is now; with ``annotator`` also for this one."""
    states, wish, now = queue.states(), queue.wish, campaign.now()
    usable = [state for state in states.values() if state.usable]
    waiting = [state for state in usable if not state.complete(wish)]
    free = sum(state.may_take(annotator, wish, now) for state in usable) if annotator else None
    return Standing(
        images=len(usable),
        complete=len(usable) - len(waiting),
        partly=sum(bool(state.labelled) for state in waiting),
        reserved=sum(bool(state.holders(now)) for state in usable),
        skipped=sum(bool(state.skipped_by) for state in waiting),
        revisits=sum(len(state.revisits) for state in usable),
        unusable=len(states) - len(usable),
        free_for_annotator=free,
        full_quotas=queue.full_quotas(),
    )
