"""Exponential moving average of the weights, arXiv 2306.02416."""

from __future__ import annotations

import copy

import torch
from torch import nn


class WeightAverage:
    """Keeps ``average``, a copy of the network whose weights follow those of the trained one.

    After update number k (from 0) the decay is min(1 - 1 / (k + 1), decay): the first update copies, later
    ones average evenly until ``decay`` is reached.
    """

    def __init__(self, net: nn.Module, *, decay: float = 0.99) -> None:
        if not 0.0 <= decay < 1.0:
            msg = f"Expected an EMA decay in [0, 1), got {decay}."
            raise ValueError(msg)
        self.average = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Move the average towards the weights of ``net``."""
        decay = min(1 - 1 / (self.updates + 1), self.decay)
        ours = list(self.average.parameters()) + [b for b in self.average.buffers() if b.is_floating_point()]
        theirs = list(net.parameters()) + [b for b in net.buffers() if b.is_floating_point()]
        torch._foreach_lerp_(ours, theirs, 1 - decay)
        self.updates += 1
