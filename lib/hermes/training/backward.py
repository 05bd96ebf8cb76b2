"""Loss and gradients of one batch.

On a CPU each sample of a batch is worked on by a thread of its own: the convolutions of one small patch do not
keep several cores busy, two patches side by side do (docs/BENCHMARKS.md). On a GPU the whole batch is computed at
once, or in parts where it does not fit. The gradients are the same sums in every case: each part is divided by the
counts of the whole batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from hermes.errors import HermesError
from hermes.training.distil import Teacher
from hermes.training.losses import (
    MODALITY_LOSS_WEIGHT,
    distillation_loss,
    modality_loss,
    segmentation_losses,
)
from hermes.training.sampling import Batch

logger = logging.getLogger(__name__)

AUXILIARY_WEIGHT = 0.5  # beside 0.5 for the main output, arXiv 2306.02416

Backward = Callable[..., float]
"""``(net, batch, *, precision, teacher=None) -> loss``: adds to the ``grad`` of the trainable parameters."""


def choose_backward(device: torch.device, batch_size: int) -> Backward:
    """Sample by sample where that is faster, else the whole batch at once."""
    threads = torch.get_num_threads()
    if device.type == "cpu" and threads > 1 and batch_size > 1:
        return SampleThreads(min(threads, batch_size))
    return WholeBatch()


def backward_at_once(
    net: nn.Module, batch: Batch, *, precision: str, teacher: Teacher | None = None
) -> float:
    """Gradients of the whole batch in one pass."""
    loss = batch_loss(net, batch, precision=precision, teacher=teacher)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


class WholeBatch:
    """Gradients of a batch at once; in ever smaller parts after the device ran out of memory.

    Expects parameters without gradients. The part that fitted is remembered for the steps to come.
    """

    def __init__(self) -> None:
        self._most: int | None = None

    def __call__(
        self, net: nn.Module, batch: Batch, *, precision: str, teacher: Teacher | None = None
    ) -> float:
        """Compute the gradients of the batch; the loss.

        Raises:
            HermesError: not even one sample fits.
        """
        while True:
            size = min(self._most or batch.image.shape[0], batch.image.shape[0])
            loss = self._attempt(net, batch, size, precision, teacher)
            if loss is not None:
                return loss
            if size == 1:
                msg = (
                    f"One patch of {tuple(batch.image.shape[2:])} voxels does not fit into the memory of the GPU. "
                    "Set `train_patch_voxels` to smaller patches, or free the GPU."
                )
                raise HermesError(msg)
            self._most = (size + 1) // 2
            logger.warning("Out of GPU memory: going on with %d samples at a time", self._most)

    @staticmethod
    def _attempt(
        net: nn.Module, batch: Batch, size: int, precision: str, teacher: Teacher | None
    ) -> float | None:
        """The loss, or None when memory ran out; then no gradient is left."""
        try:
            starts = range(0, batch.image.shape[0], size)
            parts = (batch.part(start, start + size) for start in starts)
            return sum(backward_at_once(net, part, precision=precision, teacher=teacher) for part in parts)
        except torch.cuda.OutOfMemoryError:
            net.zero_grad(set_to_none=True)
        # After the except block, in which the failed pass would still hold its tensors.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None


class SampleThreads:
    """Gradients of a batch as the sum over its samples, each computed by one thread.

    Padding with null tokens falls away, since no sample has to be as wide as another. The sum is taken in the
    order of the samples: the same batch gives the same bits.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "training", initializer=torch.set_num_threads, initargs=(1,))

    def __call__(
        self, net: nn.Module, batch: Batch, *, precision: str, teacher: Teacher | None = None
    ) -> float:
        """Add the gradients of the batch to ``grad``; the loss."""
        parameters = [p for p in net.parameters() if p.requires_grad]

        def work(part: Batch) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            loss = batch_loss(net, part, precision=precision, teacher=teacher)
            return loss.detach(), torch.autograd.grad(loss, parameters, allow_unused=True)

        done = list(self._pool.map(work, batch.split()))
        for _, gradients in done:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    if (
                        gradient.stride() != parameter.stride()
                    ):  # the fused optimiser pairs them as they lie in memory
                        gradient = torch.empty_like(parameter, requires_grad=False).copy_(gradient)
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return float(sum(loss for loss, _ in done))


def batch_loss(
    net: nn.Module, batch: Batch, *, precision: str = "fp32", teacher: Teacher | None = None
) -> torch.Tensor:
    """Dice + BCE + distillation (+ auxiliary output) + 0.01 modality loss of a batch or a part, a scalar.

    Every term is divided by the counts of the whole batch (``batch.norms``): the losses of the parts of a batch
    add up to its loss.

    Args:
        net: the network.
        batch: patches with their masks.
        precision: ``bf16`` for autocast.
        teacher: answers the distilled channels; without one they do not count.
    """
    answers = teacher.answers(batch, precision=precision) if teacher is not None else None
    bf16 = precision == "bf16"
    with torch.autocast(batch.image.device.type, dtype=torch.bfloat16, enabled=bf16):
        out = net(
            batch.image, batch.task_rows, batch.modality_rows,
            task_mask=batch.task_mask, modality_known=batch.modality_known, beside=batch.beside,
        )  # fmt: skip
    weight = teacher.weight if teacher is not None else 0.0
    loss = _task_losses(out.logits.float(), batch, answers, weight)
    if out.auxiliary_logits is not None:
        auxiliary = _task_losses(out.auxiliary_logits.float(), batch, answers, weight)
        loss = (1 - AUXILIARY_WEIGHT) * loss + AUXILIARY_WEIGHT * auxiliary
    modality = modality_loss(out.modality_logits.float(), batch.modality_rows, batch.modality_known)
    share = int(batch.modality_known.sum()) / max(1, batch.norms.modalities)
    total: Tensor = loss + share * MODALITY_LOSS_WEIGHT * modality
    return total


def _task_losses(logits: Tensor, batch: Batch, answers: Tensor | None, weight: float) -> Tensor:
    dice, bce = segmentation_losses(logits, batch.masks, batch.weights)
    share = int(batch.weights.count_nonzero()) / max(1, batch.norms.annotated)
    loss: Tensor = share * (dice + bce)
    if answers is not None:
        distilled = distillation_loss(logits, answers, batch.distilled)
        loss = loss + weight / max(1, batch.norms.distilled) * distilled
    return loss
