"""Which file a request's ``image`` means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore

from hermes.adapters.requests import uploaded_file
from hermes.errors import BadRequestError, NotFoundError, PacsError

LONGEST_SHOWN = 100  # characters of a client's text in a message


def paths_of(datastore: Datastore) -> Callable[[str], Path]:
    """Image id -> its file, for images that may be gone meanwhile: those raise `NotFoundError`."""

    def path(image_id: str) -> Path:
        try:
            return path_of(datastore, image_id)
        except PacsError as error:
            raise NotFoundError(str(error)) from error

    return path


def path_of(datastore: Datastore, image_id: str) -> Path:
    """The file or DICOM folder of an image.

    Raises:
        NotFoundError: there is no such image (any more).
        PacsError: it lies in a PACS that does not answer.
    """
    own: Callable[[str], Path] | None = getattr(datastore, "image_path", None)
    if own is not None:
        return own(image_id)
    uri = datastore.get_image_uri(image_id)
    if not uri:
        msg = f"Expected image {image_id!r} in the datastore, it is not there any more."
        raise NotFoundError(msg)
    return Path(uri)


def resolve_image(
    image: Any, datastore: Datastore, sessions_directory: str | None
) -> tuple[str | None, Path]:
    """``(id, file)`` of an image of the datastore; the id is None for a file that was sent to this server.

    Raises:
        NotFoundError: no image has this id.
        BadRequestError: a path to a file that was not uploaded to this server.
    """
    if not isinstance(image, str) or not image:
        msg = f"Expected 'image' to be the id of an image, got {image!r}."
        raise BadRequestError(msg)
    if image in datastore.list_images():
        return image, path_of(datastore, image)
    upload = uploaded_file(image, sessions_directory)
    if upload is not None:
        return None, upload
    image = image if len(image) <= LONGEST_SHOWN else f"{image[:LONGEST_SHOWN]}..."
    if "/" in image or "\\" in image:
        msg = f"Expected the id of an image, got a path: {image!r}. Files outside the datastore are not read; upload the image."
        raise BadRequestError(msg)
    msg = f"Expected the id of one of the images of this campaign, got {image!r}. GET /datastore/?output=all lists them."
    raise NotFoundError(msg)
