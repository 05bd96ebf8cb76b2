"""``monailabel start_server`` without ``make``: the app alone, behind MONAI Label's own ASGI app."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from hermes.phantoms import write_nifti
from hermes.serve import APP


def command(studies: Path, port: int, *conf: str) -> list[str]:
    run = [
        sys.executable,
        "-m",
        "monailabel.main",
        "start_server",
        "--app",
        str(APP),
        "--studies",
        str(studies),
    ]
    return [*run, "--host", "127.0.0.1", "--port", str(port), *conf]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_plain_start_server(phantoms: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    case = next(iter(phantoms.values()))
    write_nifti(case, tmp_path)
    port = free_port()
    conf = ["--conf", "model", str(tiny_model), "--conf", "structures", "liver"]
    process = subprocess.Popen(
        command(tmp_path, port, *conf), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server did not come up"
            try:
                info = requests.get(f"{address}/info/", timeout=5).json()
                break
            except requests.ConnectionError:
                time.sleep(0.5)
        assert info["labels"] == ["liver"]
        answer = requests.post(
            f"{address}/infer/hermes", params={"image": case.name, "output": "json"}, timeout=120
        )
        assert answer.json()["model_version"] == "tiny"
        refused = requests.post(f"{address}/infer/hermes", params={"image": "nobody"}, timeout=60)
        assert (refused.status_code, "nobody" in refused.json()["detail"]) == (404, True)
        refused = requests.post(f"{address}/train/hermes", json={"name": "../x"}, timeout=60)
        assert (refused.status_code, "separators" in refused.json()["detail"]) == (400, True)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        (("labels_pr_round", "3"), "labels_per_round"),
        (("device", "cuda:99"), "GPUs"),
        (("model", "damaged"), "was changed or damaged"),
    ],
)
def test_wrong_settings_end_the_start_with_the_reason(
    conf: tuple[str, str], words: str, tiny_model: Path, tmp_path: Path
) -> None:
    if conf[1] == "damaged":
        model = shutil.copytree(tiny_model, tmp_path.parent / f"{tmp_path.name}-model")
        weights = model / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        conf = (conf[0], str(model))
    ended = subprocess.run(
        command(tmp_path, free_port(), "--conf", *conf),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode != 0
    assert words in ended.stdout + ended.stderr
