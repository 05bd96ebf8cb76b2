"""From an image to a label map on its own grid: what every infer task, score and command calls."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from hermes.cache import VolumeCache
from hermes.checkpoint import Manifest
from hermes.device import in_fast_layout, keep_freed_memory, return_freed_memory
from hermes.errors import BadRequestError, GaveWayError
from hermes.inference.engine import (
    DEFAULT_BUDGET_BYTES,
    Encoder,
    EngineSettings,
    Precision,
    Request,
    Segmentation,
    encode,
    segment,
)
from hermes.inference.findings import findings_of, pairs_of
from hermes.inference.labelmap import Containers
from hermes.inference.lanes import lanes_for
from hermes.inference.region import Region
from hermes.inference.windows import Weighting, middle_window
from hermes.labels.catalogue import canonical_key, describe
from hermes.labels.space import LabelSpace, Task
from hermes.records import LabelMap, ModalitySource, Prediction, StructureResult, Volume
from hermes.transforms.preparation import PreparationRecord, PreparationSpec, PreparedVolume, prepare
from hermes.transforms.reading import read_volume
from hermes.types import Modality

Source: TypeAlias = "str | os.PathLike[str] | Volume"
LEAST_CONFIDENCE = 0.5
"""The network's own word on the modality counts from this probability on; below, it stays unknown."""

_LOCKS: dict[str, threading.Lock] = {}
_LOCKS_GUARD = threading.Lock()
_WANTED: Counter[str] = Counter()
"""Requests per device that use it or wait for it, those in the background left out."""


@dataclass(frozen=True)
class _Decided:
    """A modality and who decided it."""

    modality: Modality | None
    source: ModalitySource
    confidence: float


class Predictor:
    """Segments images with one network. Stateless between calls and safe for threads.

    Passes of the network take turns per device; reading, preparing and restoring run side by side.

    Args:
        net: has ``encode``. It is moved to ``device``, put into eval mode and into that device's memory layout.
        manifest: its label space, preparation and window.
        device: of the network.
        cache: of prepared images; None prepares anew each time.
        preparation: overrides the manifest's.
        version: name that predictions carry; the manifest's by default.
        overlap: of windows, as a part of the window.
        weighting: of a window's voxels in the average.
        memory_bytes: for everything but the image, the network and its activations.
        precision: ``"fp32"``, ``"bf16"`` (autocast) or ``"auto"``: bf16 on a GPU.
        batch: windows per pass to begin with; None: 1 on a CPU, 4 on a GPU.
    """

    def __init__(
        self,
        net: torch.nn.Module,
        manifest: Manifest,
        *,
        device: str | torch.device = "cpu",
        cache: VolumeCache | None = None,
        preparation: PreparationSpec | None = None,
        version: str | None = None,
        overlap: float = 0.5,
        weighting: Weighting = "uniform",
        memory_bytes: int = DEFAULT_BUDGET_BYTES,
        precision: str = "auto",
        batch: int | None = None,
    ) -> None:
        self.manifest = manifest
        self.device = torch.device(device)
        self.preparation = preparation or manifest.preparation
        self.version = version or manifest.version
        self._cache = cache
        if self.device.type == "cpu":
            keep_freed_memory()
        self._net: Encoder = in_fast_layout(net.eval(), self.device)  # type: ignore[assignment]  # nn.Module hides what it has
        self._settings = EngineSettings(
            window=manifest.window,
            overlap=overlap,
            weighting=weighting,
            batch=batch or (1 if self.device.type == "cpu" else 4),
            lanes=lanes_for(self.device, manifest.window),
            budget_bytes=memory_bytes,
            precision=_precision(precision, self.device),
        )

    def predict(
        self,
        source: Source,
        structures: Sequence[str] | Mapping[str, int] | None = None,
        *,
        modality: Modality | None = None,
        frame: int | None = None,
        region: Region | None = None,
        uncertainty_map: bool = False,
        findings: bool = False,
        background: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Prediction:
        """Segments one image.

        Args:
            source: a file, a DICOM folder, or an image in memory.
            structures: names as :meth:`hermes.labels.space.LabelSpace.select` takes them (None: all that are
                taught in the modality), or names with the rows of the task tables that draw them.
            modality: overrides what the image says of itself.
            frame: time point of a 4D image.
            region: only this part of the patient.
            uncertainty_map: whether to make one.
            findings: whether to measure what scores are made of, in the same pass.
            background: gives way: ends before the next window when another request waits for the device.
            on_progress: called with (windows done, windows in all).
            should_stop: asked often; True ends the inference.

        Returns:
            A label map on the image's own grid with values 1, 2, ... in the order of the request; overlaps
            are decided as :mod:`hermes.inference.labelmap` states.

        Raises:
            BadImageError: the image cannot be read or used.
            UnknownStructureError: a name that the label space does not know.
            CancelledError: ``should_stop`` said so.
            GaveWayError: another request waits for the device.
        """
        clock = _Clock()
        with clock("prepare"):
            prepared = self._prepare(source, modality, frame)
        prepared, decided = self._decide_modality(source, prepared, frame, clock)
        names, tasks, rows = self._tasks(structures, decided.modality)
        if not rows:
            msg = "Expected at least one structure to segment, got none that fits the image's modality."
            raise BadRequestError(msg)
        request = Request(
            rows=rows,
            modality_row=None if decided.modality is None else decided.modality.row,
            containers=containers_of([task.structure for task in tasks]),
            air_level=prepared.record.air_level,
            roi=None if region is None else region.on(prepared.record.model_grid),
            pairs=pairs_of([task.structure for task in tasks]) if findings else (),
        )
        settings = replace(self._settings, uncertainty_map=uncertainty_map, findings=findings)
        try:
            with _turn(self.device, clock, background=background) as wanted:
                result = segment(
                    self._net,
                    prepared.array,
                    request,
                    settings,
                    device=self.device,
                    on_progress=on_progress,
                    should_stop=_first_of(should_stop, wanted),
                )
        finally:
            return_freed_memory()
        clock.add("network", result.network_s)
        clock.add("reduce", result.reduce_s)
        answer = self._answer(prepared.record, result, names, tasks, decided, clock)
        if result.sums is None:
            return answer
        voxel_ml = prepared.record.model_grid.voxel_volume_ml
        found = findings_of(
            result, result.sums, names, request.pairs, voxel_ml=voxel_ml, modality=decided.modality
        )
        return replace(answer, findings=found)

    def _prepare(self, source: Source, modality: Modality | None, frame: int | None) -> PreparedVolume:
        if self._cache is not None:
            return self._cache.prepared(source, self.preparation, modality=modality, frame=frame)
        if not isinstance(source, Volume):
            source = read_volume(source, modality=modality, frame=frame)
        elif modality is not None:
            source = Volume(source.array, source.grid, modality, "caller", 1.0)
        return prepare(source, self.preparation)

    def _decide_modality(
        self, source: Source, prepared: PreparedVolume, frame: int | None, clock: _Clock
    ) -> tuple[PreparedVolume, _Decided]:
        """The modality that the image states, else the network's word after one pass over its middle."""
        record = prepared.record
        if record.modality is not None:
            return prepared, _Decided(record.modality, record.modality_source, record.modality_confidence)
        middle = middle_window(prepared.array, self.manifest.window)
        if not np.ptp(middle):  # nothing in it that could tell
            return prepared, _Decided(None, "unknown", 0.0)
        with _turn(self.device, clock), clock("modality"), torch.inference_mode():
            encoded = encode(self._net, middle[None], (0,), None, self.device, self._settings.precision)
            # The last class stands for "unknown": of the others, which one is it?
            chances = encoded.modality_logits[0, : len(Modality)].float().softmax(dim=0).cpu()
        confidence, row = float(chances.max()), int(chances.argmax())
        if confidence < LEAST_CONFIDENCE:
            return prepared, _Decided(None, "unknown", confidence)
        modality = list(Modality)[row]
        if modality is Modality.CT:  # the only one whose intensities are prepared in another way
            prepared = self._prepare(source, modality, frame)
        return prepared, _Decided(modality, "network", confidence)

    def _tasks(
        self, structures: Sequence[str] | Mapping[str, int] | None, modality: Modality | None
    ) -> tuple[list[str], list[Task], tuple[int, ...]]:
        """What to call each structure, which task draws it, and its row."""
        space = self.manifest.label_space
        if isinstance(structures, Mapping):
            rows = tuple(structures.values())
            # A campaign may have rows that its model's label space does not name.
            tasks = [
                space.tasks[row] if row < len(space) else Task(name, "campaign")
                for name, row in structures.items()
            ]
            return list(structures), tasks, rows
        learned = LabelSpace(tuple(space.tasks[row] for row in sorted(self.manifest.learned_rows)))
        tasks = list(learned.select(structures, modality))
        repeated = Counter(task.structure for task in tasks)
        names = [task.structure if repeated[task.structure] == 1 else task.key for task in tasks]
        return names, tasks, tuple(space.row(task) for task in tasks)

    def _answer(
        self,
        record: PreparationRecord,
        result: Segmentation,
        names: Sequence[str],
        tasks: Sequence[Task],
        decided: _Decided,
        clock: _Clock,
    ) -> Prediction:
        with clock("restore"):
            labels = record.restore(result.labels)
            counts = _counts(labels, len(names) + 1)
            doubt = None if result.uncertainty_map is None else record.restore(result.uncertainty_map)
        volume_ml = record.grid.voxel_volume_ml
        structures = tuple(
            StructureResult(
                structure=name,
                task=task.key,
                value=place + 1,
                presence_probability=float(result.presence[place]),
                voxel_count=int(counts[place + 1]),
                volume_ml=float(counts[place + 1] * volume_ml),
                uncertainty=float(result.uncertainty[place]),
            )
            for place, (name, task) in enumerate(zip(names, tasks, strict=True))
        )
        return Prediction(
            label_map=LabelMap(labels, record.grid, {item.value: item.structure for item in structures}),
            structures=structures,
            modality=decided.modality,
            modality_source=decided.source,
            modality_confidence=decided.confidence,
            uncertainty=result.image_uncertainty,
            uncertainty_map=None if doubt is None else doubt.astype(np.float32),
            model_version=self.version,
            timings_s=clock.timings_s(),
            windows=result.windows,
            windows_skipped=result.windows_skipped,
        )


def containers_of(structures: Sequence[str]) -> Containers:
    """For each structure, the places of those that contain it, directly or through others.

    Example:
        >>> containers_of(["liver", "liver tumor"])
        [[], [0]]
    """
    keys = [canonical_key(name) for name in structures]
    return [
        [place for place, key in enumerate(keys) if key in outer]
        for outer in (_all_containers(name) for name in structures)
    ]


def _all_containers(structure: str) -> set[str]:
    found: set[str] = set()
    waiting = [structure]
    while waiting:
        for container in describe(waiting.pop()).within:
            if canonical_key(container) not in found:
                found.add(canonical_key(container))
                waiting.append(container)
    return found - {canonical_key(structure)}


def _counts(labels: NDArray[Any], values: int) -> NDArray[np.int64]:
    """How often each value occurs; plane by plane, since ``bincount`` makes an int64 copy."""
    counts = np.zeros(values, dtype=np.int64)
    for plane in labels:
        counts += np.bincount(plane.ravel(), minlength=values)
    return counts


def _precision(name: str, device: torch.device) -> Precision:
    if name == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    if name not in ("fp32", "bf16"):
        msg = f"Expected a precision out of fp32, bf16 and auto, got {name!r}."
        raise BadRequestError(msg)
    return "bf16" if name == "bf16" else "fp32"


class _Clock:
    """Adds up seconds per stage."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - begin)

    def add(self, stage: str, seconds: float) -> None:
        """Adds what a stage measured itself."""
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    def timings_s(self) -> dict[str, float]:
        """Seconds per stage so far, and in all."""
        return {**self._seconds, "total": time.perf_counter() - self._start}


def is_wanted(device: torch.device) -> bool:
    """Whether a request is using the device or waits for it, other than one in the background."""
    return _WANTED[str(device)] > 0


def _first_of(should_stop: Callable[[], bool] | None, wanted: Callable[[], None]) -> Callable[[], bool]:
    def stop() -> bool:
        wanted()
        return should_stop is not None and should_stop()

    return stop


@contextmanager
def _turn(device: torch.device, clock: _Clock, *, background: bool = False) -> Iterator[Callable[[], None]]:
    """One pass at a time per device: two would need twice the memory and gain nothing.

    Gives what a background pass asks before every window; it raises when another request waits.
    """
    name = str(device)
    with _LOCKS_GUARD:
        lock = _LOCKS.setdefault(name, threading.Lock())
        _WANTED[name] += not background

    def give_way() -> None:
        if background and _WANTED[name] > 0:
            msg = "The inference in the background gave way to a request."
            raise GaveWayError(msg)

    try:
        with clock("wait"):
            lock.acquire()
        try:
            yield give_way
        finally:
            lock.release()
    finally:
        with _LOCKS_GUARD:
            _WANTED[name] -= not background
