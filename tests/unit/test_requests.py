from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from hermes.adapters.requests import InferRequest, annotator_of, steps_of, uploaded_file
from hermes.errors import BadRequestError
from hermes.types import Modality


def test_viewers_send_more_than_they_mean() -> None:
    parsed = InferRequest.parse(
        {"result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False, "structures": "all",
         "modality": ["auto", "CT"], "restore_label_idx": False}
    )  # fmt: skip
    assert parsed == InferRequest(None, None, ".nrrd")


def test_structures_and_modality() -> None:
    parsed = InferRequest.parse({"structures": "liver, spleen,liver", "modality": "PT"})
    assert parsed == InferRequest(("liver", "spleen"), Modality.PET, ".nii.gz")


def test_only_files_that_the_server_wrote_itself(tmp_path: Path) -> None:
    sessions = tmp_path / "sessions"
    inside = sessions / "1" / "image.nii.gz"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(b"x")
    outside = tmp_path / "image.nii.gz"
    outside.write_bytes(b"x")
    assert uploaded_file(str(inside), str(sessions)) == inside.resolve()
    assert uploaded_file(str(outside), str(sessions)) is None
    assert uploaded_file(str(sessions / ".." / "image.nii.gz"), str(sessions)) is None
    with tempfile.NamedTemporaryFile(suffix=".nii.gz") as upload:
        assert uploaded_file(upload.name, None) == Path(upload.name).resolve()
        link = Path(upload.name).with_name("tmpabcdefgh.nii.gz")
        link.symlink_to(outside)
        try:
            assert uploaded_file(str(link), None) is None
        finally:
            link.unlink()
    assert uploaded_file("relative.nii.gz", None) is None


@pytest.mark.parametrize("steps", ["many", -1, 1.5, True, "1e3", 10**9])
def test_bad_steps(steps: object) -> None:
    with pytest.raises(BadRequestError, match="train_steps"):
        steps_of({"train_steps": steps})


def test_steps() -> None:
    assert [steps_of({"train_steps": s}) for s in (5, "5", 0, None)] == [5, 5, None, None]


def test_annotator() -> None:
    assert annotator_of({"user": "dr a", "client_id": "x"}) == "dr a"
    assert annotator_of({"client_id": "x"}) == "x"
    assert annotator_of({}) == "anonymous"
