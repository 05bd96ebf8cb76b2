"""From the probabilities of a slab to labels and a few sums per task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from hermes.inference.labelmap import THRESHOLD, Containers, resolve
from hermes.inference.windows import Box, Shape

BOUNDARY = 0.1
"""From this probability on a voxel belongs to a structure or to its boundary."""
DENSE_VOXELS = 64 * 64
"""In planes up to this size every voxel enters the entropies; in larger ones every second row and column, and
every second plane of a stack of more than :data:`DENSE_PLANES`."""
DENSE_PLANES = 32


ArrayOrTensor = TypeVar("ArrayOrTensor", NDArray[Any], Tensor)


@dataclass(frozen=True, eq=False)
class TaskSums:
    """What is summed per task over the voxels that enter the sums.

    Attributes:
        entropy: ``(n,)`` bits where the probability is at least :data:`BOUNDARY`.
        voxels: ``(n,)`` how many those are.
        inside_entropy: ``(n,)`` bits where the probability is above one half.
        inside_voxels: ``(n,)`` how many those are.
        decided: ``(n,)`` sum of ``|2 p - 1|`` where the probability is at least :data:`BOUNDARY`.
        products: ``(pairs, 3)``: for each pair of tasks the sums of p q, p p and q q.
        every: how many voxels of the volume one that was summed stands for.
    """

    entropy: NDArray[np.float64]
    voxels: NDArray[np.int64]
    inside_entropy: NDArray[np.float64]
    inside_voxels: NDArray[np.int64]
    decided: NDArray[np.float64]
    products: NDArray[np.float64]
    every: int


@dataclass(frozen=True, eq=False)
class Reduced:
    """What a whole run was reduced to; see :class:`hermes.inference.engine.Segmentation`."""

    labels: NDArray[Any]
    presence: NDArray[np.float32]
    uncertainty: NDArray[np.float32]
    image_uncertainty: float
    uncertainty_map: NDArray[np.float16] | None
    sums: TaskSums | None


@dataclass(frozen=True, eq=False)
class SlabSummary:
    """What one slab came to; all but the first three are None where no task was active.

    Attributes:
        slab: where.
        peaks: ``(n,)``: highest probability of each task.
        active: tasks that reach :data:`BOUNDARY`.
        entropy: per active task, summed bits.
        voxels: per active task, how many were summed.
        undecided: ``(d, h, w)`` bits, of all voxels or of those that enter the sums.
        labels: ``(d, h, w)``; None when no task claims a voxel.
        inside: ``(3, k)``: per active task the columns of :class:`TaskSums` beside entropy and voxels; None when they
            are not asked for.
        products: ``(pairs, 3)``; None when there are no pairs.
    """

    slab: Box
    peaks: NDArray[np.float32]
    active: list[int]
    entropy: NDArray[np.float64] | None = None
    voxels: NDArray[np.int64] | None = None
    undecided: NDArray[np.float32] | None = None
    labels: NDArray[np.int16] | None = None
    inside: NDArray[np.float64] | None = None
    products: NDArray[np.float64] | None = None


def strides_of(size: Shape) -> Shape:
    """Along (z, y, x): every how many voxels of a volume enter the sums."""
    if size[1] * size[2] <= DENSE_VOXELS:
        return 1, 1, 1
    return (1 if size[0] <= DENSE_PLANES else 2), 2, 2


class Reduction:
    """Takes slabs in any order, each voxel once.

    Args:
        size: of the volume, along the axes of the slabs.
        containers: see :func:`hermes.inference.labelmap.resolve`; one entry per task.
        strides: along the same axes, which voxels enter the sums; see :func:`strides_of`.
        with_map: whether to make an uncertainty map.
        with_sums: whether to sum what :class:`TaskSums` holds.
        pairs: tasks of which the products are summed.
    """

    def __init__(
        self,
        size: Shape,
        containers: Containers,
        *,
        strides: Shape = (1, 1, 1),
        with_map: bool,
        with_sums: bool = False,
        pairs: Sequence[tuple[int, int]] = (),
    ) -> None:
        tasks = len(containers)
        self._with_sums, self._pairs = with_sums, list(pairs) if with_sums else []
        self._inside = np.zeros((3, tasks), dtype=np.float64)
        self._products = np.zeros((len(self._pairs), 3), dtype=np.float64)
        self._containers = containers
        self._labels: NDArray[Any] = np.zeros(size, dtype=np.uint8 if tasks < 256 else np.uint16)
        self._map = np.zeros(size, dtype=np.float16) if with_map else None
        self._strides = strides
        self._presence = np.zeros(tasks, dtype=np.float32)
        self._entropy = np.zeros(tasks, dtype=np.float64)
        self._voxels = np.zeros(tasks, dtype=np.int64)
        self._undecided_sum, self._undecided_voxels = 0.0, 0

    def summarise(self, probabilities: Float[Tensor, "n d h w"], slab: Box) -> SlabSummary:
        """What the final probabilities of ``slab`` come to; they are **changed in place**.

        Changes nothing else, so that it may run in several threads, and again in parts after memory ran out.
        """
        peaks = probabilities.flatten(1).amax(dim=1).cpu().numpy()
        active = np.flatnonzero(peaks >= BOUNDARY).tolist()
        if not active:
            return SlabSummary(slab, peaks, active)
        chosen = probabilities if len(active) == len(peaks) else probabilities[active]
        some = self._some(chosen, slab).contiguous()  # read often from here on
        entropy, voxels, inside = _task_entropies(some, with_inside=self._with_sums)
        products = _products(self._some(probabilities, slab), self._pairs) if self._pairs else None
        undecided = _undecided_bits(some if self._map is None else chosen)
        claiming = [number for number, task in enumerate(active) if peaks[task] > THRESHOLD]
        labels = None
        if claiming:
            some = chosen if len(claiming) == len(active) else chosen[claiming]
            labels = resolve(some, [active[number] for number in claiming], self._containers)
            labels = labels.to(torch.int16).cpu().numpy()
        return SlabSummary(slab, peaks, active, entropy, voxels, undecided, labels, inside, products)

    def take(self, summary: SlabSummary) -> None:
        """Adds what one slab came to."""
        self._presence = np.maximum(self._presence, summary.peaks)
        undecided = summary.undecided
        if undecided is None or summary.entropy is None or summary.voxels is None:
            return
        slab, place = summary.slab, tuple(slice(low, high) for low, high in summary.slab)
        self._entropy[summary.active] += summary.entropy
        self._voxels[summary.active] += summary.voxels
        if summary.inside is not None:
            self._inside[:, summary.active] += summary.inside
        if summary.products is not None:
            self._products += summary.products
        if self._map is not None:
            self._map[place] = undecided
            undecided = self._some(undecided, slab)
        counted = undecided > 0
        if summary.labels is not None:
            self._labels[place] = summary.labels
            counted |= self._some(summary.labels, slab) > 0
        self._undecided_sum += float(undecided.sum(dtype=np.float64))
        self._undecided_voxels += int(counted.sum())

    def result(self) -> Reduced:
        """What all slabs came to."""
        alone = self._presence.astype(np.float64)  # for a task whose few voxels all fell between the rows
        peaks = -(alone * np.log2(np.maximum(alone, 1e-12)))
        peaks -= (1 - alone) * np.log2(np.maximum(1 - alone, 1e-12))
        mean = np.where(self._voxels > 0, self._entropy / np.maximum(self._voxels, 1), peaks)
        total, voxels = self._undecided_sum, self._undecided_voxels
        return Reduced(
            labels=self._labels,
            presence=self._presence,
            uncertainty=np.where(self._presence >= BOUNDARY, mean, 0.0).astype(np.float32),
            image_uncertainty=total / voxels if voxels else 0.0,
            uncertainty_map=self._map,
            sums=self._sums() if self._with_sums else None,
        )

    def _sums(self) -> TaskSums:
        inside_entropy, inside_voxels, decided = self._inside
        every = int(np.prod(self._strides))
        return TaskSums(
            self._entropy,
            self._voxels,
            inside_entropy,
            inside_voxels.astype(np.int64),
            decided,
            self._products,
            every,
        )

    def _some(self, array: ArrayOrTensor, slab: Box) -> ArrayOrTensor:
        """The voxels that enter the sums, of ``(..., d, h, w)``: the same ones, however slabs are cut."""
        z, y, x = (slice(-low % step, None, step) for (low, _), step in zip(slab, self._strides, strict=True))
        return array[..., z, y, x]


def _undecided_bits(chosen: Float[Tensor, "k d h w"]) -> NDArray[np.float32]:
    """Entropy of the task nearest to 0.5 where that is undecided, else 0."""
    # Entropy falls with the distance from 0.5, so the least decided task is found without a logarithm.
    distance = (chosen - 0.5).abs_().amin(dim=0)
    bits = _bits(0.5 + distance).masked_fill_(distance > THRESHOLD - BOUNDARY, 0.0)
    values: NDArray[np.float32] = bits.cpu().numpy()
    return values


def _task_entropies(
    some: Float[Tensor, "k d h w"], *, with_inside: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64] | None]:
    """Per task: the sum of the entropies in bits where it or its boundary is, how many voxels, and the rest."""
    if some.numel() == 0:
        return np.zeros(len(some)), np.zeros(len(some), dtype=np.int64), np.zeros((3, len(some)))
    member = some >= BOUNDARY
    # Summed in float32 within a slab (asking for float64 copies everything), in float64 over slabs.
    bits = _bits(some).mul_(member)
    sums = bits.flatten(1).sum(dim=1).cpu().numpy().astype(np.float64)
    inside = _inside(some, member, bits) if with_inside else None
    return sums, member.flatten(1).sum(dim=1).cpu().numpy(), inside


def _inside(some: Tensor, member: Tensor, bits: Tensor) -> NDArray[np.float64]:
    """``(3, k)``: bits and voxels above one half, and how decided the voxels of structure and boundary are.

    ``bits`` is **changed in place**.
    """
    claimed = some > THRESHOLD
    decided = (some - 0.5).abs_().mul_(2.0).mul_(member)
    columns = (bits.mul_(claimed), claimed, decided)
    return np.stack([c.flatten(1).sum(dim=1).cpu().numpy().astype(np.float64) for c in columns])


def _products(some: Tensor, pairs: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """``(pairs, 3)``: sums of p q, p p and q q over the voxels that enter the sums."""
    flat = {task: some[task].flatten() for pair in pairs for task in pair}
    dots = [(flat[a] @ flat[b], flat[a] @ flat[a], flat[b] @ flat[b]) for a, b in pairs]
    return np.array([[float(value) for value in row] for row in dots])


def _bits(probabilities: Tensor) -> Tensor:
    """Entropy in bits of yes against no."""
    p = probabilities.clamp(1e-7, 1 - 1e-7)
    q = 1.0 - p
    return p.log2().mul_(p).add_(q.log2().mul_(q)).neg_()
