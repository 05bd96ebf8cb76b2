"""Which patches a training step sees: a pure function of (seed, step).

Nothing is remembered between steps, so a resumed run draws exactly what the interrupted one would have
drawn, and loader workers need no shared state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hermes.errors import NothingToTrainError
from hermes.training.augment import NO_AUGMENTATION, Augmentation, AugmentationRanges, draw, shade, warp
from hermes.training.cases import ForegroundIndex, TrainingCase

FOREGROUND_PROBABILITY = 0.8  # part of the patches that are centred on a voxel of an annotated structure
SUBSET_PROBABILITY = 0.25  # part of the samples for which only some tasks are asked
# The prior tokens attend to each other through the image, so the answer for one task depends on which others
# are asked; seeing random subsets keeps requests for single structures as good as requests for all. For the same
# reason tasks that are not annotated in a case are asked too, without learning from it: where every case has one
# structure out of three, a network that was only ever asked for one answers a request for three badly.


@dataclass(frozen=True)
class Norms:
    """What the losses of a step are divided by; the parts of a batch carry those of the whole.

    Attributes:
        annotated: channels with a hard label.
        distilled: channels with a target of the teacher.
        modalities: samples of known modality.
    """

    annotated: int
    distilled: int
    modalities: int


@dataclass(frozen=True)
class Batch:
    """Patches of one step.

    Attributes:
        image: (B, 1, D, H, W) float32.
        masks: (B, n, D, H, W) float32, 1 in the structures of annotated tasks.
        weights: (B, n) float32: 1 for an annotated task, else 0.
        task_rows: (B, n) int64; padded entries are 0 and switched off by ``task_mask``.
        task_mask: (B, n) bool, True where a task was asked.
        distilled: (B, n) bool, True where the teacher gives a target: the only one, or beside the label.
        beside: (B, n) bool, True for a task that is asked beside the others and learns nothing.
        modality_rows: (B,) int64; 0 where unknown.
        modality_known: (B,) bool.
        norms: of the whole batch of the step.
    """

    image: Tensor
    masks: Tensor
    weights: Tensor
    task_rows: Tensor
    task_mask: Tensor
    distilled: Tensor
    beside: Tensor
    modality_rows: Tensor
    modality_known: Tensor
    norms: Norms

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in self._tensors().items()})

    def pinned(self) -> Batch:
        """The same batch in memory from which a GPU copies while others compute."""
        return replace(self, **{k: v.pin_memory() for k, v in self._tensors().items()})

    def part(self, start: int, stop: int) -> Batch:
        """Some samples, padded as in the whole."""
        return replace(self, **{k: v[start:stop] for k, v in self._tensors().items()})

    def split(self) -> list[Batch]:
        """One batch per sample, without the padding that only a common width needed."""
        parts = []
        for b in range(self.image.shape[0]):
            one, kept = self.part(b, b + 1), self.task_mask[b]
            wide = ("masks", "weights", "task_rows", "task_mask", "distilled", "beside")
            parts.append(replace(one, **{name: getattr(one, name)[:, kept] for name in wide}))
        return parts

    def _tensors(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class _Plan:
    """All that is random about a sample, before any voxel is read; ``None`` as value: no voxel of that task."""

    case: TrainingCase
    centre: NDArray[np.float64]
    augmentation: Augmentation
    hard: Mapping[int, int | None]  # row -> label value
    soft: tuple[int, ...]  # rows that the teacher answers, some of them perhaps hard as well
    beside: tuple[int, ...]  # rows without a target

    @property
    def rows(self) -> list[int]:
        return sorted({*self.hard, *self.soft, *self.beside})


class PatchSampler:
    """Draws batches from cases; datasets and their cases by weight, patches by foreground."""

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        *,
        patch: tuple[int, int, int],
        batch_size: int,
        seed: int,
        augmentation: AugmentationRanges | None = None,
        dataset_weights: Mapping[str, float] | None = None,
        distil_rows: Sequence[int] = (),
        distil_most: int = 4,
        rehearsed_rows: Sequence[int] = (),
        beside_most: int = 8,
    ) -> None:
        """Prepare the foreground index of every case.

        Args:
            cases: those without an annotated task are left out.
            patch: (z, y, x) in voxels.
            batch_size: patches per batch.
            seed: of all draws.
            augmentation: None: patches are cut and left as they are.
            dataset_weights: how often each dataset is drawn; 1 where nothing is said.
            distil_rows: rows for which a teacher answers where a case covers them and has no annotation of them.
            distil_most: so many of them per sample at most, drawn anew each time.
            rehearsed_rows: rows for which a teacher answers as well where a case has an annotation of them.
            beside_most: so many of the other tasks that any case has annotated are asked beside at most.

        Raises:
            NothingToTrainError: there is no case with an annotated task.
        """
        self._cases = [c for c in cases if c.annotated]
        if not self._cases:
            msg = "Expected at least one case with an annotated structure, got none. Submit a label first."
            raise NothingToTrainError(msg)
        self._patch, self._batch_size, self._seed = patch, batch_size, seed
        self._ranges = augmentation
        self._distil_rows, self._distil_most = tuple(distil_rows), distil_most
        self._rehearsed_rows = frozenset(rehearsed_rows)
        self._known_rows = sorted({row for case in self._cases for row in case.annotated})
        self._beside_most = beside_most
        self._index = [
            ForegroundIndex.of(c, generator=np.random.default_rng([seed, i]))
            for i, c in enumerate(self._cases)
        ]
        self._datasets = sorted({c.dataset for c in self._cases})
        self._dataset_p = _shares((dataset_weights or {}).get(d, 1.0) for d in self._datasets)
        self._of_dataset = [
            np.array([i for i, c in enumerate(self._cases) if c.dataset == d]) for d in self._datasets
        ]
        self._case_p = [_shares(self._cases[i].weight for i in places) for places in self._of_dataset]

    def batch(self, step: int, share: slice = slice(None)) -> Batch:
        """The batch of training step ``step`` (from 0), or the samples of it that ``share`` selects."""
        plans = [self._plan(step, place) for place in range(self._batch_size)]
        return _collate(plans, plans[share], self._patch)

    def _plan(self, step: int, place: int) -> _Plan:
        generator = np.random.default_rng([self._seed, 1, step, place])
        dataset = int(generator.choice(len(self._datasets), p=self._dataset_p))
        number = int(generator.choice(self._of_dataset[dataset], p=self._case_p[dataset]))
        case = self._cases[number]
        centre = self._centre(case, self._index[number], generator)
        augmentation = draw(case.modality, generator, self._ranges) if self._ranges else NO_AUGMENTATION
        rows = sorted(case.annotated)
        if len(rows) > 1 and generator.random() < SUBSET_PROBABILITY:
            kept = generator.choice(len(rows), int(generator.integers(1, len(rows))), replace=False)
            rows = [rows[i] for i in sorted(kept)]
        soft = self._soft(case, step, place)
        beside = self._beside(case, soft, step, place)
        taught = (*soft, *(row for row in rows if row in self._rehearsed_rows))
        return _Plan(case, centre, augmentation, {r: case.annotated[r] for r in rows}, taught, beside)

    def _soft(self, case: TrainingCase, step: int, place: int) -> tuple[int, ...]:
        """Rows of this sample for the teacher; a stream of its own, so that the others stay as they are."""
        rows = self._distil_rows
        free = [r for r in rows if r not in case.annotated and (case.covered is None or r in case.covered)]
        if not free:
            return ()
        generator = np.random.default_rng([self._seed, 2, step, place])
        drawn = generator.choice(free, min(self._distil_most, len(free)), replace=False)
        return tuple(int(row) for row in drawn)

    def _beside(self, case: TrainingCase, soft: tuple[int, ...], step: int, place: int) -> tuple[int, ...]:
        """Rows that this sample is asked for without a target; a stream of their own as well."""
        free = [row for row in self._known_rows if row not in case.annotated and row not in soft]
        count = min(self._beside_most, len(free))
        if not count:
            return ()
        generator = np.random.default_rng([self._seed, 3, step, place])
        if generator.random() < SUBSET_PROBABILITY:
            count = int(generator.integers(count))
        return tuple(int(row) for row in generator.choice(free, count, replace=False))

    def _centre(
        self, case: TrainingCase, index: ForegroundIndex, generator: np.random.Generator
    ) -> NDArray[np.float64]:
        """Patch centre (z, y, x), so that the patch lies inside the image as far as it fits."""
        shape, patch = np.array(case.image.shape), np.array(self._patch)
        if index.places and generator.random() < FOREGROUND_PROBABILITY:
            centre = index.draw(generator) + generator.uniform(-0.25, 0.25, 3) * patch
        else:
            centre = generator.uniform(0, 1, 3) * shape
        room = (
            shape - patch
        ) / 2  # negative where the image is smaller than the patch: the image floats inside
        inside: NDArray[np.float64] = np.clip(centre, shape / 2 - np.abs(room), shape / 2 + np.abs(room))
        return inside


def _shares(weights: Iterable[float]) -> NDArray[np.float64]:
    """Weights that add up to 1."""
    array: NDArray[np.float64] = np.fromiter(weights, dtype=np.float64)
    array /= array.sum()
    return array


def _cut(
    case: TrainingCase, centre: NDArray[np.float64], augmentation: Augmentation, patch: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """Image and label patch; only the box that the patch needs is read from the case."""
    matrix = augmentation.matrix
    half = np.array(patch) / 2
    reach = np.abs(matrix) @ half + 1 if matrix is not None else half
    shape = np.array(case.image.shape)
    low = np.clip(np.floor(centre - reach), 0, shape - 1).astype(int)
    high = np.clip(np.ceil(centre + reach), low + 1, shape).astype(int)
    if matrix is None:
        start = np.round(centre - half).astype(int)
        low = np.clip(start, 0, shape)
        high = np.clip(start + np.array(patch), 0, shape)
    box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    image = torch.from_numpy(np.asarray(case.image[box], dtype=np.float32))
    labels = torch.from_numpy(np.asarray(case.labels[box]).astype(np.float32))
    if matrix is None:
        before = low - start
        after = np.array(patch) - (high - low) - before
        pads = [int(p) for b, a in zip(before[::-1], after[::-1], strict=True) for p in (b, a)]
        image, labels = (torch.nn.functional.pad(t, pads) for t in (image, labels))
    else:
        local = centre - low - 0.5
        image = warp(image, local, matrix, patch, nearest=False)
        labels = warp(labels, local, matrix, patch, nearest=True)
    return shade(image, augmentation.shading), labels


def _collate(plans: Sequence[_Plan], chosen: Sequence[_Plan], patch: tuple[int, int, int]) -> Batch:
    """The chosen samples, as wide as the widest of all plans."""
    count, width = len(chosen), max(len(plan.rows) for plan in plans)
    images = torch.empty(count, 1, *patch)
    masks = torch.zeros(count, width, *patch)
    task_rows = torch.zeros(count, width, dtype=torch.int64)
    task_mask, hard, distilled, beside = torch.zeros(4, count, width, dtype=torch.bool)
    for b, plan in enumerate(chosen):
        images[b, 0], labels = _cut(plan.case, plan.centre, plan.augmentation, patch)
        for k, row in enumerate(plan.rows):
            task_rows[b, k], task_mask[b, k] = row, True
            hard[b, k], distilled[b, k], beside[b, k] = row in plan.hard, row in plan.soft, row in plan.beside
            value = plan.hard.get(row)
            if value is not None:
                masks[b, k] = labels == value
    modalities = [plan.case.modality for plan in chosen]
    return Batch(
        image=images,
        masks=masks,
        weights=hard.float(),
        task_rows=task_rows,
        task_mask=task_mask,
        distilled=distilled,
        beside=beside,
        modality_rows=torch.tensor([m.row if m is not None else 0 for m in modalities]),
        modality_known=torch.tensor([m is not None for m in modalities]),
        norms=Norms(
            annotated=sum(len(plan.hard) for plan in plans),
            distilled=sum(len(plan.soft) for plan in plans),
            modalities=sum(plan.case.modality is not None for plan in plans),
        ),
    )
