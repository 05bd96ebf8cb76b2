"""What a monitor is told, and what TensorBoard and MLflow keep of it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hermes.errors import HermesError
from hermes.model import NetworkConfig, build_network
from hermes.training.cases import TrainingCase
from hermes.training.monitor import (
    LABEL_COLOUR,
    PREDICTION_COLOUR,
    MlflowMonitor,
    Monitors,
    TensorBoardMonitor,
    Watch,
    overlay_of,
)
from hermes.training.report import StepReport
from hermes.training.sampling import PatchSampler
from hermes.training.trainer import Recipe, TrainingResult, train
from hermes.types import CaseId, Modality


class Notebook:
    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []
        self.pictures: list[tuple[int, str, tuple[int, ...]]] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.points.append((step, dict(values)))

    def overlay(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        self.pictures.append((step, name, image.shape))


def toy_case() -> TrainingCase:
    labels = np.zeros((16, 16, 32), np.uint8)
    labels[4:12, 4:12, 8:24] = 1
    labels[2:4, :4, :4] = 2
    return TrainingCase(CaseId("a"), labels.astype(np.float32), labels, {0: 1, 1: 2, 2: None}, Modality.CT)


def toy_run(monitor: Notebook | None) -> TrainingResult:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = build_network(NetworkConfig("hermes-c", 4, tasks=3))
    recipe = replace(Recipe.for_cpu(), steps=3, patch=(16, 16, 32), batch_size=1, augment=False)
    groups = {0: "liver", 1: "kidneys", 2: "kidneys"}
    return train(
        net, [toy_case()], recipe, device=torch.device("cpu"), seed=0, monitor=monitor, row_groups=groups
    )


def test_a_run_tells_curves_and_shows_pictures() -> None:
    notebook = Notebook()
    result = toy_run(notebook)
    curves = [values for _, values in notebook.points if "loss" in values]
    assert curves[-1]["loss"] == result.losses[-1]
    assert set(curves[-1]) == {"loss", "learning rate", "steps per s", "idle share"}
    groups = {name for _, values in notebook.points for name in values if name.startswith("task/")}
    assert groups == {"task/liver", "task/kidneys"}
    assert [(step, shape) for step, _, shape in notebook.pictures[:: len(notebook.pictures) - 1]] == [
        (1, (16, 32, 3)),
        (3, (16, 32, 3)),
    ]
    assert notebook.pictures[0][1] in ("liver", "kidneys")


def test_looking_changes_no_bit() -> None:
    watched, unwatched = toy_run(Notebook()).net.state_dict(), toy_run(None).net.state_dict()
    assert all(torch.equal(watched[name], unwatched[name]) for name in watched)


def test_a_watch_speaks_seldom() -> None:
    now = [0.0]
    notebook = Notebook()
    watch = Watch(notebook, {}, scalars_every_s=2.0, look_every_s=5.0, clock=lambda: now[0])
    net = build_network(NetworkConfig("hermes-c", 4, tasks=3))
    batch = PatchSampler([toy_case()], patch=(16, 16, 32), batch_size=1, seed=0).batch(0)
    for second in range(8):
        now[0] = float(second)
        watch.after(StepReport(second + 1, 100, 0.5, 1e-3, second), net, batch, precision="fp32")
    assert [step for step, values in notebook.points if "loss" in values] == [1, 3, 5, 7]
    assert [step for step, _, _ in notebook.pictures] == [1, 6]
    assert {name for _, values in notebook.points for name in values if "row" in name} <= {
        "task/row 0", "task/row 1", "task/row 2",
    }  # fmt: skip


def test_an_overlay_shows_both_contours_on_the_slice_with_most_label() -> None:
    label = np.zeros((5, 8, 8), bool)
    label[3, 2:6, 2:6] = True
    prediction = np.zeros_like(label)
    prediction[3, 0:2, 0:2] = True
    prediction[0] = True
    picture = overlay_of(np.arange(320, dtype=np.float32).reshape(5, 8, 8), label, prediction)
    assert picture.shape == (8, 8, 3)
    assert picture.dtype == np.uint8
    assert tuple(picture[2, 2]) == LABEL_COLOUR
    assert tuple(picture[0, 0]) == PREDICTION_COLOUR
    inside = tuple(int(v) for v in picture[3, 3])
    assert len(set(inside)) == 1  # grey: only the outline is drawn
    assert overlay_of(np.zeros((5, 8, 8), np.float32), ~label & False, ~label & False).max() == 0


def test_tensorboard_keeps_curves_and_pictures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    monitor = TensorBoardMonitor(tmp_path)
    Monitors([monitor]).scalars(7, {"loss": 0.5})
    Monitors([monitor]).overlay(7, "liver", np.zeros((8, 8, 3), np.uint8))
    monitor.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kept = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert [(e.step, e.value) for e in kept.Scalars("loss")] == [(7, 0.5)]
    assert [e.step for e in kept.Images("overlay/liver")] == [7]


def test_mlflow_keeps_curves_pictures_and_parameters(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow's own
        mlflow = pytest.importorskip("mlflow")
        for run in ("first", "second"):
            monitor = MlflowMonitor(tmp_path / "store", run_name=run, parameters={"steps": 9})
            monitor.scalars(7, {"loss": 0.5, "task/liver@BCV": 1.5})
            monitor.overlay(7, "liver@BCV", np.zeros((8, 8, 3), np.uint8))
            monitor.close()
        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}")
        (experiment,) = [e for e in client.search_experiments() if e.name == "hermes"]
        runs = client.search_runs([experiment.experiment_id])
    assert {r.info.run_name for r in runs} == {"first", "second"}
    assert runs[0].data.metrics == {"loss": 0.5, "task/liver_BCV": 1.5}
    assert runs[0].data.params == {"steps": "9"}
    assert runs[0].info.status == "FINISHED"
    assert len(list((tmp_path / "store" / "artifacts").rglob("000007.png"))) == 2


def test_what_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(HermesError, match="pip install tensorboard"):
        TensorBoardMonitor(tmp_path)
    with pytest.raises(HermesError, match="pip install mlflow"):
        MlflowMonitor(tmp_path, run_name="a")
