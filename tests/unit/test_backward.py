from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hermes.errors import HermesError
from hermes.model import NetworkConfig, UniversalNetwork, build_network
from hermes.training.backward import SampleThreads, WholeBatch, backward_at_once
from hermes.training.cases import TrainingCase
from hermes.training.sampling import Batch, PatchSampler
from hermes.types import Modality


def net() -> UniversalNetwork:
    torch.manual_seed(0)
    return build_network(NetworkConfig("hermes-c", 8, tasks=3)).train()


def batch(*annotated: dict[int, int | None]) -> Batch:
    rng = np.random.default_rng(0)
    cases = [
        TrainingCase(
            str(i), rng.normal(size=(32, 32, 32)).astype(np.float32), rng.integers(0, 3, (32, 32, 32)).astype(np.uint8),
            rows, Modality.T1 if i else None, dataset=str(i),
        )
        for i, rows in enumerate(annotated)
    ]  # fmt: skip
    return PatchSampler(
        cases, patch=(32, 32, 32), batch_size=4, seed=1, augmentation=None, beside_most=0
    ).batch(0)


def gradients(trained: UniversalNetwork) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in trained.named_parameters() if p.grad is not None}


def test_sum_over_samples_is_the_gradient_of_the_batch() -> None:
    given = batch({0: 1}, {1: 2})  # as many tasks in every sample: in a padded batch null tokens take part
    assert bool(given.task_mask.all())
    whole, split = net(), net()
    loss = backward_at_once(whole, given, precision="fp32")
    assert SampleThreads(2)(split, given, precision="fp32") == pytest.approx(loss, rel=1e-4)
    one, other = gradients(whole), gradients(split)
    for name, gradient in one.items():
        if name in other:
            torch.testing.assert_close(other[name], gradient, rtol=2e-2, atol=2e-4, msg=name)
        else:
            assert not gradient.any(), name


def test_the_same_batch_gives_the_same_bits() -> None:
    given = batch({0: 1}, {1: 2, 2: None})
    found = []
    for _ in range(2):
        trained = net()
        loss = SampleThreads(2)(trained, given, precision="fp32")
        found.append((loss, gradients(trained)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


def test_split_takes_the_padding_away() -> None:
    given = batch({0: 1}, {1: 2, 2: None})
    parts = given.split()
    assert [p.image.shape[0] for p in parts] == [1] * 4
    assert all(bool(p.task_mask.all()) for p in parts)
    assert sum(p.task_mask.numel() for p in parts) == int(given.task_mask.sum())
    torch.testing.assert_close(torch.cat([p.image for p in parts]), given.image)


class Small(torch.nn.Module):
    """A network on a device whose memory holds ``fits`` samples."""

    def __init__(self, fits: int) -> None:
        super().__init__()
        self.inner, self.fits, self.seen = net(), fits, list[int]()

    def forward(self, image: torch.Tensor, *rows: torch.Tensor, **masks: torch.Tensor) -> object:
        self.seen.append(image.shape[0])
        out = self.inner(image, *rows, **masks)
        if image.shape[0] > self.fits:
            raise torch.cuda.OutOfMemoryError("simulated")
        return out


@pytest.mark.parametrize(("fits", "tried"), [(4, [4]), (2, [4, 2, 2]), (1, [4, 2, 1, 1, 1, 1])])
def test_out_of_memory_makes_parts_with_the_same_gradient(fits: int, tried: list[int]) -> None:
    given = batch({0: 1}, {1: 2, 2: None})
    whole, small, backward = net(), Small(fits), WholeBatch()
    loss = backward_at_once(whole, given, precision="fp32")
    assert backward(small, given, precision="fp32") == pytest.approx(loss, rel=1e-5)
    assert small.seen == tried
    one, other = gradients(whole), gradients(small.inner)
    assert set(one) == set(other)
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, rtol=2e-2, atol=1e-4, msg=name)
    small.seen.clear()
    backward(small, given, precision="fp32")
    assert small.seen == [fits] * (4 // fits)  # what did not fit is not tried again


def test_a_patch_that_does_not_fit_alone_is_an_error() -> None:
    small = Small(0)
    with pytest.raises(HermesError, match="does not fit into the memory of the GPU"):
        WholeBatch()(small, batch({0: 1}), precision="fp32")
    assert not gradients(small.inner)


def test_a_task_asked_beside_takes_part_but_its_row_gets_no_gradient() -> None:
    """Bits of a row that no case of a batch has annotated stay, though it is among the tokens."""
    given = batch({0: 1}, {1: 2})
    chosen = [b for b in range(4) if given.weights[b, given.task_rows[b] == 0].any()]
    only = given.part(chosen[0], chosen[0] + 1)
    only = replace(only, task_rows=torch.tensor([[0, 1]]), task_mask=torch.ones(1, 2, dtype=torch.bool),
                   beside=torch.tensor([[False, True]]), weights=torch.tensor([[1.0, 0.0]]),
                   distilled=torch.zeros(1, 2, dtype=torch.bool), masks=only.masks[:, :1].expand(-1, 2, -1, -1, -1))  # fmt: skip
    beside, alone = net(), net()
    with_it = backward_at_once(beside, only, precision="fp32")
    without = backward_at_once(
        alone, replace(only, task_mask=torch.tensor([[True, False]])), precision="fp32"
    )
    assert with_it != without  # the token is there
    tables = [p.grad for name, p in beside.named_parameters() if name.endswith("task_prior")]
    assert all(not table[1].any() for table in tables)
    assert any(table[0].any() for table in tables)
