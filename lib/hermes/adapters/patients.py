"""Whose an image is, as far as the datastore and the folder of studies know."""

from __future__ import annotations

import csv
from pathlib import Path

from monailabel.interfaces.datastore import Datastore

from hermes.errors import BadRequestError
from hermes.labelled import IMAGE_SUFFIXES
from hermes.types import CaseId

PATIENTS_FILE = "patients.csv"


class Patients:
    """Answers with the patient of an image, or ``None`` where only the image's name can tell.

    The first that knows: the datastore's own ``patient_of``; the DICOM PatientID among its notes; the file
    ``patients.csv`` (columns ``image`` and ``patient``) in the folder of studies.
    """

    def __init__(self, datastore: Datastore, studies: str) -> None:
        self._datastore = datastore
        self._table = Path(studies) / PATIENTS_FILE if "://" not in studies else None

    def __call__(self, image_id: CaseId) -> str | None:
        """The patient of an image.

        Raises:
            BadRequestError: ``patients.csv`` has other columns.
        """
        ask = getattr(self._datastore, "patient_of", None)
        told = ask(image_id) if ask is not None else None
        told = told or self._datastore.get_image_info(image_id).get("PatientID")
        return str(told) if told else self.table().get(image_id)

    def table(self) -> dict[CaseId, str]:
        """What ``patients.csv`` says; empty where there is none.

        Raises:
            BadRequestError: it has other columns.
        """
        if self._table is None or not self._table.is_file():
            return {}
        with self._table.open(newline="", encoding="utf-8-sig") as stream:
            rows = csv.DictReader(stream)
            if not {"image", "patient"} <= set(rows.fieldnames or ()):
                msg = f"Expected columns 'image' and 'patient' in {PATIENTS_FILE}, got {list(rows.fieldnames or ())}."
                raise BadRequestError(msg)
            return {
                _id_of(row["image"]): row["patient"].strip()
                for row in rows
                if row["image"] and row["patient"]
            }


def _id_of(name: str) -> CaseId:
    """The id of an image that may be written with the suffix of its file."""
    clean = name.strip()
    return clean.removesuffix(next((s for s in IMAGE_SUFFIXES if clean.endswith(s)), ""))
