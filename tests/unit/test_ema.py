"""The weight average: toys whose right answer is arithmetic."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hermes.training.ema import WeightAverage


def one_weight(value: float) -> nn.Linear:
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(value)
    return net


def follow(average: WeightAverage, values: list[float]) -> list[float]:
    """The averaged weight after each update."""
    seen = []
    for value in values:
        average.update(one_weight(value))
        seen.append(average.average.weight.item())
    return seen


def test_even_average_until_the_decay_is_reached() -> None:
    # decay min(1 - 1/(k+1), 0.5): 0, 1/2, 1/2, 1/2 ...
    assert follow(WeightAverage(one_weight(100.0), decay=0.5), [4.0, 8.0, 2.0]) == pytest.approx(
        [4.0, 6.0, 4.0]
    )


def test_large_decay_gives_the_plain_mean_at_first() -> None:
    assert follow(WeightAverage(one_weight(0.0), decay=0.99), [3.0, 6.0, 9.0]) == pytest.approx(
        [3.0, 4.5, 6.0]
    )


def test_no_decay_copies() -> None:
    assert follow(WeightAverage(one_weight(0.0), decay=0.0), [3.0, 6.0]) == pytest.approx([3.0, 6.0])


def test_floating_buffers_follow_and_counters_do_not() -> None:
    net = nn.BatchNorm1d(1)
    average = WeightAverage(net, decay=0.5)
    net.running_mean.fill_(7.0)  # type: ignore[union-attr]  # a buffer
    net.num_batches_tracked.fill_(3)  # type: ignore[union-attr]
    average.update(net)
    assert float(average.average.running_mean) == 7.0
    assert int(average.average.num_batches_tracked) == 0


def test_the_trained_network_is_left_alone() -> None:
    net = one_weight(5.0)
    average = WeightAverage(net, decay=0.9)
    average.update(net)
    with torch.no_grad():
        average.average.weight.fill_(1.0)
    assert net.weight.item() == 5.0
    assert net.weight.requires_grad
    assert net.training
    assert not average.average.training


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        WeightAverage(one_weight(0.0), decay=decay)
