"""Where the windows lie: every one exactly once, the last of each axis flush with the border."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from hermes.errors import BadRequestError

Weighting = Literal["uniform", "gaussian"]
Shape = tuple[int, int, int]
"""Sizes or positions along (z, y, x) in voxels of the model grid."""
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""First voxel and one beyond the last along (z, y, x) of the model grid."""

T = TypeVar("T")
S = TypeVar("S", bound=np.generic)

MULTIPLE = 16
"""Networks halve their input four times."""
MOST_AIR = 1e-4
"""A window is air when at most this part of its voxels is above the air level: noise has outliers."""
GAUSSIAN_SIGMA = 1 / 8
"""Standard deviation of the Gaussian weighting as a part of the window."""


@dataclass(frozen=True)
class Layout:
    """The windows over one volume.

    Attributes:
        size: of the volume.
        window: of one window.
        starts: first voxels of the windows along z, y, x; the windows are all combinations.
    """

    size: Shape
    window: Shape
    starts: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    @classmethod
    def over(cls, size: Shape, window: Shape, overlap: float = 0.5) -> Layout:
        """Windows that overlap by the part ``overlap``; a smaller volume gets one, padded with zeros.

        Never a smaller window: how much of it is padding tells a network where the body ends, and the published
        ones have not seen less than 128 voxels (METHOD section 7: padded to at least 128 per axis).

        Raises:
            BadRequestError: a window that is no multiple of 16, or an overlap outside 0..0.9.
        """
        if min(window) < MULTIPLE or any(length % MULTIPLE for length in window) or not 0 <= overlap <= 0.9:
            msg = (
                f"Expected a window of multiples of {MULTIPLE} and an overlap from 0 to 0.9, "
                f"got {window} and {overlap}."
            )
            raise BadRequestError(msg)
        z, y, x = (_starts(voxels, length, overlap) for voxels, length in zip(size, window, strict=True))
        return cls(size, window, (z, y, x))

    @property
    def padded(self) -> Shape:
        """The size that the windows cover: the volume's, or one window where that is larger."""
        z, y, x = (max(voxels, length) for voxels, length in zip(self.size, self.window, strict=True))
        return z, y, x

    def __len__(self) -> int:
        return len(self.starts[0]) * len(self.starts[1]) * len(self.starts[2])

    def interval(self, axis: int, number: int) -> tuple[int, int]:
        """What only windows up to ``number`` reach: from its start to the next one's, or to the border."""
        starts = self.starts[axis]
        return starts[number], starts[number + 1] if number + 1 < len(starts) else self.size[axis]

    def reached(self, axis: int, start: int) -> list[tuple[int, tuple[int, int]]]:
        """Numbers of the intervals that the window from ``start`` reaches, and which part of each."""
        first, end = self.starts[axis].index(start), start + self.window[axis]
        intervals = ((n, self.interval(axis, n)) for n in range(first, len(self.starts[axis])))
        return [(n, (low, min(high, end))) for n, (low, high) in intervals if low < end]

    @property
    def layers(self) -> list[range]:
        """Windows of which z are visited together, line by line: mostly one z.

        The last windows are flush with the border. Where they come soon after those before, visiting those first would keep
        nearly all of a layer while the next one fills up.
        """
        starts = self.starts[0]
        together = len(starts) > 2 and 2 * (starts[-1] - starts[-2]) < starts[-2] - starts[-3]
        alone = len(starts) - 2 * together
        layers = [range(number, number + 1) for number in range(alone)]
        return [*layers, range(alone, len(starts))] if together else layers

    @property
    def most_kept(self) -> float:
        """How many windows' worth of voxels waits at most for windows that are still to be visited."""
        kept: dict[tuple[int, int], float] = {}
        most = 0.0
        for layer in self.layers:
            for line, y in enumerate(self.starts[1]):
                planes = (part for at in layer for part in self.reached(0, self.starts[0][at]))
                for (row, (z, z_end)), (number, (low, end)) in itertools.product(planes, self.reached(1, y)):
                    share = (z_end - z) * (end - low) / (self.window[0] * self.window[1])
                    kept[row, number] = kept.get((row, number), 0.0) + share
                most = max(most, sum(kept.values()))
                for done in layer:
                    del kept[done, line]
        return most * len(self.starts[2])


@dataclass(frozen=True)
class Order:
    """The axes of a volume from the slowest to the fastest in which windows are visited.

    What windows gave is kept until no later one reaches it: a layer of windows across the slowest axis. With the axis of the
    most windows slowest that layer is the smallest. Axes with as many windows stay in the order (z, y, x).
    """

    axes: tuple[int, int, int] = (0, 1, 2)

    @classmethod
    def of(cls, layout: Layout) -> Order:
        """The order that keeps the least."""
        first, second, third = sorted(range(3), key=lambda axis: -len(layout.starts[axis]))
        return cls((first, second, third))

    def turn(self, values: tuple[T, T, T]) -> tuple[T, T, T]:
        """Something per axis (z, y, x) in this order."""
        first, second, third = self.axes
        return values[first], values[second], values[third]

    def turn_back(self, values: tuple[T, T, T]) -> tuple[T, T, T]:
        """Something in this order per axis (z, y, x)."""
        z, y, x = (values[self.axes.index(axis)] for axis in range(3))
        return z, y, x

    def array_back(self, array: NDArray[S]) -> NDArray[S]:
        """A volume in this order with its axes (z, y, x), contiguous."""
        return np.ascontiguousarray(array.transpose(self.turn_back((0, 1, 2))))


def intersection(one: Box, other: Box) -> Box:
    """What both boxes hold; an axis whose end is not beyond its start means nothing."""
    z, y, x = (
        (max(low, first), min(high, last)) for (low, high), (first, last) in zip(one, other, strict=True)
    )
    return z, y, x


def slabs_of(box: Box, voxels: int) -> list[Box]:
    """``box`` in slabs of about ``voxels`` voxels at most (one row along x at least), z slowest.

    Several planes make a slab only when they are whole, so that slabs stay boxes.
    """
    (z, z_end), (y, y_end), x_range = box
    rows = max(1, voxels // (x_range[1] - x_range[0]))
    height = min(y_end - y, rows)
    depth = min(z_end - z, rows // height) if height == y_end - y else 1
    return [
        ((first_z, min(first_z + depth, z_end)), (first_y, min(first_y + height, y_end)), x_range)
        for first_z in range(z, z_end, depth)
        for first_y in range(y, y_end, height)
    ]


def cut(array: Any, start: Shape, window: Shape) -> NDArray[np.float32]:
    """One window ``(d, h, w)``, zeros beyond the end of the array (the mean of a z-scored image)."""
    z, y, x = start
    part = np.asarray(array[z : z + window[0], y : y + window[1], x : x + window[2]], dtype=np.float32)
    if part.shape == window:
        return part
    padded = np.zeros(window, dtype=np.float32)
    padded[: part.shape[0], : part.shape[1], : part.shape[2]] = part
    return padded


def middle_window(array: Any, window: Shape) -> NDArray[np.float32]:
    """The window in the middle of a volume, padded with zeros where that is smaller."""
    layout = Layout.over((int(array.shape[0]), int(array.shape[1]), int(array.shape[2])), window)
    z, y, x = (max(0, (size - length) // 2) for size, length in zip(layout.size, layout.window, strict=True))
    return cut(array, (z, y, x), layout.window)


def is_air(part: NDArray[np.float32], air_level: float | None) -> bool:
    """Whether a window holds air only; a constant one is air at any level."""
    if float(part.max()) == float(part.min()):
        return True
    return air_level is not None and float(np.count_nonzero(part > air_level)) <= MOST_AIR * part.size


def axis_weights(length: int, weighting: Weighting) -> NDArray[np.float32]:
    """``(length,)``: weight of a window's voxels along one axis; a window's weights are the outer product."""
    if weighting == "uniform":
        return np.ones(length, dtype=np.float32)
    away = (np.arange(length) - (length - 1) / 2) / (GAUSSIAN_SIGMA * length)
    # The floor keeps the product of three corner weights well above the rounding of float32.
    weights: NDArray[np.float32] = np.maximum(np.exp(-0.5 * away**2), 1e-2).astype(np.float32)
    return weights


def _starts(voxels: int, length: int, overlap: float) -> tuple[int, ...]:
    if voxels <= length:
        return (0,)
    step = max(1, round(length * (1 - overlap)))
    return (*range(0, voxels - length, step), voxels - length)
