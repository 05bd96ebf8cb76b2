"""A segmentation that the viewer has stored in the PACS becomes the submitted label of its image."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from monailabel.interfaces.utils.app import app_instance

from hermes.errors import HermesError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Taken:
    """What became of a label object.

    Attributes:
        image: whose label it is now; None where it is none.
        reason: why it is none.
        covered: what of structures that overlap the label does not hold, a phrase each.
    """

    image: str | None
    reason: str | None = None
    covered: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As the viewer's panel reads it."""
        return asdict(self)


def storing(objects: Sequence[Any]) -> AbstractContextManager[None]:
    """While it lasts, the campaign does not read these objects, ``pydicom.Dataset``, as labels that others stored."""
    if not objects:
        return nullcontext()
    tell = getattr(app_instance().datastore(), "storing", None)
    uids = [str(dataset.get("SOPInstanceUID", "")) for dataset in objects]
    told: AbstractContextManager[None] = tell(uids) if tell is not None else nullcontext()
    return told


def take_labels(objects: Sequence[Any], annotator: str | None) -> list[Taken]:
    """What becomes of each label object that has just been stored in the PACS.

    Args:
        objects: ``pydicom.Dataset``, with pixels.
        annotator: who stored them; None where that is not known.
    """
    return [_take(dataset, annotator) for dataset in objects]


def instances_of_volumes(study_uid: str, image: str) -> dict[str, frozenset[str]]:
    """Series of several volumes -> the objects of the one to show; empty where nothing is to be left out."""
    ask = getattr(app_instance().datastore(), "instances_of_volumes", None)
    try:
        found: dict[str, frozenset[str]] = ask(study_uid, image) if ask is not None else {}
    except HermesError as error:  # it cannot be told apart now: the viewer shows what there is
        logger.info("The series of a study are shown as they are: %s", error)
        return {}
    return found


def _take(dataset: Any, annotator: str | None) -> Taken:
    instance = app_instance()
    take = getattr(instance.datastore(), "take_stored_object", None)
    if take is None:  # MONAI Label's own datastore: it will not even list the object
        return Taken(None, "This server's datastore does not take labels out of the PACS.")
    try:
        stored = take(dataset, annotator)
    except HermesError as error:
        logger.info("A stored label object is not used: %s", error)
        return Taken(None, str(error))
    if stored is None:
        return Taken(None, "It labels no image of this campaign.")
    instance.on_save_label(stored.image_id, stored.image_id)
    return Taken(stored.image_id, covered=stored.covered)
