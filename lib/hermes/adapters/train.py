"""The trainer that MONAI Label runs in a process of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from hermes.adapters.requests import steps_of
from hermes.adapters.training_guard import refuse_paths
from hermes.errors import NotFoundError
from hermes.rounds import end_with_parent, run_round
from hermes.workspace import Workspace

logger = logging.getLogger(__name__)

_UNDER_WAY = frozenset({"preparing", "training", "publishing"})
NICENESS = 5  # annotators' inferences come before training on a shared CPU


class HermesTrainTask(TrainTask):  # type: ignore[misc]
    """Trains on all submitted labels and publishes the result."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        super().__init__("Continual fine-tuning of the serving model on all submitted labels")

    def config(self) -> dict[str, Any]:
        """What a request may say."""
        return {"train_steps": self._workspace.settings.train_steps_per_round or 0}

    def stats(self) -> dict[str, Any]:
        """How far the running or last training is; OHIF and Slicer read the first four."""
        state = self._workspace.progress.read()
        if state.get("phase") in _UNDER_WAY and self._workspace.campaign.current_run() is None:
            # A round says how it ended before it ends its run: what is read now is the last word.
            state = self._workspace.progress.read()
            if state["phase"] in _UNDER_WAY:
                state = {"phase": "failed", "reason": "the training process died"}
        return {
            "epoch": state.get("step", 0),
            "total_epochs": state.get("steps", 0),
            "total_time": _clock_time(state.get("train_seconds", 0.0)),
            "best_metric": round(1 - state["loss"] / 2, 4) if "loss" in state else 0.0,
            **state,
            "serving_version": self._workspace.versions.serving().name,
            "new_labels": self._workspace.campaign.labels_since_last_training(),
        }

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Run one round; what it did."""
        refuse_paths(request)
        end_with_parent()
        os.nice(NICENESS)

        def image_path(image_id: str) -> Path:
            uri = datastore.get_image_uri(image_id)
            if not uri:
                msg = f"Expected image {image_id!r} in the datastore, it is not there any more."
                raise NotFoundError(msg)
            return Path(uri)

        report = run_round(self._workspace, image_path, steps=steps_of(request))
        return {
            "version": report.version,
            "cases": report.cases,
            "steps": report.steps,
            "train_seconds": round(report.train_seconds, 1),
            "skipped": [{"image": s.image_id, "reason": s.reason} for s in report.skipped],
        }


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
