"""Probabilities of a slab, averaged over the windows that saw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from hermes.inference.windows import Box, Shape, Weighting, axis_weights


@dataclass(frozen=True, eq=False)
class Piece:
    """What one window gave for one interval of z and y.

    Attributes:
        start: first voxel (z, y, x) in the volume.
        window: first voxel of the window.
        values: features ``(c, d, h, w)``, or probabilities ``(n, d, h, w)`` when ``weights`` is None.
        weights: of the classifiers on the features, ``(n, c)`` float32.
    """

    start: Shape
    window: Shape
    values: Float[Tensor, "m d h w"]
    weights: Float[Tensor, "n c"] | None

    def on_cpu(self) -> Piece:
        """The same in main memory."""
        weights = None if self.weights is None else self.weights.cpu()
        return replace(self, values=self.values.cpu(), weights=weights)

    def overlap(self, slab: Box) -> tuple[slice, slice, slice] | None:
        """The part of ``slab`` that this piece covers, as slices of the volume; None when there is none."""
        slices = []
        for (low, high), first, length in zip(slab, self.start, self.values.shape[1:], strict=True):
            low, high = max(low, first), min(high, first + length)
            if low >= high:
                return None
            slices.append(slice(low, high))
        return slices[0], slices[1], slices[2]


class Averager:
    """Averages pieces; holds the memory that every slab needs anew.

    Args:
        tasks: number of tasks.
        window: lengths along (z, y, x).
        weighting: of a window's voxels.
    """

    def __init__(self, tasks: int, window: Shape, weighting: Weighting) -> None:
        self._tasks = tasks
        self._buffers: dict[str, Tensor] = {}
        self._uniform = weighting == "uniform"
        self._weights = [torch.from_numpy(axis_weights(length, weighting)) for length in window]

    def average(self, pieces: Sequence[Piece], slab: Box) -> Float[Tensor, "n d h w"]:
        """The average over ``pieces`` in ``slab``, 0 where there is none; valid until the next call."""
        device = pieces[0].values.device
        shape = [high - low for low, high in slab]
        total = self._buffer("total", self._tasks, shape, device).zero_()
        seen = torch.zeros(shape, device=device)
        for piece in pieces:
            part = piece.overlap(slab)
            if part is None:
                continue
            inside = tuple(
                slice(axis.start - low, axis.stop - low) for axis, (low, _) in zip(part, slab, strict=True)
            )
            probabilities = self._probabilities(piece, part)
            if self._uniform:
                total[(slice(None), inside[0], inside[1], inside[2])] += probabilities
                seen[inside] += 1.0
            else:
                weight = self._weight(piece, part, device)
                total[(slice(None), inside[0], inside[1], inside[2])] += probabilities.mul_(weight)
                seen[inside] += weight
        total /= seen.clamp_(min=1e-12)
        return total

    def _probabilities(self, piece: Piece, part: tuple[slice, slice, slice]) -> Tensor:
        own = tuple(
            slice(axis.start - low, axis.stop - low) for axis, low in zip(part, piece.start, strict=True)
        )
        values = piece.values[(slice(None), own[0], own[1], own[2])]
        shape = list(values.shape[1:])
        result = self._buffer("window", self._tasks, shape, values.device)
        if piece.weights is None:
            return result.copy_(values)
        features = self._buffer("features", values.shape[0], shape, values.device).copy_(values)
        torch.mm(piece.weights, features.flatten(1), out=result.view(self._tasks, -1))
        return result.sigmoid_()

    def _weight(self, piece: Piece, part: tuple[slice, slice, slice], device: torch.device) -> Tensor:
        z, y, x = (
            weights[axis.start - low : axis.stop - low].to(device)
            for weights, axis, low in zip(self._weights, part, piece.window, strict=True)
        )
        return z[:, None, None] * y[:, None] * x

    def _buffer(self, name: str, channels: int, shape: Sequence[int], device: torch.device) -> Tensor:
        """A contiguous array out of memory that is kept: fresh pages cost more than the arithmetic."""
        count = channels * shape[0] * shape[1] * shape[2]
        kept = self._buffers.get(name)
        if kept is None or kept.numel() < count or kept.device != device:
            self._buffers.pop(name, None)
            kept = self._buffers[name] = torch.empty(count, device=device)
        return kept[:count].view(channels, *shape)
