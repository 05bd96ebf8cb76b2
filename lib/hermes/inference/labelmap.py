"""From overlapping probabilities to one label per voxel.

The rule: a task claims the voxels where its probability is above 0.5. Where several do, a structure that lies
within another (a tumour in its organ) wins over the one that contains it; of those that remain, the highest
probability wins, and of equal ones the task that was asked for first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

THRESHOLD = 0.5
"""Probability above which a voxel belongs to a task."""

Containers = Sequence[Sequence[int]]
"""For each task, the places in the request of the tasks whose structures contain its own (transitively)."""


def resolve(
    probabilities: Float[Tensor, "k ..."], tasks: Sequence[int], containers: Containers
) -> Int[Tensor, ...]:
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
    best, where = probabilities.max(dim=0)
    # One more than the place: row 0 of the table is the background.
    values = torch.tensor([0, *(task + 1 for task in tasks)], device=probabilities.device)
    labels: Tensor = values[(where + 1).masked_fill_(best <= THRESHOLD, 0)]
    return labels
