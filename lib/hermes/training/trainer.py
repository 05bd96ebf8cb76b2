"""One training run: recipe in, averaged weights out.

The loop is an ignite engine whose iteration is one optimiser step; the batch of a step depends on
(seed, step) only, see ``sampling``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_optimizer import Lamb
from torch import nn

from hermes.errors import CancelledError
from hermes.training.backward import batch_loss, choose_backward
from hermes.training.cases import TrainingCase
from hermes.training.ema import WeightAverage
from hermes.training.recipe import Recipe, fit_patch
from hermes.training.sampling import PatchSampler

with warnings.catch_warnings():
    # ignite imports parts of torch.distributed that use the deprecated torch.jit.script.
    warnings.simplefilter("ignore", DeprecationWarning)
    from ignite.engine import Engine, Events

__all__ = [
    "Recipe",
    "StepReport",
    "TrainingResult",
    "batch_loss",
    "build_optimiser",
    "fit_patch",
    "train",
]


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
    """``net`` holds the averaged weights, on the CPU, in eval mode and trainable again."""

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
    run = _Run(net, cases, recipe, device, seed)
    losses: list[float] = []
    started = time.monotonic()

    def one_step(engine: Engine, _: Any) -> float:
        step = engine.state.iteration - 1
        if should_stop is not None and should_stop():
            msg = f"Training was stopped on request after {step} of {recipe.steps} steps."
            raise CancelledError(msg)
        return run.step(step)

    def report(engine: Engine) -> None:
        losses.append(float(engine.state.output))
        if on_step is not None:
            step = engine.state.iteration
            seconds = time.monotonic() - started
            on_step(StepReport(step, recipe.steps, losses[-1], recipe.learning_rate_at(step - 1), seconds))

    engine = Engine(one_step)
    engine.add_event_handler(Events.ITERATION_COMPLETED, report)
    engine.run(range(recipe.steps), max_epochs=1)
    return TrainingResult(run.averaged(), recipe.steps, losses, time.monotonic() - started)


class _Run:
    """Network, average, optimiser and sampler of one run."""

    def __init__(
        self, net: nn.Module, cases: Sequence[TrainingCase], recipe: Recipe, device: torch.device, seed: int
    ) -> None:
        self._recipe, self._device = recipe, device
        self._sampler = PatchSampler(
            cases,
            patch=recipe.patch,
            batch_size=recipe.batch_size,
            seed=seed,
            augmentation=recipe.augmentation if recipe.augment else None,
            dataset_weights=recipe.dataset_weights,
        )
        self._net = net.to(device).train()
        if device.type == "cpu":
            # Convolutions on a CPU are fastest in this layout; the weights' own layout saves a copy per step.
            net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stubs lack 3d
        self._backward = choose_backward(device, recipe.batch_size)
        self._average = WeightAverage(net, decay=recipe.average_decay())
        self._optimiser = build_optimiser(net, recipe)

    def step(self, number: int) -> float:
        """The loss of optimiser step ``number`` (from 0)."""
        for group in self._optimiser.param_groups:
            group["lr"] = self._recipe.learning_rate_at(number)
        batch = self._sampler.batch(number).to(self._device)
        self._optimiser.zero_grad(set_to_none=True)
        loss = self._backward(self._net, batch, precision=self._recipe.precision)
        nn.utils.clip_grad_norm_(self._net.parameters(), self._recipe.max_gradient_norm)
        self._optimiser.step()
        self._average.update(self._net)
        return loss

    def averaged(self) -> nn.Module:
        """The averaged network, in the default memory layout, ready to answer or to be trained further."""
        net = self._average.average.cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return net.eval().requires_grad_(True)  # type: ignore[no-any-return]


def build_optimiser(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimiser over the trainable parameters; prior tables do not decay.

    A row of a prior table that nobody asks for has a gradient of exactly zero, so without decay it keeps its
    bits. LAMB is pytorch_optimizer's, which runs on every device. Set like apex's FusedLAMB of the published
    runs: the decay is part of the update that the trust ratio scales. What still differs: apex corrects the
    bias of the moments, this one does not (the warm-up covers the first steps); this one caps the weight norm
    in the trust ratio at 10; apex clips the global gradient norm at 1 inside, here the caller does.
    """
    trainable = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    tables = [p for name, p in trainable if name.endswith("_prior")]
    others = [p for name, p in trainable if not name.endswith("_prior")]
    groups = [
        {"params": others, "weight_decay": recipe.weight_decay},
        {"params": tables, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimiser == "adamw":
        rate, betas, eps = recipe.learning_rate, recipe.betas, recipe.eps
        return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=eps, fused=True)
    optimiser: torch.optim.Optimizer = Lamb(
        groups, lr=recipe.learning_rate, betas=recipe.betas, eps=recipe.eps, weight_decouple=False
    )
    return optimiser
