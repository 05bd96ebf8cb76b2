"""A campaign on a real PACS (Orthanc), in this process: lists, labels out and in, what happens when it is down."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
import requests
from fastapi import FastAPI, HTTPException
from monailabel.config import settings as monai_settings

from hermes.adapters.build import Parts, build
from hermes.adapters.dicomweb.pacs import Pacs
from hermes.adapters.infer import run_infer
from hermes.adapters.ohif import existing, proxy, stored
from hermes.campaign.records import ReviewState
from hermes.dicom import read_segmentations, write_segmentation
from hermes.geometry import Grid
from hermes.labels.catalogue import find_structure
from hermes.offered import OfferedLabels
from hermes.pacs import Orthanc, how_to_install, running_orthanc, store
from hermes.phantoms import PhantomCase, make_case
from hermes.phantoms.dicom import series_uid, write_dicom_series
from hermes.records import LabelMap
from hermes.strategies import get_strategy
from hermes.transforms.reading import read_label_map, read_volume
from hermes.transforms.writing import write_label_map
from tests.integration.conftest import STRUCTURES

pytestmark = pytest.mark.skipif(how_to_install() is not None, reason=str(how_to_install()))

APP = Path(__file__).resolve().parents[2] / "apps" / "hermes"
JSON = {"Accept": "application/dicom+json"}


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {seconds} s for {what}")


@dataclass(frozen=True)
class Site:
    """An Orthanc with the series of some phantoms, and what opens a campaign on it."""

    orthanc: Orthanc
    cases: dict[str, PhantomCase]
    files: dict[str, list[Path]]
    model: Path
    root: Path

    def headers(self, uid: str) -> list[pydicom.Dataset]:
        return [pydicom.dcmread(file, stop_before_pixels=True) for file in self.files[uid]]

    def qido(self, level: str, **filters: str) -> list[dict[str, Any]]:
        answer = requests.get(
            f"{self.orthanc.dicomweb}/{level}",
            params=filters,
            headers=JSON,
            auth=self.orthanc.auth,
            timeout=30,
        )
        return answer.json() if answer.content else []

    def segmentations(self, uid: str) -> list[pydicom.Dataset]:
        """The SEG objects of a series' study, read by pydicom."""
        study = str(self.headers(uid)[0].StudyInstanceUID)
        found = []
        for item in self.qido("instances", Modality="SEG", StudyInstanceUID=study):
            sop = item["00080018"]["Value"][0]
            where = requests.post(f"{self.orthanc.url}/tools/lookup", data=sop, timeout=30).json()[0]["ID"]
            content = requests.get(f"{self.orthanc.url}/instances/{where}/file", timeout=30).content
            found.append(pydicom.dcmread(pydicom.filebase.DicomBytesIO(content)))
        return found

    def delete(self, sop_uid: str) -> None:
        where = requests.post(f"{self.orthanc.url}/tools/lookup", data=sop_uid, timeout=30).json()[0]["ID"]
        assert requests.delete(f"{self.orthanc.url}/instances/{where}", timeout=30).ok

    @contextmanager
    def campaign(self, name: str, *, start: bool = True, **conf: str) -> Iterator[tuple[Parts, Pacs]]:
        settings = {
            "structures": ",".join(STRUCTURES), "model": str(self.model), "holdout_share": "0",
            "campaign_dir": str(self.root / name), "pacs_refresh_seconds": "0.2", **conf,
        }  # fmt: skip
        parts = build(str(APP), self.orthanc.dicomweb, settings)
        parts.dicomweb(self.orthanc.dicomweb)
        pacs = parts.pacs
        assert pacs is not None
        if start:
            pacs.start(lambda: None)
        try:
            yield parts, pacs
        finally:
            pacs.stop()
            parts.workspace.campaign.close()


@pytest.fixture
def site(tmp_path: Path, tiny_model: Path) -> Iterator[Site]:
    """Two CT series of two patients in a fresh Orthanc."""
    with running_orthanc(tmp_path / "orthanc") as orthanc:
        cases, files = {}, {}
        for seed in (1, 2):
            case = make_case("PhantomAbdomenCT", seed, size="tiny")
            files[series_uid(case)] = write_dicom_series(case, tmp_path / f"dicom{seed}")
            cases[series_uid(case)] = case
            store(orthanc.dicomweb, files[series_uid(case)])
        yield Site(orthanc, cases, files, tiny_model, tmp_path)


def label_of(site: Site, uid: str, names: tuple[str, ...] = STRUCTURES) -> tuple[LabelMap, dict[str, Any]]:
    """The truth of a phantom in the lattice of its series, and the params that a client sends with it."""
    case = site.cases[uid]
    volume = read_volume(site.files[uid][0].parent)
    values = {value: name for value, name in case.names.items() if name in names and name in case.present}
    drawn = np.where(np.isin(case.labels, list(values)), case.labels, 0).astype(np.uint8)
    if not volume.grid.matches(Grid(case.labels.shape, case.affine)):
        drawn = drawn[::-1]  # slices of a series are sorted along their normal
    info = [{"name": name, "idx": value} for value, name in values.items()]
    return LabelMap(np.ascontiguousarray(drawn), volume.grid, values), {
        "label_info": info,
        "client_id": "anna",
    }


def submit(site: Site, pacs: Pacs, uid: str, names: tuple[str, ...] = STRUCTURES, **more: str) -> LabelMap:
    label, params = label_of(site, uid, names)
    file = write_label_map(label, site.root / "label.nii.gz")
    assert pacs.store.save_label(uid, str(file), "final", params | more) == uid
    return label


def masks(label: LabelMap, names: dict[int, str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
    return {
        name: label.array == value
        for value, name in (names or dict(label.names)).items()
        if (label.array == value).any()
    }


def stored_label(parts: Parts, uid: str) -> LabelMap:
    """The campaign's latest label of an image."""
    record = next(label for label in parts.workspace.campaign.labels() if label.image_id == uid)
    path = parts.workspace.archive.path(record.path)
    label = read_label_map(path)
    return LabelMap(label.array, label.grid, parts.workspace.archive.names_of(path))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def uploaded(pacs: Pacs, count: int) -> bool:
    return bool(pacs.store.status()["pacs"]["uploads"]["done"] == count)


def test_labels_after_a_prediction_was_shown_are_semiautomatic_the_second_one_too(site: Site) -> None:
    first, second = site.cases
    with site.campaign("one") as (_, pacs):
        submit(site, pacs, first, model_version="starter")
        submit(site, pacs, first)  # corrected once more, without a new prediction
        submit(site, pacs, second)
        wait_until(lambda: uploaded(pacs, 3), "the uploads")
    kinds = {
        image: [data.SegmentSequence[0].SegmentAlgorithmType for data in site.segmentations(image)]
        for image in (first, second)
    }
    assert kinds == {first: ["SEMIAUTOMATIC"] * 2, second: ["MANUAL"]}


def test_each_structure_says_whether_the_model_has_drawn_it(site: Site) -> None:
    first, second = site.cases
    with site.campaign("one") as (parts, pacs):
        task = parts.infers()["hermes"]
        request = {"model": "hermes", "image": first, "structures": ["liver"], "result_extension": ".nii.gz"}
        params = run_infer(task, request, pacs.store, None)["params"]
        OfferedLabels(parts.workspace.directory / "offered").note_drawn(second, ["liver"])
        submit(site, pacs, first)
        submit(site, pacs, second, model_version="starter")
        submit(site, pacs, second)  # what was offered is forgotten by now
        wait_until(lambda: uploaded(pacs, 3), "the uploads")
    saw = params["structures"]["liver"]["voxels"] > 0
    expected = {
        first: [{"liver": "SEMIAUTOMATIC" if saw else "MANUAL", "spleen": "MANUAL"}],
        second: [{"liver": "SEMIAUTOMATIC", "spleen": "MANUAL"}] * 2,
    }
    for image, kinds in expected.items():
        found = site.segmentations(image)
        assert [
            {s.SegmentLabel: s.SegmentAlgorithmType for s in data.SegmentSequence} for data in found
        ] == kinds
    spleen = next(s for s in found[-1].SegmentSequence if s.SegmentLabel == "spleen")
    assert "SegmentationAlgorithmIdentificationSequence" not in spleen


def test_a_label_goes_to_the_pacs_and_a_new_server_reads_it_back(site: Site) -> None:
    first, second = site.cases
    with site.campaign("one") as (parts, pacs):
        assert set(pacs.store.list_images()) == {first, second}
        label = submit(site, pacs, first)
        assert pacs.store.status()["completed"] == 1  # at once, whatever the PACS does
        wait_until(lambda: uploaded(pacs, 1), "the upload")
        submit(site, pacs, first, ("liver",))  # a second version of the same image
        wait_until(lambda: uploaded(pacs, 2), "the second upload")
        status = pacs.store.status()
        assert (status["total"], status["completed"]) == (2, 1)
        versions = parts.workspace.campaign.labels(latest=False)
        assert [version.number for version in versions] == [1, 2]
        for version, left in ((versions[1], 1), (versions[0], 0)):  # of the first, the spleen would be left
            parts.workspace.campaign.reviews.review(
                version.id, ReviewState.REJECTED, reviewer="bert", comment="no"
            )
            assert pacs.store.status()["completed"] == left
        for version in versions:
            parts.workspace.campaign.reviews.review(version.id, ReviewState.SUBMITTED, reviewer="bert")
        assert pacs.store.status()["completed"] == 1
    objects = {int(data.InstanceNumber): data for data in site.segmentations(first)}
    assert sorted(objects) == [1, 2]
    read = read_segmentations([objects[1]], site.headers(first), structures=STRUCTURES)
    assert same({name: read.mask(name) for name in read.names}, masks(label))
    segment = objects[1].SegmentSequence[0]
    liver = find_structure(segment.SegmentLabel)
    assert liver is not None
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == liver.code.value
    assert segment.SegmentAlgorithmType == "MANUAL"
    assert str(objects[1].ContentCreatorName) == "anna"
    for number, data in objects.items():  # what tells them apart in a viewer's list
        assert data.SeriesDescription == data.ContentDescription == f"Hermes label {number} by anna"
    # Another campaign that knows nothing takes the newest of the two, whole.
    with site.campaign("two") as (parts, pacs):
        wait_until(lambda: pacs.store.get_labeled_images() == [first], "the label")
        wait_until(lambda: set(stored_label(parts, first).names.values()) == {"liver"}, "the newest of both")
        assert np.array_equal(stored_label(parts, first).array == 1, masks(label)["liver"])
        record = parts.workspace.campaign.labels()[0]
        assert (record.source, record.annotator) == ("pacs", "anna")
        assert pacs.store.status()["pacs"]["uploads"]["waiting"] == 0  # what came from there is not sent back


def test_who_only_declares_absences_is_known_to_the_next_campaign(site: Site) -> None:
    first, _ = site.cases
    with site.campaign("one") as (parts, pacs):
        empty = LabelMap(np.zeros_like(label_of(site, first)[0].array), label_of(site, first)[0].grid, {})
        file = write_label_map(empty, site.root / "empty.nii.gz")
        params = {"label_info": [], "absent": list(STRUCTURES), "client_id": "Zoë 田中"}
        assert pacs.store.save_label(first, str(file), "final", params) == first
        wait_until(lambda: uploaded(pacs, 1), "the upload")
    assert site.segmentations(first)[0].SeriesDescription == "Hermes label 1 by Zoë 田中"
    with site.campaign("two") as (parts, pacs):
        wait_until(lambda: pacs.store.get_labeled_images() == [first], "the label")
        record = parts.workspace.campaign.labels()[0]
        assert (record.source, record.annotator) == ("pacs", "Zoë 田中")
        assert {state.value for state in record.annotated.values()} == {"absent"}


def test_labels_of_others_come_and_go(site: Site) -> None:
    first, second = site.cases
    truth, _ = label_of(site, first)
    with site.campaign("one") as (parts, pacs):
        mine = submit(site, pacs, first, ("liver",))
        wait_until(lambda: uploaded(pacs, 1), "the upload")
        foreign = write_segmentation(
            {"spleen": masks(truth)["spleen"], "some gadget": masks(truth)["liver"]},
            site.headers(first), algorithm_type="MANUAL", annotator="bert",
        )  # fmt: skip
        foreign.Manufacturer = "Somebody else"
        pacs.client.store(foreign)
        wait_until(
            lambda: pacs.store.status() and len(parts.workspace.campaign.labels(latest=False)) == 2,
            "its label",
        )
        assert same(masks(stored_label(parts, first)), masks(truth))
        assert parts.workspace.campaign.labels()[0].annotator == "bert"
        listed = pacs.state()["not_used"]
        assert [(entry["object"], "some gadget" in entry["reason"]) for entry in listed] == [
            (foreign.SOPInstanceUID, True)
        ]
        # It is corrected: another object with another spleen, and the first one deleted.
        smaller = masks(truth)["spleen"].copy()
        smaller[smaller.shape[0] // 2 :] = False
        assert smaller.any()
        better = write_segmentation({"spleen": smaller}, site.headers(first), algorithm_type="MANUAL")
        better.Manufacturer = "Somebody else"
        pacs.client.store(better)
        site.delete(foreign.SOPInstanceUID)
        wait_until(
            lambda: (
                pacs.store.status()
                and np.array_equal(masks(stored_label(parts, first)).get("spleen"), smaller)
            ),
            "the correction",
        )
        # All of theirs is deleted: what was submitted here stays.
        site.delete(better.SOPInstanceUID)
        wait_until(
            lambda: pacs.store.status() and "spleen" not in stored_label(parts, first).names.values(),
            "its end",
        )
        assert same(masks(stored_label(parts, first)), masks(mine))

        # And ours: the image is not labelled any more; the archive keeps every version.
        def next_image() -> str | None:
            return parts.queue.offer(get_strategy("first"), [first], "ann").image_id

        assert next_image() is None
        archived = sorted(parts.workspace.archive.directory.rglob("*.nii.gz"))
        site.delete(site.segmentations(first)[0].SOPInstanceUID)
        wait_until(lambda: pacs.store.get_labeled_images() == [], "the withdrawal")
        assert sorted(parts.workspace.archive.directory.rglob("*.nii.gz")) == archived
        assert second in pacs.store.get_unlabeled_images()
        assert next_image() == first


def test_who_asks_for_one_label_sees_what_others_did_in_the_pacs(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = site.cases
    truth, _ = label_of(site, first)
    with site.campaign("one") as (parts, pacs):
        app = SimpleNamespace(parts=parts, datastore=lambda: pacs.store)
        monkeypatch.setattr(existing, "app_instance", lambda: app)
        parts.workspace.campaign.sync_images({first: None})

        def in_slicer() -> set[str]:  # nobody asks for lists here
            path = pacs.store.get_label_uri(first, "final")
            return set(parts.workspace.archive.names_of(Path(path)).values()) if path else set()

        def in_ohif() -> set[str]:
            label = existing.image(first, user=None)["label"]
            return set(label["values"]) if label else set()

        for ask, names in ((in_slicer, ("spleen",)), (in_ohif, ("liver", "spleen"))):
            drawn = {name: masks(truth)[name] for name in names}
            stored = write_segmentation(drawn, site.headers(first), algorithm_type="MANUAL")
            stored.Manufacturer = "Somebody else"
            pacs.client.store(stored)
            wait_until(lambda ask=ask, names=names: ask() == set(names), "their label", 10)  # type: ignore[misc]
            site.delete(stored.SOPInstanceUID)
            wait_until(lambda ask=ask: not ask(), "its end", 10)  # type: ignore[misc]


def test_what_a_viewer_stores_is_not_read_as_a_label_of_others_meanwhile(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = site.cases
    truth, _ = label_of(site, first)
    objects = [
        write_segmentation({name: masks(truth)[name]}, site.headers(first), algorithm_type="MANUAL")
        for name in ("liver", "spleen")
    ]
    parts_of_body = []
    for data in objects:
        data.Manufacturer, data.ContentCreatorName = "Somebody else", "bert"
        file = io.BytesIO()
        data.save_as(file, write_like_original=False)
        parts_of_body.append(b"--b\r\nContent-Type: application/dicom\r\n\r\n" + file.getvalue() + b"\r\n")
    with site.campaign("one") as (parts, pacs):
        app = SimpleNamespace(datastore=lambda: pacs.store, on_save_label=lambda image, label: None)
        looks: list[bool] = []

        def late(labels: Any, annotator: str | None) -> list[stored.Taken]:
            pacs.index.expire()  # the reader finds both before they are taken
            looks.append(
                all(data.SOPInstanceUID in pacs.index.current(wait=True).objects for data in objects)
            )
            return stored.take_labels(labels, annotator)

        monkeypatch.setattr(stored, "app_instance", lambda: app)
        monkeypatch.setattr(proxy, "take_labels", late)
        monkeypatch.setattr(proxy, "_client", lru_cache(proxy._client.__wrapped__))
        monkeypatch.setattr(monai_settings, "MONAI_LABEL_STUDIES", site.orthanc.dicomweb)
        server = FastAPI()
        server.include_router(proxy.router)
        headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
        body = b"".join(parts_of_body) + b"--b--\r\n"

        async def post() -> httpx.Response:
            transport = httpx.ASGITransport(server)
            async with (
                proxy._client(),
                httpx.AsyncClient(transport=transport, base_url="http://here") as viewer,
            ):
                return await viewer.post("/proxy/dicom/stow/studies", content=body, headers=headers)

        answer = asyncio.run(post())
        assert answer.status_code == 200
        assert [taken["image"] for taken in json.loads(answer.headers["hermes-label"])] == [first, first]
        for _ in range(3):
            pacs.index.expire()
            pacs.index.current(wait=True)
        versions = parts.workspace.campaign.labels(latest=False, withdrawn=True)
        assert [(one.number, one.source) for one in versions] == [(1, "annotator"), (2, "annotator")]
        assert looks == [True]
        assert pacs.store.being_stored() == frozenset()


def test_nothing_is_lost_while_the_pacs_is_down(site: Site) -> None:
    first, second = site.cases
    with site.campaign("one") as (parts, pacs):
        for uid in site.cases:
            assert pacs.store.image_path(uid).is_dir()
        site.orthanc.stop()
        label = submit(site, pacs, first)
        wait_until(lambda: pacs.store.status()["pacs"]["reachable"] is False, "the state")
        status = pacs.store.status()
        assert (status["total"], status["completed"]) == (2, 1)
        assert status["pacs"]["uploads"]["done"] == 0
        wait_until(lambda: parts.workspace.campaign.uploads.all()[0].last_error, "the first try")
    # A new server, still without the PACS, knows its images and labels and takes another one.
    with site.campaign("one") as (_, pacs):
        assert set(pacs.store.list_images()) == {first, second}
        assert pacs.store.get_labeled_images() == [first]
        assert "did not answer" in str(pacs.state()["error"])
        submit(site, pacs, second)
        site.orthanc.start()
        pacs.retry()
        wait_until(lambda: uploaded(pacs, 2), "both uploads")
        wait_until(lambda: pacs.store.status()["pacs"]["reachable"], "the state")
        assert set(pacs.store.get_labeled_images()) == {first, second}
    for uid in site.cases:
        assert len(site.segmentations(uid)) == 1
    read = read_segmentations(site.segmentations(first), site.headers(first), structures=STRUCTURES)
    assert same({name: read.mask(name) for name in read.names}, masks(label))


def upload_states(parts: Parts) -> list[str]:
    return [upload.state.value for upload in parts.workspace.campaign.uploads.all()]


def test_a_deleted_label_stays_deleted_where_the_pacs_keeps_its_object(site: Site) -> None:
    """Orthanc's plugin answers a DELETE with 405: the object stays, is said to, and is no label any more."""
    first, second = site.cases
    truth, _ = label_of(site, first)
    with site.campaign("one") as (parts, pacs):
        submit(site, pacs, first)
        submit(site, pacs, second)
        wait_until(lambda: uploaded(pacs, 2), "the uploads")
        foreign = write_segmentation(
            {"spleen": masks(truth)["spleen"]}, site.headers(first), algorithm_type="MANUAL"
        )
        foreign.Manufacturer = "Somebody else"
        pacs.client.store(foreign)
        wait_until(
            lambda: pacs.store.status() and len(parts.workspace.campaign.labels(latest=False)) == 3,
            "its label",
        )
        pacs.store.remove_label(first, "final")
        assert pacs.store.get_labeled_images() == [second]  # at once
        wait_until(lambda: upload_states(parts) == ["kept", "done"], "the answer of the PACS")
        left = pacs.state()["uploads"]["left_in_pacs"]
        assert [(entry["image"], "HTTP 405" in entry["reason"]) for entry in left] == [(first, True)]
        assert [entry["object"] for entry in pacs.state()["not_used"]] == [foreign.SOPInstanceUID]
    with site.campaign("one") as (parts, pacs):  # nor does a new server take either object for a label
        for _ in range(3):
            pacs.index.expire()
            pacs.index.current()
            wait_until(lambda: pacs.state()["waiting_to_be_read"] == 0, "a look at all objects")
        assert pacs.store.get_labeled_images() == [second]
        # Somebody removes it in the PACS: then it is not there any more.
        ours = next(u for u in parts.workspace.campaign.uploads.all() if u.image_id == first)
        site.delete(ours.sop_instance_uid)
        wait_until(
            lambda: pacs.index.current() and upload_states(parts) == ["withdrawn", "done"], "the state"
        )
        assert pacs.state()["uploads"]["left_in_pacs"] == []


class Removing(BaseHTTPRequestHandler):
    """Orthanc behind a server that removes instances by DICOMweb, too, as other servers do."""

    orthanc: Orthanc

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
        url = self.orthanc.url + self.path
        if self.command == "DELETE":
            sop = self.path.rsplit("/", 1)[1]
            where = requests.post(f"{self.orthanc.url}/tools/lookup", data=sop, timeout=30).json()[0]["ID"]
            url = f"{self.orthanc.url}/instances/{where}"
        answer = requests.request(self.command, url, data=body, headers=headers, timeout=30)
        self.send_response(answer.status_code)
        for name in ("Content-Type", "Warning"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_DELETE = _pass_on  # noqa: N815  # the names that http.server asks for

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the screen."""


def test_the_object_of_a_deleted_label_is_removed_where_the_pacs_does_that(site: Site) -> None:
    first, second = site.cases
    handler = type("Handler", (Removing,), {"orthanc": site.orthanc})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        behind = Orthanc(site.orthanc.directory, server.server_address[1])  # its address; nothing is started
        try:
            with replace(site, orthanc=behind).campaign("one") as (parts, pacs):
                submit(site, pacs, first)
                submit(site, pacs, first, ("liver",))
                submit(site, pacs, second)
                wait_until(lambda: uploaded(pacs, 3), "the uploads")
                assert len(site.segmentations(first)) == 2
                pacs.store.remove_label(first, "final")
                wait_until(lambda: upload_states(parts) == ["withdrawn", "withdrawn", "done"], "the removal")
                assert site.segmentations(first) == []
                assert len(site.segmentations(second)) == 1
        finally:
            server.shutdown()


def test_a_label_deleted_while_the_pacs_is_down_is_removed_later(site: Site) -> None:
    """Whether the last try came through nobody knows until the PACS is back."""
    first, _ = site.cases
    with site.campaign("one") as (parts, pacs):
        assert pacs.store.image_path(first).is_dir()
        site.orthanc.stop()
        submit(site, pacs, first)
        wait_until(lambda: parts.workspace.campaign.uploads.all()[0].last_error, "the first try")
        pacs.store.remove_label(first, "final")
        assert upload_states(parts) == ["withdrawing"]
        site.orthanc.start()
        pacs.retry()
        wait_until(lambda: upload_states(parts) == ["withdrawn"], "the answer")
        assert pacs.state()["uploads"]["unfinished"] == []
    assert site.segmentations(first) == []


def test_an_upload_whose_answer_was_lost_is_not_stored_twice(site: Site) -> None:
    first, _ = site.cases
    with site.campaign("one", start=False, pacs_refresh_seconds="3600") as (parts, pacs):
        submit(site, pacs, first)
        assert pacs.uploader.look()
        upload = parts.workspace.campaign.uploads.all()[0]
        assert upload.state.value == "done"
        parts.workspace.campaign.uploads.postpone(upload.id, "as if the answer had been lost")
        parts.workspace.campaign.uploads.retry()
        pacs.index.current()
        before = pacs.client.calls
        assert pacs.uploader.look()
        assert parts.workspace.campaign.uploads.all()[0].state.value == "done"
        assert pacs.client.calls - before == 1  # asked, and not stored again
    assert len(site.segmentations(first)) == 1


def test_what_is_down_or_unknown_is_said(site: Site) -> None:
    first, _ = site.cases
    with site.campaign("one", start=False) as (_, pacs):
        with pytest.raises(HTTPException) as refused:
            pacs.store.get_image_uri("1.2.3")
        assert refused.value.status_code == 404
        assert "SeriesInstanceUID" in refused.value.detail
        site.orthanc.stop()
        with pytest.raises(HTTPException) as down:
            pacs.store.get_image_uri(first)
        assert down.value.status_code == 503
        assert "did not answer" in down.value.detail
