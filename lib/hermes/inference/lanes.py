"""Windows and slabs side by side on the cores of a CPU.

One small window does not keep several cores busy: each of the thousand operations of a pass ends with waiting for
the slowest core. Two windows side by side do (docs/BENCHMARKS.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch

from hermes.inference.windows import Shape

MOST_LANES = 4
MOST_VOXELS = 80**3
"""Windows up to this size gain from lanes. Larger ones keep the cores busy alone, and each lane holds the activations
of a window."""

T = TypeVar("T")
R = TypeVar("R")


def lanes_for(device: torch.device, window: Shape) -> int:
    """How many lanes suit: on a CPU one per thread up to :data:`MOST_LANES` for small windows, else one."""
    small = device.type == "cpu" and math.prod(window) <= MOST_VOXELS
    return min(MOST_LANES, torch.get_num_threads()) if small else 1


class Lanes:
    """Threads that share torch's threads among them; one lane is the calling thread itself.

    No gradients are recorded in any of them, and autocast converts each weight once, not once per window.
    """

    def __init__(self, count: int) -> None:
        self.count = max(1, count)
        self._threads = max(1, torch.get_num_threads() // self.count)
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Lanes:
        self._gradients = torch.no_grad()  # inference mode would keep autocast from remembering weights
        self._gradients.__enter__()
        torch.autocast_increment_nesting()
        if self.count > 1:
            self._pool = ThreadPoolExecutor(self.count, "inference", initializer=self._begin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        torch.autocast_decrement_nesting()
        torch.clear_autocast_cache()
        self._gradients.__exit__(kind, error, trace)

    def map(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """``work`` of every item, in order; the first error is raised after all have ended."""
        if self._pool is None:
            return [work(item) for item in items]
        futures = [self._pool.submit(work, item) for item in items]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise errors[0]
        return [future.result() for future in futures]

    def _begin(self) -> None:
        torch.set_num_threads(self._threads)
        torch.set_grad_enabled(False)
        torch.autocast_increment_nesting()  # of this thread, which ends with the pool
