"""Batches for the training loop, prepared beside it where the device would wait for them."""

from __future__ import annotations

import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from hermes.training.sampling import Batch, PatchSampler

MOST_WORKERS = 8


class Loader:
    """The batches of consecutive steps, on the device.

    With workers, the next batches are drawn by threads while the device computes: a batch depends on its step
    only, so the order in which they are made does not matter. On a CPU the same cores would do both, and drawing
    takes a few percent of a step: no workers.

    Args:
        sampler: draws.
        steps: whose batches are asked for, in this order.
        device: where they go.
        share: of the samples of each batch.
        workers: threads; None: as many as suit the device.

    Attributes:
        waited_s: seconds that the caller waited for batches.
    """

    def __init__(
        self,
        sampler: PatchSampler,
        steps: range,
        *,
        device: torch.device,
        share: slice = slice(None),
        workers: int | None = None,
    ) -> None:
        self._sampler, self._device, self._share = sampler, device, share
        self._steps = iter(steps)
        self.waited_s = 0.0
        self._pinned = device.type == "cuda"
        self._workers = _workers_for(device) if workers is None else workers
        self._ahead: deque[Future[Batch]] = deque()
        self._pool = (
            ThreadPoolExecutor(self._workers, "loader", initializer=torch.set_num_threads, initargs=(1,))
            if self._workers
            else None
        )

    def next(self) -> Batch:
        """The batch of the next step.

        Raises:
            StopIteration: there are no more steps.
        """
        started = time.perf_counter()
        batch = self._ahead_of_time() if self._pool is not None else self._draw(next(self._steps))
        self.waited_s += time.perf_counter() - started
        return batch.to(self._device)

    def close(self) -> None:
        """Let the threads end; batches that nobody fetched are dropped."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _ahead_of_time(self) -> Batch:
        assert self._pool is not None
        while len(self._ahead) <= self._workers:
            step = next(self._steps, None)
            if step is None:
                break
            self._ahead.append(self._pool.submit(self._draw, step))
        if not self._ahead:
            raise StopIteration
        return self._ahead.popleft().result()

    def _draw(self, step: int) -> Batch:
        batch = self._sampler.batch(step, self._share)
        return batch.pinned() if self._pinned else batch


def _workers_for(device: torch.device) -> int:
    return min(MOST_WORKERS, max(1, (os.cpu_count() or 2) // 2)) if device.type == "cuda" else 0
