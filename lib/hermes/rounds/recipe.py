"""How the numbers of a round follow from the settings, the device and the cases."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from hermes.config import Settings
from hermes.device import choose_precision
from hermes.training.cases import TrainingCase
from hermes.training.trainer import Recipe, fit_patch

NEW, EARLIER, KEPT = "campaign", "earlier", "kept"
"""Datasets of the sampler: cases with new labels, those whose label taught an earlier version, and those that only keep
what is rehearsed."""

KEEPING_RATE = 1 / 3
"""Part of the recipe's learning rate where something may be forgotten; measured in docs/BENCHMARKS.md."""


def choose_recipe(
    settings: Settings,
    cases: Sequence[TrainingCase],
    device: torch.device,
    *,
    steps: int | None,
    window: tuple[int, int, int],
    replay: float = 1.0,
    distil: float = 0.0,
    rehearsed_rows: Sequence[int] = (),
) -> Recipe:
    """The recipe of arXiv 2306.02416, scaled to the device, the images and the number of cases.

    Args:
        settings: of the campaign; what they say goes.
        cases: that will be trained on.
        device: where.
        steps: asked for; None: as many as the recipe thinks right.
        window: of the version that training starts from; on a CPU patches are not larger.
        replay: how often an earlier case is drawn beside a new one.
        distil: weight of what earlier versions say, where there is something that could be forgotten; then the round
            is a gentle one.
        rehearsed_rows: tasks for which they speak beside the labels.
    """
    gpu = device.type == "cuda"
    shapes = [case.image.shape for case in cases]
    recipe = Recipe.for_gpu() if gpu else Recipe.for_cpu()
    recipe = replace(
        recipe,
        batch_size=settings.train_batch_size,
        patch=settings.train_patch_voxels or fit_patch(shapes, largest=128 if gpu else max(window)),
        learning_rate=settings.learning_rate or recipe.learning_rate * (KEEPING_RATE if distil > 0 else 1),
        distil_weight=distil,
        rehearsed_rows=tuple(rehearsed_rows),
        precision=choose_precision(settings.precision, device),
        dataset_weights=_weights(cases, replay),
    )
    return replace(recipe, steps=steps or recipe.steps_for(len(cases)))


def by_use(cases: Sequence[TrainingCase], rehearsed_rows: Collection[int]) -> list[TrainingCase]:
    """The cases; those that have no annotation but of rehearsed tasks are of the dataset ``KEPT``."""
    rehearsed = set(rehearsed_rows)
    return [replace(case, dataset=KEPT) if case.annotated.keys() <= rehearsed else case for case in cases]


def by_rarity(cases: Sequence[TrainingCase], trained: Collection[int]) -> list[TrainingCase]:
    """The cases; one that draws what few of them draw is drawn more often, or all the others would drown it.

    The weight of a structure is the square root of cases per case that draws it, that of a case the largest of its
    structures: the repeat factors of LVIS (arXiv 1908.03195).

    Args:
        cases: of a round.
        trained: rows that it trains; others do not count.
    """
    drawn = [
        [row for row, value in case.annotated.items() if value is not None and row in trained]
        for case in cases
    ]
    counts = Counter(row for rows in drawn for row in rows)
    return [
        replace(case, weight=max((math.sqrt(len(cases) / counts[row]) for row in rows), default=1.0))
        for case, rows in zip(cases, drawn, strict=True)
    ]


def _weights(cases: Sequence[TrainingCase], replay: float) -> dict[str, float]:
    """How often the sampler draws each dataset; it draws that first, so a weight is that of all its cases together.

    What is only kept takes half of the draws at most, or a few new labels would be drowned by all that came before.
    """
    if all(case.dataset == NEW for case in cases):
        return {}
    total = {
        name: sum(case.weight for case in cases if case.dataset == name) for name in (NEW, EARLIER, KEPT)
    }
    teaching = {NEW: total[NEW], EARLIER: replay * total[EARLIER]}
    weights = {**teaching, KEPT: min(replay * total[KEPT], sum(teaching.values()))}
    return {name: weight for name, weight in weights.items() if total[name]}


def window_of(patch: tuple[int, int, int], device: torch.device) -> tuple[int, int, int]:
    """The inference window of a version that was trained on patches of this size."""
    return (128, 128, 128) if device.type == "cuda" else patch
