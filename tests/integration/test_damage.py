"""Files of a campaign that are damaged: what a server says, and what it makes again by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hermes.campaign.campaign import Campaign
from hermes.cli.command import main
from hermes.publish import write_atomically
from tests.integration.test_plain_server import free_port

DAMAGED = "v0001-aaaaaa"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 255
    file.write_bytes(content)


def start_in_vain(studies: Path, model: Path) -> str:
    """What a server that does not start says."""
    run = [sys.executable, "-m", "hermes.serve", "--studies", str(studies), "--port", str(free_port())]
    ended = subprocess.run(
        [*run, "--conf", f"model={model}"], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode != 0
    assert "Traceback" not in ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_a_running_server_meets_damage(start: Callable[..., Any], tiny_model: Path, truth: Any) -> None:
    with start() as server:
        versions = server.studies / ".hermes" / "models"
        shutil.copytree(tiny_model, versions / DAMAGED)
        flip(versions / DAMAGED / "model.safetensors")
        refused = server.post(f"/hermes/versions/{DAMAGED}/publish")
        assert refused.status_code == 409
        assert "was changed or damaged" in refused.json()["detail"]
        name, case = next(iter(server.cases.items()))
        answer = server.infer(name)
        assert (answer.status_code, answer.json()["model_version"]) == (200, "tiny")
        assert server.submit(name, *truth(case)).status_code == 200
        ready = server.get("/hermes/preflight").json()
        assert ready["ready"]

        files = [f for f in (server.studies / ".hermes" / "cache" / "entries").rglob("*") if f.is_file()]
        assert {"image.zarr", "labels.zarr"} <= {f.parent.name for f in files}
        for file in files:
            os.truncate(file, 0)
        assert server.get("/hermes/preflight").json() == ready
        assert server.infer(name).json()["label_names"] == answer.json()["label_names"]

        write_atomically(versions / "current", f"{DAMAGED}\n")  # as if it were damaged after it was published
        failed = server.infer(name)
        assert failed.status_code == 500
        assert "hermes rollback" in failed.json()["detail"]
        assert server.post("/hermes/rollback").json() == {"serving": "tiny"}
        assert server.infer(name).status_code == 200


def test_a_damaged_version_ends_the_start_and_rollback_repairs_it(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = tmp_path / ".hermes" / "models"
    shutil.copytree(tiny_model, versions / DAMAGED)
    flip(versions / DAMAGED / "model.safetensors")
    write_atomically(versions / "current", f"{DAMAGED}\n")
    said = start_in_vain(tmp_path, tiny_model)
    assert f"Hermes does not start. The version that answers, {DAMAGED}, cannot be used" in said
    assert "hermes rollback STUDIES" in said
    assert main(["rollback", str(tmp_path)]) == 0
    assert "tiny answers" in capsys.readouterr().out
    assert not (versions / "current").exists()


def test_a_damaged_database_ends_the_start(tiny_model: Path, tmp_path: Path) -> None:
    database = tmp_path / ".hermes" / "campaign.sqlite"
    with closing(Campaign(database)):
        pass
    content = database.read_bytes()
    database.write_bytes(content[:100] + b"\xa5" * (len(content) - 100))
    assert f"Hermes does not start. The campaign's database {database} is damaged" in start_in_vain(
        tmp_path, tiny_model
    )
