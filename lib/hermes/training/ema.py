"""Exponential moving average of the weights, arXiv 2306.02416."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """Keeps ``average``, a copy of the network whose weights follow those of the trained one.

    After update number k (from 0) the decay is min(1 - 1 / (k + 1), decay): the first update copies, later
    ones average evenly until ``decay`` is reached.

    Args:
        net: the trained network; parameters that are not trainable never change, so they are left alone.
        decay: at most.
    """

    def __init__(self, net: nn.Module, *, decay: float = 0.99) -> None:
        if not 0.0 <= decay < 1.0:
            msg = f"Expected an EMA decay in [0, 1), got {decay}."
            raise ValueError(msg)
        self.average = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0
        self._trained = {name for name, p in net.named_parameters() if p.requires_grad}
        self._trained |= {name for name, b in net.named_buffers() if b.is_floating_point()}

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Move the average towards the weights of ``net``."""
        decay = min(1 - 1 / (self.updates + 1), self.decay)
        torch._foreach_lerp_(self._moving(self.average), self._moving(net), 1 - decay)
        self.updates += 1

    def _moving(self, net: nn.Module) -> list[torch.Tensor]:
        named = [*net.named_parameters(), *net.named_buffers()]
        return [value for name, value in named if name in self._trained]
