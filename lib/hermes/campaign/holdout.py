"""Which images are held out from training: decided once per patient, by a hash, and never again.

Labels of held-out images measure candidates (`hermes.rounds.gate`) and train nothing, in any round. All images
of a patient go the same way, whenever they arrive. The decision is a column of the images table, so it moves with
the database; the share in the settings is asked for patients that the campaign has never seen, and for no other.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from hermes.campaign.models import ImageRow, InfoRow
from hermes.campaign.rows import upsert
from hermes.types import CaseId

SALT = "salt"
"""Key of the campaign's secret among its notes: with it patients' names become pseudonyms."""

_BIDS_SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+)(?:_.*)?")
_PSEUDONYM_DIGITS = 32


@dataclass(frozen=True)
class HoldoutRule:
    """How a patient who is new to the campaign is assigned.

    Attributes:
        share: part of the patients that is held out, 0 to 1.
        seed: of the hash; the same patients are chosen wherever share and seed are the same.
    """

    share: float = 0.0
    seed: int = 0

    def holds_out(self, patient: str) -> bool:
        """Whether a patient falls into the held-out share.

        >>> rule = HoldoutRule(share=0.2)
        >>> sum(rule.holds_out(f"patient {n}") for n in range(1000))
        188
        """
        digest = hmac.digest(f"hermes-holdout-{self.seed}".encode(), patient.encode(), "sha256")
        return int.from_bytes(digest[:8], "big") < self.share * 2**64


def patient_from_name(image_id: CaseId) -> str:
    """Whose an image is when only its name is known: the BIDS subject, else every image is a patient.

    >>> patient_from_name("sub-07_ses-2_T1w"), patient_from_name("case 12")
    ('sub-07', 'case 12')
    """
    match = _BIDS_SUBJECT.fullmatch(image_id)
    return match.group(1) if match else image_id


def pseudonym(patient: str, salt: str) -> str:
    """What stands for a patient in the database: a keyed hash, hex. Without the salt it leads to nobody."""
    digest = hmac.new(salt.encode(), patient.encode(), hashlib.sha256).hexdigest()
    return digest[:_PSEUDONYM_DIGITS]


def enter_images(session: Session, patients: Mapping[CaseId, str], rule: HoldoutRule, *, now: float) -> None:
    """Notes images with their patient, and assigns those that have not been assigned.

    Args:
        session: a writing transaction.
        patients: image -> patient, as the datastore knows it.
        rule: for patients of whom the campaign has no assigned image.
        now: when the new ones were first seen.
    """
    salt = session.scalar(select(InfoRow.value).where(InfoRow.key == SALT)) or ""
    keys = {image: pseudonym(patient, salt) for image, patient in patients.items()}
    # Another server may be adding the same images (not on SQLite, which is locked here).
    new = [{"id": image, "first_seen_at": now, "patient_key": key} for image, key in keys.items()]
    upsert(session, ImageRow, new, ["id"], [])
    nameless = session.scalars(select(ImageRow.id).where(ImageRow.patient_key.is_(None))).all()
    values = [{"id": image, "patient_key": keys[image]} for image in nameless if image in keys]
    if values:
        session.execute(update(ImageRow), values)
    _assign(session, patients, rule)


def _assign(session: Session, patients: Mapping[CaseId, str], rule: HoldoutRule) -> None:
    statement = select(ImageRow.id, ImageRow.patient_key).where(ImageRow.holdout.is_(None))
    waiting = [(image, key) for image, key in session.execute(statement) if image in patients]
    decided = _decided(session, {key for _, key in waiting})
    values = [
        {"id": image, "holdout": decided[key] if key in decided else rule.holds_out(patients[image])}
        for image, key in waiting
    ]
    if values:
        session.execute(update(ImageRow), values)


def _decided(session: Session, keys: Iterable[str | None]) -> dict[str | None, bool]:
    """Patient -> the way that their images go; one that was ever trained on is never held out."""
    wanted = set(keys)
    statement = select(ImageRow.patient_key, ImageRow.holdout).where(ImageRow.holdout.is_not(None))
    found: dict[str | None, bool] = {}
    for key, holdout in session.execute(statement):
        if key in wanted:
            found[key] = found.get(key, True) and bool(holdout)
    return found


def holdout_ids(session: Session) -> set[CaseId]:
    """The held-out images."""
    return set(session.scalars(select(ImageRow.id).where(ImageRow.holdout.is_(True))))


def training_ids(session: Session) -> set[CaseId]:
    """The images whose labels may be trained on: assigned to training, of a patient without a held-out image.

    The second condition follows from the first as long as nobody edits the database; it costs nothing.
    """
    held_out = select(ImageRow.patient_key).where(
        ImageRow.holdout.is_(True), ImageRow.patient_key.is_not(None)
    )
    statement = select(ImageRow.id).where(
        ImageRow.holdout.is_(False),
        ImageRow.patient_key.is_(None) | ImageRow.patient_key.not_in(held_out),
    )
    return set(session.scalars(statement))
