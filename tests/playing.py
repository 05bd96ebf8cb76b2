"""Rounds of a simulated campaign, for tests of what they train on and what they publish."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hermes.checkpoint import Manifest, save_checkpoint
from hermes.config import from_conf
from hermes.geometry import Grid
from hermes.labels.space import LabelSpace, Task
from hermes.model import NetworkConfig, build_network
from hermes.records import LabelMap, NewStructure
from hermes.rounds import RoundOptions, run_round
from hermes.rounds import round as rounds
from hermes.submission import Submission
from hermes.training.report import TrainingResult
from hermes.transforms.preparation import PreparationSpec
from hermes.transforms.writing import write_label_map
from hermes.workspace import Workspace

GRID = Grid((32, 32, 32), np.diag([4.0, 4.0, 4.0, 1.0]))


class Play:
    """A campaign on synthetic images: a bright ball is the liver, a darker one the spleen."""

    def __init__(self, folder: Path, **conf: str) -> None:
        torch.manual_seed(0)
        self.folder = folder
        tasks = (Task("liver", "Test"), Task("spleen", "Test"))
        net = build_network(NetworkConfig("hermes-c", 8, tasks=2))
        base = folder / "base"
        if not base.exists():
            manifest = Manifest(net.config, LabelSpace(tasks), PreparationSpec(spacing_mm=4.0), (32, 32, 32))
            save_checkpoint(base, net, manifest)
        settings = {
            "modality": "CT", "train_steps_per_round": "2", "train_patch_voxels": "32,32,32", "train_batch_size": "1",
            "device": "cpu", **conf,
        }  # fmt: skip
        self.workspace = Workspace(from_conf(settings), str(folder / "studies"), starter=base)

    def path(self, image: str) -> Path:
        path = self.folder / f"{image}.nii.gz"
        if not path.exists():
            array, _ = self._drawn(image)
            write_label_map(LabelMap(array.astype(np.uint8), GRID, {}), path)
        return path

    def _drawn(self, image: str) -> tuple[Any, Any]:
        rng = np.random.default_rng(zlib.crc32(image.encode()))
        z, y, x = np.indices((32, 32, 32))
        labels = np.zeros((32, 32, 32), np.uint8)
        for value, radius in ((1, 7), (2, 5)):
            c = rng.integers(8, 24, 3)
            labels[(z - c[0]) ** 2 + (y - c[1]) ** 2 + (x - c[2]) ** 2 < radius**2] = value
        array = rng.normal(30, 5, labels.shape) + 80 * (labels == 1) + 40 * (labels == 2)
        return np.clip(array, 0, 255), labels

    def submit(
        self, image: str, *, absent: tuple[str, ...] = (), first: str = "liver", second: str = "spleen",
        patient: str | None = None, author: str = "ann",
    ) -> int:  # fmt: skip
        self.path(image)
        _, labels = self._drawn(image)
        names = {1: first, 2: second}
        for name in absent:
            value = next(v for v, n in names.items() if n == name)
            labels[labels == value] = 0
            del names[value]
        annotated = {n: "present" for n in names.values()} | {n: "absent" for n in absent}
        file = self.workspace.archive.write(image, Submission(LabelMap(labels, GRID, names), annotated))
        reference = self.workspace.archive.reference(file)
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        return self.workspace.campaign.record_label(
            image, "final", reference, sha256, author, annotated, patient=patient
        ).id

    def run(self, **options: Any) -> Any:
        return run_round(self.workspace, self.path, options=RoundOptions(**{"steps": 2, **options}))


def holds_out(workspace: Workspace, wanted: bool) -> Iterator[str]:
    """Names of patients that the campaign holds out, or not."""
    rule = workspace.campaign._holdout
    return (f"case{n}" for n in range(10_000) if rule.holds_out(f"case{n}") is wanted)


def untrained(monkeypatch: pytest.MonkeyPatch, change: float = 0.0) -> list[list[str]]:
    """Replaces training by a change of the weights; the case ids that each round would have trained on."""
    seen: list[list[str]] = []

    def train(net: Any, cases: Any, recipe: Any, **_: Any) -> TrainingResult:
        seen.append([case.case_id for case in cases])
        with torch.no_grad():
            for value in net.parameters():
                value.add_(
                    change * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(seen)))
                )
        return TrainingResult(net, recipe.steps, [1.0] * recipe.steps, 0.1)

    monkeypatch.setattr(rounds, "train", train)
    return seen


def perfect(campaign: Play, shown: tuple[int, ...] = (1, 2)) -> Any:
    """A predictor that answers with the truth, or with these structures of it."""

    class Predictor:
        def predict(self, path: Path, rows: Any, **_: Any) -> Any:
            _, labels = campaign._drawn(path.name.removesuffix(".nii.gz"))
            array = np.where(np.isin(labels, shown), labels, 0).astype(np.uint8)
            return SimpleNamespace(label_map=LabelMap(array, GRID, {1: "liver", 2: "spleen"}))

    return Predictor()


def with_organs(play: Any, **conf: str) -> Play:
    """A campaign whose rows are liver, spleen, my organ, my lesion."""
    campaign: Play = play(**{"holdout_share": "0", **conf})
    campaign.workspace.add_structures([NewStructure("my organ", "liver"), NewStructure("my lesion", None)])
    return campaign


ORGANS = {"first": "my organ", "second": "my lesion"}
