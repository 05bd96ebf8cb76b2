"""Sliding-window inference whose memory does not grow with tasks times volume.

Windows are visited line by line (x fastest), each exactly once. What a window gave is kept in its smaller form: the
feature maps and the classifier weights, or the probabilities where fewer tasks than channels were asked for. As
soon as no later window reaches a region it is final: slab by slab the probabilities of all tasks are computed from
what was kept, averaged over the windows, reduced to labels and a few sums per task, and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from hermes.errors import BusyError, CancelledError
from hermes.inference.labelmap import Containers
from hermes.inference.memory import OutOfMemory, Plan, out_of_memory_as_one, plan_for
from hermes.inference.reduction import Reduction
from hermes.inference.windows import Layout, Shape, Weighting, axis_weights, cut, is_air

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""First voxel and one beyond the last along (z, y, x) of the model grid."""

DEFAULT_BUDGET_BYTES = 1280 * 2**20
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
        budget_bytes: for everything but the image, the network and its activations.
        skip_air: leave out windows that hold air only; their voxels are background.
        uncertainty_map: whether to make one.
    """

    window: Shape = (128, 128, 128)
    overlap: float = 0.5
    weighting: Weighting = "uniform"
    batch: int = 1
    budget_bytes: int = DEFAULT_BUDGET_BYTES
    skip_air: bool = True
    uncertainty_map: bool = False


@dataclass(frozen=True)
class Request:
    """What to segment.

    Attributes:
        rows: of the task tables.
        modality_row: None when unknown.
        containers: for each task, the places in ``rows`` of the tasks that contain it.
        air_level: intensity up to which a voxel is air; None when unknown.
        roi: only this box; the labels in it are those of a run over everything, outside it is background.
    """

    rows: tuple[int, ...]
    modality_row: int | None
    containers: Containers
    air_level: float | None = None
    roi: Box | None = None


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What came out, on the model grid.

    Attributes:
        labels: ``(D, H, W)``: place in the request counted from 1; 0 is background.
        presence: ``(n,)``: highest averaged probability of each task.
        uncertainty: ``(n,)``: mean entropy in bits where the task's probability is at least 0.1.
        image_uncertainty: mean entropy in bits over labelled and undecided voxels.
        uncertainty_map: ``(D, H, W)`` float16 in bits, when asked for.
        windows: visited.
        windows_skipped: left out.
        plan: that the run ended with.
    """

    labels: NDArray[Any]
    presence: NDArray[np.float32]
    uncertainty: NDArray[np.float32]
    image_uncertainty: float
    uncertainty_map: NDArray[np.float16] | None
    windows: int
    windows_skipped: int
    plan: Plan


@dataclass(frozen=True, eq=False)
class _Piece:
    """What one window gave for one interval of z."""

    start: Shape
    values: Float[Tensor, "m d h w"]  # features, or probabilities when weights is None
    weights: Float[Tensor, "n c"] | None


@dataclass
class _Run:
    """One run over one volume: the state that lives between windows."""

    net: Encoder
    array: Any
    request: Request
    settings: EngineSettings
    device: torch.device
    layout: Layout
    plan: Plan
    reduction: Reduction
    kept: dict[int, list[_Piece]] = field(default_factory=dict)  # by number of the z interval


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
        device: of the network; bfloat16 autocast on a GPU, float32 elsewhere.
        on_progress: called with (windows done, windows in all).
        should_stop: asked before every pass.

    Raises:
        CancelledError: ``should_stop`` said so.
        BusyError: there is not enough memory even for the smallest plan.
    """
    size: Shape = (int(array.shape[0]), int(array.shape[1]), int(array.shape[2]))
    layout = Layout.over(size, settings.window, settings.overlap)
    visits = _visits(layout, array, request, skip_air=settings.skip_air)
    reduction = Reduction(size, len(request.rows), request.containers, with_map=settings.uncertainty_map)
    plan = Plan(max(1, settings.batch), 1, half=False, on_cpu=True)  # replaced once the channels are known
    run = _Run(net, array, request, settings, device, layout, plan, reduction)
    total = sum(len(line) for line in visits.values())
    done = 0
    planned = False
    with torch.inference_mode():
        for (row, line), starts in visits.items():
            while starts:
                if should_stop is not None and should_stop():
                    msg = "The inference was stopped on request."
                    raise CancelledError(msg)
                batch, starts = starts[: run.plan.batch], starts[run.plan.batch :]
                if not planned:
                    batch, starts = batch[:1], [*batch[1:], *starts]
                starts = [*_pass(run, row, batch, plan_first=not planned), *starts]
                planned = True
                done = total - len(starts) - _left(visits, row, line)
                if on_progress is not None:
                    on_progress(done, total)
            _finish_line(run, row, line)
    return reduction.result(windows=total, windows_skipped=len(layout) - total, plan=run.plan)
