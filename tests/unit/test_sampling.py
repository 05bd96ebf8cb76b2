"""Patches: what a step sees depends on (seed, step) and on what was annotated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hermes.errors import NothingToTrainError
from hermes.training.augment import AugmentationRanges
from hermes.training.cases import ForegroundIndex, TrainingCase
from hermes.training.sampling import Batch, PatchSampler
from hermes.types import Modality

PATCH = (16, 16, 16)


def case(
    name: str = "a",
    annotated: Mapping[int, int | None] | None = None,
    *,
    size: tuple[int, int, int] = (20, 24, 28),
    modality: Modality | None = Modality.CT,
    dataset: str = "campaign",
) -> TrainingCase:
    """Noise with value 1 in a box at low x and value 2 in one at high x; its intensities name its labels."""
    labels = np.zeros(size, np.uint8)
    labels[4:10, 4:10, 2:8] = 1
    labels[8:14, 8:14, -8:-2] = 2
    image = labels.astype(np.float32) * 10
    return TrainingCase(
        name, image, labels, {0: 1, 3: 2} if annotated is None else annotated, modality, dataset
    )


def sampler(*cases: TrainingCase, seed: int = 0, augment: bool = True, **more: Any) -> PatchSampler:
    ranges = AugmentationRanges() if augment else None
    return PatchSampler(cases, patch=PATCH, batch_size=4, seed=seed, augmentation=ranges, **more)


def same(a: Batch, b: Batch) -> bool:
    both = zip(vars(a).values(), vars(b).values(), strict=True)
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in both)


def test_a_batch_is_a_pure_function_of_seed_and_step() -> None:
    first, second = sampler(case(), case("b")), sampler(case(), case("b"))
    forward = [first.batch(step) for step in range(4)]
    backward = [second.batch(step) for step in reversed(range(4))][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert not same(forward[0], forward[1])
    assert not same(forward[0], sampler(case(), case("b"), seed=1).batch(0))


def test_shapes() -> None:
    batch = sampler(case()).batch(0)
    n = batch.task_rows.shape[1]
    assert batch.image.shape == (4, 1, *PATCH)
    assert batch.masks.shape == (4, n, *PATCH)
    assert batch.weights.shape == batch.task_mask.shape == (4, n)


def test_tasks_that_were_not_annotated_are_asked_beside_and_never_count() -> None:
    drawn = sampler(case("a", {0: 1}), case("b", {3: 2}))
    alone = 0
    for step in range(20):
        batch = drawn.batch(step)
        assert set(batch.task_rows[batch.task_mask].tolist()) <= {0, 3}
        assert batch.weights.sum(dim=1).tolist() == [1] * 4  # each case answers for its own task only
        assert torch.equal(batch.weights, (batch.task_mask & ~batch.beside).float())
        assert float(batch.masks[batch.beside].sum()) == 0
        alone += int((batch.task_mask.sum(dim=1) == 1).sum())
    assert 0 < alone < 40  # of 80 samples: mostly both are asked, sometimes the annotated one alone


def test_no_more_tasks_are_asked_beside_than_allowed() -> None:
    cases = [case(str(row), {row: 1}) for row in range(12)]
    for most in (0, 3):
        batches = [sampler(*cases, beside_most=most).batch(step) for step in range(5)]
        assert max(int(batch.beside.sum(dim=1).max()) for batch in batches) == most


def test_what_all_cases_have_annotated_leaves_nothing_to_ask_beside() -> None:
    batch = sampler(case("a", {0: 1, 3: 2}), case("b", {0: 1, 3: None})).batch(0)
    assert not batch.beside.any()


def test_annotated_and_absent_is_an_empty_mask_that_counts() -> None:
    batch = sampler(case("a", {5: None})).batch(0)
    assert batch.task_rows.tolist() == [[5]] * 4
    assert batch.weights.tolist() == [[1.0]] * 4
    assert float(batch.masks.sum()) == 0


def test_padding_has_weight_zero() -> None:
    drawn = sampler(case("a", {0: 1}), case("b", {0: 1, 3: 2}))
    batches = [drawn.batch(step) for step in range(10)]
    padded = [(b.weights[~b.task_mask], b.masks[~b.task_mask]) for b in batches]
    assert sum(w.numel() for w, _ in padded) > 0
    assert all(float(w.sum()) == 0 and float(m.sum()) == 0 for w, m in padded)


def test_masks_show_the_right_value_where_the_image_shows_it() -> None:
    batch = sampler(case(), augment=False).batch(0)
    value_of = {0: 1, 3: 2}
    for b, k in batch.task_mask.nonzero().tolist():
        intensity = 10.0 * value_of[int(batch.task_rows[b, k])]
        assert torch.equal(batch.masks[b, k], (batch.image[b, 0] == intensity).float())


def test_left_stays_left() -> None:
    labels = np.zeros((16, 16, 28), np.uint8)
    labels[6:10, 6:10, 4:8], labels[6:10, 6:10, 20:24] = 1, 2
    drawn = sampler(TrainingCase("a", labels.astype(np.float32) * 10, labels, {0: 1, 3: 2}, None), seed=2)
    seen = 0
    for step in range(15):
        batch = drawn.batch(step)
        for masks, asked in zip(batch.masks, batch.task_mask, strict=True):
            if bool(asked.all()) and len(asked) == 2 and bool(masks.flatten(1).any(dim=1).all()):
                seen += 1
                low, high = (mask.nonzero()[:, 2].float().mean() for mask in masks)
                assert low < high
    assert seen > 0


def test_patches_of_small_images_are_padded_with_zero() -> None:
    small = case(size=(14, 14, 20))
    batch = sampler(small, augment=False).batch(0)
    assert batch.image.shape == (4, 1, *PATCH)
    assert float(batch.masks.sum()) > 0


def test_most_patches_hold_a_structure() -> None:
    labels = np.zeros((64, 64, 64), np.uint8)
    labels[:4, :4, :4] = 1
    rare = TrainingCase("a", labels.astype(np.float32), labels, {0: 1}, None)
    drawn = PatchSampler([rare], patch=PATCH, batch_size=10, seed=0)
    filled = sum(int((drawn.batch(step).masks.flatten(1).sum(dim=1) > 0).sum()) for step in range(10))
    assert filled > 60  # by chance alone it were about 10


def test_modality_rows_and_unknown() -> None:
    batch = sampler(case(modality=Modality.T2)).batch(0)
    assert batch.modality_rows.tolist() == [Modality.T2.row] * 4
    assert batch.modality_known.all()
    assert not sampler(case(modality=None)).batch(0).modality_known.any()


def test_weights_of_cases_are_followed_within_their_dataset() -> None:
    cases = [replace(case("a"), weight=3.0), case("b"), case("c", dataset="other")]
    drawn = sampler(*cases)
    names = [drawn._plan(step, place).case.case_id for step in range(200) for place in range(4)]
    share = {name: names.count(name) / len(names) for name in "abc"}
    assert share == pytest.approx({"a": 0.375, "b": 0.125, "c": 0.5}, abs=0.06)


def test_dataset_weights_are_followed() -> None:
    cases = [case("a", {0: 1}, dataset="big"), case("b", {3: 2}, dataset="small")]
    drawn = sampler(*cases, dataset_weights={"big": 1.0, "small": 9.0})
    rows = torch.cat([drawn.batch(step).task_rows.flatten() for step in range(25)])
    assert 80 <= int((rows == 3).sum()) <= 99


def test_subsets_of_the_annotated_tasks_are_asked_too() -> None:
    drawn = sampler(case())
    asked = torch.cat([drawn.batch(step).task_mask.sum(dim=1) for step in range(20)])
    assert set(asked.tolist()) == {1, 2}
    assert int((asked == 2).sum()) > int((asked == 1).sum())


def test_cases_without_annotation_are_left_out_and_none_at_all_is_an_error() -> None:
    assert set(sampler(case("a", {}), case("b", {3: 2})).batch(0).task_rows.flatten().tolist()) == {3}
    with pytest.raises(NothingToTrainError, match="at least one case"):
        sampler(case("a", {}))


def test_only_boxes_are_read_from_the_image() -> None:
    class Recording:
        def __init__(self, array: np.ndarray) -> None:
            self.array, self.shape, self.largest = array, array.shape, 0

        def __getitem__(self, box: tuple[slice, slice, slice]) -> np.ndarray:
            part = self.array[box]
            self.largest = max(self.largest, part.size)
            return part

    array = Recording(np.zeros((96, 96, 96), np.float32))
    plain = case(size=(96, 96, 96))
    drawn = sampler(TrainingCase("a", array, plain.labels, {0: 1}, None))
    for step in range(5):
        drawn.batch(step)
    # a cube of 16, scaled by 1.3 and turned about three axes, fits a box of 16 * 1.3 * sqrt(3) + margin
    assert 0 < array.largest <= (16 * 1.3 * 3**0.5 + 4) ** 3


def test_foreground_index_is_bounded_and_points_at_the_value() -> None:
    index = ForegroundIndex.of(case(), generator=np.random.default_rng(0), voxels_per_value=50)
    assert {v: len(i) for v, i in index.places.items()} == {1: 50, 2: 50}
    labels = np.asarray(case().labels)
    assert all((labels.ravel()[i] == v).all() for v, i in index.places.items())
    generator = np.random.default_rng(1)
    assert {int(labels[tuple(index.draw(generator))]) for _ in range(50)} == {1, 2}
