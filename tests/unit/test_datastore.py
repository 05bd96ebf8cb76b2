from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import HTTPException

from hermes.adapters.datastore import HermesLocalDatastore
from hermes.campaign.campaign import Campaign
from hermes.campaign.records import ReviewState
from hermes.geometry import Grid
from hermes.phantoms import PhantomCase, make_case, write_nifti
from hermes.records import LabelMap
from hermes.submission import LabelArchive, Submission
from hermes.transforms.writing import write_label_map


class Folder:
    """A folder of one image with its datastore and campaign."""

    def __init__(self, root: Path, case: PhantomCase) -> None:
        self.root, self.case = root, case
        self.campaign = Campaign(root / ".hermes" / "c.sqlite")
        self.archive = LabelArchive(root / ".hermes" / "labels")
        write_nifti(case, root)

    def open(self, *, auto_reload: bool = False) -> HermesLocalDatastore:
        return HermesLocalDatastore(
            str(self.root), structures=lambda: ("liver",), confirm=lambda new: None, archive=self.archive,
            record=self.record, auto_reload=auto_reload, read_only=False, withdraw=self.campaign.withdraw_label,
            progress=self.campaign.progress.of,
        )  # fmt: skip

    def record(
        self, image: str, path: Path, sha256: str, submission: Submission, params: Mapping[str, Any]
    ) -> None:
        self.campaign.record_label(
            image, "final", self.archive.reference(path), sha256, "anna", submission.annotated
        )

    def label(self, tmp_path: Path, value: int) -> Path:
        array = np.where(self.case.labels == 1, value, 0).astype(np.uint8)
        return write_label_map(
            LabelMap(array, Grid(array.shape, self.case.affine), {}), tmp_path / "label.nii.gz"
        )


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "studies").mkdir()
    return Folder(tmp_path / "studies", make_case("PhantomAbdomenCT", 1, size="tiny"))


INFO = {"label_info": [{"name": "liver", "idx": 5}], "client_id": "anna"}


def test_every_version_is_kept(folder: Folder, tmp_path: Path) -> None:
    store = folder.open()
    image = folder.case.name
    for value in (5, 5):
        assert store.save_label(image, str(folder.label(tmp_path, value)), "final", INFO) == image
    versions = folder.campaign.labels(latest=False)
    assert [v.number for v in versions] == [1, 2]
    assert all(folder.archive.path(v.path).is_file() for v in versions)
    assert store.get_label_info(image, "final")["label_info"] == [{"name": "liver", "idx": 1}]
    assert store.get_label_info(image, "final")["client_id"] == "anna"


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_copy_that_a_crash_lost_is_restored(folder: Folder, tmp_path: Path, damage: str) -> None:
    image = folder.case.name
    folder.open().save_label(image, str(folder.label(tmp_path, 5)), "final", INFO)
    copy = folder.root / "labels" / "final" / f"{image}.nii.gz"
    whole = copy.read_bytes()
    if damage == "missing":
        copy.unlink()
    else:
        copy.write_bytes(whole[:100])
    store = folder.open()
    assert store.restore_copies(folder.campaign.labels()) == 1
    assert copy.read_bytes() == whole
    assert hashlib.sha256(whole).hexdigest() == folder.campaign.labels()[0].sha256
    assert store.restore_copies(folder.campaign.labels()) == 0


def test_the_index_is_replaced_whole(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    store = folder.open()
    index = folder.root / "datastore_v2.json"
    before = index.read_text()

    def crash(*_: Any, **__: Any) -> str:
        msg = "disk full"
        raise OSError(msg)

    monkeypatch.setattr(json, "dumps", crash)
    with pytest.raises(OSError, match="disk"):
        store.update_image_info(folder.case.name, {"note": "x"})
    assert index.read_text() == before


def test_refusals_name_the_reason(folder: Folder, tmp_path: Path) -> None:
    store = folder.open()
    with pytest.raises(HTTPException) as refused:
        store.save_label("other", str(folder.label(tmp_path, 5)), "final", INFO)
    assert refused.value.status_code == 404
    with pytest.raises(HTTPException) as refused:
        store.get_dataset_archive(None)
    assert refused.value.status_code == 409
    assert folder.campaign.labels() == []
    assert not any(folder.archive.directory.rglob("*.nii.gz"))


def test_notes_of_a_label_cannot_change_what_was_annotated(folder: Folder, tmp_path: Path) -> None:
    store = folder.open()
    image = folder.case.name
    store.save_label(image, str(folder.label(tmp_path, 5)), "final", INFO)
    before = store.get_label_info(image, "final")
    for tag, info, status in (
        ("final", {"label_info": []}, 400),
        ("final", {"note": float("nan")}, 400),
        ("other", {"note": "x"}, 404),
    ):
        with pytest.raises(HTTPException) as refused:
            store.update_label_info(image, tag, info)
        assert refused.value.status_code == status
    assert store.get_label_info(image, "final") == before
    store.update_label_info(image, "final", {"note": "x"})
    assert store.get_label_info(image, "final")["note"] == "x"


@pytest.mark.parametrize("poll", [False, True])
def test_files_that_come_and_go_are_noticed(
    folder: Folder, poll: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HermesLocalDatastore, "_is_on_mount", lambda *_: poll)
    store = folder.open(auto_reload=True)
    assert store._observer is not None
    image, name = folder.root / f"{folder.case.name}.nii.gz", folder.case.name
    looks: list[object] = []
    monkeypatch.setattr(store, "refresh", lambda: (looks.append(1), HermesLocalDatastore.refresh(store)))

    def until(expected: set[str]) -> None:
        deadline = time.monotonic() + 20
        while set(store.list_images()) != expected and time.monotonic() < deadline:
            time.sleep(0.05)
        assert set(store.list_images()) == expected

    try:
        (folder.root / ".hermes" / "other.nii.gz").write_bytes(
            b""
        )  # the campaign's own files are nobody's images
        shutil.copy(image, folder.root / "copied.nii.gz")
        until({name, "copied"})
        shutil.copy(image, folder.root / ".part")
        (folder.root / ".part").rename(folder.root / "renamed.nii.gz")
        until({name, "copied", "renamed"})
        (folder.root / "copied.nii.gz").unlink()
        until({name, "renamed"})
        before = len(looks)
        (folder.root / ".hermes" / "another.nii.gz").write_bytes(b"")
        (folder.root / "labels" / "final" / "renamed.nii.gz").write_bytes(image.read_bytes())
        deadline = time.monotonic() + 20
        while len(looks) == before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert store.get_labels_by_image_id("renamed").keys() == {"final"}
    finally:
        store._observer.stop()
        store._observer.join()


def test_a_campaign_that_was_moved_finds_its_labels(folder: Folder, tmp_path: Path) -> None:
    image = folder.case.name
    folder.open().save_label(image, str(folder.label(tmp_path, 5)), "final", INFO)
    folder.campaign.close()
    moved = Folder(folder.root.rename(tmp_path / "elsewhere"), folder.case)
    (moved.root / "labels" / "final" / f"{image}.nii.gz").unlink()
    assert moved.open().restore_copies(moved.campaign.labels()) == 1
    (moved.root / "labels" / "final" / f"{image}.nii.gz").unlink()
    moved.archive.path(moved.campaign.labels()[0].path).unlink()
    assert moved.open().restore_copies(moved.campaign.labels()) == 0


def test_rejected_labels_and_unusable_images_do_not_count(folder: Folder, tmp_path: Path) -> None:
    store, name, campaign = folder.open(), folder.case.name, folder.campaign

    def counts() -> tuple[int, int, int]:
        status = store.status()
        return status["total"], status["completed"], status["quarantined"]

    assert counts() == (1, 0, 0)
    store.save_label(name, str(folder.label(tmp_path, 5)), "final", dict(INFO))
    assert counts() == (1, 1, 0)
    label = campaign.labels()[0].id
    campaign.reviews.review(label, ReviewState.REJECTED, reviewer="boss", comment="too large")
    assert counts() == (1, 0, 0)
    campaign.reviews.review(label, ReviewState.APPROVED, reviewer="boss")
    assert counts() == (1, 1, 0)
    campaign.quarantine(name, "cut off")
    assert counts() == (0, 0, 1)
    campaign.quarantine(name, None)
    assert counts() == (1, 1, 0)
