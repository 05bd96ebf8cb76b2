"""The state of an interrupted run on disk, so that a run that was stopped or killed goes on where it was.

The sampler is a pure function of (seed, step) and nothing in a step draws from a global generator, so network,
average, optimiser and step number are the whole state: on a CPU a resumed run ends with the same bits.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

_FORMAT = 1
SHORTEST_PAUSE_S = 1.0
"""Seconds between two savings at least, where ``every_s`` allows them."""
SAVING_SHARE = 0.02
"""How much of a training's time savings may take."""


@dataclass(frozen=True)
class ResumePoint:
    """Where a run keeps its state.

    Attributes:
        path: of the file; ``<name>.partial`` beside it belongs to it too.
        key: :func:`fingerprint` of all that determines the run. A state of another key is discarded.
        every_s: seconds between two savings at most; a state that is saved quickly is saved more often.
        keep: leave the finished run's state too; the caller calls :func:`discard` when the result is safe.
    """

    path: Path
    key: str
    every_s: float = 60.0
    keep: bool = False

    @property
    def partial(self) -> Path:
        """The file that is written before it takes the place of ``path``."""
        return self.path.with_name(self.path.name + ".partial")

    def pause_s(self, took_s: float) -> float:
        """Seconds from the end of a saving that took ``took_s`` to the next one.

        >>> point = ResumePoint(Path("state"), "key")
        >>> point.pause_s(0.001), point.pause_s(0.5), point.pause_s(10.0)
        (1.0, 25.0, 60.0)
        """
        return min(self.every_s, max(SHORTEST_PAUSE_S, took_s / SAVING_SHARE))


@dataclass(frozen=True)
class TrainingState:
    """A run between two steps.

    Attributes:
        step: steps done.
        steps: steps of the whole run, on which the schedules depend.
        seconds: spent so far.
        losses: of every step done.
        net: ``state_dict`` of the trained network.
        average: ``state_dict`` of the averaged one.
        updates: of the average.
        optimiser: ``state_dict`` of the optimiser.
    """

    step: int
    steps: int
    seconds: float
    losses: list[float]
    net: Mapping[str, Any]
    average: Mapping[str, Any]
    updates: int
    optimiser: Mapping[str, Any]


def fingerprint(**facts: Any) -> str:
    """SHA-256 (hex) of ``facts``: JSON values, dataclasses, paths; equal facts give equal fingerprints."""

    def plain(value: Any) -> Any:
        if hasattr(value, "__dataclass_fields__"):
            return asdict(value)
        return sorted(value) if isinstance(value, set | frozenset) else str(value)

    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=plain).encode()).hexdigest()


def save_state(point: ResumePoint, state: TrainingState) -> None:
    """Replace the state on disk by ``state``: after a crash the file holds the old one or the new one, whole.

    Raises:
        OSError: the disk is full or not writable; the old state stays.
    """
    point.path.parent.mkdir(parents=True, exist_ok=True)
    fields = {name: getattr(state, name) for name in state.__dataclass_fields__}
    with point.partial.open("wb") as file:
        torch.save({"format": _FORMAT, "key": point.key, **fields}, file)
        file.flush()
        os.fsync(file.fileno())
    point.partial.replace(point.path)


def load_state(point: ResumePoint, *, steps: int) -> TrainingState | None:
    """The state of the run of ``point.key`` and this many steps; None where there is none.

    A state of another run and a damaged file are removed. Only tensors and plain values are read, never code.
    """
    try:
        stored = _read(point.path)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        logger.warning("The state of an interrupted training is damaged; starting anew: %s", error)
        discard(point)
        return None
    if (stored.get("format"), stored.get("key"), stored.get("steps")) != (_FORMAT, point.key, steps):
        logger.info("The state on disk belongs to another training; starting anew.")
        discard(point)
        return None
    return TrainingState(**{name: stored[name] for name in TrainingState.__dataclass_fields__})


def _read(path: Path) -> dict[str, Any]:
    """The file's content; every byte is checked against its checksum first (torch does not).

    Raises:
        ValueError: damaged, or not written by :func:`save_state`.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        msg = f"its part {damaged!r} does not have the checksum it was written with"
        raise ValueError(msg)
    stored = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(stored, dict):
        msg = f"it holds {type(stored).__name__} instead of a dictionary"
        raise ValueError(msg)
    return stored


def discard(point: ResumePoint) -> None:
    """Remove the state, if there is one."""
    for path in (point.path, point.partial):
        path.unlink(missing_ok=True)
