"""The PACS of `make pacs`, for real: started, filled, stopped and started again."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from hermes import pacs, serve
from hermes.errors import PacsError
from hermes.phantoms import make_case
from hermes.phantoms.dicom import series_uid, write_dicom_series

pytestmark = pytest.mark.skipif(pacs.how_to_install() is not None, reason=str(pacs.how_to_install()))


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Path]]:
    case = make_case("PhantomAbdomenCT", 1, size="tiny", plain_axes=True)
    return series_uid(case), write_dicom_series(case, tmp_path_factory.mktemp("dicom"))


def series(dicomweb: str, **more: object) -> list[str]:
    answer = requests.get(f"{dicomweb}/series", timeout=20, **more)  # type: ignore[arg-type]
    answer.raise_for_status()
    return [entry["0020000E"]["Value"][0] for entry in answer.json()]


def test_what_was_stored_is_there_after_a_restart(tmp_path: Path, slices: tuple[str, list[Path]]) -> None:
    uid, files = slices
    with pacs.running_orthanc(tmp_path) as orthanc:
        assert pacs.store(orthanc.dicomweb, files) == len(files)
        assert pacs.store(orthanc.dicomweb, files) == len(files)  # again: nothing is stored twice
        assert series(orthanc.dicomweb) == [uid]
        port = orthanc.port
        orthanc.stop()
        assert not pacs.is_up(orthanc.url)
        orthanc.start()
        assert (orthanc.port, series(orthanc.dicomweb)) == (port, [uid])
        instances = requests.get(f"{orthanc.url}/statistics", timeout=20).json()["CountInstances"]
        assert instances == len(files)
    assert not pacs.is_up(orthanc.url)


def test_users_are_asked_for_a_password(tmp_path: Path, slices: tuple[str, list[Path]]) -> None:
    with pacs.running_orthanc(tmp_path, users={"monai": "secret"}) as orthanc:
        assert requests.get(f"{orthanc.dicomweb}/series", timeout=20).status_code == 401
        with pytest.raises(PacsError, match="401"):
            pacs.store(orthanc.dicomweb, slices[1][:1], ("monai", "wrong"))
        assert pacs.store(orthanc.dicomweb, slices[1][:1], orthanc.auth) == 1
        assert series(orthanc.dicomweb, auth=("monai", "secret")) == [slices[0]]


def test_a_file_that_is_no_dicom_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "letter.dcm").write_bytes(b"Dear colleague")
    with pacs.running_orthanc(tmp_path / "pacs") as orthanc, pytest.raises(PacsError, match="refused"):
        pacs.store(orthanc.dicomweb, [tmp_path / "letter.dcm"])


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert pacs.main(["start", "--directory", str(tmp_path), "--port", str(port), "--empty"]) == 2
        with pytest.raises(PacsError, match="to be free"):
            pacs.Orthanc(tmp_path, port).start()


def test_samples_are_stored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacs, "SAMPLES", (("PhantomCineMR", 1),))
    with pacs.running_orthanc(tmp_path) as orthanc:
        assert [pacs.store_samples(orthanc), pacs.store_samples(orthanc)] == [1, 0]
        assert len(series(orthanc.dicomweb)) == 1


def test_the_command_starts_it_in_the_background_and_stops_it(tmp_path: Path) -> None:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "hermes.pacs", *words, "--directory", str(tmp_path)]
        return subprocess.run(line, capture_output=True, text=True, check=False)

    port = pacs.free_port()
    with pytest.raises(PacsError, match="make pacs"):
        pacs.dicomweb_of(tmp_path)
    try:
        started = command("start", "--port", str(port), "--empty")
        assert started.returncode == 0, started.stderr
        assert f"http://127.0.0.1:{port}/dicom-web" in started.stdout
        assert pacs.dicomweb_of(tmp_path) == f"http://127.0.0.1:{port}/dicom-web"
        again = pacs.start_in_background(tmp_path, port)
        assert again.pid is None  # nothing was started: it runs
        with pytest.raises(PacsError, match="pacs-stop"):
            pacs.start_in_background(tmp_path, pacs.free_port())
    finally:
        stopped = command("stop")
    assert stopped.stdout == "The PACS is stopped.\n"
    assert pacs.running_in(tmp_path) is None
    assert pacs.stop_in_background(tmp_path) is False


def test_serving_the_pacs_that_does_not_run_says_how_to_start_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "CAMPAIGNS", tmp_path)
    assert serve.main(["--studies", "pacs", "--port", str(pacs.free_port())]) == 2
    assert "make pacs" in capsys.readouterr().err
