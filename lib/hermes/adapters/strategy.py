"""Strategies as MONAI Label lists and calls them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy as MonaiStrategy

from hermes.adapters.requests import annotator_of, check_json, names_in
from hermes.labels.space import EVERYTHING
from hermes.queueing import Queue
from hermes.strategies import Strategy
from hermes.submission import match_structure
from hermes.types import StructureName


def _to_offer(datastore: Datastore) -> tuple[list[str], int]:
    """The images that may be offered, and how many more there are of which nobody knows yet whether they can be used."""
    offerable: Callable[[], list[str]] | None = getattr(datastore, "offerable_images", None)
    if offerable is None:
        return datastore.list_images(), 0
    return offerable(), datastore.waiting_to_be_inspected()


class HermesStrategy(MonaiStrategy):  # type: ignore[misc]
    """Offers the next image by one of our strategies."""

    def __init__(
        self, strategy: Strategy, queue: Queue, structures: Callable[[], Sequence[StructureName]]
    ) -> None:
        """Offer by ``strategy`` out of ``queue``; ``structures`` gives what the campaign labels."""
        self._strategy, self._queue, self._structures = strategy, queue, structures
        super().__init__(strategy.description)

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """``{"id": image}``, or ``{"reason": ...}`` when there is nothing to offer.

        With ``structures`` (names of the campaign) an image is offered in which they are not annotated yet.
        """
        check_json(dict(request), "params")
        names = names_in(request, "structures") or ()
        labelled = self._structures() if names else ()
        asked = [match_structure(name, labelled) for name in names if name != EVERYTHING]
        images, unknown = _to_offer(datastore)
        offer = self._queue.offer(self._strategy, images, annotator_of(request), asked)
        reason = offer.reason
        if offer.image_id is None and unknown:
            reason = f"{reason} {unknown} new ones are looked at first: ask again in a few seconds."
        answer = {"id": offer.image_id, "reason": reason, "missing": list(offer.structures)}
        return answer | {"reserved_until": offer.until, "revisit": offer.revisit}
