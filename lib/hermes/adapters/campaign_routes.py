"""Addresses for campaigns with several annotators: who works on what, skips, wishes to look again, reviews, the report.

Bodies are JSON objects. Who asks is the user of login or proxy, else ``client_id`` in the body (or query).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Body, Depends
from fastapi.responses import HTMLResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from hermes.adapters.annotators import annotator_in, annotator_name, logged_in
from hermes.adapters.build import Parts
from hermes.adapters.errors import answers_errors
from hermes.adapters.requests import check_json
from hermes.campaign.records import ReviewState
from hermes.campaign.reviews import label_to_review
from hermes.errors import BadRequestError
from hermes.report import html_report, summarise
from hermes.report.standing import standing

router = APIRouter(prefix="/hermes", tags=["Hermes: annotators"])
_USER, _ANNOTATOR, _REVIEWER = (
    Depends(RBAC(role))
    for role in (
        settings.MONAI_LABEL_AUTH_ROLE_USER,
        settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR,
        settings.MONAI_LABEL_AUTH_ROLE_REVIEWER,
    )
)
_BODY = Body(default={})
LONGEST_SHOWN = 100


def _parts() -> Parts:
    parts: Parts = app_instance().parts
    return parts


# ------------------------------------------------------------------------------------------------ looking


@router.get("/queue", summary="How many images are open, reserved, done, skipped, to look at again")
def queue(client_id: str | None = None, user: User = _USER) -> dict[str, Any]:
    """Counts; with ``client_id`` also what this annotator may take."""
    who = _who({"client_id": client_id}, user, optional=True)
    return answers_errors(lambda: standing(_parts().queue, _parts().workspace.campaign, who).to_json())()


@router.get("/leases", summary="Which images are reserved, for whom, since when and until when")
def leases(user: User = _USER) -> list[dict[str, Any]]:
    """The leases that have not run out, the oldest first."""
    return [dataclasses.asdict(one) for one in _parts().workspace.campaign.assignments.leases()]


@router.get("/skips", summary="Images that annotators did not want, with the reason")
def skips(user: User = _USER) -> list[dict[str, Any]]:
    """All skips, the first one first."""
    return [dataclasses.asdict(one) for one in _parts().workspace.campaign.assignments.skips()]


@router.get("/revisits", summary="Images that are to be looked at again")
def revisits(every: bool = False, user: User = _USER) -> list[dict[str, Any]]:
    """The open wishes; with ``every`` those that were fulfilled, too."""
    found = _parts().workspace.campaign.assignments.revisits(only_open=not every)
    return [dataclasses.asdict(one) for one in found]


@router.get(
    "/labels", summary="All submitted label versions with the state of their review; which were withdrawn"
)
def labels(image: str = "", user: User = _USER) -> list[dict[str, Any]]:
    """Of one image, or all."""
    campaign = _parts().workspace.campaign
    reviews = campaign.reviews.all()
    found = []
    for label in campaign.labels(latest=False, image_id=image or None, withdrawn=True):
        review = reviews.get(label.id)
        about = {"label": label.id, "image": label.image_id, "version": label.number}
        about |= {"annotator": label.annotator, "submitted_at": label.submitted_at}
        about |= {"withdrawn": label.withdrawn_at is not None, "withdrawn_at": label.withdrawn_at}
        about |= {"annotated": label.annotated, "state": ReviewState.SUBMITTED}
        if review is not None:
            about |= {"state": review.state, "reviewer": review.reviewer, "comment": review.comment}
        found.append(about)
    return found


@router.get(
    "/campaign", summary="Everything that the report shows, as JSON, with the advice to stop or to go on"
)
def campaign(user: User = _USER) -> dict[str, Any]:
    """Counts, curves, agreement, advice."""
    return answers_errors(lambda: summarise(_parts().workspace).to_json())()


@router.get("/report", summary="The report of the campaign as a page", response_class=HTMLResponse)
def report(user: User = _USER) -> HTMLResponse:
    """One page with pictures."""
    return HTMLResponse(answers_errors(lambda: html_report(summarise(_parts().workspace)))())


# ------------------------------------------------------------------------------------------------ doing


@router.post("/skip", summary="Give an image back; others are offered it: {image, reason, client_id}")
def skip(body: dict[str, Any] = _BODY, user: User = _ANNOTATOR) -> dict[str, str]:
    """404 for an unknown image, 400 without a reason."""
    who = _who(body, user)
    image = _text(body, "image")
    answers_errors(_parts().workspace.campaign.assignments.skip)(image, who, _text(body, "reason"))
    return {"image": image, "annotator": who}


@router.post("/release", summary="End one's reservation of an image: {image, client_id}")
def release(body: dict[str, Any] = _BODY, user: User = _ANNOTATOR) -> dict[str, Any]:
    """Whether there was one."""
    who, image = _who(body, user), _text(body, "image")
    return {"image": image, "released": _parts().workspace.campaign.assignments.release(image, who)}


@router.post(
    "/revisit",
    summary="Ask to look at an image again: {image, annotator (omitted: anybody), reason, client_id}",
)
def revisit(body: dict[str, Any] = _BODY, user: User = _ANNOTATOR) -> dict[str, Any]:
    """It comes first in the queue of the annotator, or of everybody. 404 for an unknown image."""
    who, image = _who(body, user), _text(body, "image")
    whom = body.get("annotator")
    if whom not in (None, ""):
        whom = answers_errors(annotator_name)(whom, "annotator")
    wish = answers_errors(_parts().workspace.campaign.assignments.ask_revisit)(
        image, asked_by=who, annotator=whom or None, reason=_text(body, "reason", "")
    )
    return dataclasses.asdict(wish)


@router.post(
    "/review",
    summary="Approve or reject a label: {label, or image and annotator; state: approved, rejected, submitted; comment}",
)
def review(body: dict[str, Any] = _BODY, user: User = _REVIEWER) -> dict[str, Any]:
    """404 for an unknown label; 400 for a rejection without a comment."""
    who = _who(body, user)
    return answers_errors(_review)(body, who)


def _review(body: Mapping[str, Any], who: str) -> dict[str, Any]:
    parts = _parts()
    number = body.get("label")
    if number is None:
        labels_of = parts.workspace.campaign.labels(latest=False)
        number = label_to_review(labels_of, _text(body, "image"), _text(body, "annotator", "") or None).id
    if isinstance(number, bool) or not isinstance(number, int):
        msg = f"Expected 'label' to be the number of a label, got {str(number)[:LONGEST_SHOWN]!r}. GET /hermes/labels lists them."
        raise BadRequestError(msg)
    states = [state.value for state in ReviewState]
    if body.get("state") not in states:
        msg = f"Expected 'state' to be one of {states}, got {str(body.get('state'))[:LONGEST_SHOWN]!r}."
        raise BadRequestError(msg)
    done = parts.workspace.campaign.reviews.review(
        number,
        ReviewState(body["state"]),
        reviewer=who,
        comment=_text(body, "comment", ""),
        wish=parts.queue.wish,
    )
    parts.label_saved()  # what training takes has changed
    return dataclasses.asdict(done)


# ------------------------------------------------------------------------------------------------ reading


@answers_errors
def _who(body: Mapping[str, Any], user: User, *, optional: bool = False) -> str:
    """Who asks.

    Raises:
        BadRequestError: nobody says.
    """
    if settings.MONAI_LABEL_AUTH_ENABLE:
        logged_in(user.username)
    check_json(dict(body), "body")
    who = annotator_in(body)
    if who is None and not optional:
        msg = "Expected 'client_id' to say who asks: the id that is sent with the request for the next image."
        raise BadRequestError(msg)
    return who or ""


@answers_errors
def _text(body: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = body.get(name, default)
    if not isinstance(value, str) or (not value and default is None):
        msg = f"Expected {name!r} to be a text, got {str(value)[:LONGEST_SHOWN]!r}."
        raise BadRequestError(msg)
    return value
