"""Augmentation: where voxels land and what intensities become."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hermes.training.augment import AugmentationRanges, Shading, draw, shade, warp
from hermes.types import Modality

ALWAYS = AugmentationRanges(affine_probability=1.0, shade_probability_mr=1.0, shade_probability_other=1.0)
QUARTER_TURN = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])  # patch (z, y, x) -> image (z, -x, y)


def blank() -> torch.Tensor:
    return torch.zeros(9, 9, 9)


CENTRE = np.array([4.0, 4.0, 4.0])


@pytest.mark.parametrize("nearest", [True, False])
def test_identity_matrix_is_the_plain_cut(nearest: bool) -> None:
    array = torch.arange(9**3, dtype=torch.float32).reshape(9, 9, 9)
    patch = warp(array, CENTRE, np.eye(3), (5, 3, 7), nearest=nearest)
    assert torch.allclose(patch, array[2:7, 3:6, 1:8], atol=1e-3)


def test_a_rotated_marker_lands_where_the_matrix_says() -> None:
    array = blank()
    array[4, 4, 7] = 1.0  # 3 voxels to +x of the centre
    patch = warp(array, CENTRE, QUARTER_TURN, (9, 9, 9), nearest=True)
    # the image offset (0, 0, 3) is seen at the patch offset o with M o = (0, 0, 3): o = (0, 3, 0)
    assert patch.nonzero().tolist() == [[4, 7, 4]]


def test_scaling_by_two_halves_distances() -> None:
    array = blank()
    array[4, 8, 4] = 1.0
    patch = warp(array, CENTRE, 2.0 * np.eye(3), (9, 9, 9), nearest=True)
    assert patch.nonzero().tolist() == [[4, 6, 4]]


def test_image_and_labels_move_together() -> None:
    array = blank()
    array[3:6, 2:5, 5:8] = 1.0
    matrix = draw(None, np.random.default_rng(3), ALWAYS).matrix
    assert matrix is not None
    image = warp(array, CENTRE, matrix, (9, 9, 9), nearest=False)
    labels = warp(array, CENTRE, matrix, (9, 9, 9), nearest=True)
    assert float((image - labels).abs().mean()) < 0.05
    assert float(labels.sum()) > 0


def test_outside_the_image_is_zero() -> None:
    patch = warp(torch.ones(4, 4, 4), np.array([1.5, 1.5, 1.5]), np.eye(3), (8, 8, 8), nearest=True)
    assert float(patch.sum()) == 64


def test_left_and_right_are_never_mirrored() -> None:
    for seed in range(50):
        matrix = draw(None, np.random.default_rng(seed), ALWAYS).matrix
        assert matrix is not None
        assert np.linalg.det(matrix) > 0
        assert matrix[2, 2] > 0  # +x stays +x


def test_the_matrix_is_a_rotation_times_one_factor() -> None:
    matrix = draw(None, np.random.default_rng(0), ALWAYS).matrix
    assert matrix is not None
    factor = np.cbrt(np.linalg.det(matrix))
    assert 0.7 <= factor <= 1.3
    assert np.allclose(matrix @ matrix.T, factor**2 * np.eye(3))


def test_probability_zero_changes_nothing() -> None:
    never = AugmentationRanges(affine_probability=0.0, shade_probability_mr=0.0, shade_probability_other=0.0)
    drawn = draw(Modality.CT, np.random.default_rng(0), never)
    assert drawn.matrix is None
    image = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shade(image, drawn.shading), image)


def test_mr_is_shaded_more_often_than_ct() -> None:
    def shaded(modality: Modality) -> int:
        draws = (draw(modality, np.random.default_rng(seed)).shading for seed in range(300))
        return sum(s.brightness_factor is not None for s in draws)

    assert 15 <= shaded(Modality.CT) <= 45  # 0.1 of 300
    assert 40 <= shaded(Modality.T1) <= 80  # 0.2 of 300


@pytest.mark.parametrize(
    ("shading", "expected"),
    [
        (Shading(brightness_factor=2.0), [0.0, 4.0, 8.0]),
        (Shading(brightness_shift=1.0), [1.0, 3.0, 5.0]),
        (Shading(gamma=2.0), [0.0, 1.0, 4.0]),
        (Shading(contrast=0.5), [1.0, 2.0, 3.0]),
    ],
)
def test_shading_is_arithmetic(shading: Shading, expected: list[float]) -> None:
    assert shade(torch.tensor([[[0.0, 2.0, 4.0]]]), shading).flatten().tolist() == pytest.approx(
        expected, abs=1e-5
    )


def test_blur_keeps_a_constant_and_spreads_a_point() -> None:
    blurred = shade(torch.full((5, 6, 7), 3.0), Shading(blur_sigma_voxels=0.8))
    assert torch.allclose(blurred, torch.full((5, 6, 7), 3.0), atol=1e-5)
    point = blank()
    point[4, 4, 4] = 1.0
    spread = shade(point, Shading(blur_sigma_voxels=0.8))
    assert 0 < float(spread[4, 4, 5]) < float(spread[4, 4, 4]) < 1
    assert float(spread.sum()) == pytest.approx(1.0, abs=1e-4)


def test_noise_has_its_sigma_and_its_seed() -> None:
    image = torch.zeros(20, 20, 20)
    noisy = shade(image, Shading(noise_sigma=0.1, noise_seed=5))
    assert float(noisy.std()) == pytest.approx(0.1, rel=0.05)
    assert torch.equal(noisy, shade(image, Shading(noise_sigma=0.1, noise_seed=5)))
    assert not torch.equal(noisy, shade(image, Shading(noise_sigma=0.1, noise_seed=6)))
