"""How much memory inference may take, and what is given up when there is less."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SMALLEST_SLAB_BYTES = 64 * 1024
"""A slab that does not fit at this size is not what fills the memory."""


class OutOfMemory(Exception):  # noqa: N818  # a signal between two functions of this package, not an error
    """Raised in place of the many ways in which torch says so."""


@dataclass(frozen=True)
class Plan:
    """How windows are run and reduced.

    Attributes:
        batch: windows at a time, over all passes that run side by side.
        slab_bytes: size of the probabilities of all tasks that are held at a time.
        half: keep what windows gave in half precision until their slab is final (moves averaged probabilities
            by less than 1e-3).
        on_cpu: keep and reduce it in main memory although the network runs on a GPU.
    """

    batch: int
    slab_bytes: int
    half: bool
    on_cpu: bool

    def smaller(self) -> Plan | None:
        """The plan to try after running out of memory; None when nothing is left to give up.

        First smaller batches, then smaller slabs, then main memory. The precision stays, so the result does.
        """
        if self.batch > 1:
            return replace(self, batch=self.batch // 2)
        if self.slab_bytes > SMALLEST_SLAB_BYTES:
            return replace(self, slab_bytes=max(SMALLEST_SLAB_BYTES, self.slab_bytes // 4))
        if not self.on_cpu:
            return replace(self, on_cpu=True)
        return None


def plan_for(
    budget_bytes: int, kept_values: int, *, batch: int, device: torch.device, native_half: bool
) -> Plan:
    """A plan that honours a budget for everything beside the image, the network and its activations.

    Args:
        budget_bytes: for what is kept of the windows plus the slab.
        kept_values: how many numbers are kept at most until their slab is final.
        batch: windows per pass to begin with.
        device: of the network.
        native_half: whether the network answers in half precision anyway.
    """
    # On a CPU slabs that stay in its caches are several times faster than large ones.
    slab = max(SMALLEST_SLAB_BYTES, min(budget_bytes // 8, (4 if device.type == "cpu" else 512) * 2**20))
    left = budget_bytes - slab
    half = native_half or 4 * kept_values > left
    too_large = (2 if half else 4) * kept_values > left
    return Plan(batch=batch, slab_bytes=slab, half=half, on_cpu=device.type == "cpu" or too_large)


def empty_apart(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor; on a CPU in pages of its own, which go back to the system when it is freed.

    What is kept for long between the activations of many passes would else leave a heap full of holes.
    """
    count = math.prod(shape)
    if device.type != "cpu" or count == 0:
        return torch.empty(shape, dtype=dtype, device=device)
    try:
        pages = mmap.mmap(-1, count * dtype.itemsize)
    except OSError as error:  # no more memory, or no more mappings
        raise MemoryError from error
    return torch.frombuffer(pages, dtype=dtype, count=count).view(shape)


@contextmanager
def out_of_memory_as_one() -> Iterator[None]:
    """Turns every way of running out of memory into :class:`OutOfMemory`."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemory from error
    except RuntimeError as error:
        text = str(error).lower()
        if "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text:
            raise OutOfMemory from error
        raise
