"""Earlier versions as teachers of old tasks.

What they answer is the target where nobody annotated them, and one beside the labels of tasks that are only rehearsed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hermes.training.sampling import Batch


@dataclass(frozen=True)
class Teacher:
    """Frozen networks, the tasks that each answers, and what their answers count.

    Attributes:
        nets: each with the rows that it answers, no row twice; in eval mode, on the device of the batches, never changed.
        weight: of the distillation loss beside the segmentation losses.
    """

    nets: Sequence[tuple[nn.Module, Sequence[int]]]
    weight: float

    @torch.no_grad()
    def answers(self, batch: Batch, *, precision: str) -> Tensor:
        """The teachers' probabilities for the distilled channels of a batch, (B, n, D, H, W); 0 in the others.

        Each network is asked for its own rows of a sample only, and not at all where it has none.
        """
        found = torch.zeros_like(batch.masks)
        bf16 = precision == "bf16"
        for net, rows in self.nets:
            its = batch.distilled & torch.isin(batch.task_rows, batch.task_rows.new_tensor(list(rows)))
            for b in range(batch.image.shape[0]):
                asked = its[b]
                if not bool(asked.any()):
                    continue
                with torch.autocast(batch.image.device.type, dtype=torch.bfloat16, enabled=bf16):
                    out = net(
                        batch.image[b : b + 1], batch.task_rows[b : b + 1, asked], batch.modality_rows[b : b + 1],
                        modality_known=batch.modality_known[b : b + 1],
                    )  # fmt: skip
                found[b, asked] = out.logits[0].float().sigmoid()
        return found
