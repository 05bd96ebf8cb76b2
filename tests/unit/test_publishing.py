"""Fifty publications while two processes load: the small sister of ``benchmarks/publishing.py``."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "publishing.py"


@pytest.fixture
def publishing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("publishing", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "publishing", module)
    monkeypatch.syspath_prepend(str(SCRIPT.parent))  # the loaders are processes that import it by name
    spec.loader.exec_module(module)
    return module


def test_no_load_fails_or_sees_a_mixture(publishing: ModuleType, tmp_path: Path) -> None:
    outcome = publishing.run(tmp_path, publications=50, loaders=2)
    assert (outcome.failed, outcome.mixed) == (0, 0)
    assert outcome.loads >= 2


def test_a_mixture_would_show(publishing: ModuleType) -> None:
    net = publishing.build_network(publishing.NetworkConfig("hermes-c", 8, tasks=1))
    space = publishing.LabelSpace((publishing.Task("liver", "Test"),))
    manifest = publishing.Manifest(net.config, space, version="v", note="3")
    assert publishing.is_whole(publishing.tagged(net, 3), manifest, "v")
    assert not publishing.is_whole(net, manifest, "w")
    with torch.no_grad():
        next(net.parameters()).view(-1)[0] = 2
    assert not publishing.is_whole(net, manifest, "v")
