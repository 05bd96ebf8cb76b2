"""The serving model as a teacher of old tasks.

What it answers is the target where nobody annotated them, and one beside the labels of tasks that are only rehearsed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hermes.training.sampling import Batch


@dataclass(frozen=True)
class Teacher:
    """A frozen network and what its answers count.

    Attributes:
        net: answers; in eval mode, on the device of the batches, never changed.
        weight: of the distillation loss beside the segmentation losses.
    """

    net: nn.Module
    weight: float

    @torch.no_grad()
    def answers(self, batch: Batch, *, precision: str) -> Tensor:
        """The teacher's probabilities for the distilled channels of a batch, (B, n, D, H, W); 0 in the others.

        Each sample is asked for its own distilled rows only: rows that the teacher has not are never asked.
        """
        found = torch.zeros_like(batch.masks)
        bf16 = precision == "bf16"
        for b in range(batch.image.shape[0]):
            asked = batch.distilled[b]
            if not bool(asked.any()):
                continue
            with torch.autocast(batch.image.device.type, dtype=torch.bfloat16, enabled=bf16):
                out = self.net(
                    batch.image[b : b + 1], batch.task_rows[b : b + 1, asked], batch.modality_rows[b : b + 1],
                    modality_known=batch.modality_known[b : b + 1],
                )  # fmt: skip
            found[b, asked] = out.logits[0].float().sigmoid()
        return found
