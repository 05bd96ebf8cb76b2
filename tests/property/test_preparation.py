"""Geometry in = geometry out, for every axis order, direction, spacing and size."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes.geometry import Grid
from hermes.records import Volume
from hermes.transforms.orientation import Turn
from hermes.transforms.preparation import PreparationRecord, PreparationSpec, prepare
from hermes.types import Modality

TURNS = [
    (order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)
]  # the 48 ways to lay an array along the patient's axes


def turned_grid(
    shape, order, signs, spacing_xyz=(1.0, 1.0, 1.0), rotation=None, origin=(-7.0, 11.0, 3.0)
) -> Grid:
    direction = np.zeros((3, 3))
    for index, (world, sign) in enumerate(zip(order, signs, strict=True)):
        direction[world, index] = sign
    return Grid.from_axes(
        shape, origin, spacing_xyz, (np.eye(3) if rotation is None else rotation) @ direction
    )


def small_rotation(angles) -> np.ndarray:
    a, b, c = np.deg2rad(angles)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return x @ y @ z


def body_in_air(shape, seed=0) -> np.ndarray:
    array = np.full(shape, -1000.0, dtype=np.float32)
    inner = tuple(slice(size // 4, max(size // 4 + 1, size - size // 4)) for size in shape)
    array[inner] = np.random.default_rng(seed).normal(40.0, 20.0, array[inner].shape)
    return array


@pytest.mark.parametrize(("order", "signs"), TURNS)
def test_all_48_axis_orders_come_back_voxel_for_voxel(order, signs) -> None:
    grid = turned_grid((5, 7, 6), order, signs)
    labels = np.random.default_rng(1).integers(0, 200, grid.shape).astype(np.uint8)
    volume = Volume(body_in_air(grid.shape), grid, Modality.CT)
    prepared = prepare(volume, PreparationSpec(spacing_mm=1.0, min_extent_mm=100.0))
    model_labels = prepared.record.prepare_labels(labels)
    assert prepared.record.model_grid.axis_codes == "LPS"
    assert model_labels.shape == prepared.array.shape
    assert np.array_equal(prepared.record.restore(model_labels), labels)
    # ... and each value lies where it lay in the patient, not only where it lay in the array.
    for index in np.random.default_rng(2).integers(0, (6, 7, 5), (5, 3)):
        x, y, z = np.rint(prepared.record.model_grid.to_index(grid.to_mm(index))).astype(int)
        assert model_labels[z, y, x] == labels[index[2], index[1], index[0]]


@settings(max_examples=60, deadline=None)
@given(
    turn=st.sampled_from(TURNS),
    shape=st.tuples(*(st.integers(1, 24),) * 3),
    spacing=st.floats(0.3, 9.0),
    angles=st.tuples(*(st.floats(-40, 40),) * 3),
    crop=st.booleans(),
)
def test_no_voxel_is_wrong_when_nothing_is_resampled(turn, shape, spacing, angles, crop) -> None:
    grid = turned_grid(shape, *turn, (spacing,) * 3, small_rotation(angles))
    volume = Volume(body_in_air(shape), grid, Modality.CT)
    spec = PreparationSpec(spacing_mm=spacing, crop_body=crop, margin_mm=0.0, min_extent_mm=1.0)
    record = prepare(volume, spec).record
    labels = np.random.default_rng(3).integers(0, 9, shape).astype(np.uint8)
    back = record.restore(record.prepare_labels(labels))
    inside = record.restore(np.ones(record.shape, np.uint8)) == 1
    assert np.array_equal(back[inside], labels[inside])
    assert not back[~inside].any()
    assert inside[volume.array > -500].all() or not crop  # no body voxel was cut off


@settings(max_examples=40, deadline=None)
@given(
    turn=st.sampled_from(TURNS),
    shape=st.tuples(*(st.integers(1, 20),) * 3),
    spacing=st.tuples(*(st.floats(0.4, 6.0),) * 3),
    target=st.floats(0.5, 4.0),
    angles=st.tuples(*(st.floats(-40, 40),) * 3),
)
def test_resampling_moves_nothing_by_more_than_half_a_voxel(turn, shape, spacing, target, angles) -> None:
    grid = turned_grid(shape, *turn, spacing, small_rotation(angles))
    volume = Volume(body_in_air(shape), grid, Modality.CT)
    record = prepare(volume, PreparationSpec(spacing_mm=target)).record
    index = np.stack(np.meshgrid(*(np.arange(size) for size in record.shape), indexing="ij"), -1)
    for axis in range(3):  # restore the model index of each axis: where does the label of a voxel come from?
        source = record.restore(index[..., axis].astype(np.float64))
        axis_of_grid = record.turn.axes[axis]
        flat = np.moveaxis(source, axis_of_grid, 0).reshape(shape[axis_of_grid], -1)[:, 0]
        here = np.arange(shape[axis_of_grid], dtype=float)
        if record.turn.flips[axis]:
            here = shape[axis_of_grid] - 1 - here
        exact = np.interp(here, *_line(record, axis))
        assert np.abs(flat - exact).max() <= 0.5 + 1e-6


def _line(record: PreparationRecord, axis: int) -> tuple[np.ndarray, np.ndarray]:
    positions = record.maps[axis].positions() + record.crop[axis][0]
    return positions, np.arange(len(positions))


@settings(max_examples=30, deadline=None)
@given(
    turn=st.sampled_from(TURNS),
    spacing=st.tuples(*(st.floats(0.7, 3.0),) * 3),
    angles=st.tuples(*(st.floats(-30, 30),) * 3),
)
def test_a_marker_stays_where_it_is_in_the_patient(turn, spacing, angles) -> None:
    shape = (17, 20, 15)
    grid = turned_grid(shape, *turn, spacing, small_rotation(angles))
    array = np.zeros(shape, dtype=np.float32)
    z, y, x = np.ogrid[:17, :20, :15]
    array += np.exp(
        -(((z - 9) * spacing[2]) ** 2 + ((y - 6) * spacing[1]) ** 2 + ((x - 7) * spacing[0]) ** 2) / 18.0
    )
    prepared = prepare(
        Volume(array, grid, Modality.T1), PreparationSpec(spacing_mm=1.0, percentiles=(0, 100))
    )
    weights = np.clip(prepared.array - prepared.array.min(), 0, None).astype(float)
    centre = [
        float(
            (
                weights * np.arange(weights.shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
            ).sum()
            / weights.sum()
        )
        for axis in (2, 1, 0)
    ]
    peak = np.unravel_index(np.argmax(prepared.array), prepared.array.shape)[::-1]
    marker_mm = grid.to_mm((7, 6, 9))
    assert (
        np.linalg.norm(prepared.record.model_grid.to_mm(peak) - marker_mm)
        <= np.sqrt(3) * max(1.0, *spacing) / 2 + 0.3
    )
    assert np.linalg.norm(prepared.record.model_grid.to_mm(centre) - marker_mm) < 6.0


@settings(max_examples=30, deadline=None)
@given(turn=st.sampled_from(TURNS), shape=st.tuples(*(st.integers(1, 9),) * 3), target=st.floats(0.5, 3.0))
def test_a_record_survives_json(turn, shape, target) -> None:
    grid = turned_grid(shape, *turn, (0.9, 1.1, 2.3))
    record = prepare(Volume(body_in_air(shape), grid, Modality.CT), PreparationSpec(spacing_mm=target)).record
    again = PreparationRecord.from_json(record.to_json())
    assert again.to_json() == record.to_json()
    labels = np.random.default_rng(0).integers(0, 9, record.shape).astype(np.uint8)
    assert np.array_equal(again.restore(labels), record.restore(labels))
    assert again.grid == record.grid


def test_turning_never_maps_two_axes_to_one() -> None:
    diagonal = small_rotation((45, 45, 45))
    grid = Grid.from_axes((2, 3, 4), (0, 0, 0), (1, 1, 1), diagonal)
    assert sorted(Turn.to_lps(grid).axes) == [0, 1, 2]
