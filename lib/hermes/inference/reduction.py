"""From the probabilities of a slab to labels and a few sums per task."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from hermes.inference.labelmap import THRESHOLD, Containers, resolve
from hermes.inference.windows import Box, Shape

BOUNDARY = 0.1
"""From this probability on a voxel belongs to a structure or to its boundary."""
DENSE_VOXELS = 128 * 128
"""In planes up to this size every voxel enters the entropies; in larger ones every second row and column."""


@dataclass(frozen=True, eq=False)
class Reduced:
    """What a whole run was reduced to; see :class:`hermes.inference.engine.Segmentation`."""

    labels: NDArray[Any]
    presence: NDArray[np.float32]
    uncertainty: NDArray[np.float32]
    image_uncertainty: float
    uncertainty_map: NDArray[np.float16] | None


class Reduction:
    """Takes slabs in any order, each voxel once.

    Args:
        size: of the volume, (z, y, x).
        containers: see :func:`hermes.inference.labelmap.resolve`; one entry per task.
        with_map: whether to make an uncertainty map.
    """

    def __init__(self, size: Shape, containers: Containers, *, with_map: bool) -> None:
        tasks = len(containers)
        self._containers = containers
        self._labels: NDArray[Any] = np.zeros(size, dtype=np.uint8 if tasks < 256 else np.uint16)
        self._map = np.zeros(size, dtype=np.float16) if with_map else None
        self._stride = 1 if size[1] * size[2] <= DENSE_VOXELS else 2
        self._presence = np.zeros(tasks, dtype=np.float32)
        self._entropy = np.zeros(tasks, dtype=np.float64)
        self._voxels = np.zeros(tasks, dtype=np.int64)
        self._undecided = [0.0, 0]  # sum of entropies, voxels

    def add(self, probabilities: Float[Tensor, "n d h w"], slab: Box) -> None:
        """Takes the final probabilities of ``slab``, which are **changed in place**.

        Nothing is taken when memory runs out on the way, so that the slab can be given again in parts.
        """
        peaks = probabilities.flatten(1).amax(dim=1).cpu().numpy()
        active = np.flatnonzero(peaks >= BOUNDARY).tolist()
        if not active:
            self._presence = np.maximum(self._presence, peaks)
            return
        chosen = probabilities if len(active) == len(peaks) else probabilities[active]
        entropy, voxels = self._task_entropies(chosen, slab)
        # Entropy falls with the distance from 0.5, so the least decided task is found without a logarithm.
        distance = _distance(chosen)
        claiming = [number for number, task in enumerate(active) if peaks[task] > THRESHOLD]
        labels = None
        if claiming:
            some = chosen if len(claiming) == len(active) else chosen[claiming]
            labels = resolve(some, [active[number] for number in claiming], self._containers)
            labels = labels.to(torch.int16).cpu().numpy()
        undecided = _bits(0.5 + distance).masked_fill_(distance > THRESHOLD - BOUNDARY, 0.0).cpu().numpy()
        place = tuple(slice(low, high) for low, high in slab)
        self._presence = np.maximum(self._presence, peaks)
        self._entropy[active] += entropy
        self._voxels[active] += voxels
        counted = undecided > 0
        if labels is not None:
            self._labels[place] = labels
            counted |= labels > 0
        self._undecided[0] += float(undecided.sum(dtype=np.float64))
        self._undecided[1] += int(counted.sum())
        if self._map is not None:
            self._map[place] = undecided

    def result(self) -> Reduced:
        """What all slabs came to."""
        alone = self._presence.astype(np.float64)  # for a task whose few voxels all fell between the rows
        peaks = -(alone * np.log2(np.maximum(alone, 1e-12)))
        peaks -= (1 - alone) * np.log2(np.maximum(1 - alone, 1e-12))
        mean = np.where(self._voxels > 0, self._entropy / np.maximum(self._voxels, 1), peaks)
        total, voxels = self._undecided
        return Reduced(
            labels=self._labels,
            presence=self._presence,
            uncertainty=np.where(self._presence >= BOUNDARY, mean, 0.0).astype(np.float32),
            image_uncertainty=total / voxels if voxels else 0.0,
            uncertainty_map=self._map,
        )

    def _task_entropies(self, chosen: Tensor, slab: Box) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Per task: the sum of the entropies in bits where it or its boundary is, and how many voxels."""
        first = [-low % self._stride for low, _ in slab[1:]]  # the same voxels, however slabs are cut
        some = chosen[:, :, first[0] :: self._stride, first[1] :: self._stride].flatten(1)
        if some.shape[1] == 0:
            return np.zeros(len(chosen)), np.zeros(len(chosen), dtype=np.int64)
        member = some >= BOUNDARY
        entropy = _bits(some.clamp(min=BOUNDARY)).mul_(member)
        sums = entropy.sum(dim=1, dtype=torch.float64)
        return sums.cpu().numpy(), member.sum(dim=1).cpu().numpy()


def _distance(chosen: Float[Tensor, "k d h w"]) -> Float[Tensor, "d h w"]:
    """How far the least decided task is from 0.5, one task at a time: no second array of all of them."""
    nearest = torch.full(chosen.shape[1:], 0.5, device=chosen.device)
    for probabilities in chosen:
        torch.minimum(nearest, (probabilities - 0.5).abs_(), out=nearest)
    return nearest


def _bits(probabilities: Tensor) -> Tensor:
    """Entropy in bits of yes against no."""
    p = probabilities.clamp(1e-7, 1 - 1e-7)
    q = 1.0 - p
    return p.log().mul_(p).add_(q.log().mul_(q)).mul_(-1.0 / math.log(2.0))
