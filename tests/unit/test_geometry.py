import numpy as np
import pytest
import SimpleITK

from hermes.errors import BadImageError
from hermes.geometry import Grid


def test_spacing_and_shape_are_in_array_order() -> None:
    grid = Grid((4, 5, 6), np.diag([1.0, 2.0, 3.0, 1.0]))
    assert grid.spacing_mm == (3.0, 2.0, 1.0)
    assert grid.to_mm((1, 1, 1)).tolist() == [1.0, 2.0, 3.0]
    assert grid.voxel_volume_ml == pytest.approx(0.006)


def test_ras_and_lps_differ_by_two_signs() -> None:
    grid = Grid.from_ras((2, 2, 2), np.eye(4))
    assert grid.axis_codes == "RAS"
    assert np.array_equal(grid.affine_ras, np.eye(4))
    assert grid.to_mm((1, 1, 1)).tolist() == [-1.0, -1.0, 1.0]


def test_simpleitk_agrees_on_where_a_voxel_lies() -> None:
    image = SimpleITK.Image([4, 5, 6], SimpleITK.sitkInt16)
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetSpacing((0.5, 1.5, 2.5))
    turn = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, -1.0]])
    image.SetDirection(turn.ravel().tolist())
    grid = Grid.from_simpleitk(image)
    assert grid.shape == (6, 5, 4)
    assert np.allclose(grid.to_mm((1, 2, 3)), image.TransformIndexToPhysicalPoint((1, 2, 3)))
    assert np.allclose(grid.to_index(grid.to_mm((1, 2, 3))), (1, 2, 3))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"shape": (4, 5, 7)}, "sizes"),
        ({"affine": np.diag([-1.0, 1.0, 1.0, 1.0])}, "axes"),
        ({"affine": np.diag([1.1, 1.0, 1.0, 1.0])}, "spacings"),
        ({"affine": np.array([[1, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])}, "origins"),
        (
            {"affine": np.array([[1, 0, 0, 0], [0, 0.995, 0.1, 0], [0, -0.1, 0.995, 0], [0, 0, 0, 1.0]])},
            "directions",
        ),
    ],
)
def test_difference_names_what_differs(change: dict, word: str) -> None:
    grid = Grid((4, 5, 6), np.eye(4))
    other = Grid(change.get("shape", grid.shape), change.get("affine", grid.affine))
    assert word in (grid.difference(other) or "")
    assert not grid.matches(other)


def test_rounding_of_a_header_is_no_difference() -> None:
    affine = np.diag([0.7, 0.7, 2.5, 1.0])
    affine[:3, 3] = (-123.456, 98.7, 1000.1)
    assert Grid((100, 512, 512), affine).matches(Grid((100, 512, 512), affine.astype(np.float32)))


def test_slice_spacing_counts_even_for_one_slice() -> None:
    one, two = (Grid((1, 5, 6), np.diag([1.0, 1.0, z, 1.0])) for z in (1.0, 5.0))
    assert not one.matches(two)


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(3)])
def test_a_useless_affine_is_an_error(affine: np.ndarray) -> None:
    with pytest.raises(BadImageError, match="4x4"):
        Grid((1, 1, 1), affine)


def test_a_useless_shape_is_an_error() -> None:
    with pytest.raises(BadImageError, match="three positive"):
        Grid((0, 1, 1), np.eye(4))


def test_grids_are_values() -> None:
    assert Grid((1, 2, 3), np.eye(4)) == Grid((1, 2, 3), np.eye(4))
    assert len({Grid((1, 2, 3), np.eye(4)), Grid((1, 2, 3), np.eye(4))}) == 1
    with pytest.raises(ValueError, match="read-only"):
        Grid((1, 2, 3), np.eye(4)).affine[0, 0] = 2
