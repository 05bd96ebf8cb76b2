"""One training round of a campaign: from the labels in the database to a published version.

Runs in a process of its own. Only the database, the versions and the progress file are shared with the server.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch

from hermes import __version__
from hermes.campaign.records import Annotated, LabelRecord, VersionState
from hermes.checkpoint import Manifest, load_checkpoint, save_checkpoint
from hermes.config import Settings
from hermes.device import choose_device, choose_precision
from hermes.errors import (
    BadImageError,
    BadLabelError,
    BusyError,
    CancelledError,
    HermesError,
    NotFoundError,
    NothingToTrainError,
)
from hermes.labels.space import LabelSpace
from hermes.model import UniversalNetwork, extend_tasks
from hermes.submission import LabelArchive
from hermes.training.cases import TrainingCase
from hermes.training.trainer import Recipe, StepReport, TrainingResult, fit_patch, train
from hermes.types import CaseId
from hermes.workspace import Bindings, Workspace

logger = logging.getLogger(__name__)

ImagePath = Callable[[CaseId], Path]
PROGRESS_EVERY_S = 1.0


@dataclass(frozen=True)
class Skipped:
    """A label that training leaves out, and why."""

    image_id: CaseId
    reason: str


@dataclass(frozen=True)
class RoundReport:
    """What a round did."""

    version: str
    cases: int
    steps: int
    train_seconds: float
    final_loss: float
    skipped: tuple[Skipped, ...]


def run_round(
    workspace: Workspace,
    image_path: ImagePath,
    *,
    steps: int | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> RoundReport:
    """Train on all labels of the campaign and publish the result.

    Args:
        workspace: the campaign.
        image_path: id of an image -> its file.
        steps: optimiser steps; None: the setting, else as many as suit device and labels.
        should_stop: asked before every step.

    Raises:
        NothingToTrainError: no usable label.
        BusyError: another process trains this campaign.
        CancelledError: ``should_stop`` said so.
    """
    lock = filelock.FileLock(workspace.directory / "training.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        msg = "Another process trains this campaign. Wait for it, or stop it with DELETE /train/."
        raise BusyError(msg) from error
    try:
        return _Round(workspace, image_path, steps, should_stop).run()
    finally:
        lock.release()


def require_labels(workspace: Workspace) -> None:
    """Nothing, if there is a label to train on.

    Raises:
        NothingToTrainError: there is none.
    """
    if not workspace.campaign.labels():
        msg = "Expected at least one submitted label to train on, there is none. Submit a label first."
        raise NothingToTrainError(msg)


class _Round:
    """The state of one run, so that the steps of `run` read as a list."""

    def __init__(
        self,
        workspace: Workspace,
        image_path: ImagePath,
        steps: int | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._workspace, self._image_path, self._should_stop = workspace, image_path, should_stop
        self._settings = workspace.settings
        self._steps = steps if steps is not None else self._settings.train_steps_per_round
        self._device = choose_device(self._settings.device)
        self._last_progress = 0.0

    def run(self) -> RoundReport:
        require_labels(self._workspace)
        labels = self._workspace.campaign.labels()
        run = self._workspace.campaign.start_run([label.id for label in labels])
        self._progress("preparing", run=run.id)
        # The progress file always has the end before the database has it; `HermesTrainTask.stats` relies on that.
        try:
            report = self._train_and_publish(labels, run.id)
        except CancelledError as error:
            self._progress("stopped", reason=str(error))
            self._workspace.campaign.stop_run(run.id, str(error))
            raise
        except BaseException as error:
            reason = str(error) if isinstance(error, HermesError) else f"{type(error).__name__}: {error}"
            self._progress("failed", reason=reason)
            self._workspace.campaign.fail_run(run.id, reason)
            raise
        self._progress("published", step=report.steps, steps=report.steps, version=report.version,
                       loss=report.final_loss, train_seconds=report.train_seconds)  # fmt: skip
        self._workspace.campaign.finish_run(run.id, version=report.version, steps=report.steps)
        return report

    def _train_and_publish(self, labels: Sequence[LabelRecord], run_id: int) -> RoundReport:
        serving, manifest = self._workspace.serving()
        net, _ = load_checkpoint(serving.directory)
        bindings = self._workspace.bind(manifest)
        _add_rows(net, bindings, seed=self._settings.seed)
        cases, skipped = self._cases(labels, bindings, manifest)
        recipe = choose_recipe(self._settings, cases, self._device, steps=self._steps, window=manifest.window)
        logger.info("Training on %d cases, %s", len(cases), recipe)
        if self._settings.training_threads is not None:
            torch.set_num_threads(self._settings.training_threads)

        def on_step(report: StepReport) -> None:
            if report.seconds - self._last_progress >= PROGRESS_EVERY_S or report.step == report.steps:
                self._last_progress = report.seconds
                self._workspace.campaign.heartbeat(run_id, report.step)
                rate = report.step / max(report.seconds, 1e-9)
                self._progress("training", step=report.step, steps=report.steps, loss=report.loss, rate=rate,
                               eta_s=(report.steps - report.step) / rate)  # fmt: skip

        seed = self._settings.seed + len(self._workspace.versions.names())
        result = train(
            net, cases, recipe, device=self._device, seed=seed, on_step=on_step, should_stop=self._should_stop
        )
        self._progress("publishing", step=recipe.steps, steps=recipe.steps)
        version = self._publish(result, serving.name, manifest, bindings, cases, recipe, seed)
        loss = float(np.mean(result.losses[-20:]))
        return RoundReport(version, len(cases), result.steps, result.seconds, loss, tuple(skipped))

    def _cases(
        self, labels: Sequence[LabelRecord], bindings: Bindings, manifest: Manifest
    ) -> tuple[list[TrainingCase], list[Skipped]]:
        """Prepared cases; an image or label that cannot be used is skipped with its reason."""
        cases, skipped = [], []
        for label in labels:
            try:
                cases.append(self._case(label, bindings, manifest))
            except (BadImageError, BadLabelError, NotFoundError) as error:
                skipped.append(Skipped(label.image_id, str(error)))
                logger.warning("Training leaves out %s: %s", label.image_id, error)
        if not cases:
            reasons = "; ".join(f"{s.image_id}: {s.reason}" for s in skipped[:5])
            msg = f"Expected at least one usable label, all {len(skipped)} were left out: {reasons}"
            raise NothingToTrainError(msg)
        return cases, skipped

    def _case(self, label: LabelRecord, bindings: Bindings, manifest: Manifest) -> TrainingCase:
        spec = self._workspace.preparation(manifest)
        modality = self._settings.modality
        prepared = self._workspace.cache.prepared(
            self._image_path(label.image_id), spec, modality=modality, lazy=True
        )
        path = self._workspace.archive.path(label.path)
        labels = self._workspace.cache.prepared_labels(path, prepared.record, lazy=True)
        values = {name: value for value, name in LabelArchive.names_of(path).items()}
        annotated: dict[int, int | None] = {}
        for name, state in label.annotated.items():
            if name not in bindings.rows:
                continue  # labelled under settings that named more structures
            annotated[bindings.rows[name]] = values[name] if state is Annotated.PRESENT else None
        if not annotated:
            msg = f"None of the annotated structures {sorted(label.annotated)} belongs to the campaign's settings now."
            raise BadLabelError(msg)
        return TrainingCase(label.image_id, prepared.array, labels, annotated, prepared.record.modality)

    def _publish(
        self, result: TrainingResult, parent: str, manifest: Manifest, bindings: Bindings,
        cases: Sequence[TrainingCase], recipe: Recipe, seed: int,
    ) -> str:  # fmt: skip
        net = result.net
        if not all(bool(torch.isfinite(p).all()) for p in net.parameters()):
            msg = "Training ended with weights that are not finite; the serving version stays. Lower `learning_rate`."
            raise HermesError(msg)
        assert isinstance(net, UniversalNetwork)  # what went in comes out
        rows = sorted(manifest.learned_rows | {row for case in cases for row in case.annotated})
        name = self._workspace.versions.new_name(_digest(net))
        stored = save_checkpoint(
            self._workspace.versions.directory / name,
            net,
            Manifest(
                network=net.config,
                label_space=bindings.space,
                preparation=self._workspace.preparation(manifest),
                window=_window(recipe.patch, self._device),
                version=name,
                parent=parent,
                created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                metrics={"final_loss": float(np.mean(result.losses[-20:])), "steps": result.steps},
                trained_on=tuple(case.case_id for case in cases),
                trained_rows=tuple(rows),
                settings=self._settings.to_conf(),
                seed=seed,
                code_version=__version__,
            ),
        )
        path = self._workspace.versions.path(name)
        known = {v.name for v in self._workspace.campaign.versions()}
        self._workspace.campaign.record_version(
            name, path=str(path), parent=parent if parent in known else None, metrics=stored.metrics,
            state=VersionState.PUBLISHED,
        )  # fmt: skip
        self._workspace.versions.publish(name)
        return name

    def _progress(self, phase: str, **more: Any) -> None:
        self._workspace.progress.write(phase=phase, at=time.time(), pid=os.getpid(), **more)


def choose_recipe(
    settings: Settings,
    cases: Sequence[TrainingCase],
    device: torch.device,
    *,
    steps: int | None,
    window: tuple[int, int, int],
) -> Recipe:
    """The recipe of arXiv 2306.02416, scaled to the device, the images and the number of cases.

    Args:
        settings: of the campaign; what they say goes.
        cases: that will be trained on.
        device: where.
        steps: asked for; None: as many as the recipe thinks right.
        window: of the version that training starts from; on a CPU patches are not larger.
    """
    gpu = device.type == "cuda"
    shapes = [case.image.shape for case in cases]
    recipe = Recipe.for_gpu() if gpu else Recipe.for_cpu()
    recipe = replace(
        recipe,
        batch_size=settings.train_batch_size,
        patch=settings.train_patch_voxels or fit_patch(shapes, largest=128 if gpu else max(window)),
        learning_rate=settings.learning_rate or recipe.learning_rate,
        precision=choose_precision(settings.precision, device),
    )
    return replace(recipe, steps=steps or recipe.steps_for(len(cases)))


def _window(patch: tuple[int, int, int], device: torch.device) -> tuple[int, int, int]:
    return (128, 128, 128) if device.type == "cuda" else patch


def _add_rows(net: UniversalNetwork, bindings: Bindings, *, seed: int) -> None:
    """Rows for the tasks that the campaign has and the version has not."""
    missing = len(bindings.space) - net.config.tasks
    if missing > 0:
        relatives = [_relative(bindings.space, row) for row in range(net.config.tasks, len(bindings.space))]
        extend_tasks(net, missing, relatives, torch.Generator().manual_seed(seed))


def _relative(space: LabelSpace, row: int) -> int | None:
    """The first row that draws the same structure by another protocol: the best place to begin from."""
    structure = space.tasks[row].structure
    return next((r for r in range(row) if space.tasks[r].structure == structure), None)


def _digest(net: torch.nn.Module) -> str:
    """SHA-256 over all weights, hex."""
    digest = hashlib.sha256()
    for value in net.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def end_with_parent(*, every_s: float = 1.0) -> None:
    """End this process at once when its parent is gone: a trainer without its server writes nothing more.

    Everything that a round writes is atomic, so ending at any moment loses the round and nothing else.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(every_s)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
