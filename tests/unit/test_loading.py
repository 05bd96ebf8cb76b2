"""Batches prepared beside the loop are those of the steps, in their order."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from hermes.training.cases import TrainingCase
from hermes.training.loading import Loader
from hermes.training.sampling import Batch, PatchSampler
from hermes.types import CaseId

CPU = torch.device("cpu")


class Recording(PatchSampler):
    """Notes which thread drew which step."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 2, (20, 20, 20)).astype(np.uint8)
        case = TrainingCase(
            CaseId("a"), rng.normal(size=labels.shape).astype(np.float32), labels, {0: 1}, None
        )
        super().__init__([case], patch=(16, 16, 16), batch_size=2, seed=0)
        self.drawn: list[tuple[int, str]] = []

    def batch(self, step: int, share: slice = slice(None)) -> Batch:
        if step == 99:
            msg = "unreadable"
            raise OSError(msg)
        self.drawn.append((step, threading.current_thread().name))
        return super().batch(step, share)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_step_gets_its_batch(workers: int) -> None:
    sampler = Recording()
    loader = Loader(sampler, range(3, 9), device=CPU, workers=workers)
    for step in range(3, 9):
        batch = loader.next()
        assert torch.equal(batch.image, PatchSampler.batch(sampler, step).image)
        ahead = {s for s, _ in sampler.drawn} - set(range(3, step + 1))
        assert len(ahead) <= workers  # memory is bounded
    with pytest.raises(StopIteration):
        loader.next()
    loader.close()
    assert all(name.startswith("loader") == (workers > 0) for _, name in sampler.drawn)
    assert loader.waited_s > 0


def test_what_goes_wrong_in_a_worker_reaches_the_caller() -> None:
    loader = Loader(Recording(), range(98, 101), device=CPU, workers=1)
    loader.next()
    with pytest.raises(OSError, match="unreadable"):
        loader.next()
    loader.close()


def test_a_share_is_a_part_of_the_batch() -> None:
    sampler = Recording()
    whole = sampler.batch(0)
    second = Loader(sampler, range(1), device=CPU, share=slice(1, None, 2)).next()
    assert torch.equal(second.image, whole.image[1:])
    assert second.norms == whole.norms
