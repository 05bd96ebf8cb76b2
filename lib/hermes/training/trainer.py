"""One training run: recipe in, averaged weights out.

The loop is an ignite engine whose iteration is one optimiser step; the batch of a step depends on (seed, step)
only, see ``sampling``.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pytorch_optimizer import Lamb
from torch import nn

from hermes.errors import CancelledError
from hermes.training.augment import AugmentationRanges
from hermes.training.cases import TrainingCase
from hermes.training.ema import WeightAverage
from hermes.training.losses import MODALITY_LOSS_WEIGHT, modality_loss, segmentation_losses
from hermes.training.sampling import Batch, PatchSampler

with warnings.catch_warnings():
    # ignite imports parts of torch.distributed that use the deprecated torch.jit.script.
    warnings.simplefilter("ignore", DeprecationWarning)
    from ignite.engine import Engine, Events

logger = logging.getLogger(__name__)

AUXILIARY_WEIGHT = 0.5  # beside 0.5 for the main output, METHOD.md section 4
POLYNOMIAL_POWER = 0.9


@dataclass(frozen=True)
class Recipe:
    """Numbers of one run; the defaults are the published ones where the machine allows (METHOD.md section 6)."""

    steps: int = 400
    batch_size: int = 2  # published: 16 over 8 GPUs
    patch: tuple[int, int, int] = (64, 64, 64)  # z, y, x; published: 128 cubed
    optimiser: Literal["adamw", "lamb"] = "lamb"
    learning_rate: float = 2e-3
    weight_decay: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-5
    max_gradient_norm: float = 1.0  # apex's FusedLAMB clips the global norm inside
    warmup_fraction: float = 0.025  # published: 5 of 200 epochs
    ema_decay: float = 0.99
    ema_fraction: float = 0.05  # the average never remembers more than this part of the run
    augment: bool = True
    augmentation: AugmentationRanges = field(default_factory=AugmentationRanges)
    precision: str = "fp32"  # or "bf16": autocast
    dataset_weights: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def for_gpu(cls) -> Recipe:
        """The published recipe."""
        return cls()

    @classmethod
    def for_cpu(cls) -> Recipe:
        """Few steps on few cores."""
        return cls(
            optimiser="adamw", learning_rate=3e-3, weight_decay=1e-2, betas=(0.9, 0.99), eps=1e-8,
        )  # fmt: skip

    def steps_for(self, cases: int) -> int:
        """Steps of one round on so many labelled cases."""
        return max(200, min(40 * cases, 800))

    def learning_rate_at(self, step: int) -> float:
        """Polynomial decay with an exponential warm-up: lr * exp(10 (t - 1)) while t < 1."""
        rate = self.learning_rate * (1 - step / self.steps) ** POLYNOMIAL_POWER
        warmup = self.warmup_fraction * self.steps
        if warmup > 0 and step < warmup:
            rate *= math.exp(10 * ((step + 1) / (warmup + 1) - 1))
        return rate


@dataclass(frozen=True)
class StepReport:
    """What one step did; ``seconds`` since the start of the run."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True)
class TrainingResult:
    """``net`` holds the averaged weights, in eval mode, on the CPU."""

    net: nn.Module
    steps: int
    losses: list[float]
    seconds: float


def train(
    net: nn.Module,
    cases: Sequence[TrainingCase],
    recipe: Recipe,
    *,
    device: torch.device,
    seed: int,
    on_step: Callable[[StepReport], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> TrainingResult:
    """Train ``net`` in place on ``cases`` and return its averaged weights.

    Args:
        net: the network to start from; its own weights are changed.
        cases: labelled images; only annotated tasks of each enter the loss.
        recipe: steps, sizes and rates.
        device: where to train.
        seed: of the patch sampler; initial weights come with ``net``.
        on_step: called after every optimiser step.
        should_stop: asked before every step.

    Raises:
        NothingToTrainError: no case has an annotated task.
        CancelledError: ``should_stop`` said so.
    """
    sampler = PatchSampler(
        cases, patch=recipe.patch, batch_size=recipe.batch_size, seed=seed, augment=recipe.augment,
        augmentation=recipe.augmentation, dataset_weights=recipe.dataset_weights,
    )  # fmt: skip
    net.to(device).train()
    average = WeightAverage(
        net, decay=min(recipe.ema_decay, max(0.0, 1 - 1 / (recipe.ema_fraction * recipe.steps)))
    )
    optimiser = build_optimiser(net, recipe)
    losses: list[float] = []
    started = time.monotonic()

    def one_step(engine: Engine, _: Any) -> float:
        step = engine.state.iteration - 1
        if should_stop is not None and should_stop():
            msg = f"Training was stopped on request after {step} of {recipe.steps} steps."
            raise CancelledError(msg)
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        loss = batch_loss(net, sampler.batch(step).to(device), precision=recipe.precision)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), recipe.max_gradient_norm)
        optimiser.step()
        average.update(net)
        return float(loss.detach())

    engine = Engine(one_step)

    @engine.on(Events.ITERATION_COMPLETED)
    def report(engine: Engine) -> None:
        losses.append(float(engine.state.output))
        if on_step is not None:
            step = engine.state.iteration
            seconds = time.monotonic() - started
            on_step(StepReport(step, recipe.steps, losses[-1], recipe.learning_rate_at(step - 1), seconds))

    engine.run(range(recipe.steps), max_epochs=1)
    return TrainingResult(
        average.average.cpu().eval().requires_grad_(True), recipe.steps, losses, time.monotonic() - started
    )


def build_optimiser(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """LAMB over the trainable parameters.

    Differences from the published runs' apex FusedLAMB: that one also clips the global gradient norm at 1.0
    (done by the caller here); this one works on every device.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    rate, decay, eps = recipe.learning_rate, recipe.weight_decay, recipe.eps
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, betas=recipe.betas, eps=eps, weight_decay=decay)
    optimiser: torch.optim.Optimizer = Lamb(
        parameters, lr=rate, betas=recipe.betas, eps=eps, weight_decay=decay
    )
    return optimiser


def batch_loss(net: nn.Module, batch: Batch, *, precision: str = "fp32") -> torch.Tensor:
    """Dice + BCE (+ auxiliary output) + 0.01 modality loss of one batch, a scalar."""
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
    return loss + MODALITY_LOSS_WEIGHT * modality


def fit_patch(shapes: Sequence[tuple[int, ...]], *, largest: int) -> tuple[int, int, int]:
    """Patch (z, y, x) for volumes of these shapes: the median size, rounded to 16, at most ``largest``.

    Rounding goes to the nearer multiple (up when half-way), never below 16, so that the patch neither wastes
    half of its voxels on padding nor misses most of a small image.
    """
    middle = [sorted(s[axis] for s in shapes)[len(shapes) // 2] for axis in range(3)]
    d, h, w = (max(16, min(largest, 16 * int((m + 8) // 16))) for m in middle)
    return (d, h, w)
