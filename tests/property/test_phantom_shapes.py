"""Solids: depth has the right sign inside the box and none is inside beyond it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes.phantoms.shapes import difference, ellipsoid, inset, intersection, rough, tube, union

coordinate = st.floats(-60.0, 60.0)
radius = st.floats(4.0, 40.0)
vector = st.tuples(coordinate, coordinate, coordinate)
radii = st.tuples(radius, radius, radius)


def scattered(seed: int, count: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-160.0, 160.0, size=(3, count))


@settings(deadline=None, max_examples=25)
@given(vector, radii, st.tuples(*[st.floats(-90.0, 90.0)] * 3), st.integers(0, 99))
def test_nothing_of_a_solid_lies_outside_its_box(centre, axes, degrees, seed) -> None:
    solids = [
        rough(ellipsoid(centre, axes, degrees), np.random.default_rng(seed), 2.0, 30.0),
        tube([centre, (0.0, 0.0, 0.0)], [axes[0], axes[1]], (1.0, 1.5, 1.0)),
    ]
    points = scattered(seed)
    for solid in [*solids, union(*solids)]:
        inside = solid.depth(points) > 0
        low, high = np.array(solid.low)[:, None] - 1e-6, np.array(solid.high)[:, None] + 1e-6
        assert np.all((points[:, inside] >= low) & (points[:, inside] <= high))


@settings(deadline=None, max_examples=25)
@given(vector, radius, st.integers(0, 99))
def test_depth_of_a_ball_is_the_distance_to_its_surface(centre, size, seed) -> None:
    ball = ellipsoid(centre, (size, size, size))
    points = scattered(seed)
    distance = size - np.linalg.norm(points - np.array(centre)[:, None], axis=0)
    np.testing.assert_allclose(ball.depth(points), distance, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(vector, radii, vector, radii, st.integers(0, 99))
def test_set_operations_agree_with_membership(first, first_radii, second, second_radii, seed) -> None:
    a, b = ellipsoid(first, first_radii), ellipsoid(second, second_radii)
    points = scattered(seed)
    in_a, in_b = a.depth(points) > 0, b.depth(points) > 0
    assert np.array_equal(union(a, b).depth(points) > 0, in_a | in_b)
    assert np.array_equal(intersection(a, b).depth(points) > 0, in_a & in_b)
    assert np.array_equal(difference(a, b).depth(points) > 0, in_a & (b.depth(points) < 0))
    assert np.all(in_a | ~(inset(a, 3.0).depth(points) > 0))
