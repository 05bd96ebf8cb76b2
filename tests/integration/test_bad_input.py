"""Bad input over HTTP: the status, the reason, and that nothing was lost or changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hermes.geometry import Grid
from hermes.records import LabelMap
from hermes.transforms.writing import write_label_map


@pytest.fixture(scope="module")
def server(start: Any) -> Iterator[Any]:
    with start() as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_changes(server: Any) -> Iterator[None]:
    before = server.snapshot()
    yield
    assert server.snapshot() == before


@pytest.fixture
def image(server: Any) -> str:
    return str(next(iter(server.cases)))


def refused(response: Any, status: int, *words: str) -> None:
    assert response.status_code == status, response.text
    reason = str(response.json()["detail"])
    for word in words:
        assert word in reason


def test_unknown_image(server: Any) -> None:
    refused(server.infer("no-such-image"), 404, "no-such-image", "images")


def test_image_id_that_names_a_file_of_the_server(server: Any) -> None:
    refused(server.infer("README.md"), 404, "README.md")


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "/etc", "..\\secret"])
def test_path_outside_the_datastore(server: Any, path: str) -> None:
    refused(server.infer(path), 400, "path")


def test_path_smuggled_in_params(server: Any, image: str) -> None:
    refused(server.infer(image, {"image": "/etc/hostname"}), 400, "path")


def test_path_of_an_image_of_this_campaign(server: Any, image: str) -> None:
    refused(server.infer(str(server.studies / f"{image}.nii.gz")), 400, "path")


def test_unknown_model(server: Any, image: str) -> None:
    refused(server.infer(image, model="nope"), 404, "nope", "hermes")


def test_unknown_structure(server: Any, image: str) -> None:
    refused(server.infer(image, {"structures": ["livr"]}), 400, "livr", "Did you mean 'liver'?")


@pytest.mark.parametrize("params", [{"structures": 3}, {"modality": "X-ray"}, {"result_extension": ".exe"}])
def test_malformed_option(server: Any, image: str, params: dict[str, Any]) -> None:
    refused(server.infer(image, params), 400, "Expected")


def test_params_that_are_no_json(server: Any, image: str) -> None:
    response = server.post("/infer/hermes", params={"image": image}, data={"params": "{oops"})
    refused(response, 400, "JSON")


def test_unknown_strategy(server: Any) -> None:
    refused(server.post("/activelearning/best", json={}), 404, "best", "uncertainty")


def test_unknown_scoring_method(server: Any) -> None:
    refused(server.post("/scoring/best?run_sync=true", json={}), 404, "best", "agreement")


# ------------------------------------------------------------------------------------------------- labels


def test_label_of_unknown_image(server: Any, image: str, truth: Any) -> None:
    label, params = truth(server.cases[image])
    refused(server.submit("no-such-image", label, params), 404, "no-such-image")


def test_unknown_label_name(server: Any, image: str, truth: Any) -> None:
    label, params = truth(server.cases[image])
    params["label_info"][0]["name"] = "livr"
    refused(server.submit(image, label, params), 400, "livr", "liver, spleen", "Did you mean 'liver'?")


def test_value_without_a_name(server: Any, image: str, truth: Any) -> None:
    label, params = truth(server.cases[image])
    del params["label_info"][0]
    refused(server.submit(image, label, params), 400, "without a name")


def test_label_without_any_names(server: Any, image: str, truth: Any) -> None:
    label, _ = truth(server.cases[image])
    refused(server.submit(image, label, None), 400, "without a name")


def test_malformed_label_info(server: Any, image: str, truth: Any) -> None:
    label, _ = truth(server.cases[image])
    refused(server.submit(image, label, {"label_info": "liver"}), 400, "label_info")


def test_label_of_another_size(server: Any, image: str, tmp_path: Path) -> None:
    case = server.cases[image]
    half = case.labels[: case.labels.shape[0] // 2]
    path = tmp_path / "half.nii.gz"
    write_label_map(LabelMap(half, Grid(half.shape, case.affine), {}), path)
    info = [{"name": n, "idx": v} for v, n in case.names.items() if n in ("liver", "spleen")]
    refused(server.submit(image, path, {"label_info": info}), 400, "grid", "sizes")


def test_label_of_another_place(server: Any, image: str, tmp_path: Path) -> None:
    case = server.cases[image]
    moved = case.affine.copy()
    moved[0, 3] += 25.0
    path = tmp_path / "moved.nii.gz"
    write_label_map(LabelMap(case.labels, Grid(case.labels.shape, moved), {}), path)
    info = [{"name": n, "idx": v} for v, n in case.names.items() if n in ("liver", "spleen")]
    refused(server.submit(image, path, {"label_info": info}), 400, "grid", "origins")


def test_empty_label(server: Any, image: str, tmp_path: Path) -> None:
    case = server.cases[image]
    path = tmp_path / "empty.nii.gz"
    write_label_map(LabelMap(np.zeros_like(case.labels), Grid(case.labels.shape, case.affine), {}), path)
    refused(server.submit(image, path, {"label_info": [{"name": "liver", "idx": 1}]}), 400, "empty", "absent")


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x1f\x8b\x08\x00broken"])
def test_corrupt_label(server: Any, image: str, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "corrupt.nii.gz"
    path.write_bytes(content)
    refused(server.submit(image, path, {"label_info": [{"name": "liver", "idx": 1}]}), 400, "Expected")


@pytest.mark.parametrize("tag", ["../final", "a/b", ".hidden"])
def test_tag_with_path_separators(server: Any, image: str, truth: Any, tag: str) -> None:
    label, params = truth(server.cases[image])
    refused(server.submit(image, label, params, tag=tag), 400, "tag")


# ------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("name", ["../evil", "a/b", ".hidden"])
def test_upload_under_a_path(server: Any, name: str, tmp_path: Path) -> None:
    import requests

    path = tmp_path / "image.nii.gz"
    path.write_bytes((server.studies / f"{next(iter(server.cases))}.nii.gz").read_bytes())
    with path.open("rb") as stream:
        url = f"{server.address}/datastore/image"
        refused(
            requests.put(url, params={"image": name}, files={"file": stream}, timeout=60), 400, "image id"
        )


def test_upload_of_a_corrupt_image(server: Any, tmp_path: Path) -> None:
    import requests

    path = tmp_path / "image.nii.gz"
    path.write_bytes(b"not an image")
    with path.open("rb") as stream:
        url = f"{server.address}/datastore/image"
        refused(
            requests.put(url, params={"image": "new"}, files={"file": stream}, timeout=60), 422, "Expected"
        )


def test_upload_over_an_existing_image(server: Any, image: str, tmp_path: Path) -> None:
    import requests

    path = tmp_path / "image.nii.gz"
    path.write_bytes((server.studies / f"{image}.nii.gz").read_bytes())
    with path.open("rb") as stream:
        url = f"{server.address}/datastore/image"
        refused(requests.put(url, params={"image": image}, files={"file": stream}, timeout=60), 409, image)


# ----------------------------------------------------------------------------------------------- training


def test_training_without_labels(server: Any) -> None:
    refused(server.post("/train/hermes", json={}), 409, "label")


@pytest.mark.parametrize("option", ["name", "model_filename"])
@pytest.mark.parametrize("value", ["../../evil", "a/b", "a\\b"])
def test_train_request_with_a_path(server: Any, option: str, value: str) -> None:
    refused(server.post("/train/hermes", json={option: value}), 400, option, "separators")


def test_train_request_for_an_unknown_model(server: Any) -> None:
    refused(server.post("/train/nope", json={}), 404, "nope")


def test_train_request_with_bad_steps(server: Any) -> None:
    refused(server.post("/train/hermes", json={"train_steps": "many"}), 400, "train_steps")


def test_uploading_weights_is_refused(server: Any, tmp_path: Path) -> None:
    import requests

    path = tmp_path / "model.pt"
    path.write_bytes(b"weights")
    with path.open("rb") as stream:
        refused(
            requests.put(f"{server.address}/model/hermes", files={"file": stream}, timeout=60),
            400,
            "published",
        )
