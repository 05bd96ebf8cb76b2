"""The commands beside a server whose images lie in a PACS."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from hermes import pacs, serve
from hermes.cli.command import main
from hermes.demo import running_server
from hermes.geometry import Grid
from hermes.phantoms import make_case
from hermes.phantoms.dicom import series_uid, write_dicom_series
from hermes.records import LabelMap
from hermes.transforms.reading import read_volume
from hermes.transforms.writing import write_label_map

pytestmark = pytest.mark.skipif(pacs.how_to_install() is not None, reason=str(pacs.how_to_install()))
STRUCTURES = ("liver", "spleen")


@pytest.fixture
def campaign(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The series of a PACS that `make pacs` started, served once, with one label; nothing runs any more but the PACS."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(serve, "CAMPAIGNS", tmp_path)
    case = make_case("PhantomAbdomenCT", 1, size="tiny")
    line = [sys.executable, "-m", "hermes.pacs", "start", "--empty", "--directory", str(tmp_path / "pacs")]
    subprocess.run([*line, "--port", str(pacs.free_port())], check=True, capture_output=True)
    try:
        orthanc = pacs.running_in(tmp_path / "pacs")
        assert orthanc is not None
        pacs.store(orthanc.dicomweb, write_dicom_series(case, tmp_path / "series"))
        conf = {"structures": ",".join(STRUCTURES), "model": str(tiny_model), "labels_per_round": "0",
                "holdout_share": "0", "score_images_per_round": "0"}  # fmt: skip
        with running_server(orthanc.dicomweb, conf, tmp_path / "server.log") as address:  # type: ignore[arg-type]
            image = series_uid(case)
            answer = requests.get(f"{address}/datastore/image", params={"image": image}, timeout=60)
            downloaded = tmp_path / "image.nii.gz"
            downloaded.write_bytes(answer.content)
            grid = read_volume(downloaded).grid
            own = Grid(case.labels.shape, case.affine)
            array = case.labels if grid.matches(own) else case.labels[::-1]
            values = {value: name for value, name in case.names.items() if name in STRUCTURES}
            drawing = np.ascontiguousarray(np.where(np.isin(array, list(values)), array, 0))
            label = write_label_map(LabelMap(drawing, grid, values), tmp_path / "label.nii.gz")
            info = [{"name": name, "idx": value} for value, name in values.items()]
            params = {"label_info": info, "client_id": "anna"}
            with label.open("rb") as stream:
                sent = requests.put(
                    f"{address}/datastore/label", params={"image": image}, files={"label": (label.name, stream)},
                    data={"params": json.dumps(params)}, timeout=60,
                )  # fmt: skip
            assert sent.ok, sent.text
        yield orthanc, image
    finally:
        pacs.stop_in_background(tmp_path / "pacs")


def said(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(list(words)) == 0
    return json.loads(capsys.readouterr().out)


def test_commands_find_the_campaign_of_a_pacs(
    campaign: tuple[pacs.Orthanc, str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    orthanc, image = campaign
    [directory] = (tmp_path / "home" / ".local" / "share" / "hermes").iterdir()
    for place in (orthanc.dicomweb, f"{orthanc.dicomweb}/", "pacs", str(directory)):
        found = said(capsys, "preflight", place, "--json")
        assert found["used"] == [image]
        assert {one["name"]: one["cases"] for one in found["structures"]} == dict.fromkeys(STRUCTURES, 1)
    report = said(capsys, "report", "pacs", "--json")
    assert [one["name"] for one in report["annotators"]] == ["anna"]
    assert [one["name"] for one in said(capsys, "versions", "pacs", "--json")] == ["tiny"]
    assert said(capsys, "review", "pacs", "--json")[0]["image"] == image
    for words in (
        ("review", "pacs", "rejected", image, "--comment", "no"),
        ("skip", "pacs", image, "--annotator", "ben", "--reason", "motion"),
        ("export", "pacs", "-o", str(tmp_path / "out.json")),
    ):
        assert main(list(words)) == 0
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert main(["rollback", "pacs"]) == 2  # found, and nothing to go back to
    assert "began with" in capsys.readouterr().err
    pacs.stop_in_background(tmp_path / "pacs")
    assert main(["preflight", "pacs"]) == 1
    assert "make pacs" in capsys.readouterr().err
    # A report needs the campaign only, not the PACS.
    assert said(capsys, "report", orthanc.dicomweb, "--json")["reviews"]["rejected"] == 1
