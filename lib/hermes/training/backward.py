"""Loss and gradients of one batch.

On a CPU each sample of a batch is worked on by a thread of its own: the convolutions of one small patch do not
keep several cores busy, two patches side by side do (docs/BENCHMARKS.md). The gradients are the same sums.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from hermes.training.losses import MODALITY_LOSS_WEIGHT, modality_loss, segmentation_losses
from hermes.training.sampling import Batch

AUXILIARY_WEIGHT = 0.5  # beside 0.5 for the main output, arXiv 2306.02416

Backward = Callable[..., float]
"""``(net, batch, *, precision) -> loss``: leaves the gradients in the parameters' ``grad``."""


def choose_backward(device: torch.device, batch_size: int) -> Backward:
    """Sample by sample where that is faster, else the whole batch at once."""
    threads = torch.get_num_threads()
    if device.type == "cpu" and threads > 1 and batch_size > 1:
        return SampleThreads(min(threads, batch_size))
    return backward_at_once


def backward_at_once(net: nn.Module, batch: Batch, *, precision: str) -> float:
    """Gradients of the whole batch in one pass."""
    loss = batch_loss(net, batch, precision=precision)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


class SampleThreads:
    """Gradients of a batch as the sum over its samples, each computed by one thread.

    Padding with null tokens falls away, since no sample has to be as wide as another. The sum is taken in the
    order of the samples: the same batch gives the same bits.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "training", initializer=torch.set_num_threads, initargs=(1,))

    def __call__(self, net: nn.Module, batch: Batch, *, precision: str) -> float:
        """Add the gradients of the batch to ``grad``; the loss."""
        parameters = [p for p in net.parameters() if p.requires_grad]
        channels = max(1, int(batch.task_mask.sum()))
        known = max(1, int(batch.modality_known.sum()))

        def work(part: Batch) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            share = part.weights.shape[1] / channels
            modality_share = float(part.modality_known.sum()) / known
            loss = batch_loss(net, part, precision=precision, share=share, modality_share=modality_share)
            return loss.detach(), torch.autograd.grad(loss, parameters, allow_unused=True)

        done = list(self._pool.map(work, batch.split()))
        for _, gradients in done:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return float(sum(loss for loss, _ in done))


def batch_loss(
    net: nn.Module, batch: Batch, *, precision: str = "fp32", share: float = 1.0, modality_share: float = 1.0
) -> torch.Tensor:
    """Dice + BCE (+ auxiliary output) + 0.01 modality loss of one batch, a scalar.

    Args:
        net: the network.
        batch: patches with their masks.
        precision: ``bf16`` for autocast.
        share: factor of the segmentation loss, for a part of a batch.
        modality_share: factor of the modality loss, likewise.
    """
    bf16 = precision == "bf16"
    with torch.autocast(batch.image.device.type, dtype=torch.bfloat16, enabled=bf16):
        out = net(
            batch.image, batch.task_rows, batch.modality_rows,
            task_mask=batch.task_mask, modality_known=batch.modality_known,
        )  # fmt: skip
    dice, bce = segmentation_losses(out.logits.float(), batch.masks, batch.weights)
    loss = dice + bce
    if out.auxiliary_logits is not None:
        aux_dice, aux_bce = segmentation_losses(out.auxiliary_logits.float(), batch.masks, batch.weights)
        loss = (1 - AUXILIARY_WEIGHT) * loss + AUXILIARY_WEIGHT * (aux_dice + aux_bce)
    modality = modality_loss(out.modality_logits.float(), batch.modality_rows, batch.modality_known)
    total: torch.Tensor = share * loss + modality_share * MODALITY_LOSS_WEIGHT * modality
    return total
