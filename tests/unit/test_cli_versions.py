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
from hermes.geometry import Grid
from hermes.labels.space import LabelSpace, Task
from hermes.model import NetworkConfig, build_network
from hermes.records import LabelMap
from hermes.submission import Submission
from hermes.transforms.preparation import PreparationSpec
from hermes.transforms.writing import write_label_map
from hermes.workspace import Workspace

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


def test_preflight(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(studies, "preflight") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split() == ["liver", "1", "512", "0"]
    assert out[-1] == "1 cases to train on, 0 held out."
    assert run(studies, "preflight", "--structures", "livr") == 2
    (studies / "image.nii.gz").unlink()
    assert run(studies, "preflight") == 1
    assert "image" in capsys.readouterr().err


def test_where_no_campaign_is_none_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["versions", str(tmp_path)]) == 2
    assert "Expected a campaign" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
