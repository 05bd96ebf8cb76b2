"""Curves and pictures of a round for a person to look at, below the campaign's ``logs``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from hermes.training.monitor import MlflowMonitor, Monitor, Monitors, TensorBoardMonitor
from hermes.training.trainer import Recipe
from hermes.workspace import Workspace


@contextmanager
def watched(workspace: Workspace, run_id: int, recipe: Recipe) -> Iterator[Monitor | None]:
    """The monitors that the settings ask for, closed at the end; None where they ask for none.

    Raises:
        HermesError: a package that is asked for is not installed.
    """
    name, logs = f"run-{run_id:04d}", workspace.directory / "logs"
    found: list[Monitor] = []
    with ExitStack() as ends:
        if workspace.settings.tensorboard:
            board = TensorBoardMonitor(logs / "tensorboard" / name)
            ends.callback(board.close)
            found.append(board)
        if workspace.settings.mlflow:
            flow = MlflowMonitor(logs / "mlflow", run_name=name, parameters=_parameters(recipe))
            ends.push(lambda kind, *_: flow.close("FINISHED" if kind is None else "FAILED"))
            found.append(flow)
        yield Monitors(found) if found else None


def _parameters(recipe: Recipe) -> dict[str, Any]:
    return {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}
