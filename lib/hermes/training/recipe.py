"""The numbers of a training run, and how they follow from the machine and the number of labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from hermes.training.augment import AugmentationRanges

POLYNOMIAL_POWER = 0.9

PRIORS_STEPS_DIVISOR = 4
PRIORS_LEARNING_RATE = 0.1
"""Of :meth:`Recipe.priors_only`; rows have entries of about 1 (docs/BENCHMARKS.md)."""

_REFERENCE_VOXELS = 2 * 32 * 48 * 32
"""Voxels of a step for which the round lengths on a CPU were measured (docs/BENCHMARKS.md)."""


@dataclass(frozen=True)
class RoundLength:
    """Steps of one round: ``first + per_case * cases``, at most ``most``.

    Attributes:
        first: steps before any case is counted.
        per_case: more steps for each labelled case.
        most: a round never has more.
        scale_with_voxels: whether larger batches of larger patches get fewer steps (with the square root of
            the voxels of a step: a larger patch costs more and teaches more).
    """

    first: int
    per_case: int
    most: int
    scale_with_voxels: bool = False

    def steps(self, cases: int, voxels: int) -> int:
        """Steps for so many cases and voxels per step."""
        scale = min(1.0, math.sqrt(_REFERENCE_VOXELS / voxels)) if self.scale_with_voxels else 1.0
        return max(1, round(scale * min(self.most, self.first + self.per_case * cases)))


@dataclass(frozen=True)
class Recipe:
    """Numbers of one run; the defaults are the published ones as far as one machine allows.

    Attributes:
        steps: optimiser steps.
        batch_size: patches per step (published: 16 over 8 GPUs).
        patch: (z, y, x) in voxels (published: 128 cubed).
        optimiser: LAMB is the published one; short runs learn faster with AdamW.
        learning_rate: highest one.
        weight_decay: of everything but the prior tables, so that rows nobody asks for keep their bits.
        betas: decay rates of the optimiser's moments.
        eps: of the optimiser.
        max_gradient_norm: the global gradient norm is clipped to this before each step.
        warmup_fraction: part of the run with a growing rate (published: 5 of 200 epochs).
        ema_decay: of the weight average, at most.
        ema_fraction: the average remembers about this part of the run, where that asks for less decay.
        augment: whether patches are augmented.
        augmentation: how.
        precision: ``fp32``, or ``bf16`` for autocast.
        dataset_weights: how often each dataset is drawn; 1 where nothing is said.
        round_length: what :meth:`steps_for` follows.
        trainable: ``decoder``: all but the encoder (its priors are trained); ``priors``: only the task-prior rows of
            ``new_rows``. Everything else keeps its bits.
        new_rows: rows of new structures.
        distil_weight: of what a teacher answers for its tasks; 0: no teacher is asked.
        distil_rows_per_sample: for at most so many that are not annotated in a sample it answers.
        rehearsed_rows: tasks of which every label was learned before: where they are annotated their teacher answers
            as well, so that a few replayed cases are not learned by heart. Other labels may correct the teacher.
    """

    steps: int = 400
    batch_size: int = 2
    patch: tuple[int, int, int] = (64, 64, 64)
    optimiser: Literal["adamw", "lamb"] = "lamb"
    learning_rate: float = 2e-3
    weight_decay: float = 1e-5
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-5
    max_gradient_norm: float = 1.0
    warmup_fraction: float = 0.025
    ema_decay: float = 0.99
    ema_fraction: float = 0.05
    augment: bool = True
    augmentation: AugmentationRanges = field(default_factory=AugmentationRanges)
    precision: str = "fp32"
    dataset_weights: Mapping[str, float] = field(default_factory=dict)
    round_length: RoundLength = RoundLength(first=200, per_case=50, most=5000)
    trainable: Literal["all", "decoder", "priors"] = "all"
    new_rows: tuple[int, ...] = ()
    distil_weight: float = 0.0
    distil_rows_per_sample: int = 4
    rehearsed_rows: tuple[int, ...] = ()

    @classmethod
    def for_gpu(cls) -> Recipe:
        """The published recipe (arXiv 2306.02416) in 128 cubed patches."""
        return cls(patch=(128, 128, 128))

    @classmethod
    def for_cpu(cls) -> Recipe:
        """AdamW at a high rate, second moments that forget within 100 steps: for runs of some hundred steps.

        Four rounds on 5, 10, 15 and 20 volumes of 36 x 50 x 36 voxels take about six minutes on two cores
        with AMX; see docs/BENCHMARKS.md for what was measured.
        """
        return cls(
            optimiser="adamw",
            learning_rate=3e-3,
            weight_decay=1e-2,
            betas=(0.9, 0.99),
            eps=1e-8,
            round_length=RoundLength(first=150, per_case=40, most=2000, scale_with_voxels=True),
        )

    def steps_for(self, cases: int) -> int:
        """Steps of one round on so many labelled cases, for this recipe's patch and batch size."""
        return self.round_length.steps(cases, self.batch_size * math.prod(self.patch))

    def priors_only(self, new_rows: Sequence[int]) -> Recipe:
        """This recipe for the rows of new structures alone: a quarter of the steps at a much higher rate.

        A step costs about two thirds of a full one (nothing is differentiated by weights, but the features still
        are by the tokens), so this takes less than a fifth of the time (docs/BENCHMARKS.md). AdamW, whose steps
        have the size of the rate: LAMB's trust ratio would be that of the whole table.
        """
        return replace(
            self,
            trainable="priors",
            new_rows=tuple(new_rows),
            steps=max(1, self.steps // PRIORS_STEPS_DIVISOR),
            optimiser="adamw",
            learning_rate=PRIORS_LEARNING_RATE,
            betas=(0.9, 0.99),
            eps=1e-8,
            weight_decay=0.0,
            distil_weight=0.0,  # what is frozen is not forgotten
        )

    def learning_rate_at(self, step: int) -> float:
        """Polynomial decay with an exponential warm-up: lr * exp(10 (t - 1)) while t < 1."""
        rate = self.learning_rate * math.pow(1 - step / self.steps, POLYNOMIAL_POWER)
        warmup = self.warmup_fraction * self.steps
        if warmup > 0 and step < warmup:
            rate *= math.exp(10 * ((step + 1) / (warmup + 1) - 1))
        return rate

    def average_decay(self) -> float:
        """Decay of the weight average for a run of this length."""
        return min(self.ema_decay, 1 - 1 / max(1.0, self.ema_fraction * self.steps))


def fit_patch(shapes: Sequence[tuple[int, ...]], *, largest: int) -> tuple[int, int, int]:
    """Patch (z, y, x) for volumes of these shapes: the median size, rounded to 16, at most ``largest``.

    Rounding goes to the nearer multiple (up when half-way), never below 16, so that the patch neither wastes
    half of its voxels on padding nor misses most of a small image. At least one side is 32: the network
    refuses a cube of 16.
    """
    middle = [sorted(s[axis] for s in shapes)[len(shapes) // 2] for axis in range(3)]
    d, h, w = (max(16, min(largest, 16 * int((m + 8) // 16))) for m in middle)
    return (d, h, w) if (d, h, w) != (16, 16, 16) else (16, 16, 32)
