"""What there is of an image that an annotator opens: who has it, why it is to be looked at again, its label so far."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.utils.app import app_instance

from hermes.adapters.annotators import annotator_in, logged_in
from hermes.adapters.errors import answers_errors
from hermes.campaign.campaign import Campaign
from hermes.campaign.records import Annotated, LabelRecord, ReviewState
from hermes.errors import NotFoundError
from hermes.submission import campaign_values
from hermes.workspace import Workspace

NAMES_HEADER = "hermes-label-names"
"""Of the answer with a label's file: value of each structure in it, as JSON."""
_ORIGINAL = DefaultLabelTag.ORIGINAL.value

router = APIRouter(prefix="/hermes/viewer", tags=["Hermes"])
_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))


@dataclass(frozen=True)
class Drawn:
    """A label that an image has already.

    Attributes:
        source: "final" for a submitted one, "original" for one that the model drew ahead.
        id: by which its file is asked for: the number of the label version, or "original".
        path: its file, NIfTI.
        values: structure -> its value in the file.
        absent: structures that it declares absent.
        version: which submission of the image it is; None for a pre-drawn one.
        annotator: who submitted it; None for a pre-drawn one.
        at: when it was submitted (seconds since 1970).
        state: of its review; None for a pre-drawn one.
        comment: of the reviewer.
        model_version: that drew it, or whose drawing was corrected.
    """

    source: str
    id: str
    path: Path
    values: dict[str, int]
    absent: list[str] = field(default_factory=list)
    version: int | None = None
    annotator: str | None = None
    at: float | None = None
    state: str | None = None
    comment: str = ""
    model_version: str | None = None

    def to_json(self, who: str) -> dict[str, Any]:
        """As the panel shows it to ``who``; the file's place on this disk is left out."""
        told = {name: value for name, value in asdict(self).items() if name != "path"}
        return {**told, "own": bool(who) and self.annotator == who}


@router.get("/image", summary="Of one image: who has it, why it is to be looked at again, the label it has")
def image(image: str, client_id: str = "", user: User = _USER) -> dict[str, Any]:
    """404 for an image that the campaign does not have."""
    return answers_errors(lambda: _about(image, _who(client_id, user)))()


@router.get("/label", summary="The label that /hermes/viewer/image tells of, as NIfTI")
def label(image: str, id: str, user: User = _USER) -> FileResponse:
    """The values of its structures are in a header; 404 where there is no such label (any more)."""
    found = answers_errors(_label)(image, id)
    told = {"values": found.values, "model_version": found.model_version}
    headers = {NAMES_HEADER: json.dumps(told), "Cache-Control": "no-store"}
    return FileResponse(found.path, media_type="application/gzip", headers=headers)


def _who(client_id: str, user: User) -> str:
    if settings.MONAI_LABEL_AUTH_ENABLE:
        logged_in(user.username)
    return annotator_in({"client_id": client_id or None}) or ""


def _about(image_id: str, who: str) -> dict[str, Any]:
    parts = app_instance().parts
    campaign: Campaign = parts.workspace.campaign
    _look_for_labels()
    state = campaign.assignments.states([image_id]).get(image_id)
    if state is None:
        msg = "Expected an image of this campaign, got another series: labels of it cannot be submitted here."
        raise NotFoundError(msg)
    now = campaign.now()
    wishes = [one for one in campaign.assignments.revisits() if one.image_id == image_id]
    drawn = drawn_already(image_id, who, parts.workspace, app_instance().datastore())
    return {
        "image": image_id,
        "reserved": [{"annotator": one, "until": state.leases[one]} for one in sorted(state.holders(now))],
        "revisits": [
            {
                "annotator": wish.annotator,
                "asked_by": wish.asked_by,
                "reason": wish.reason,
                "rejected": wish.rejected_label is not None,
                "yours": bool(who) and wish.annotator in (None, who),
            }
            for wish in wishes
        ],
        "missing": list(state.missing(parts.queue.wish)),
        "usable": state.usable,
        "label": drawn.to_json(who) if drawn is not None else None,
    }


def _look_for_labels() -> None:
    """Where labels are stored in a PACS by others, too, what there is now counts."""
    look = getattr(app_instance().datastore(), "look_for_labels", None)
    if look is not None:
        look()


def drawn_already(image_id: str, who: str, workspace: Workspace, datastore: Datastore) -> Drawn | None:
    """The label that ``who`` goes on from: their own, else the latest submitted, else a pre-drawn one."""
    submitted = workspace.campaign.labels(latest=False, image_id=image_id)
    own = [one for one in submitted if one.annotator == who]
    if submitted:
        return _submitted((own or submitted)[-1], workspace)
    return _predrawn(image_id, workspace, datastore)


def _label(image_id: str, label_id: str) -> Drawn:
    workspace: Workspace = app_instance().parts.workspace
    _look_for_labels()
    if label_id == _ORIGINAL:
        found = _predrawn(image_id, workspace, app_instance().datastore())
    else:
        submitted = workspace.campaign.labels(latest=False, image_id=image_id)
        record = next((one for one in submitted if str(one.id) == label_id), None)
        found = _submitted(record, workspace) if record is not None else None
    if found is None or not found.path.is_file():
        msg = "Expected a label that the image has, it is not there any more. Open the image again."
        raise NotFoundError(msg)
    return found


def _submitted(record: LabelRecord, workspace: Workspace) -> Drawn:
    path = workspace.archive.path(record.path)
    review = workspace.campaign.reviews.all().get(record.id)
    return Drawn(
        source=record.tag,
        id=str(record.id),
        path=path,
        values={name: value for value, name in workspace.archive.names_of(path).items()},
        absent=[name for name, said in record.annotated.items() if said is Annotated.ABSENT],
        version=record.number,
        annotator=record.annotator,
        at=record.submitted_at,
        state=(review.state if review is not None else ReviewState.SUBMITTED).value,
        comment=review.comment if review is not None else "",
        model_version=record.model_version,
    )


def _predrawn(image_id: str, workspace: Workspace, datastore: Datastore) -> Drawn | None:
    """The label with the tag ``original``, in the values that it was kept with, else the campaign's."""
    if _ORIGINAL not in {str(tag) for tag in datastore.get_labels_by_image_id(image_id)}:
        return None
    path = Path(datastore.get_label_uri(image_id, _ORIGINAL) or "")
    if not path.is_file():
        return None
    said = datastore.get_label_info(image_id, _ORIGINAL).get("params")
    params: dict[str, Any] = said if isinstance(said, dict) else {}
    names, version = params.get("label_names"), params.get("model_version")
    values = names if isinstance(names, dict) else campaign_values(workspace.bindings().structures)
    return Drawn(
        source=_ORIGINAL,
        id=_ORIGINAL,
        path=path,
        values={str(name): int(value) for name, value in values.items()},
        model_version=version if isinstance(version, str) else None,
    )
