"""What annotators do keeps their reservations, and how they get the next image."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from monailabel.config import settings
from monailabel.interfaces.utils.app import app_instance

from hermes.adapters.annotators import annotator_in, logged_in
from hermes.adapters.errors import answers_errors
from hermes.adapters.requests import parse_json_object

logger = logging.getLogger(__name__)


@answers_errors
def note_activity(arguments: Mapping[str, Any]) -> None:
    """Prolong the annotator's lease of the image that a request is about: a download, an inference, a draft.

    Args:
        arguments: of an endpoint of MONAI Label; ``user``, ``image`` and ``params`` are looked at.

    Raises:
        BadRequestError: the client gives itself a name that names nobody.
    """
    user = arguments.get("user")
    if settings.MONAI_LABEL_AUTH_ENABLE and user is not None:
        logged_in(user.username)
    params = arguments.get("params") or {}
    who = annotator_in(parse_json_object(params, "params") if isinstance(params, str) else params)
    image = arguments.get("image")
    if who is None or not isinstance(image, str) or not image:
        return
    parts = app_instance().parts
    if parts.queue.lease_s > 0:
        parts.workspace.campaign.assignments.renew(image, who, parts.queue.lease_s)


def next_sample(
    strategy: str, params: dict[str, Any] | None = None, user: str | None = None
) -> dict[str, Any]:
    """The answer to a viewer that asks for the next image: what MONAI Label's own function says, without its detours.

    That one builds the whole of ``/info/`` for every sample, and rewrites the index of all images to note in it who
    was offered what, which the campaign's database knows.
    """
    instance = app_instance()
    request = {"strategy": strategy, **(params or {})}
    logger.info("Next sample: %s for %s", strategy, request.get("client_id", user))
    result: dict[str, Any] = instance.next_sample(request)
    return {**result, **instance.datastore().get_image_info(result["id"])}
