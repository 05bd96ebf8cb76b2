"""Hermes' own addresses beside MONAI Label's: versions of the model, and what a training would find.

Only the server of ``make serve`` has them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter, Depends
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from hermes.adapters.build import Parts
from hermes.adapters.dicomweb.pacs import Pacs
from hermes.adapters.errors import answers_errors
from hermes.adapters.requests import round_options
from hermes.errors import ConflictError, NotFoundError

router = APIRouter(prefix="/hermes", tags=["Hermes"])
_USER, _ADMIN = (
    Depends(RBAC(role))
    for role in (settings.MONAI_LABEL_AUTH_ROLE_USER, settings.MONAI_LABEL_AUTH_ROLE_ADMIN)
)


def _parts() -> Parts:
    parts: Parts = app_instance().parts
    return parts


@router.get(
    "/versions", summary="All versions of the model, the base first, with the reports of their rounds"
)
def versions(user: User = _USER) -> list[dict[str, Any]]:
    """The versions, oldest first."""
    return [dataclasses.asdict(version) for version in answers_errors(_parts().workspace.list_versions)()]


@router.post("/versions/{name}/publish", summary="Let a version answer; the next round trains from it")
def publish(name: str, force: bool = False, user: User = _ADMIN) -> dict[str, str]:
    """404 for an unknown version, 409 for a damaged one, and for a refused one unless it is forced."""
    before = answers_errors(_parts().workspace.publish)(name, force=force)
    return {"serving": name, "before": before}


@router.post("/rollback", summary="Let the parent of the serving version answer again")
def rollback(user: User = _ADMIN) -> dict[str, str]:
    """409 where the model that the campaign began with answers, or where the parent is damaged."""
    return {"serving": answers_errors(_parts().workspace.rollback)()}


@router.get("/preflight", summary="What a training would find in the labels, and whether it would begin")
def preflight(structures: str = "", user: User = _USER) -> dict[str, Any]:
    """Voxels and cases per structure, labels that would be left out and why."""
    return answers_errors(_preflight)(structures)


def _preflight(structures: str) -> dict[str, Any]:
    parts = _parts()
    names = parts.workspace.bindings().structures
    options = round_options({"structures": structures}, parts.workspace.settings, names)
    try:
        return {"ready": True, **parts.preflight(options)}
    except ConflictError as error:
        return {"ready": False, "reason": str(error)}


@router.get(
    "/pacs", summary="How the PACS does: uploads that wait, objects and series that are not used, and why"
)
def pacs(user: User = _USER) -> dict[str, Any]:
    """404 where the images of the campaign are files."""
    return answers_errors(_pacs)().state()


@router.post("/pacs/retry", summary="Send every label that waits for the PACS, or was refused by it, now")
def retry_uploads(user: User = _ADMIN) -> dict[str, int]:
    """How many labels are tried again."""
    return {"uploads": answers_errors(_pacs)().retry()}


def _pacs() -> Pacs:
    found = _parts().pacs
    if found is None:
        msg = "Expected a campaign on a DICOMweb server, the images of this one are files in a folder."
        raise NotFoundError(msg)
    return found


@router.get("/quarantine", summary="Images that are left out of the campaign, with the reason")
def quarantine(user: User = _USER) -> list[dict[str, str]]:
    """By image id."""
    images = _parts().workspace.campaign.images()
    return [{"image": i.id, "reason": i.quarantined_reason} for i in images if i.quarantined_reason]
