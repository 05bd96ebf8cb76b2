"""Strategies as MONAI Label lists and calls them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy as MonaiStrategy

from hermes.adapters.requests import annotator_of, check_json
from hermes.queueing import Queue
from hermes.strategies import Strategy


class HermesStrategy(MonaiStrategy):  # type: ignore[misc]
    """Offers the next image by one of our strategies."""

    def __init__(self, strategy: Strategy, queue: Queue) -> None:
        self._strategy, self._queue = strategy, queue
        super().__init__(strategy.description)

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """``{"id": image}``, or ``{"reason": ...}`` when there is nothing to offer."""
        check_json(dict(request), "params")
        offer = self._queue.offer(self._strategy, datastore.list_images(), annotator_of(request))
        return {"id": offer.image_id, "reason": offer.reason}
