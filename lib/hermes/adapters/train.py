"""The trainer that MONAI Label runs in a process of its own."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask

from hermes.adapters.images import paths_of
from hermes.adapters.requests import round_options
from hermes.adapters.training_guard import refuse_paths
from hermes.campaign.records import RunState
from hermes.errors import CancelledError
from hermes.rounds import KEEPS, MODES, end_with_parent, run_round
from hermes.workspace import Workspace

logger = logging.getLogger(__name__)

_UNDER_WAY = frozenset({"preparing", "training", "evaluating", "publishing"})
LONGEST_START_S = 300.0
"""A process of a training that has not said anything after this has died."""
NICENESS = 5  # annotators' inferences come before training on a shared CPU


class HermesTrainTask(TrainTask):  # type: ignore[misc]
    """Trains on the submitted labels, and publishes the result unless it does worse on the hold-out."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        super().__init__("Continual fine-tuning of the serving model on all submitted labels")

    def config(self) -> dict[str, Any]:
        """What a request may say; viewers show a list as a choice and send one of it, or all of it, back."""
        settings = self._workspace.settings
        modes = sorted(MODES, key=lambda mode: mode != settings.train_mode)
        keeps = sorted(KEEPS, key=lambda keep: keep != settings.keep)
        return {
            "train_steps": settings.train_steps_per_round or 0,
            "mode": modes,
            "replay": settings.replay,
            "distil": settings.distil,
            "keep": keeps,
            "structures": "",
        }

    def stats(self) -> dict[str, Any]:
        """How far the running or last training is; OHIF and Slicer read the first four.

        ``report`` is that of the last round that came to its end: what the gate said, per structure before and
        after, the labels that were left out, what the labels held.
        """
        state = self._workspace.progress.read()
        if state.get("phase") in _UNDER_WAY and self._workspace.campaign.current_run() is None:
            # A round says how it ended before it ends its run: what is read now is the last word.
            state = self._workspace.progress.read()
            if state["phase"] in _UNDER_WAY:
                state = {"phase": "failed", "reason": "the training process died"}
        if state.get("phase") == "starting" and time.time() - state["at"] > LONGEST_START_S:
            state = {
                "phase": "failed",
                "reason": "the training process did not begin, see the log of the server",
            }
        runs = self._workspace.campaign.runs()
        reports = [run.report for run in runs if run.report and run.state is not RunState.IMPORTED]
        last = {"report": reports[-1]} if reports else {}
        return {
            "epoch": state.get("step", 0),
            "total_epochs": state.get("steps", 0),
            "total_time": _clock_time(state.get("train_seconds", 0.0)),
            "best_metric": round(1 - state["loss"] / 2, 4) if "loss" in state else 0.0,
            **last,
            **state,
            "serving_version": self._workspace.versions.serving().name,
            "new_labels": self._workspace.campaign.labels_since_last_training(),
        }

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Run one round; its report, or why it was stopped."""
        refuse_paths(request)
        options = round_options(request, self._workspace.settings, self._workspace.bindings().structures)
        end_with_parent()
        os.nice(NICENESS)
        try:
            return run_round(self._workspace, paths_of(datastore), options=options).to_json()
        except CancelledError as error:
            logger.info("%s", error)
            return {"stopped": str(error)}


def _clock_time(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
