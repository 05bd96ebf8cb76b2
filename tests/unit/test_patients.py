from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hermes.adapters.patients import Patients
from hermes.errors import BadRequestError


class Store:
    """A datastore that notes a PatientID of one image."""

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        return {"PatientID": 7} if image_id == "dicom" else {}


class KnowingStore(Store):
    def patient_of(self, image_id: str) -> str | None:
        return "told" if image_id == "known" else None


def test_who_knows_whose_an_image_is(tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text(
        "image,patient,sex\nct1.nii.gz,Miller,f\nct2, Miller ,f\ndicom,no,\n"
    )
    patients = Patients(KnowingStore(), str(tmp_path))
    assert [patients(i) for i in ("known", "dicom", "ct1", "ct2", "other")] == [
        "told",
        "7",
        "Miller",
        "Miller",
        None,
    ]
    assert Patients(Store(), str(tmp_path))("known") is None
    assert Patients(Store(), "http://pacs/dicom-web")("ct1") is None
    assert Patients(Store(), str(tmp_path / "none"))("ct1") is None


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "patients.csv").write_text("file;who\na;b\n")
    with pytest.raises(BadRequestError, match="'image' and 'patient'"):
        Patients(Store(), str(tmp_path)).table()
