"""Context priors: the learned tables of tasks and modalities, and how a request selects from them.

Absence has parameters of its own. A padded place of the task list takes ``null_prior`` and an image of
unknown modality takes ``unknown_modality_prior``, both by boolean masks, never by a negative row: rows can
be appended to the tables without changing what "none" means.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hermes.errors import BadRequestError

MODALITY_TOKENS = 10
"""Learned tokens per modality and fusion level."""

TASK_PRIOR_GAIN = 5.0
"""Scale of new task rows beside Xavier's. At scale 1 what all tokens of a request read from the image drowns
what tells them apart, and training stands still until the rows have grown (docs/BENCHMARKS.md)."""


@dataclass(frozen=True)
class Prompt:
    """What is asked of each image of a batch; rows under a False mask are ignored.

    ``beside`` is True for a task that is asked beside the others and learns nothing: its rows get no gradient.
    """

    task_rows: Int[Tensor, "b n"]
    modality_rows: Tensor
    task_mask: Bool[Tensor, "b n"]
    modality_known: Tensor
    beside: Bool[Tensor, "b n"] | None = None

    @classmethod
    def of(
        cls,
        task_rows: Int[Tensor, "b n"],
        modality_rows: Tensor,
        task_mask: Bool[Tensor, "b n"] | None = None,
        modality_known: Tensor | None = None,
        beside: Bool[Tensor, "b n"] | None = None,
    ) -> Prompt:
        """A prompt in which every task is real and every modality known unless a mask says otherwise.

        Rows under a False mask become 0, so that any number may stand there.
        """
        if task_mask is None:
            task_mask = torch.ones_like(task_rows, dtype=torch.bool)
        if modality_known is None:
            modality_known = torch.ones_like(modality_rows, dtype=torch.bool)
        return cls(
            task_rows.where(task_mask, torch.zeros_like(task_rows)),
            modality_rows.where(modality_known, torch.zeros_like(modality_rows)),
            task_mask,
            modality_known,
            beside,
        )

    def check(self, batch: int, tasks: int, modalities: int) -> None:
        """Nothing, when the prompt suits ``batch`` images and tables of this many rows.

        Raises:
            BadRequestError: wrong shapes, or a row outside its table.
        """
        n = self.task_rows.shape[-1]
        shapes = [tuple(t.shape) for t in (self.task_rows, self.task_mask)]
        if shapes != [(batch, n)] * 2:
            msg = f"Expected task rows and mask of shape ({batch}, n), one line per image, got {shapes}."
            raise BadRequestError(msg)
        shapes = [tuple(t.shape) for t in (self.modality_rows, self.modality_known)]
        if shapes != [(batch,)] * 2:
            msg = f"Expected modality rows and mask of shape ({batch},), one per image, got {shapes}."
            raise BadRequestError(msg)
        _check_range("task", self.task_rows, tasks)
        _check_range("modality", self.modality_rows, modalities)


def _check_range(kind: str, rows: Tensor, size: int) -> None:
    if rows.numel() and (int(rows.min()) < 0 or int(rows.max()) >= size):
        msg = (
            f"Expected {kind} rows from 0 to {size - 1}, got {sorted(set(rows.flatten().tolist()))}. "
            f"Mark absence with a mask, not with a negative row."
        )
        raise BadRequestError(msg)


class PriorTables(nn.Module):
    """The tables of one fusion level: T tasks, M modalities of ten tokens each, width C."""

    def __init__(self, tasks: int, modalities: int, width: int) -> None:
        super().__init__()
        # "None" is drawn together with the real rows, so that all tokens start with one scale.
        task_rows = nn.init.xavier_uniform_(torch.empty(tasks + 1, width), gain=TASK_PRIOR_GAIN)
        modality_rows = nn.init.xavier_uniform_(torch.empty(modalities + 1, MODALITY_TOKENS, width))
        self.task_prior = nn.Parameter(task_rows[:-1].clone())  # (T, C)
        self.null_prior = nn.Parameter(task_rows[-1].clone())  # (C,)
        self.modality_prior = nn.Parameter(modality_rows[:-1].clone())  # (M, 10, C)
        self.unknown_modality_prior = nn.Parameter(modality_rows[-1].clone())  # (10, C)

    def forward(self, prompt: Prompt) -> Float[Tensor, "b n+10 c"]:
        """The token sequence ``[task tokens (n), modality tokens (10)]`` of each image."""
        tasks = self.task_prior[prompt.task_rows]  # (b, n, c)
        if prompt.beside is not None:
            tasks = torch.where(prompt.beside[..., None], tasks.detach(), tasks)
        tasks = torch.where(prompt.task_mask[..., None], tasks, self.null_prior)
        modality = self.modality_prior[prompt.modality_rows]  # (b, 10, c)
        modality = torch.where(prompt.modality_known[:, None, None], modality, self.unknown_modality_prior)
        return torch.cat([tasks, modality], dim=1)

    @torch.no_grad()
    def append(self, initialise_from: list[int | None], generator: torch.Generator | None) -> None:
        """Nothing; the task table gains one row per entry: a copy of that row, or a Xavier-uniform draw.

        Old rows keep their bits. The parameter object is replaced: build optimisers afterwards.
        """
        old = self.task_prior
        bound = TASK_PRIOR_GAIN * (6.0 / (old.shape[0] + 1 + old.shape[1])) ** 0.5
        rows = []
        for source in initialise_from:
            if source is None:
                # drawn on the CPU so that a seed gives the same row on every device
                drawn = torch.empty(old.shape[1]).uniform_(-bound, bound, generator=generator)
                rows.append(drawn.to(old))
            else:
                rows.append(old[source].clone())
        self.task_prior = nn.Parameter(torch.cat([old.detach(), *(row[None] for row in rows)]))
