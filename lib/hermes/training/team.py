"""Several processes that train one network: each computes some samples of every batch.

Gradients are summed, not averaged: every part of a batch is already divided by the counts of the whole batch, so
the sum is the gradient that one process would have computed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from hermes.errors import BadRequestError


@dataclass(frozen=True)
class Team:
    """This process among those of the ``torch.distributed`` group; alone where there is no group."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> Team:
        """The team of the default process group."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def leads(self) -> bool:
        """Whether this process saves and reports."""
        return self.rank == 0

    def share(self, batch_size: int) -> slice:
        """The samples of each batch that this process computes.

        Raises:
            BadRequestError: there are fewer samples than processes.
        """
        if batch_size < self.size:
            msg = f"Expected a batch of at least one sample for each of {self.size} processes, got {batch_size}."
            raise BadRequestError(msg)
        return slice(self.rank, None, self.size)

    def same_start(self, net: nn.Module) -> None:
        """Give every process the weights of the first."""
        if self.size > 1:
            for value in net.state_dict().values():
                dist.broadcast(value, src=0)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any process says so."""
        return flag if self.size == 1 else self.sum(float(flag), device) > 0

    def sum(self, value: float, device: torch.device) -> float:
        """The sum over the processes."""
        if self.size == 1:
            return value
        total = torch.tensor([value], dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return float(total)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes; what no process has a gradient of keeps none."""
        if self.size == 1:
            return
        listed = list(parameters)
        present = torch.tensor([p.grad is not None for p in listed], dtype=torch.float32)
        present = present.to(listed[0].device)
        dist.all_reduce(present)
        reached = [p for p, count in zip(listed, present.tolist(), strict=True) if count]
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in reached]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        first = 0
        for parameter in reached:
            part = flat[first : first + parameter.numel()].view(parameter.shape)
            # In the parameter's own memory layout: the fused optimiser pairs the two as they lie in memory.
            parameter.grad = torch.empty_like(parameter, requires_grad=False).copy_(part)
            first += parameter.numel()


@contextmanager
def team_from_environment(device: torch.device) -> Iterator[torch.device]:
    """The device of this process; processes that ``torchrun`` started form a team and take a GPU each.

    Args:
        device: that every process would choose by itself.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
