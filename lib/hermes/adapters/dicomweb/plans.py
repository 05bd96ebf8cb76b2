"""What has to be done so that an image's label is what its submission and the objects of others say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hermes.adapters.dicomweb.series import Image
from hermes.campaign.pacs_objects import PacsObject
from hermes.campaign.records import LabelRecord

IMPORTED = "pacs"
"""Source of the label versions that were read from the PACS."""
SUBMISSION = "label:"
"""Opens the part of a label's origin that is a submission; the others are objects."""


@dataclass(frozen=True)
class Plan:
    """What has to be done with the label of an image.

    Attributes:
        image: whose label it is.
        stale: ids of label versions that were read from what is no longer there.
        objects: to read a new version from; empty where none is needed.
        base: the submission that they add to.
        origin: what the new version is read from, as it is noted.
    """

    image: Image
    stale: tuple[int, ...]
    objects: tuple[PacsObject, ...]
    base: LabelRecord | None
    origin: tuple[str, ...]


def plan_of(
    image: Image,
    valid: Sequence[LabelRecord],
    here: Mapping[str, PacsObject],
    origins: Mapping[int, tuple[str, ...]],
) -> Plan | None:
    """What has to be done with an image's label; None where it is right.

    Args:
        image: the image.
        valid: its label versions, the oldest first.
        here: the objects of others that label it now, by UID.
        origins: label version -> what it was read from, for those that were read from the PACS.
    """
    # One that was read from the PACS and has no origin is what a crash has left: it is read again.
    orphans = {label.id for label in valid if label.source == IMPORTED and label.id not in origins}
    submitted = [label for label in valid if label.id not in origins and label.id not in orphans]
    base = submitted[-1] if submitted else None
    there = {identity(found) for found in here.values()} | {f"{SUBMISSION}{label.id}" for label in submitted}
    stale = tuple(
        label.id for label in valid if label.id in orphans or not there >= set(origins.get(label.id, ()))
    )
    left = [label for label in valid if label.id not in stale]
    counting = [found for found in here.values() if base is None or found.first_seen_at > base.submitted_at]
    origin = sorted(identity(found) for found in counting)
    origin += [f"{SUBMISSION}{base.id}"] if base is not None else []
    done = not counting or (left and origins.get(left[-1].id) == tuple(origin))
    if done and not stale:
        return None
    return Plan(image, stale, () if done else tuple(counting), base, tuple(origin))


def identity(found: PacsObject) -> str:
    """An object with its content: the same UID may come back with another one."""
    return f"{found.sop_instance_uid} {found.stamp}"


def is_from(origin: str, sop_instance_uid: str) -> bool:
    """Whether a part of a label's origin is this object."""
    return origin.split(" ")[0] == sop_instance_uid
