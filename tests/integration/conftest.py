"""A real server on real files: what the integration tests talk to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch

from hermes.campaign.campaign import Campaign
from hermes.checkpoint import Manifest, save_checkpoint
from hermes.demo import running_server
from hermes.geometry import Grid
from hermes.labels.space import LabelSpace, Task
from hermes.model import NetworkConfig, build_network
from hermes.phantoms import PhantomCase, make_case, write_nifti
from hermes.records import LabelMap
from hermes.transforms.preparation import PreparationSpec
from hermes.transforms.writing import write_label_map

STRUCTURES = ("liver", "spleen")


@dataclass(frozen=True)
class Server:
    """A running server: its address, its folder of studies, and the phantoms in it."""

    address: str
    studies: Path
    cases: Mapping[str, PhantomCase]
    log: Path

    def get(self, path: str, **more: Any) -> requests.Response:
        return requests.get(f"{self.address}{path}", timeout=60, **more)

    def post(self, path: str, **more: Any) -> requests.Response:
        return requests.post(f"{self.address}{path}", timeout=300, **more)

    def infer(
        self, image: str, params: Mapping[str, Any] | None = None, *, model: str = "hermes"
    ) -> requests.Response:
        data = {"params": json.dumps(params or {})}
        return self.post(f"/infer/{model}", params={"image": image, "output": "json"}, data=data)

    def submit(
        self, image: str, label: Path, params: Mapping[str, Any] | None, **query: str
    ) -> requests.Response:
        with label.open("rb") as stream:
            return requests.put(
                f"{self.address}/datastore/label",
                params={"image": image, **query},
                data={"params": json.dumps(params)} if params is not None else {},
                files={"label": (label.name, stream)},
                timeout=60,
            )

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = self.get("/info/").json()["train_stats"]["hermes"]
        return stats

    def campaign(self) -> Campaign:
        return Campaign(self.studies / ".hermes" / "campaign.sqlite")

    def snapshot(self) -> dict[str, Any]:
        """Everything that a refused request must leave as it was."""
        listing = self.get("/datastore/?output=all").json()["objects"]
        labels = self.studies / "labels"
        archive = self.studies / ".hermes" / "labels"
        files = {str(p): p.read_bytes() for root in (labels, archive) for p in root.rglob("*") if p.is_file()}
        with self.campaign() as campaign:
            records = campaign.labels(latest=False)
            runs = campaign.runs()
        images = {p.name: p.stat().st_mtime_ns for p in self.studies.iterdir() if p.name.endswith(".nii.gz")}
        tags = {k: sorted(v["labels"]) for k, v in listing.items()}
        return {"files": files, "labels": records, "runs": runs, "images": images, "tags": tags,
                "version": self.stats()["serving_version"]}  # fmt: skip


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory whose network is real, small and untrained."""
    torch.manual_seed(0)
    tasks = tuple(Task(name, "Test") for name in STRUCTURES)
    net = build_network(NetworkConfig("hermes-c", 8, tasks=len(tasks)))
    directory = tmp_path_factory.mktemp("model") / "tiny"
    manifest = Manifest(
        net.config, LabelSpace(tasks), PreparationSpec(spacing_mm=9.0), (32, 32, 32), version="tiny"
    )
    save_checkpoint(directory, net, manifest)
    return directory


@pytest.fixture(scope="session")
def phantoms() -> dict[str, PhantomCase]:
    """Five small abdomens."""
    cases = [make_case("PhantomAbdomenCT", seed, size="tiny") for seed in range(1, 6)]
    return {case.name: case for case in cases}


@pytest.fixture(scope="module")
def start(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, phantoms: dict[str, PhantomCase]
) -> Callable[..., AbstractContextManager[Server]]:
    """Starts servers: ``with start(labels_per_round="2") as server``; ``studies=`` reuses a folder."""
    from contextlib import contextmanager

    @contextmanager
    def run(*, studies: Path | None = None, **conf: str) -> Iterator[Server]:
        folder = studies or tmp_path_factory.mktemp("studies")
        if studies is None:
            for case in phantoms.values():
                write_nifti(case, folder)
        log = tmp_path_factory.mktemp("log") / "server.log"
        settings = {
            "structures": ",".join(STRUCTURES), "model": str(tiny_model), "labels_per_round": "0",
            "train_steps_per_round": "2", "train_patch_voxels": "32,32,32", "score_images_per_round": "0",
            "holdout_share": "0", **conf,
        }  # fmt: skip
        with running_server(folder, settings, log) as address:
            yield Server(address, folder, phantoms, log)

    return run


@pytest.fixture
def truth(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Writes the true label of a phantom as an annotator would send it: (file, params)."""

    def write(case: PhantomCase, names: tuple[str, ...] = STRUCTURES) -> tuple[Path, dict[str, Any]]:
        values = {value: name for value, name in case.names.items() if name in names}
        drawing = np.where(np.isin(case.labels, list(values)), case.labels, 0)
        path = tmp_path / f"{case.name}.nii.gz"
        write_label_map(LabelMap(drawing, Grid(case.labels.shape, case.affine), values), path)
        return path, {"label_info": [{"name": n, "idx": v} for v, n in values.items()], "client_id": "anna"}

    return write
