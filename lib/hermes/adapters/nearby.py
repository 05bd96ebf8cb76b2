"""Requests for a part of an image: the box around what its newest label draws."""

from __future__ import annotations

from pathlib import Path

from monailabel.interfaces.datastore import Datastore, DefaultLabelTag

from hermes.adapters.requests import InferRequest
from hermes.errors import BadRequestError, NotFoundError
from hermes.inference.region import Region
from hermes.labels.space import EVERYTHING
from hermes.records import LabelMap
from hermes.submission import campaign_values, match_structure
from hermes.transforms.reading import read_label_map
from hermes.workspace import Workspace


def region_near(
    asked: InferRequest, image_id: str | None, datastore: Datastore, workspace: Workspace
) -> Region | None:
    """The box that ``near`` asks for; None without it.

    The submitted label counts, else the one that was offered (``original``).

    Raises:
        BadRequestError: the image is no image of the campaign, or its label draws none of the structures.
        NotFoundError: the image has no label yet.
        UnknownStructureError: a structure that the campaign does not label.
    """
    if asked.near is None:
        return None
    if image_id is None:
        msg = "Expected 'near' with an image of the campaign, whose label says where; an upload has none."
        raise BadRequestError(msg)
    drawn = _newest_label(image_id, datastore, workspace)
    wanted = set(drawn.names.values())
    if asked.near != (EVERYTHING,):
        structures = workspace.bindings().structures
        wanted = {match_structure(name, structures) for name in asked.near}
    values = [value for value, name in drawn.names.items() if name in wanted and (drawn.array == value).any()]
    if not values:
        msg = f"Expected 'near' to name structures that the label of the image draws, got {list(asked.near)}."
        raise BadRequestError(msg)
    return Region.around(drawn, values, asked.margin_mm)


def _newest_label(image_id: str, datastore: Datastore, workspace: Workspace) -> LabelMap:
    """The submitted label with its own names, else the offered one, which has the campaign's values."""
    for label in workspace.campaign.labels():
        if label.image_id == image_id:
            path = workspace.archive.path(label.path)
            drawn = read_label_map(path)
            return LabelMap(drawn.array, drawn.grid, workspace.archive.names_of(path))
    offered = datastore.get_label_uri(image_id, DefaultLabelTag.ORIGINAL.value)
    if not offered or not Path(offered).is_file():
        msg = f"Expected image {image_id!r} to have a label, which says where 'near' is. Segment all of it first."
        raise NotFoundError(msg)
    drawn = read_label_map(offered)
    values = campaign_values(workspace.bindings().structures)
    return LabelMap(drawn.array, drawn.grid, {value: name for name, value in values.items()})
