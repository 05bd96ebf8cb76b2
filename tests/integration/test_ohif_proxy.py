"""The viewer's way to the PACS, with a real Orthanc behind it and a real HTTP server around it."""

from __future__ import annotations

import resource
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import httpx
import pydicom
import pytest
import requests
import uvicorn
from fastapi import FastAPI
from monailabel.config import settings

from hermes import pacs
from hermes.adapters import ohif
from hermes.adapters.ohif import proxy
from hermes.phantoms import make_case
from hermes.phantoms.dicom import write_dicom_series
from tests.servers import closing_when_asked_again

pytestmark = pytest.mark.skipif(pacs.how_to_install() is not None, reason=str(pacs.how_to_install()))


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pacs.Orthanc]:
    directory = tmp_path_factory.mktemp("proxy")
    with pacs.running_orthanc(directory / "orthanc", users={"monai": "secret"}) as started:
        for seed in (1, 2):
            case = make_case("PhantomAbdomenCT", seed, size="tiny", plain_axes=True)
            files = write_dicom_series(case, directory / case.name)
            pacs.store(started.dicomweb, files, started.auth)
        yield started


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server with nothing but the viewer's routes."""
    app = FastAPI()
    app.include_router(ohif.router)
    port = pacs.free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def behind(orthanc: pacs.Orthanc, monkeypatch: pytest.MonkeyPatch) -> pacs.Orthanc:
    assert orthanc.auth is not None
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", orthanc.dicomweb)
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_USERNAME", orthanc.auth[0])
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PASSWORD", orthanc.auth[1])
    return orthanc


def patients(answer: requests.Response) -> list[str]:
    return sorted(entry["00100020"]["Value"][0] for entry in answer.json()) if answer.content else []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, ["PhantomAbdomenCT_0001", "PhantomAbdomenCT_0002"]),
        ({"00100020": "PhantomAbdomenCT_0002"}, ["PhantomAbdomenCT_0002"]),
        (
            {
                "PatientName": "*ct_0001*",
                "limit": "101",
                "fuzzymatching": "true",
                "includefield": "00081030,00080060",
            },
            ["PhantomAbdomenCT_0001"],
        ),
        ({"PatientID": "nobody"}, []),
    ],
    ids=["all", "patient", "wildcard", "none"],
)
def test_a_search_finds_what_it_asks_for(
    address: str, behind: pacs.Orthanc, query: dict[str, str], found: list[str]
) -> None:
    answer = requests.get(f"{address}/proxy/dicom/qido/studies", params=query, timeout=20)
    assert answer.status_code == 200
    assert patients(answer) == found


def test_frames_come_as_the_pacs_sends_them(address: str, behind: pacs.Orthanc) -> None:
    query = {"PatientID": "PhantomAbdomenCT_0001", "includefield": "00080018", "limit": "1"}
    found = requests.get(f"{behind.dicomweb}/instances", params=query, auth=behind.auth, timeout=20).json()[0]
    study, series, instance = (found[tag]["Value"][0] for tag in ("0020000D", "0020000E", "00080018"))
    path = f"studies/{study}/series/{series}/instances/{instance}/frames/1"
    accept = {"Accept": "multipart/related; type=application/octet-stream"}
    ours = requests.get(f"{address}/proxy/dicom/wado/{path}", headers=accept, timeout=20)
    direct = requests.get(f"{behind.dicomweb}/{path}", headers=accept, auth=behind.auth, timeout=20)
    assert ours.headers["content-type"].startswith("multipart/related")

    def pixels(answer: requests.Response) -> bytes:  # the boundary is made anew for every answer
        return answer.content.split(b"\r\n\r\n", 1)[1].rpartition(b"\r\n--")[0]

    assert pixels(ours) == pixels(direct)
    assert len(pixels(ours)) > 1000
    metadata = requests.get(f"{address}/proxy/dicom/wado/studies/{study}/metadata", timeout=20).json()
    assert {entry["0020000D"]["Value"][0] for entry in metadata} == {study}
    same = requests.get(f"{address}/proxy/dicom/qido/studies/{study}/metadata", timeout=20).json()
    assert len(same) == len(metadata)


@pytest.mark.parametrize(
    "path",
    [
        "qido/../system", "qido/studies/../../system", "qido/studies/%2e%2e/%2e%2e/system", "wado/..%2f..%2fsystem",
        "system", "qido/patients", "wado/studies//..//..//system", "qido/", "wado/studies/%5c..%5c..%5csystem",
    ],
)  # fmt: skip
def test_nothing_but_dicomweb_is_reached(address: str, behind: pacs.Orthanc, path: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as raw:  # no client that tidies the address
        raw.sendall(f"GET /proxy/dicom/{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while part := raw.recv(65536):
            answer += part
    assert answer.split(b" ")[1] == b"404"
    assert b"DatabaseVersion" not in answer


def test_the_status_of_the_pacs_is_passed_on(address: str, behind: pacs.Orthanc) -> None:
    assert requests.get(f"{address}/proxy/dicom/wado/studies/1.2.3/metadata", timeout=20).status_code == 404
    refused = requests.post(
        f"{address}/proxy/dicom/wado/studies", data=b"no DICOM", headers={"Content-Type": "text/plain"}, timeout=20
    )  # fmt: skip
    assert refused.status_code in (400, 415)


def test_a_campaign_of_files_has_no_pacs(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", str(tmp_path))
    answer = requests.get(f"{address}/proxy/dicom/qido/studies", timeout=20)
    assert answer.status_code == 404
    assert "files in a folder" in answer.json()["detail"]


def test_a_pacs_that_is_down_is_said(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", f"http://127.0.0.1:{pacs.free_port()}/dicom-web")
    answer = requests.get(f"{address}/proxy/dicom/qido/studies", timeout=20)
    assert answer.status_code == 503
    assert "cannot be reached" in answer.json()["detail"]


def test_a_pacs_that_hangs_up_is_said(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as rude:
        monkeypatch.setattr(
            settings, "MONAI_LABEL_STUDIES", f"http://127.0.0.1:{rude.getsockname()[1]}/dicom-web"
        )

        def hang_up() -> None:
            for _ in range(2):  # it is asked once more, and no more than that
                connection, _ = rude.accept()
                connection.recv(4096)
                connection.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        answer = requests.get(f"{address}/proxy/dicom/qido/studies", timeout=20)
        thread.join()
    assert answer.status_code == 502
    assert "did not answer" in answer.json()["detail"]


def test_a_kept_connection_that_the_pacs_closes_fails_no_search(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        proxy._LIMITS.keepalive_expiry == 0.5
    )  # Orthanc closes after a second; here they are kept for longer
    monkeypatch.setattr(proxy, "_LIMITS", httpx.Limits(keepalive_expiry=60))
    monkeypatch.setattr(proxy, "_client", lru_cache(proxy._client.__wrapped__))
    with closing_when_asked_again() as (server, asked):
        monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", f"{server}/dicom-web")
        for _ in range(3):
            answer = requests.get(f"{address}/proxy/dicom/qido/studies", timeout=20)
            assert (answer.status_code, answer.text) == (200, "[]")
        assert asked == ["GET"] * 5  # two of the three met a closed connection
        stored = requests.post(f"{address}/proxy/dicom/stow/studies", data=b"label", timeout=20)
    assert stored.status_code == 502  # it may have been stored: who sends it decides
    assert asked == ["GET"] * 5 + ["POST"]


def test_others_are_answered_while_the_pacs_is_slow(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as slow, ThreadPoolExecutor(4) as pool:
        monkeypatch.setattr(
            settings, "MONAI_LABEL_STUDIES", f"http://127.0.0.1:{slow.getsockname()[1]}/dicom-web"
        )
        waiting = [
            pool.submit(requests.get, f"{address}/proxy/dicom/qido/studies", timeout=60) for _ in range(3)
        ]
        connections = [slow.accept()[0] for _ in waiting]
        page = requests.get(f"{address}/ohif/", timeout=20)  # answered although nobody of the three was
        assert page.status_code == 200
        assert not any(future.done() for future in waiting)
        for connection in connections:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]")
            connection.close()
        assert [future.result().text for future in waiting] == ["[]"] * 3


def test_a_large_upload_stays_out_of_memory(address: str, behind: pacs.Orthanc, tmp_path: Path) -> None:
    case = make_case("PhantomAbdomenCT", 3, size="tiny", plain_axes=True)
    data = pydicom.dcmread(write_dicom_series(case, tmp_path)[0])
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "2.25.4711"
    data.add_new(0x00091001, "OB", b"")
    data.add_new(0x00090010, "LO", "FILLER")
    data.add_new(0x00091001, "OB", bytes(200 << 20))
    data.save_as(tmp_path / "large.dcm")
    del data

    def parts() -> Iterator[bytes]:
        yield b"--x\r\nContent-Type: application/dicom\r\n\r\n"
        with (tmp_path / "large.dcm").open("rb") as file:
            while chunk := file.read(1 << 20):
                yield chunk
        yield b"\r\n--x--\r\n"

    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=x'}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer = requests.post(f"{address}/proxy/dicom/wado/studies", data=parts(), headers=headers, timeout=120)
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert answer.status_code == 200, answer.text
    found = requests.get(
        f"{behind.dicomweb}/instances", params={"SOPInstanceUID": "2.25.4711"}, auth=behind.auth, timeout=20
    )
    assert len(found.json()) == 1
    assert grown_mib < 100


def test_the_page_is_the_build_with_our_script(address: str) -> None:
    for path in ("/ohif/", "/ohif/monai-label?StudyInstanceUIDs=1.2", "/ohif/segmentation"):
        page = requests.get(f"{address}{path}", timeout=20)
        assert page.headers["content-type"].startswith("text/html")
        assert (
            page.text.index("app-config.js")
            < page.text.index("/ohif/hermes/hermes.js")
            < page.text.index("app.bundle")
        )
        assert 'href="http' not in page.text  # nothing is loaded from elsewhere
        assert "font-src 'self'" in page.headers["content-security-policy"]
    assert requests.get(f"{address}/ohif", timeout=20).url.endswith("/ohif/")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("assets/favicon.ico", "image/"), ("hermes/hermes.js", "text/javascript"), ("hermes/hermes.css", "text/css"),
        ("app-config.js", "text/javascript"), ("app.bundle.css", "text/css"),
    ],
)  # fmt: skip
def test_files_of_the_viewer_are_what_they_are(address: str, path: str, kind: str) -> None:
    answer = requests.get(f"{address}/ohif/{path}", timeout=20)
    assert answer.headers["content-type"].startswith(kind)
    assert not answer.text.startswith("<!doctype html")


@pytest.mark.parametrize(
    "path",
    ["../../proxy.py", "..%2f..%2fproxy.py", "assets/none.png", "hermes/none.js", "hermes/..%2f..%2fpage.py"],
)
def test_no_other_file_is_served(address: str, path: str) -> None:
    request = requests.Request("GET", f"{address}/ohif/x").prepare()
    request.url = f"{address}/ohif/{path}"  # as it stands
    with requests.Session() as session:
        assert session.send(request, timeout=20).status_code == 404
