"""From overlapping probabilities to one label per voxel.

The rule: a task claims the voxels where its probability is above 0.5. Where several do, a structure that lies
within another (a tumour in its organ) wins over the one that contains it; of those that remain, the highest
probability wins, and of equal ones (to 2 ** -15) the task that was asked for first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

THRESHOLD = 0.5
"""Probability above which a voxel belongs to a task."""
_PLACES = 256  # as many places as fit into the low bits of a float32 that do not matter

Containers = Sequence[Sequence[int]]
"""For each task, the places in the request of the tasks whose structures contain its own (transitively)."""


def resolve(
    probabilities: Float[Tensor, "k d h w"], tasks: Sequence[int], containers: Containers
) -> Int[Tensor, "d h w"]:
    """The place in the request, counted from 1, of the task that each voxel belongs to; 0 is background.

    Args:
        probabilities: of the tasks that may claim a voxel here; **changed in place**.
        tasks: their places in the request, in rising order.
        containers: for all tasks of the request.
    """
    place = {task: number for number, task in enumerate(tasks)}
    for task in tasks:
        outer = [place[container] for container in containers[task] if container in place]
        if outer:
            claimed = probabilities[place[task]] > THRESHOLD
            for number in outer:
                probabilities[number].masked_fill_(claimed, 0.0)
    best = probabilities.amax(dim=0)
    where = _place_of_highest(probabilities)
    # One more than the place: row 0 of the table is the background.
    values = torch.tensor([0, *(task + 1 for task in tasks)], device=probabilities.device)
    labels: Tensor = values[(where + 1).masked_fill_(best <= THRESHOLD, 0)]
    return labels


def _place_of_highest(probabilities: Float[Tensor, "k d h w"]) -> Int[Tensor, "d h w"]:
    """``argmax`` over the first axis; several times faster on a CPU, and **overwrites** its argument.

    Positive floats are ordered as their bits read as integers. The place goes into the lowest bits, counted
    backwards so that the first of equals is the highest; then one vectorised maximum finds both.
    """
    count = len(probabilities)
    if count > _PLACES:
        return probabilities.argmax(dim=0)
    backwards = torch.arange(
        _PLACES - 1, _PLACES - 1 - count, -1, dtype=torch.int32, device=probabilities.device
    )
    bits = probabilities.view(torch.int32).bitwise_and_(-_PLACES)
    bits.bitwise_or_(backwards.view(-1, *[1] * (probabilities.ndim - 1)))
    return _PLACES - 1 - bits.amax(dim=0).bitwise_and_(_PLACES - 1).long()
