"""The parts of a campaign on a PACS that need no PACS."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.servers import closing_when_asked_again

from hermes.adapters.dicomweb.client import Access, PacsClient, _complete, text_of
from hermes.adapters.dicomweb.following import Follower
from hermes.adapters.dicomweb.label_files import is_dicom, read_label_file
from hermes.adapters.dicomweb.listing import Listing, ObjectInfo, PacsIndex, SeriesInfo, _load, _save
from hermes.adapters.dicomweb.notes import Notes, Predictions
from hermes.adapters.dicomweb.plans import plan_of
from hermes.adapters.dicomweb.series import Image, images_of
from hermes.campaign.pacs_objects import InspectedSeries, ObjectState, PacsObject
from hermes.campaign.records import LabelRecord
from hermes.errors import BadLabelError, PacsError
from hermes.geometry import Grid
from hermes.pacs import free_port
from hermes.records import LabelMap

SERIES = SeriesInfo("1.2", "1.1", "CT", 3, "P1", "", "abdomen")
IMAGE = Image("1.2", SERIES)
GRID = Grid((2, 3, 4), np.eye(4))


def label(number: int, at: float = 0.0) -> LabelRecord:
    return LabelRecord(number, "1.2", "final", number, "p", "0", "anna", at, None, "annotator", {})


def seen(uid: str, at: float, stamp: str = "t") -> PacsObject:
    return PacsObject(uid, "1.1", "1.9", "SEG", stamp, "1.2", ObjectState.READ, None, at)


# ---------------------------------------------------------------------------------------------- the plan


def test_nothing_is_to_be_done_where_nothing_is() -> None:
    assert plan_of(IMAGE, [], {}, {}) is None
    assert plan_of(IMAGE, [label(1, 5.0)], {}, {}) is None


def test_an_object_is_read_once() -> None:
    plan = plan_of(IMAGE, [], {"a": seen("a", 1.0)}, {})
    assert plan is not None
    assert ([found.sop_instance_uid for found in plan.objects], plan.base, plan.origin) == (
        ["a"],
        None,
        ("a t",),
    )
    assert plan_of(IMAGE, [label(7)], {"a": seen("a", 1.0)}, {7: ("a t",)}) is None


def test_what_came_after_a_submission_adds_to_it_and_what_came_before_is_replaced() -> None:
    submission = label(1, 5.0)
    here = {"old": seen("old", 4.0), "new": seen("new", 6.0)}
    plan = plan_of(IMAGE, [submission], here, {})
    assert plan is not None
    assert (plan.base, plan.origin) == (submission, ("new t", "label:1"))
    assert plan_of(IMAGE, [submission], {"old": here["old"]}, {}) is None


def test_a_deleted_object_takes_its_versions_with_it() -> None:
    merged = label(2)
    plan = plan_of(IMAGE, [label(1, 5.0), merged], {}, {2: ("new t", "label:1")})
    assert plan is not None
    assert (plan.stale, plan.objects) == ((2,), ())
    both = {"a": seen("a", 1.0), "b": seen("b", 2.0)}
    plan = plan_of(IMAGE, [label(3)], {"b": both["b"]}, {3: ("a t", "b t")})
    assert plan is not None
    assert (plan.stale, plan.origin) == ((3,), ("b t",))


def test_another_content_under_the_same_uid_is_another_object() -> None:
    plan = plan_of(IMAGE, [label(7)], {"a": seen("a", 9.0, "later")}, {7: ("a t",)})
    assert plan is not None
    assert (plan.stale, plan.origin) == ((7,), ("a later",))


def test_what_a_crash_left_without_its_origin_is_read_again() -> None:
    plan = plan_of(IMAGE, [replace(label(7, 5.0), source="pacs")], {"a": seen("a", 1.0)}, {})
    assert plan is not None
    assert (plan.stale, plan.base, plan.origin) == ((7,), None, ("a t",))


def test_a_withdrawn_submission_takes_what_was_built_on_it() -> None:
    plan = plan_of(IMAGE, [label(2)], {"new": seen("new", 6.0)}, {2: ("new t", "label:1")})
    assert plan is not None
    assert (plan.stale, plan.base, plan.origin) == ((2,), None, ("new t",))


# -------------------------------------------------------------------------------------------- the images


def inspected(*volumes: tuple[str, str | None], main: str | None) -> InspectedSeries:
    told = tuple(
        {"id": name, "title": name, "refusal": why, "shape": None, "affine": None, "phases": 1}
        for name, why in volumes
    )
    return InspectedSeries("1.2", 3, main, told, None if main else "nothing usable")


@pytest.mark.parametrize(
    ("found", "ids"),
    [
        (None, ["1.2"]),
        (inspected(("1.2", None), main="1.2"), ["1.2"]),
        (inspected(("1.2~a", "uneven"), ("1.2~b", "uneven"), main=None), ["1.2"]),
        (inspected(("1.2~a", None), ("1.2~b", None), main="1.2~b"), ["1.2", "1.2~a"]),
        (inspected(("1.2~a", "uneven"), ("1.2~b", None), main="1.2~b"), ["1.2"]),
    ],
    ids=["not looked at", "one", "nothing usable", "two", "one of two"],
)
def test_images_of_a_series(found: InspectedSeries | None, ids: list[str]) -> None:
    images = images_of(SERIES, found)
    assert [image.id for image in images] == ids
    if found is not None and found.main not in (None, "1.2"):
        assert images[0].volume == found.main


# ------------------------------------------------------------------------------------------- label files


def read(file: Path, params: dict[str, Any] | None = None) -> tuple[LabelMap, dict[str, Any]]:
    def no_source() -> Any:
        raise AssertionError("only DICOM objects need the series")

    return read_label_file(file, params or {}, grid=GRID, source=no_source, structures=("liver",))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_bare_bytes_are_read_in_the_order_of_the_series(tmp_path: Path, kind: type[Any]) -> None:
    array = np.arange(24, dtype=kind).reshape(GRID.shape)
    (tmp_path / "label.bin").write_bytes(array.tobytes())
    found, params = read(tmp_path / "label.bin", {"client_id": "a"})
    assert found.array.dtype == kind
    assert np.array_equal(found.array, array)
    assert params == {"client_id": "a"}


def test_bytes_of_another_image_are_refused(tmp_path: Path) -> None:
    (tmp_path / "label.bin").write_bytes(bytes(23))
    with pytest.raises(BadLabelError, match="24 or 48 bytes"):
        read(tmp_path / "label.bin")


def test_a_damaged_object_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "label.dcm"
    file.write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    assert is_dicom(file)
    with pytest.raises(BadLabelError, match="Expected"):
        read_label_file(file, {}, grid=GRID, source=lambda: GRID, structures=("liver",))  # type: ignore[arg-type,return-value]
    file.write_bytes(b"short")
    assert not is_dicom(file)


# ------------------------------------------------------------------------------------- notes, predictions


def test_predictions_are_kept_by_version_and_the_last_one_counts(tmp_path: Path) -> None:
    kept = Predictions(tmp_path / "predictions")
    assert kept.get("1.2", "original") is None
    for version in ("v1", "v2"):
        kept.put(
            "1.2", "original", LabelMap(np.ones(GRID.shape, np.uint8), GRID), version, {"version": version}
        )
    found = kept.get("1.2", "original")
    assert found is not None
    assert (found.path.name, found.info) == ("v2.nii.gz", {"version": "v2"})
    assert (found.path.parent / "v1.nii.gz").is_file()
    kept.note("1.2", "original", {"more": 1})
    assert kept.get("1.2", "original").info == {"version": "v2", "more": 1}  # type: ignore[union-attr]
    assert kept.tags() == {"1.2": ["original"]}
    assert kept.remove("1.2", "original")
    assert kept.tags() == {}


def test_notes_are_replaced(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes")
    assert notes.get("image-1.2") == {}
    notes.put("image-1.2", {"a": 1})
    notes.put("image-1.2", {"b": 2})
    assert Notes(tmp_path / "notes").get("image-1.2") == {"b": 2}


# ---------------------------------------------------------------------------------------------- the lists


def test_a_listing_survives_a_restart_and_a_damaged_file_does_no_harm(tmp_path: Path) -> None:
    listing = Listing({"1.2": SERIES}, {"1.3": ObjectInfo("1.3", "1.1", "1.4", "SEG", "20260101")}, 12.5)
    _save(tmp_path / "listing.json", listing)
    assert _load(tmp_path / "listing.json") == listing
    (tmp_path / "listing.json").write_text('{"series": 3}')
    assert _load(tmp_path / "listing.json") == Listing()
    assert _load(tmp_path / "absent.json") == Listing()


def test_a_server_that_is_not_there_leaves_the_last_list(tmp_path: Path) -> None:
    listing = Listing({"1.2": SERIES}, {}, 12.5)
    _save(tmp_path / "listing.json", listing)
    client = PacsClient(Access(f"http://127.0.0.1:{free_port()}/dicom-web"))
    index = PacsIndex(client, modalities=["CT"], filters={}, file=tmp_path / "listing.json", max_age_s=0.1)
    assert index.current(patience_s=20) == listing
    assert "no connection" in str(index.error)
    with pytest.raises(PacsError, match="did not answer"):
        client.series({"Modality": "CT"})


def test_a_kept_connection_that_the_server_closes_fails_no_search() -> None:
    with closing_when_asked_again() as (server, asked):
        client = PacsClient(Access(f"{server}/dicom-web"))
        assert [client.series({"Modality": "CT"}) for _ in range(3)] == [[]] * 3
        assert asked == ["GET"] * 5
        with pytest.raises(PacsError, match="did not answer"):
            client.delete_instance("1.1", "1.2", "1.3")
    assert asked == ["GET"] * 5 + ["DELETE"]


def test_who_must_have_the_latest_waits_for_a_refresh_and_asks_no_more_often(tmp_path: Path) -> None:
    class Answers(PacsClient):
        asked, delay_s = 0, 0.0

        def token(self) -> str | None:
            time.sleep(self.delay_s)
            self.asked += 1
            return None

        def series(self, filters: Any, fields: Any = ()) -> list[dict[str, Any]]:
            return [{"0020000E": {"Value": [f"1.{self.asked}"]}, "0020000D": {"Value": ["1.1"]}}]

        def instances(self, filters: Any, fields: Any = ()) -> list[dict[str, Any]]:
            return []

    client = Answers(Access("http://127.0.0.1/dicom-web"))
    index = PacsIndex(client, modalities=["CT"], filters={}, file=tmp_path / "listing.json", max_age_s=60)
    index._token = "the server counts its changes"
    assert list(index.current(wait=True, patience_s=20).series) == ["1.1"]
    assert list(index.current(wait=True).series) == ["1.1"]  # a fresh one
    index._checked_at = time.monotonic() - 90
    client.delay_s = 0.5
    assert list(index.current().series) == ["1.1"]  # begins a refresh, does not wait for it
    assert list(index.current(wait=True, patience_s=20).series) == ["1.2"]
    assert client.asked == 2


@pytest.mark.parametrize(
    ("stored", "meant"),
    [
        (b"\x02\x00\x00\x00UL" + b"x" * 300, b"\0" * 128 + b"DICM\x02\x00\x00\x00UL" + b"x" * 300),
        (b"\0" * 128 + b"DICM\x02\x00", b"\0" * 128 + b"DICM\x02\x00"),
        (b"something else", b"something else"),
    ],
    ids=["without its preamble", "whole", "no DICOM"],
)
def test_an_object_without_its_preamble_becomes_a_file(tmp_path: Path, stored: bytes, meant: bytes) -> None:
    (tmp_path / "0001.dcm").write_bytes(stored)
    _complete(tmp_path / "0001.dcm")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [meant]


def test_values_of_dicom_json() -> None:
    item = {
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "A^B"}]}, "00201209": {"vr": "IS", "Value": [7]},
        "00080050": {"vr": "SH"}, "00080060": 3,
    }  # fmt: skip
    assert [text_of(item, tag) for tag in ("00100010", "00201209", "00080050", "00080060", "0")] == [
        "A^B",
        "7",
        "",
        "",
        "",
    ]


# ------------------------------------------------------------------------------------------ the follower


def test_the_follower_takes_the_last_listing_and_outlives_errors() -> None:
    followed: list[float] = []
    entered, go_on = threading.Event(), threading.Event()

    def follow(listing: Listing) -> bool:
        followed.append(listing.made_at)
        if listing.made_at == 1.0:
            entered.set()
            go_on.wait(10)
            raise ValueError
        return len(followed) == 2  # there is more to do, once

    follower = Follower(follow)
    follower.start()
    first = threading.Thread(target=follower.offer, args=(Listing(made_at=1.0),))
    first.start()
    assert entered.wait(10)
    follower.offer(Listing(made_at=2.0))  # comes back at once: the thread is busy
    follower.offer(Listing(made_at=3.0))
    go_on.set()
    first.join(10)
    follower.offer(Listing(made_at=4.0))
    follower.stop()
    assert followed[0] == 1.0
    assert 2.0 not in followed
    assert followed[-1] in (3.0, 4.0)
    assert followed.count(3.0) + followed.count(4.0) >= 2
