"""Which numbers of the network a run may change: all, all but the encoder, or the task-prior rows of new structures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from hermes.errors import BadRequestError
from hermes.model.priors import PriorTables
from hermes.training.recipe import Recipe

ENCODER = ("backbone.stem", "backbone.down")
"""Names of its parameters begin so in every network of the family; its prior tables are not part of it."""


@dataclass(frozen=True)
class Trainable:
    """What a run changes.

    Attributes:
        parameters: those that an optimiser gets.
        count: how many numbers change.
        masks: (parameter, (rows, 1) float) of the tables of which only some rows are trained.
    """

    parameters: list[nn.Parameter]
    count: int
    masks: list[tuple[nn.Parameter, torch.Tensor]]

    def mask_gradients(self) -> None:
        """Set the gradients of the rows that stay to exactly zero.

        Without weight decay their moments stay zero too, and so do their bits.
        """
        for parameter, mask in self.masks:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)


@contextmanager
def trainable_parts(net: nn.Module, recipe: Recipe) -> Iterator[Trainable]:
    """What the recipe trains of ``net``; everything else is frozen meanwhile, so that no gradients are computed.

    In modes ``all`` and ``decoder`` what the caller has frozen stays so.

    Raises:
        BadRequestError: priors only, and no new rows or rows that the tables do not have.
    """
    before = [(p, p.requires_grad) for p in net.parameters()]
    try:
        if recipe.trainable == "priors":
            yield _rows(net, recipe.new_rows)
        else:
            if recipe.trainable == "decoder":
                _freeze_encoder(net)
            yield _all(net)
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


def _freeze_encoder(net: nn.Module) -> None:
    for name, parameter in net.named_parameters():
        if name.startswith(ENCODER) and not name.endswith("_prior"):
            parameter.requires_grad_(False)


def _all(net: nn.Module) -> Trainable:
    parameters = [p for p in net.parameters() if p.requires_grad]
    return Trainable(parameters, sum(p.numel() for p in parameters), [])


def _rows(net: nn.Module, rows: tuple[int, ...]) -> Trainable:
    tables = [module.task_prior for module in net.modules() if isinstance(module, PriorTables)]
    size = min((table.shape[0] for table in tables), default=0)
    if not rows or any(not 0 <= row < size for row in rows):
        msg = (
            f"Expected the rows of new structures (0 to {size - 1}) to train the priors of, got {sorted(rows)}. "
            "Name new structures, or train everything."
        )
        raise BadRequestError(msg)
    net.requires_grad_(False)
    masks = []
    for table in tables:
        table.requires_grad_(True)
        mask = torch.zeros(table.shape[0], 1, device=table.device)
        mask[list(rows)] = 1.0
        masks.append((table, mask))
    return Trainable(tables, sum(len(set(rows)) * table.shape[1] for table in tables), masks)
