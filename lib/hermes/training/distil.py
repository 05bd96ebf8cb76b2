"""The serving model as a teacher: what it answers for old tasks is the target where nobody annotated them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

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
    def fill(self, batch: Batch, *, precision: str) -> Batch:
        """The batch with the teacher's probabilities as masks of its distilled channels.

        Each sample is asked for its own distilled rows only: rows that the teacher has not are never asked.
        """
        masks = batch.masks.clone()
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
            masks[b, asked] = out.logits[0].float().sigmoid()
        return replace(batch, masks=masks)
