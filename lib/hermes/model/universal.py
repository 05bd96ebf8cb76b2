"""The universal network: a backbone that fuses priors, and the heads. The shape story, top to bottom.

Nothing but the tokens and the final contraction depends on how many tasks are asked for. Tokens interact:
voxels read all tokens of a request, so the logits of a task depend (slightly) on which other tasks, and how
many null places, stand beside it. That is the published method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hermes.errors import BadImageError, BadRequestError
from hermes.model.blocks import upsample_to
from hermes.model.heads import ModalityHead, SegmentationHead, contract
from hermes.model.priors import PriorTables, Prompt

DIVISOR = 16
"""Every spatial size of an input must be a multiple of this: four halvings."""


@dataclass(frozen=True)
class NetworkConfig:
    """What is needed to build a network; stored in each checkpoint's manifest."""

    name: str
    width: int
    tasks: int
    modalities: int = 5


@dataclass(frozen=True)
class BackboneOutput:
    """Features ``(B, c, D, H, W)``, posterior tokens per level, coarse features for an auxiliary head."""

    features: Tensor
    posteriors: tuple[Tensor, ...]
    auxiliary_features: Tensor | None = None


class Backbone(Protocol):
    """What the universal network asks of a backbone (besides being an ``nn.Module``)."""

    fusion_widths: Sequence[int]
    feature_width: int
    auxiliary_width: int | None


@dataclass(frozen=True)
class Encoded:
    """All that the logits are made of, before the ``(B, n, D, H, W)`` array exists.

    ``logits = contract(features, class_weights)``. The auxiliary pair is at a coarser resolution.
    """

    features: Float[Tensor, "b c d h w"]
    class_weights: Float[Tensor, "b n c"]
    modality_logits: Float[Tensor, "b classes"]
    task_tokens: Float[Tensor, "b n e"]
    auxiliary_features: Float[Tensor, "b c2 d2 h2 w2"] | None = None
    auxiliary_weights: Float[Tensor, "b n c2"] | None = None


@dataclass(frozen=True)
class NetworkOutput:
    """What the network answers; ``modality_logits`` has M + 1 classes of which the last is "unknown"."""

    logits: Float[Tensor, "b n d h w"]
    modality_logits: Float[Tensor, "b classes"]
    auxiliary_logits: Float[Tensor, "b n d h w"] | None
    task_tokens: Float[Tensor, "b n e"]


class UniversalNetwork(nn.Module):
    """One network for all tasks: named tasks and a modality go in, one logit map per task comes out."""

    def __init__(self, config: NetworkConfig, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        traits: Backbone = backbone  # type: ignore[assignment]  # nn.Module hides attribute types
        token_width = sum(traits.fusion_widths)
        self.segmentation_head = SegmentationHead(token_width, traits.feature_width)
        self.modality_head = ModalityHead(token_width, config.modalities + 1)
        self.auxiliary_head = (
            SegmentationHead(token_width, traits.auxiliary_width) if traits.auxiliary_width else None
        )

    def encode(
        self,
        image: Float[Tensor, "b 1 d h w"],
        task_rows: Int[Tensor, "b n"],
        modality_rows: Tensor,
        *,
        task_mask: Bool[Tensor, "b n"] | None = None,
        modality_known: Tensor | None = None,
        beside: Bool[Tensor, "b n"] | None = None,
    ) -> Encoded:
        """Features and classifier weights; an inference engine contracts them as memory allows.

        Args:
            image: normalised intensities, every spatial size a multiple of 16.
            task_rows: rows of the task tables.
            modality_rows: rows of the modality tables.
            task_mask: True where the row is a real task, False for padding; None: all real.
            modality_known: False where the modality is unknown; None: all known.
            beside: True for a task whose rows shall get no gradient, in training; None: none.

        Raises:
            BadImageError: the image has another rank, more channels, or a size that 16 does not divide.
            BadRequestError: rows outside the tables or of another batch size.
        """
        prompt = Prompt.of(task_rows, modality_rows, task_mask, modality_known, beside)
        if not torch.compiler.is_compiling():
            _check_image(image)
            prompt.check(image.shape[0], self.config.tasks, self.config.modalities)
        out: BackboneOutput = self.backbone(image, prompt)
        tokens = torch.cat(out.posteriors, dim=-1)  # (b, n + 10, e)
        n = prompt.task_rows.shape[1]
        task_tokens = tokens[:, :n]
        return Encoded(
            features=out.features,
            class_weights=self.segmentation_head(task_tokens),
            modality_logits=self.modality_head(tokens[:, n:]),
            task_tokens=task_tokens,
            auxiliary_features=out.auxiliary_features,
            auxiliary_weights=None if self.auxiliary_head is None else self.auxiliary_head(task_tokens),
        )

    def forward(
        self,
        image: Float[Tensor, "b 1 d h w"],
        task_rows: Int[Tensor, "b n"],
        modality_rows: Tensor,
        *,
        task_mask: Bool[Tensor, "b n"] | None = None,
        modality_known: Tensor | None = None,
        beside: Bool[Tensor, "b n"] | None = None,
    ) -> NetworkOutput:
        """Logits of every asked task; arguments and errors as in :meth:`encode`."""
        encoded = self.encode(
            image, task_rows, modality_rows,
            task_mask=task_mask, modality_known=modality_known, beside=beside,
        )  # fmt: skip
        auxiliary = None
        if encoded.auxiliary_features is not None and encoded.auxiliary_weights is not None:
            coarse = contract(encoded.auxiliary_features, encoded.auxiliary_weights)
            auxiliary = upsample_to(coarse, image.shape[2:])
        return NetworkOutput(
            logits=contract(encoded.features, encoded.class_weights),
            modality_logits=encoded.modality_logits,
            auxiliary_logits=auxiliary,
            task_tokens=encoded.task_tokens,
        )


def _check_image(image: Tensor) -> None:
    shape = tuple(image.shape)
    if image.ndim != 5 or shape[1] != 1:
        msg = f"Expected an image of shape (batch, 1, depth, height, width), got {shape}."
        raise BadImageError(msg)
    if any(size == 0 or size % DIVISOR for size in shape[2:]):
        msg = f"Expected spatial sizes that are multiples of {DIVISOR}, got {shape[2:]}. Pad, then crop."
        raise BadImageError(msg)
    if all(size == DIVISOR for size in shape[2:]):
        msg = (
            f"Expected more than {DIVISOR} voxels along at least one axis, got {shape[2:]}: one voxel would "
            f"remain at the coarsest resolution, which has no variance. Pad, then crop."
        )
        raise BadImageError(msg)


def extend_tasks(
    net: UniversalNetwork,
    count: int,
    initialise_from: Sequence[int | None],
    generator: torch.Generator | None = None,
) -> None:
    """Nothing; every task table of ``net`` gains ``count`` rows at its end, old rows keep their bits.

    Args:
        net: changed in place, ``net.config.tasks`` included. Table parameters become new objects: build the
            optimiser afterwards.
        count: how many rows.
        initialise_from: per new row, the existing row to copy at every level, or None for a random row.
        generator: a CPU generator for the random rows.

    Raises:
        BadRequestError: ``initialise_from`` has another length or names a row that does not exist.
    """
    sources = list(initialise_from)
    tasks = net.config.tasks
    if len(sources) != count:
        msg = f"Expected one initialisation per new task ({count}), got {len(sources)}."
        raise BadRequestError(msg)
    if any(row is not None and not 0 <= row < tasks for row in sources):
        msg = f"Expected rows from 0 to {tasks - 1} (or None) to copy, got {sources}."
        raise BadRequestError(msg)
    if not sources:
        return
    for module in net.modules():
        if isinstance(module, PriorTables):
            module.append(sources, generator)
    c = net.config
    net.config = NetworkConfig(c.name, c.width, tasks + count, c.modalities)
