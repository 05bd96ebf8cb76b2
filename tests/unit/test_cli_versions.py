"""``hermes versions``, ``hermes rollback`` and ``hermes preflight`` on a campaign that has no server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hermes.campaign.records import VersionState
from hermes.checkpoint import Manifest, save_checkpoint
from hermes.cli.command import main
from hermes.config import from_conf
from hermes.errors import CheckpointError
from hermes.geometry import Grid
from hermes.labels.space import LabelSpace, Task
from hermes.model import NetworkConfig, build_network
from hermes.records import LabelMap
from hermes.resident import ResidentModel
from hermes.submission import Submission
from hermes.transforms.preparation import PreparationSpec
from hermes.transforms.writing import write_label_map
from hermes.workspace import Workspace, served_with

GRID = Grid((24, 24, 24), np.diag([4.0, 4.0, 4.0, 1.0]))
GATE = {"report": {"gate": {"reason": "because", "mean_before": 0.5, "mean_after": 0.25}}}


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """A campaign with a published and a refused version and one label."""
    torch.manual_seed(0)
    net = build_network(NetworkConfig("hermes-c", 8, tasks=1))
    plain = Manifest(
        net.config,
        LabelSpace((Task("liver", "T"),)),
        PreparationSpec(spacing_mm=4.0),
        (32, 32, 32),
        version="base",
    )
    save_checkpoint(tmp_path / "base", net, plain)
    folder = tmp_path / "studies"
    settings = from_conf({"model": str(tmp_path / "base"), "holdout_share": "0"})
    workspace = Workspace(settings, str(folder), starter=tmp_path / "base")
    for name, parent, state, metrics in (
        ("v0001-aaaaaa", "base", VersionState.PUBLISHED, {}),
        ("v0002-bbbbbb", "v0001-aaaaaa", VersionState.REFUSED, GATE),
    ):
        manifest = {**plain.to_json(), "version": name, "parent": parent, "metrics": metrics}
        save_checkpoint(workspace.versions.directory / name, net, Manifest.from_json(manifest))
        workspace.campaign.record_version(name, path="p", state=state)
    workspace.publish("v0001-aaaaaa")
    array = np.zeros(GRID.shape, np.uint8)
    array[8:16, 8:16, 8:16] = 1
    write_label_map(LabelMap(array * 50, GRID, {}), folder / "image.nii.gz")
    archived = workspace.archive.write(
        "image", Submission(LabelMap(array, GRID, {1: "liver"}), {"liver": "present"})
    )
    reference = workspace.archive.reference(archived)
    workspace.campaign.record_label("image", "final", reference, "0" * 64, "ann", {"liver": "present"})
    workspace.campaign.close()
    return folder


def run(studies: Path, *words: str) -> int:
    base = studies.parent / "base"
    return main([words[0], str(studies), *words[1:], "--conf", f"model={base} modality=CT"])


def serving(studies: Path) -> str:
    pointer = studies / ".hermes" / "models" / "current"
    return pointer.read_text(encoding="utf-8").strip() if pointer.exists() else "base"


def test_versions_are_listed(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(studies, "versions") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["version", "base", "v0001-aaaaaa", "v0002-bbbbbb"]
    assert "published, serving" in lines[2]
    assert lines[3].split()[1:] == ["refused", "v0001-aaaaaa", "0", "0.5000", "0.2500", "because"]
    assert (
        main(["versions", str(studies / ".hermes"), "--json", "--conf", f"model={studies.parent / 'base'}"])
        == 0
    )
    listed = json.loads(capsys.readouterr().out)
    assert [(v["name"], v["serving"]) for v in listed] == [
        ("base", False),
        ("v0001-aaaaaa", True),
        ("v0002-bbbbbb", False),
    ]


def test_rollback(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(studies, "rollback") == 0
    assert serving(studies) == "base"
    assert run(studies, "rollback") == 2
    assert "began with" in capsys.readouterr().err
    assert run(studies, "rollback", "v0002-bbbbbb") == 2
    assert "refused" in capsys.readouterr().err
    assert run(studies, "rollback", "v0009-cccccc") == 2
    assert serving(studies) == "base"
    assert run(studies, "rollback", "v0002-bbbbbb", "--force") == 0
    assert serving(studies) == "v0002-bbbbbb"


def damage(studies: Path, version: str, name: str = "model.safetensors") -> None:
    file = studies / ".hermes" / "models" / version / name
    content = bytearray(file.read_bytes())
    content[-100] ^= 255
    file.write_bytes(content)


def test_a_damaged_version_is_refused(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(studies, "v0002-bbbbbb")
    assert run(studies, "rollback", "v0002-bbbbbb", "--force") == 2
    said = capsys.readouterr().err
    assert "'v0002-bbbbbb' names in model.safetensors" in said
    assert "v0001-aaaaaa stays" in said
    assert serving(studies) == "v0001-aaaaaa"


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_rollback_repairs_a_damaged_serving_version(
    studies: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run(studies, "rollback", "v0002-bbbbbb", "--force") == 0
    damage(studies, "v0002-bbbbbb", name)
    settings = from_conf({"model": str(studies.parent / "base")})
    with pytest.raises(CheckpointError, match=rf"(?s)v0002-bbbbbb.*{name}.*hermes rollback STUDIES"):
        Workspace(settings, str(studies), starter=studies).load_serving()
    capsys.readouterr()
    assert run(studies, "versions") == 0
    assert ("damaged" in capsys.readouterr().out) == (name == "manifest.json")
    assert run(studies, "rollback") == 0
    # The database, which is asked where the manifest is damaged, was not told the parent.
    assert serving(studies) == ("v0001-aaaaaa" if name == "model.safetensors" else "base")


def test_what_is_in_memory_answers_on(studies: Path) -> None:
    workspace = Workspace(from_conf({"model": str(studies.parent / "base")}), str(studies), starter=studies)
    resident = ResidentModel(workspace)
    loaded = resident.predictor()
    damage(studies, "v0001-aaaaaa")
    assert resident.predictor() is loaded
    with pytest.raises(CheckpointError, match="hermes rollback STUDIES"):
        ResidentModel(workspace).predictor()


def test_preflight(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(studies, "preflight") == 0
    out = capsys.readouterr().out.splitlines()
    assert "voxels at the model's spacing" in out[0]
    assert out[1].split() == ["liver", "1", "512", "0"]
    assert out[-1] == "1 cases to train on, 0 held out."
    assert run(studies, "preflight", "--structures", "livr") == 2
    (studies / "image.nii.gz").unlink()
    assert run(studies, "preflight") == 1
    assert "image" in capsys.readouterr().err


def test_the_settings_of_the_server_are_found(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conf = {"model": str(studies.parent / "base"), "modality": "CT", "structures": "liver,left kidney"}
    Workspace(from_conf(conf), str(studies), starter=studies).note_served()
    for place in (studies, studies / ".hermes"):
        assert main(["preflight", str(place), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [(s["name"], s["cases"]) for s in found["structures"]] == [("liver", 1), ("left kidney", 0)]
        assert found["used"] == ["image"]
    assert main(["preflight", str(studies), "--json", "--conf", "structures=liver"]) == 0
    assert [s["name"] for s in json.loads(capsys.readouterr().out)["structures"]] == ["liver"]


def test_a_campaign_directory_of_its_own_knows_its_images(
    studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (studies / ".hermes").rename(tmp_path / "elsewhere")
    conf = {"model": str(tmp_path / "base"), "modality": "CT", "campaign_dir": str(tmp_path / "elsewhere")}
    Workspace(from_conf(conf), str(studies), starter=studies).note_served()
    (tmp_path / "elsewhere").rename(tmp_path / "moved")
    assert main(["preflight", str(tmp_path / "moved"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["used"] == ["image"]


def test_without_a_note_the_newest_version_tells_the_settings(
    studies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["preflight", str(studies), "--conf", "modality=CT"]) == 0
    assert "--conf" in capsys.readouterr().err  # neither is there: it says what may have to be passed
    newest = studies / ".hermes" / "models" / "v0002-bbbbbb" / "manifest.json"
    manifest = json.loads(newest.read_text(encoding="utf-8"))
    settings = from_conf({"structures": "liver,spleen", "modality": "CT"}).to_conf()
    manifest["settings"] = {**settings, "a setting of another version of Hermes": "1"}
    newest.write_text(json.dumps(manifest), encoding="utf-8")
    assert main(["preflight", str(studies), "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert [s["name"] for s in json.loads(said.out)["structures"]] == ["liver", "spleen"]
    (studies / ".hermes" / "served.json").write_text("{", encoding="utf-8")
    served = served_with(studies / ".hermes")
    assert served is not None
    assert served.conf["structures"] == "liver,spleen"


def test_where_no_campaign_of_a_url_is_it_says_where_it_looked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["report", "http://127.0.0.1:9/dicom-web", "--json"]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / ".local") in said
    assert "campaign_dir" in said


def test_where_no_campaign_is_none_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["versions", str(tmp_path)]) == 2
    assert "Expected a campaign" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["report", "versions", "export"])
def test_a_damaged_database_is_said_in_one_message(
    studies: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    settings = from_conf({"model": str(studies.parent / "base")})
    workspace = Workspace(settings, str(studies), starter=studies)
    workspace.note_served()
    workspace.campaign.close()
    database = studies / ".hermes" / "campaign.sqlite"
    content = database.read_bytes()
    database.write_bytes(content[:100] + b"\xa5" * (len(content) - 100))
    out = ["--json"] if command != "export" else ["-o", str(studies / "out")]
    assert run(studies, command, *out) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"hermes {command}: The campaign's database {database} is damaged")
    assert said.count("\n") == 1
