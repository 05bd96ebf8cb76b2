"""Curves and example pictures of a run for a person to look at: TensorBoard, MLflow, or both.

Both are imported only when they are asked for. Looking changes nothing: a monitored run ends with the same bits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from hermes.errors import HermesError
from hermes.training.losses import segmentation_losses
from hermes.training.report import StepReport
from hermes.training.sampling import Batch

LABEL_COLOUR, PREDICTION_COLOUR = (0, 200, 0), (230, 60, 0)
"""RGB of the contours: what the annotator drew, what the network answers."""


class Monitor(Protocol):
    """Where numbers and pictures of a run go."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Note numbers after step ``step``."""
        ...

    def overlay(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Note a picture ``(H, W, 3)``."""
        ...


class TensorBoardMonitor:
    """Writes event files below ``directory``; show them with ``tensorboard --logdir``.

    Raises:
        HermesError: tensorboard is not installed.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError as error:
            msg = "Curves for TensorBoard need the package `tensorboard`: pip install tensorboard."
            raise HermesError(msg) from error
        self._writer = SummaryWriter(str(directory))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to every curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def overlay(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Add a picture under ``overlay/<name>``."""
        self._writer.add_image(f"overlay/{name}", image, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class MlflowMonitor:
    """A run in an MLflow store in ``directory``: SQLite file ``mlflow.db`` and pictures in ``artifacts``.

    Show it with ``mlflow ui --backend-store-uri sqlite:///DIRECTORY/mlflow.db``.

    Args:
        directory: of the store; made when it does not exist.
        run_name: what the run is called.
        experiment: what the runs of one campaign have in common.
        parameters: settings of the run.

    Raises:
        HermesError: mlflow is not installed.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        run_name: str,
        experiment: str = "hermes",
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            from mlflow import MlflowClient
        except ImportError as error:
            msg = "Curves for MLflow need the package `mlflow`: pip install mlflow."
            raise HermesError(msg) from error
        place = Path(directory).absolute()
        place.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=f"sqlite:///{place / 'mlflow.db'}")
        known = self._client.get_experiment_by_name(experiment)
        number = (
            known.experiment_id
            if known is not None
            else self._client.create_experiment(experiment, artifact_location=(place / "artifacts").as_uri())
        )
        self._run: str = self._client.create_run(number, run_name=run_name).info.run_id
        for name, value in (parameters or {}).items():
            self._client.log_param(self._run, name, value)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to every curve."""
        from mlflow.entities import Metric

        at_ms = int(time.time() * 1000)
        metrics = [Metric(_allowed(name), float(value), at_ms, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def overlay(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Add a picture to the run's artifacts."""
        self._client.log_image(self._run, image, artifact_file=f"overlay/{_allowed(name)}/{step:06d}.png")

    def close(self, status: str = "FINISHED") -> None:
        """End the run; ``status`` as MLflow calls it (``FINISHED``, ``FAILED``, ``KILLED``)."""
        self._client.set_terminated(self._run, status=status)


def _allowed(name: str) -> str:
    """The name with what MLflow refuses in names replaced."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


class Monitors:
    """Several monitors as one."""

    def __init__(self, monitors: Sequence[Monitor]) -> None:
        self._monitors = tuple(monitors)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Tell all of them."""
        for monitor in self._monitors:
            monitor.scalars(step, values)

    def overlay(self, step: int, name: str, image: NDArray[np.uint8]) -> None:
        """Tell all of them."""
        for monitor in self._monitors:
            monitor.overlay(step, name, image)


class Watch:
    """Tells a monitor about a run, seldom enough to cost next to nothing.

    Args:
        monitor: is told.
        groups: row -> name under which its loss is shown; rows of one name are averaged.
        scalars_every_s: seconds between two points of the curves.
        look_every_s: seconds between two looks at a patch: losses per group and a picture.
        clock: seconds.
    """

    def __init__(
        self,
        monitor: Monitor,
        groups: Mapping[int, str],
        *,
        scalars_every_s: float = 1.0,
        look_every_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monitor, self._groups, self._clock = monitor, groups, clock
        self._scalars_every_s, self._look_every_s = scalars_every_s, look_every_s
        self._spoke = self._looked = -float("inf")

    def after(self, report: StepReport, net: nn.Module, batch: Batch, *, precision: str) -> None:
        """Tell what there is to tell after this step; the last step is always told."""
        now, last = self._clock(), report.step == report.steps
        if last or now - self._spoke >= self._scalars_every_s:
            self._spoke = now
            self._monitor.scalars(report.step, _curves(report))
        if last or now - self._looked >= self._look_every_s:
            self._looked = now
            self._look(report.step, net, batch, precision)

    @torch.no_grad()
    def _look(self, step: int, net: nn.Module, batch: Batch, precision: str) -> None:
        one = batch.split()[0]
        with torch.autocast(one.image.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = net(
                one.image, one.task_rows, one.modality_rows, modality_known=one.modality_known
            ).logits.float()
        losses: dict[str, list[float]] = {}
        hard = torch.nonzero(one.weights[0] > 0)[:, 0].tolist()
        for k in hard:
            dice, bce = segmentation_losses(logits[:, [k]], one.masks[:, [k]], one.weights[:, [k]])
            losses.setdefault(self._name(int(one.task_rows[0, k])), []).append(float(dice + bce))
        self._monitor.scalars(step, {f"task/{name}": float(np.mean(v)) for name, v in losses.items()})
        largest = max(hard, key=lambda k: float(one.masks[0, k].sum()))
        picture = overlay_of(
            one.image[0, 0].cpu().numpy(), one.masks[0, largest].cpu().numpy() > 0.5,
            logits[0, largest].cpu().numpy() > 0,
        )  # fmt: skip
        self._monitor.overlay(step, self._name(int(one.task_rows[0, largest])), picture)

    def _name(self, row: int) -> str:
        return self._groups.get(row, f"row {row}")


def _curves(report: StepReport) -> dict[str, float]:
    return {
        "loss": report.loss,
        "learning rate": report.learning_rate,
        "steps per s": report.step / max(report.seconds, 1e-9),
        "idle share": report.idle_share,
    }


def overlay_of(
    image: NDArray[np.float32], label: NDArray[np.bool_], prediction: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """(H, W, 3) RGB: the axial slice with most of the label, with both contours.

    Args:
        image: (D, H, W); shown from its 1st to its 99th percentile.
        label: (D, H, W), what the annotator drew.
        prediction: (D, H, W), what the network answers.
    """
    z = int(label.sum(axis=(1, 2)).argmax()) if label.any() else image.shape[0] // 2
    low, high = np.percentile(image[z], [1, 99])
    grey = np.clip((image[z] - low) / max(float(high - low), 1e-6), 0, 1) * 255
    out = np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    for mask, colour in ((label[z], LABEL_COLOUR), (prediction[z], PREDICTION_COLOUR)):
        out[mask & ~ndimage.binary_erosion(mask)] = colour
    return out
