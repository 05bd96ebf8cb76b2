"""Properties of sampling, augmentation and recipes that hold for any input."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes.training.augment import AugmentationRanges, draw, warp
from hermes.training.cases import TrainingCase
from hermes.training.recipe import Recipe, fit_patch
from hermes.training.sampling import PatchSampler

FEW = settings(max_examples=15, deadline=None)
PATCH = (16, 16, 16)
sides = st.integers(3, 40)
shapes = st.tuples(sides, sides, sides)
annotations = st.dictionaries(st.integers(0, 9), st.sampled_from([None, 1, 2, 3]), min_size=1, max_size=4)


def case(shape: tuple[int, int, int], annotated: dict[int, int | None]) -> TrainingCase:
    labels = np.random.default_rng(0).integers(0, 4, shape).astype(np.uint8)
    return TrainingCase("a", labels.astype(np.float32), labels, annotated, None)


@FEW
@given(shapes, annotations, st.integers(0, 1000), st.booleans())
def test_batches_hold_annotated_tasks_only(
    shape: tuple[int, int, int], annotated: dict[int, int | None], step: int, augment: bool
) -> None:
    ranges = AugmentationRanges() if augment else None
    drawn = PatchSampler([case(shape, annotated)], patch=PATCH, batch_size=2, seed=1, augmentation=ranges)
    batch = drawn.batch(step)
    assert batch.image.shape == (2, 1, *PATCH)
    assert bool(torch.isfinite(batch.image).all())
    assert set(batch.task_rows[batch.task_mask].tolist()) <= set(annotated)
    assert bool(batch.task_mask.any(dim=1).all())
    for b, k in batch.task_mask.nonzero().tolist():
        if annotated[int(batch.task_rows[b, k])] is None:
            assert float(batch.masks[b, k].sum()) == 0
            assert float(batch.weights[b, k]) == 1


@FEW
@given(shapes, st.integers(0, 1000))
def test_without_augmentation_each_patch_is_a_piece_of_the_image(
    shape: tuple[int, int, int], step: int
) -> None:
    array = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    source = TrainingCase("a", array, (array % 2).astype(np.uint8), {0: 1}, None)
    patch = PatchSampler([source], patch=PATCH, batch_size=1, seed=0).batch(step).image[0, 0].numpy()
    inside = np.argwhere(patch > 0)
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    piece = patch[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
    start = np.argwhere(array == piece[0, 0, 0])[0]
    stop = start + piece.shape
    assert piece.shape == tuple(np.minimum(shape, PATCH))
    assert np.array_equal(piece, array[start[0] : stop[0], start[1] : stop[1], start[2] : stop[2]])


@FEW
@given(st.integers(0, 10_000))
def test_turning_a_centred_ball_changes_its_size_only(seed: int) -> None:
    z, y, x = np.ogrid[-15:16, -15:16, -15:16]
    ball = torch.from_numpy((z**2 + y**2 + x**2 <= 64).astype(np.float32))
    matrix = draw(None, np.random.default_rng(seed), AugmentationRanges(affine_probability=1.0)).matrix
    assert matrix is not None
    factor = float(np.cbrt(np.linalg.det(matrix)))
    warped = warp(ball, np.array([15.0, 15.0, 15.0]), matrix, (31, 31, 31), nearest=True)
    # the boundary is where the label changes within one voxel
    radius = torch.from_numpy(np.sqrt(z**2 + y**2 + x**2) * factor)
    assert bool((warped[radius < 7] == 1).all())
    assert bool((warped[radius > 9] == 0).all())


@FEW
@given(st.lists(shapes, min_size=1, max_size=5), st.sampled_from([32, 64, 128]))
def test_a_fitted_patch_suits_the_network(found: list[tuple[int, int, int]], largest: int) -> None:
    patch = fit_patch(found, largest=largest)
    assert all(side % 16 == 0 and 16 <= side <= largest for side in patch)
    assert max(patch) > 16


@FEW
@given(st.integers(1, 500), st.floats(0, 1))
def test_learning_rates_lie_between_zero_and_the_highest(steps: int, place: float) -> None:
    recipe = Recipe(steps=steps)
    assert 0 < recipe.learning_rate_at(int(place * (steps - 1))) <= recipe.learning_rate
