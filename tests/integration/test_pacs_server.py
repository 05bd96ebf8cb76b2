"""The calls of annotators' programs to a whole server: images in a folder, and images in a PACS that asks for a password."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from hermes.campaign.campaign import Campaign
from hermes.demo import running_server
from hermes.geometry import Grid
from hermes.pacs import Orthanc, how_to_install, running_orthanc, store
from hermes.phantoms import PhantomCase, make_case, write_nifti
from hermes.phantoms.dicom import series_uid, write_dicom_series
from hermes.records import LabelMap
from hermes.transforms.reading import read_label_map, read_volume
from hermes.transforms.writing import write_label_map
from tests.integration.conftest import STRUCTURES
from tests.integration.test_campaign_state import server_pid

NEEDS_ORTHANC = pytest.mark.skipif(how_to_install() is not None, reason=str(how_to_install()))
USER, PASSWORD = "monai", "secret"


@dataclass(frozen=True)
class Place:
    """A running server on images that are files or lie in a PACS; ``cases``: image id -> phantom."""

    address: str
    cases: dict[str, PhantomCase]
    directory: Path
    orthanc: Orthanc | None = None

    def info(self) -> dict[str, Any]:
        answer: dict[str, Any] = requests.get(f"{self.address}/info/", timeout=60).json()
        return answer

    def uploads(self) -> dict[str, Any]:
        found: dict[str, Any] = self.info()["datastore"]["pacs"]["uploads"]
        return found


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.1)


def settings(model: Path, directory: Path, **more: str) -> dict[str, str]:
    return {
        "structures": ",".join(STRUCTURES), "model": str(model), "labels_per_round": "0", "holdout_share": "0",
        "train_steps_per_round": "2", "train_patch_voxels": "32,32,32", "score_images_per_round": "0",
        "campaign_dir": str(directory / "campaign"), "pacs_refresh_seconds": "0.3", **more,
    }  # fmt: skip


@contextmanager
def on_files(model: Path, directory: Path) -> Iterator[Place]:
    cases = {
        case.name: case for case in (make_case("PhantomAbdomenCT", seed, size="tiny") for seed in (1, 2))
    }
    for case in cases.values():
        write_nifti(case, directory / "studies")
    conf = settings(model, directory)
    with running_server(directory / "studies", conf, directory / "server.log") as address:
        yield Place(address, cases, directory)


@contextmanager
def serving(model: Path, directory: Path, orthanc: Orthanc, cases: dict[str, PhantomCase]) -> Iterator[Place]:
    conf, log = settings(model, directory), directory / f"server{time.monotonic_ns()}.log"
    with running_server(orthanc.dicomweb, conf, log) as address:  # type: ignore[arg-type]  # a URL stands for a folder
        yield Place(address, cases, directory, orthanc)


@contextmanager
def on_pacs(model: Path, directory: Path) -> Iterator[Place]:
    with running_orthanc(directory / "orthanc", users={USER: PASSWORD}) as orthanc:
        cases = {}
        for seed in (1, 2, 3):
            case = make_case("PhantomAbdomenCT", seed, size="tiny")
            store(orthanc.dicomweb, write_dicom_series(case, directory / case.name), orthanc.auth)
            cases[series_uid(case)] = case
        with serving(model, directory, orthanc, cases) as place:
            yield place


@pytest.fixture
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_USERNAME", USER)
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_PASSWORD", PASSWORD)


def truth_on(image: Path, case: PhantomCase) -> LabelMap:
    """The label of a phantom on the grid of an image of it as a client has downloaded it."""
    grid = read_volume(image).grid
    own = Grid(case.labels.shape, case.affine)
    array = case.labels if grid.matches(own) else case.labels[::-1]
    return LabelMap(np.ascontiguousarray(array), grid, dict(case.names))


def slicer_session(place: Place, scratch: Path) -> str:
    """What 3D Slicer's module sends while somebody labels one image; the image."""
    from monailabel.client import MONAILabelClient

    client = MONAILabelClient(place.address, str(scratch), "user-xyz")
    assert client.auth_enabled() is False
    before = client.info()
    assert before["datastore"]["total"] == len(place.cases)
    assert client.train_status(True) is False
    sample = client.next_sample("first", {})
    image = sample["id"]
    assert image in place.cases
    # Slicer opens a file on the same disk, else it downloads the image under the name that it was given.
    opened = Path(sample["path"]) if sample["path"] else scratch / sample["name"]
    if not sample["path"]:
        answer = requests.get(f"{place.address}/datastore/image", params={"image": image}, timeout=60)
        assert answer.ok
        opened.write_bytes(answer.content)
    truth = truth_on(opened, place.cases[image])
    # The initial label, once a prediction was kept.
    params = {"result_extension": ".nrrd", "result_dtype": "uint8"}
    result, said = client.infer("hermes", image, {**params, "save_label": True, "label_tag": "original"})
    assert said["label_names"] == {"liver": 1, "spleen": 2}
    stored = client.datastore()["objects"][image]["labels"]["original"]["info"]["params"]["label_names"]
    assert stored == said["label_names"]
    initial = read_label_map(client.download_label(image, "original"))
    assert initial.grid.matches(truth.grid)
    assert np.array_equal(initial.array, read_label_map(result).array)
    # A segment "background" comes first: it counts in idx and is not exported, so idx and value differ.
    values = {name: value for value, name in truth.names.items()}
    drawn = np.zeros(truth.array.shape, np.uint8)
    for value, name in enumerate(STRUCTURES, start=1):
        drawn[truth.array == values[name]] = value
    file = write_label_map(LabelMap(drawn, truth.grid, {}), scratch / "label.nii.gz")
    shifted = [{"name": name, "idx": number} for number, name in enumerate(STRUCTURES, start=2)]
    assert (
        client.save_label(image, str(file), params={"label_info": shifted, "model": "hermes"})["label"]
        == image
    )
    assert client.info()["datastore"]["completed"] == before["datastore"]["completed"] + 1
    final = read_label_map(client.download_label(image, "final"))
    for value, name in enumerate(STRUCTURES, start=1):
        assert np.array_equal(final.array == value, truth.array == values[name]), name
    # Scribbles come as a label file that this model has no use for.
    result, _ = client.infer(
        "hermes",
        image,
        {**params, "roi": [0, 9, 0, 9, 0, 9], "selected_label_name": "liver"},
        label_in=str(file),
    )
    assert read_label_map(result).grid.matches(truth.grid)
    # An image of the annotator's own disk, as a session.
    session = client.create_session(str(opened))["session_id"]
    assert client.get_session(session)
    result, _ = client.infer("hermes", "", dict(params), session_id=session)
    assert read_label_map(result).array.shape == truth.array.shape
    client.remove_session(session)
    assert client.next_sample("first", {})["id"] != image
    client.train_start("hermes", {})
    wait_until(lambda: client.info()["train_stats"]["hermes"]["serving_version"] != "tiny", "a trained model")
    return image


def test_slicer_on_files(tiny_model: Path, tmp_path: Path) -> None:
    (scratch := tmp_path / "slicer").mkdir()
    with on_files(tiny_model, tmp_path) as place:
        image = slicer_session(place, scratch)
        from monailabel.client import MONAILabelClient

        client = MONAILabelClient(place.address, str(scratch), "user-xyz")
        file = write_nifti(place.cases[image], tmp_path / "mine")
        assert client.upload_image(str(file), "uploaded-1")["image"] == "uploaded-1"
        assert client.infer("hermes", "uploaded-1", {})[0]


@NEEDS_ORTHANC
def test_slicer_on_a_pacs_that_stops(tiny_model: Path, tmp_path: Path, password: None) -> None:
    (scratch := tmp_path / "slicer").mkdir()
    with on_pacs(tiny_model, tmp_path) as place:
        image = slicer_session(place, scratch)
        wait_until(lambda: place.uploads()["done"] == 1, "the upload")
        assert place.orthanc is not None
        listed = requests.get(
            f"{place.orthanc.dicomweb}/instances",
            params={"Modality": "SEG"},
            auth=(USER, PASSWORD),
            timeout=30,
        ).json()
        assert len(listed) == 1
        # The PACS stops. What is not here cannot be segmented, and the answer says why; everything else goes on.
        place.orthanc.stop()
        others = [uid for uid in place.cases if uid != image]
        answers = [
            requests.post(
                f"{place.address}/infer/hermes", params={"image": uid, "output": "json"}, timeout=60
            )
            for uid in others
        ]
        assert 503 in [answer.status_code for answer in answers]
        down = next(answer for answer in answers if answer.status_code == 503)
        assert "did not answer" in down.json()["detail"]
        wait_until(lambda: place.info()["datastore"]["pacs"]["reachable"] is False, "the state")
        assert place.info()["datastore"]["total"] == len(place.cases)
        again = requests.post(
            f"{place.address}/infer/hermes", params={"image": image, "output": "json"}, timeout=60
        )
        assert again.ok
        state = requests.get(f"{place.address}/hermes/pacs", timeout=60).json()
        assert state["reachable"] is False


@NEEDS_ORTHANC
def test_a_killed_server_and_a_stopped_pacs_lose_nothing(
    tiny_model: Path, tmp_path: Path, password: None
) -> None:
    with on_pacs(tiny_model, tmp_path) as place:
        assert place.orthanc is not None
        images = list(place.cases)
        with ThreadPoolExecutor(len(images)) as pool:  # others are answered while inferences run
            running = [pool.submit(infer, place, image) for image in images]
            answered = 0
            while not all(one.done() for one in running):
                assert place.info()["name"] == "Hermes"
                answered += any(not one.done() for one in running)
            assert all(one.result().ok for one in running)
            assert answered
        labels = {}
        for image in images:
            answer = requests.get(f"{place.address}/datastore/image", params={"image": image}, timeout=60)
            file = tmp_path / f"{image}.nii.gz"
            file.write_bytes(answer.content)
            truth = truth_on(file, place.cases[image])
            labels[image] = write_label_map(truth, tmp_path / f"label-{image}.nii.gz")
        place.orthanc.stop()
        for image in images:
            assert send_label(place, image, labels[image]).ok
        os.kill(server_pid(place.address), signal.SIGKILL)
    place.orthanc.start()
    try:
        with serving(tiny_model, tmp_path, place.orthanc, place.cases) as second:
            assert second.info()["datastore"]["completed"] == len(images)
            wait_until(lambda: second.uploads()["done"] == len(images), "all uploads")
        found = requests.get(
            f"{place.orthanc.dicomweb}/instances",
            params={"Modality": "SEG"},
            auth=(USER, PASSWORD),
            timeout=30,
        ).json()
        assert len(found) == len(images)
        assert len({item["0020000D"]["Value"][0] for item in found}) == len(images)
    finally:
        place.orthanc.stop()
    with Campaign(tmp_path / "campaign" / "campaign.sqlite") as campaign:
        assert len(campaign.labels(latest=False)) == len(images)


def infer(place: Place, image: str) -> requests.Response:
    return requests.post(
        f"{place.address}/infer/hermes", params={"image": image, "output": "json"}, timeout=120
    )


def send_label(place: Place, image: str, file: Path) -> requests.Response:
    case = place.cases[image]
    info = [{"name": name, "idx": value} for value, name in case.names.items() if name in STRUCTURES]
    params = {"label_info": info, "client_id": "anna"}
    array = read_label_map(file)
    kept = np.where(np.isin(array.array, [entry["idx"] for entry in info]), array.array, 0)
    write_label_map(LabelMap(kept, array.grid, {}), file)
    with file.open("rb") as stream:
        return requests.put(
            f"{place.address}/datastore/label",
            params={"image": image},
            data={"params": json.dumps(params)},
            files={"label": (file.name, stream)},
            timeout=60,
        )
