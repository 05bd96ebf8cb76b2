"""Sliding-window inference whose memory does not grow with tasks times volume.

Windows are visited line by line, the axis with the most windows slowest, each exactly once, on a CPU some side by
side. What a window gave is kept in its smaller form: feature maps and classifier weights, or the probabilities where
fewer tasks than channels were asked. As soon as no later window reaches a region it is final: slab by slab the
probabilities of all tasks are computed from what was kept, averaged over the windows, reduced to labels and a few
sums, and forgotten.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hermes.errors import BusyError, CancelledError
from hermes.inference.averaging import Averager, Piece
from hermes.inference.labelmap import Containers
from hermes.inference.lanes import Lanes
from hermes.inference.memory import (
    SMALLEST_SLAB_BYTES,
    OutOfMemory,
    Plan,
    empty_apart,
    out_of_memory_as_one,
    plan_for,
)
from hermes.inference.reduction import Reduction, SlabSummary, TaskSums, strides_of
from hermes.inference.tokens import ImageTokens, TokenSums, token_sums
from hermes.inference.windows import Box, Layout, Order, Shape, Weighting, cut, intersection, is_air, slabs_of

Precision = Literal["fp32", "bf16"]

DEFAULT_BUDGET_BYTES = 1024 * 2**20
"""For what is kept of the windows and the slab in work; the network's activations come on top."""


class Encoder(Protocol):
    """The part of a network that the engine needs."""

    def encode(
        self, image: Tensor, task_rows: Tensor, modality_rows: Tensor, *, modality_known: Tensor | None = None
    ) -> Any:
        """Gives ``features (B, c, d, h, w)`` and ``class_weights (B, n, c)``, as ``hermes.model.Encoded``."""


@dataclass(frozen=True)
class EngineSettings:
    """How to slide.

    Attributes:
        window: along (z, y, x) in voxels, multiples of 16.
        overlap: of neighbouring windows, as a part of the window.
        weighting: of a window's voxels in the average.
        batch: windows per pass to begin with.
        lanes: passes side by side, each with its share of the threads of a CPU.
        budget_bytes: for everything but the image, the network and its activations.
        skip_air: leave out windows that hold air only; their voxels are background.
        uncertainty_map: whether to make one.
        findings: whether to sum per task what scores are made of, and to average posterior tokens.
        precision: ``"bf16"`` means autocast.
    """

    window: Shape = (128, 128, 128)
    overlap: float = 0.5
    weighting: Weighting = "uniform"
    batch: int = 1
    lanes: int = 1
    budget_bytes: int = DEFAULT_BUDGET_BYTES
    skip_air: bool = True
    uncertainty_map: bool = False
    findings: bool = False
    precision: Precision = "fp32"


@dataclass(frozen=True)
class Request:
    """What to segment.

    Attributes:
        rows: of the task tables.
        modality_row: None when unknown.
        containers: for each task, the places in ``rows`` of the tasks that contain it.
        air_level: intensity up to which a voxel is air; None when unknown.
        roi: only this box; the labels in it are those of a run over everything, outside it is background.
        pairs: places of two tasks that draw the same structure; their overlap is summed with the findings.
    """

    rows: tuple[int, ...]
    modality_row: int | None
    containers: Containers
    air_level: float | None = None
    roi: Box | None = None
    pairs: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What came out, on the model grid.

    Attributes:
        labels: ``(D, H, W)``: place in the request counted from 1; 0 is background.
        presence: ``(n,)``: highest averaged probability of each task.
        uncertainty: ``(n,)``: mean entropy in bits where the task's probability is at least 0.1.
        image_uncertainty: mean entropy in bits over labelled and undecided voxels.
        uncertainty_map: ``(D, H, W)`` float16 in bits, when asked for.
        sums: per task, when findings were asked for.
        tokens: posterior tokens and modality of the image, when findings were asked for and a window was visited.
        windows: visited.
        windows_skipped: left out.
        plan: that the run ended with; None when no window was visited.
        network_s: wall seconds of the passes of the network.
        reduce_s: wall seconds from what was kept to labels.
    """

    labels: NDArray[Any]
    presence: NDArray[np.float32]
    uncertainty: NDArray[np.float32]
    image_uncertainty: float
    uncertainty_map: NDArray[np.float16] | None
    sums: TaskSums | None
    tokens: ImageTokens | None
    windows: int
    windows_skipped: int
    plan: Plan | None
    network_s: float
    reduce_s: float


def segment(
    net: Encoder,
    array: Any,
    request: Request,
    settings: EngineSettings,
    *,
    device: torch.device,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Segmentation:
    """Segments one prepared volume.

    Args:
        net: on ``device``, in eval mode.
        array: ``(D, H, W)`` float32, z-scored; anything that slices to NumPy arrays.
        request: what to segment.
        settings: how.
        device: of the network.
        on_progress: called with (windows done, windows in all).
        should_stop: asked before every pass of the network and every slab.

    Raises:
        CancelledError: ``should_stop`` said so.
        BusyError: there is not enough memory even for the smallest plan.
    """
    run = _Run(net, array, request, settings, device, should_stop or _never)
    with run.lanes:
        return run.go(on_progress)


def encode(
    net: Encoder,
    windows: NDArray[np.float32],
    rows: Sequence[int],
    modality_row: int | None,
    device: torch.device,
    precision: Precision,
) -> Any:
    """One pass of the network over ``windows (b, d, h, w)``; ``modality_row`` is None when unknown."""
    count = len(windows)
    image = torch.from_numpy(np.ascontiguousarray(windows))[:, None].to(device)  # (b, 1, d, h, w)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        return net.encode(
            image,
            torch.tensor([list(rows)] * count, device=device),
            torch.full((count,), modality_row or 0, device=device),
            modality_known=torch.full((count,), modality_row is not None, device=device),
        )


def _never() -> bool:
    return False


_Encoded: TypeAlias = tuple[Tensor, Tensor, "TokenSums | None"]
"""``features (b, c, d, h, w)`` as the network gives them, ``class_weights (b, n, c)`` float32, sums of tokens."""


class _Run:
    """One run over one volume: the state that lives between windows.

    Here z, y and x are the slowest, the next and the fastest axis of `Order`; only what the network sees, and what the caller
    gets, has the axes of the volume.
    """

    def __init__(
        self,
        net: Encoder,
        array: Any,
        request: Request,
        settings: EngineSettings,
        device: torch.device,
        should_stop: Callable[[], bool],
    ) -> None:
        self.net, self.array, self.settings = net, array, settings
        self.device, self.should_stop = device, should_stop
        self._is_gpu = device.type == "cuda"
        shape = int(array.shape[0]), int(array.shape[1]), int(array.shape[2])
        self.order = Order.of(Layout.over(shape, settings.window, settings.overlap))
        turn = self.order.turn
        self.request = dataclasses.replace(request, roi=request.roi and turn(request.roi))
        self.layout = Layout.over(turn(shape), turn(settings.window), settings.overlap)
        zs, ys, xs = self.layout.starts
        self.visits = [
            [
                (line, (zs[row], y, x))
                for line, y in enumerate(ys)
                for row in layer
                for x in xs
                if self._is_wanted((zs[row], y, x))
            ]
            for layer in self.layout.layers
        ]
        self.lanes = Lanes(min(settings.lanes, max(len(visits) for visits in self.visits)))
        self.batch = (
            max(1, settings.batch) * self.lanes.count
        )  # windows at a time; the plan's when there is one
        self.reduction = Reduction(
            turn(shape),
            request.containers,
            strides=turn(strides_of(shape)),
            with_map=settings.uncertainty_map,
            with_sums=settings.findings,
            pairs=request.pairs,
        )
        self.tokens: TokenSums | None = None
        self.plan: Plan | None = None  # made when the first window has shown how wide the features are
        self.kept: dict[tuple[int, int], list[Piece]] = {}  # by the numbers of the z and the y interval
        self.averagers = threading.local()
        self.network_s = self.reduce_s = 0.0

    def go(self, on_progress: Callable[[int, int], None] | None) -> Segmentation:
        """Visits all windows, finishes every region as soon as it is final."""
        total, done = sum(len(visits) for visits in self.visits), 0
        for layer, visits in zip(self.layout.layers, self.visits, strict=True):
            waiting, finished = deque(visits), 0
            while waiting:
                self._check_stop()
                batch = [waiting.popleft() for _ in range(min(self.batch, len(waiting)))]
                try:
                    with out_of_memory_as_one():
                        self._visit([start for _, start in batch])
                except OutOfMemory as error:
                    self._make_smaller(error)
                    waiting.extendleft(reversed(batch))
                    continue
                for _ in batch:
                    done += 1
                    if on_progress is not None:
                        on_progress(done, total)
                while waiting and finished < waiting[0][0]:
                    self._finish(layer, finished)
                    finished += 1
            for line in range(finished, len(self.layout.starts[1])):
                self._finish(layer, line)
        reduced = self.reduction.result()
        values = {item.name: getattr(reduced, item.name) for item in dataclasses.fields(reduced)}
        skipped = len(self.layout) - total
        for name in ("labels", "uncertainty_map"):
            values[name] = None if values[name] is None else self.order.array_back(values[name])
        tokens = None if self.tokens is None else self.tokens.means()
        return Segmentation(
            **values, tokens=tokens, windows=total, windows_skipped=skipped, plan=self.plan,
            network_s=self.network_s, reduce_s=self.reduce_s,
        )  # fmt: skip

    def _check_stop(self) -> None:
        if self.should_stop():
            msg = "The inference was stopped on request."
            raise CancelledError(msg)

    def _is_wanted(self, start: Shape) -> bool:
        box = self.request.roi
        if box is not None and any(
            first + length <= low or first >= high
            for first, length, (low, high) in zip(start, self.layout.window, box, strict=True)
        ):
            return False
        part = self._cut(start) if self.settings.skip_air else None
        return part is None or not is_air(part, self.request.air_level)

    def _cut(self, start: Shape) -> NDArray[np.float32]:
        """A window as the network sees it."""
        return cut(self.array, self.order.turn_back(start), self.settings.window)

    def _visit(self, batch: Sequence[Shape]) -> None:
        """Runs some windows and keeps what they gave; all of them or, out of memory, none."""
        started = time.perf_counter()
        share = -(-len(batch) // self.lanes.count)
        parts = [batch[first : first + share] for first in range(0, len(batch), share)]
        encoded = self.lanes.map(self._encode, parts)
        plan = self.plan or self._first_plan(encoded[0][0])

        def pieces_of(part: tuple[Sequence[Shape], _Encoded]) -> list[tuple[tuple[int, int], Piece]]:
            return self._pieces(part[0], *part[1][:2], plan)

        pieces = self.lanes.map(pieces_of, zip(parts, encoded, strict=True))
        self.plan, self.batch = plan, plan.batch
        for interval, piece in itertools.chain(*pieces):
            self.kept.setdefault(interval, []).append(piece)
        for _, _, sums in encoded:
            self.tokens = self.tokens if sums is None else sums.plus(self.tokens)
        self.network_s += time.perf_counter() - started

    def _pieces(
        self, batch: Sequence[Shape], features: Tensor, weights: Tensor, plan: Plan
    ) -> list[tuple[tuple[int, int], Piece]]:
        """What is kept of some windows, for each interval of z and y that they reach."""
        if plan.on_cpu:
            features, weights = features.cpu(), weights.cpu()
        by_probability = weights.shape[1] < features.shape[1]  # the smaller of the two is kept
        if by_probability:
            logits = torch.bmm(weights, features.flatten(2).float())
            features = logits.sigmoid_().view(*weights.shape[:2], *features.shape[2:])
        features = features.permute(0, 1, *(2 + axis for axis in self.order.axes))
        dtype = torch.float16 if plan.half and features.dtype == torch.float32 else features.dtype
        pieces: list[tuple[tuple[int, int], Piece]] = []
        for place, (z, y, x) in enumerate(batch):
            own = None if by_probability else weights[place]
            for row, (z_low, z_high) in self.layout.reached(0, z):
                for line, (y_low, y_high) in self.layout.reached(1, y):
                    part = features[place, :, z_low - z : z_high - z, y_low - y : y_high - y]
                    # A copy of its own, so that each interval can be forgotten alone.
                    values = empty_apart(part.shape, dtype, part.device).copy_(part)
                    pieces.append(((row, line), Piece((z_low, y_low, x), (z, y, x), values, own)))
        return pieces

    def _encode(self, batch: Sequence[Shape]) -> _Encoded:
        """What the network gives for some windows of one row."""
        windows = np.stack([self._cut(start) for start in batch])
        rows, modality = self.request.rows, self.request.modality_row
        encoded = encode(self.net, windows, rows, modality, self.device, self.settings.precision)
        sums = token_sums(encoded) if self.settings.findings else None
        return encoded.features, encoded.class_weights.float(), sums

    def _first_plan(self, features: Tensor) -> Plan:
        """The plan, now that the width of the features is known."""
        windows = self.layout.most_kept + self.batch - 1
        voxels = math.prod(self.layout.window)
        channels = min(features.shape[1], len(self.request.rows))
        return plan_for(
            self.settings.budget_bytes,
            int(windows * channels * voxels),
            batch=self.batch,
            device=self.device,
            native_half=features.dtype in (torch.bfloat16, torch.float16),
        )

    def _make_smaller(self, error: OutOfMemory) -> None:
        """Goes on with a smaller plan.

        Raises:
            BusyError: there is none.
        """
        if self.plan is not None:
            smaller = self.plan.smaller()
        elif self.batch > 1:
            self.batch //= 2
            return
        else:  # not even one window was kept: the only thing to give up is keeping on the GPU
            smaller = Plan(1, SMALLEST_SLAB_BYTES, half=False, on_cpu=True) if self._is_gpu else None
        if smaller is None:
            msg = (
                "Expected enough memory for one window, got none. Use a smaller window or network, or free "
                "memory on the device."
            )
            raise BusyError(msg) from error
        self.plan, self.batch = smaller, smaller.batch
        self.averagers = threading.local()
        if smaller.on_cpu:
            self.kept = {where: [piece.on_cpu() for piece in pieces] for where, pieces in self.kept.items()}
        if self._is_gpu:
            torch.cuda.empty_cache()

    def _finish(self, layer: Sequence[int], line: int) -> None:
        """Reduces what became final with the last window of a line, and forgets what no later one needs."""
        started = time.perf_counter()
        for row in layer:
            region = (self.layout.interval(0, row), self.layout.interval(1, line), (0, self.layout.size[2]))
            if self.request.roi is not None:
                region = intersection(region, self.request.roi)
            if all(low < high for low, high in region):
                self._reduce((row, line), region)
            self.kept.pop((row, line), None)
        self.reduce_s += time.perf_counter() - started

    def _reduce(self, interval: tuple[int, int], region: Box) -> None:
        """Averages and reduces a region slab by slab, in ever smaller slabs when memory runs out."""
        waiting = [region] if interval in self.kept and self.plan is not None else []
        while waiting and self.plan is not None:
            voxels = max(1, self.plan.slab_bytes // (4 * len(self.request.rows)))
            slabs = [slab for box in waiting for slab in slabs_of(box, voxels)]
            summaries = self.lanes.map(functools.partial(self._reduce_slab, self.kept[interval]), slabs)
            waiting = []
            for slab, summary in zip(slabs, summaries, strict=True):
                if isinstance(summary, OutOfMemory):
                    waiting.append(slab)
                elif summary is not None:
                    self.reduction.take(summary)
            if waiting:
                self._make_smaller(next(s for s in summaries if isinstance(s, OutOfMemory)))

    def _reduce_slab(self, kept: Sequence[Piece], slab: Box) -> SlabSummary | OutOfMemory | None:
        """What a slab was reduced to; None where no window saw it."""
        self._check_stop()
        pieces = [piece for piece in kept if piece.overlap(slab) is not None]
        if not pieces:
            return None
        try:
            with out_of_memory_as_one():
                return self.reduction.summarise(self._averager().average(pieces, slab), slab)
        except OutOfMemory as error:
            return error

    def _averager(self) -> Averager:
        """The calling thread's own."""
        if not hasattr(self.averagers, "own"):
            self.averagers.own = Averager(len(self.request.rows), self.layout.window, self.settings.weighting)
        averager: Averager = self.averagers.own
        return averager
