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


def test_a_structure_named_twice(server: Any, image: str, truth: Any) -> None:
    label, params = truth(server.cases[image])
    params["label_info"].append({"name": "Liver", "idx": 77})
    refused(server.submit(image, label, params), 400, "'liver'", "'Liver'", "77")


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
    refused(server.post("/train/hermes", json={"train_step": 5}), 400, "train_steps", "train_step'")


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


# ---------------------------------------------------------------------------------------- hostile requests

NOT_AN_OBJECT = [
    "[1]",
    "5",
    "null",
    "true",
    '"abc"',
    '[["image", "/etc/passwd"]]',
    "[" * 100_000,
    '{"x": NaN}',
]
HALF_A_CHARACTER = '{"x": "\\ud800"}'


@pytest.mark.parametrize("params", [*NOT_AN_OBJECT, HALF_A_CHARACTER], ids=lambda v: v[:12])
def test_params_that_are_no_object(server: Any, image: str, truth: Any, params: str) -> None:
    import requests

    refused(server.post("/infer/hermes", params={"image": image}, data={"params": params}), 400, "params")
    label, _ = truth(server.cases[image])
    with label.open("rb") as stream:
        url = f"{server.address}/datastore/label"
        files, data = {"label": (label.name, stream)}, {"params": params}
        refused(requests.put(url, params={"image": image}, files=files, data=data, timeout=60), 400, "params")
    url = f"{server.address}/datastore/image/info"
    refused(requests.put(url, params={"image": image}, data={"info": params}, timeout=60), 400, "info")
    assert server.get("/datastore/?output=all").status_code == 200


@pytest.mark.parametrize("info", ['{"path": "/etc/passwd"}', '{"name": "x"}', '{"strategy": 5}'])
def test_notes_that_belong_to_the_server(server: Any, image: str, info: str) -> None:
    import requests

    url = f"{server.address}/datastore/image/info"
    refused(requests.put(url, params={"image": image}, data={"info": info}, timeout=60), 400, "Expected")


def test_odd_types_in_requests(server: Any, image: str, truth: Any) -> None:
    refused(server.infer(image, {"model": [1]}), 404, "hermes")
    refused(server.post("/activelearning/first", json={"strategy": [1]}), 404, "strategies")
    refused(server.post("/activelearning/first", json={"client_id": "\ud800"}), 400, "params")
    label, params = truth(server.cases[image])
    refused(server.submit(image, label, {"label_info": [{"name": ["liver"], "idx": 1}]}), 400, "label_info")
    refused(server.submit(image, label, params | {"client_id": "\u0000"}), 400, "null character")
    refused(server.infer(image, {"save_label": True, "label_tag": 5}), 400, "tag")


def test_names_that_are_too_long(server: Any, image: str, truth: Any) -> None:
    refused(server.infer("/" + "a" * 4090), 400, "path")
    refused(server.infer("a" * 4090), 404, "aaa...")
    label, params = truth(server.cases[image])
    refused(server.submit(image, label, params, tag="t" * 300), 400, "tag")


def test_nothing_to_segment(server: Any, image: str) -> None:
    refused(server.post("/infer/hermes"), 400, "image")
    refused(server.post("/infer/hermes", params={"session_id": "nope"}), 404, "session")
    refused(server.post("/infer/hermes", params={"session_id": "nope", "image": image}), 404, "session")
    refused(server.post("/infer/hermes", params={"image": image, "output": "dicom_seg"}), 400, "DICOM")


def test_unknown_background_tasks_start_nothing(server: Any) -> None:
    refused(server.post("/batch/infer/nope", json={}), 404, "hermes")
    refused(server.post("/scoring/nope", json={}), 404, "agreement")


def test_weights_cannot_be_deleted(server: Any) -> None:
    import requests

    assert requests.delete(f"{server.address}/model/hermes", timeout=60).status_code == 405
    assert server.get("/model/hermes").status_code == 200


@pytest.mark.parametrize(
    ("suffix", "header"),
    [
        (
            ".nrrd",
            "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ndata file: {secret}\n\n",
        ),
        (".nrrd", "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 4 4 4\nencoding: raw\ndatafile: {secret}\n\n"),
        (
            ".mha",
            "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\nElementDataFile = {secret}\n",
        ),
        (
            ".mhd",
            "ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_UCHAR\nElementDataFile = {secret}\n",
        ),
    ],
)
def test_headers_that_name_another_file(
    server: Any, image: str, tmp_path: Path, suffix: str, header: str
) -> None:
    import requests

    secret = tmp_path / "secret.raw"
    secret.write_bytes(b"TOPSECRET" * 8)
    file = tmp_path / f"evil{suffix}"
    file.write_text(header.format(secret=secret))
    refused(server.submit(image, file, {}, tag="original"), 400, "Expected")
    for url, field in ((f"{server.address}/datastore/image?image=evil", "file"),):
        with file.open("rb") as stream:
            response = requests.put(url, files={field: (file.name, stream)}, timeout=60)
        refused(response, 422, "Expected")
    with file.open("rb") as stream:
        refused(server.post("/infer/hermes", files={"file": (file.name, stream)}), 422, "Expected")


def test_archive_that_leads_outside(server: Any, tmp_path: Path) -> None:
    import io
    import tarfile

    import requests

    evil = tmp_path / "evil.tar"
    with tarfile.open(evil, "w") as archive:
        member = tarfile.TarInfo("../" * 12 + str(tmp_path / "written").lstrip("/"))
        member.size = 4
        archive.addfile(member, io.BytesIO(b"evil"))
    with evil.open("rb") as stream:
        response = requests.put(
            f"{server.address}/session/?uncompress=true", files={"files": stream}, timeout=60
        )
    refused(response, 400, "archive")
    assert not (tmp_path / "written").exists()


def test_refused_uploads_are_not_kept(server: Any, image: str, tmp_path: Path) -> None:
    import tempfile

    before = set(Path(tempfile.gettempdir()).glob("tmp*.nii.gz"))
    path = tmp_path / "corrupt.nii.gz"
    path.write_bytes(b"not an image")
    refused(server.submit(image, path, {}), 400, "Expected")
    with path.open("rb") as stream:
        refused(server.post("/infer/hermes", files={"file": (path.name, stream)}), 422, "Expected")
    assert set(Path(tempfile.gettempdir()).glob("tmp*.nii.gz")) == before


def test_pages_of_other_sites_are_not_let_in(server: Any) -> None:
    import requests

    foreign = {"Origin": "http://elsewhere.example"}
    assert "access-control-allow-origin" not in server.get("/info/", headers=foreign).headers
    asked = {**foreign, "Access-Control-Request-Method": "PUT"}
    answer = requests.options(f"{server.address}/datastore/label", headers=asked, timeout=60)
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "localhost.evil.example", "127.0.0.1@evil.example", "", "a b"],
)
def test_a_name_that_somebody_lets_point_to_this_machine(server: Any, image: str, host: str) -> None:
    port = server.address.rpartition(":")[2]
    headers = {"Host": host.format(port=port)}
    for answer in (
        server.get("/info/", headers=headers),
        server.get("/ohif/", headers=headers),
        server.get(f"/datastore/image?image={image}", headers=headers),
        server.post("/hermes/rollback", headers=headers),
    ):
        assert answer.status_code in (400, 421)  # 400: no header at all, which uvicorn refuses itself
        if answer.status_code == 421:
            assert "allowed_hosts" in answer.json()["detail"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:{port}", "127.0.0.1:{port}", "[::1]:{port}", "localhost."]
)
def test_names_of_this_machine(server: Any, host: str) -> None:
    port = server.address.rpartition(":")[2]
    assert server.get("/hermes/queue", headers={"Host": host.format(port=port)}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1.evil.example", "http://[::1"]
)
def test_a_page_of_another_origin_cannot_write(server: Any, origin: str) -> None:
    headers = {"Origin": origin, "Content-Type": "text/plain"}  # what a browser sends without asking first
    for path in ("/hermes/rollback", "/train/hermes", "/activelearning/first", "/hermes/skip"):
        refused(server.post(path, headers=headers), 403, "allowed_hosts")
    assert server.post("/hermes/skip", headers={"Origin": server.address}, json={}).status_code == 400
