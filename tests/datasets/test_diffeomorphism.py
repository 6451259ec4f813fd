"""The true map is known both ways, smooth, and as large as asked for."""

import numpy as np
import pytest

from cloudreg.datasets import Deformation, Phantom, TrueMap
from cloudreg.datasets.diffeomorphism import random_affine
from cloudreg.space import axes_between

HALF_UM = np.array([3200.0, 1900.0, 2700.0])


@pytest.fixture(scope="module", params=[0, 1])
def true_map(request):
    centre = Phantom().centre_um
    affine = random_affine(axes_between("asr", "ila"), centre, (2000.0, 2900.0, 3800.0), request.param)
    return TrueMap(affine, Deformation.random(centre, HALF_UM, 350.0, request.param))


@pytest.fixture(scope="module")
def points():
    generator = np.random.default_rng(0)
    return Phantom().centre_um + generator.uniform(-1, 1, size=(5000, 3)) * HALF_UM


def test_inverse_takes_every_point_back(true_map, points):
    there = true_map.atlas_to_target(points)
    assert np.abs(true_map.target_to_atlas(there) - points).max() < 1e-3


def test_largest_displacement_is_what_was_asked_for(true_map, points):
    moved = np.linalg.norm(true_map.deformation.forward(points) - points, axis=1)
    assert 300 < moved.max() < 400
    assert np.median(moved) > 30


def test_nothing_folds(true_map, points):
    step = 1.0
    columns = [
        (true_map.deformation.forward(points + step * e) - true_map.deformation.forward(points - step * e)) / (2 * step)
        for e in np.eye(3)
    ]
    determinant = np.linalg.det(np.stack(columns, axis=-1))
    assert determinant.min() > 0.4
    assert determinant.max() < 2.5


def test_flow_is_the_exponential_of_the_velocity(true_map, points):
    half = true_map.deformation
    half = Deformation(half.centres_um, half.vectors_um / 2, half.radius_um)
    twice = half.forward(half.forward(points))
    assert np.abs(twice - true_map.deformation.forward(points)).max() < 1e-3


def test_affine_turns_and_stretches_but_does_not_mirror(true_map):
    turned = true_map.affine[:3, :3] @ axes_between("ila", "asr")
    stretch = np.linalg.svd(turned, compute_uv=False)
    u, _, v = np.linalg.svd(turned)
    angle = np.rad2deg(np.arccos((np.trace(u @ v) - 1) / 2))
    assert np.linalg.det(turned) > 0
    assert 5 <= angle <= 8
    assert 0.94 < stretch.min() < stretch.max() < 1.06
    assert stretch.max() / stretch.min() > 1.02


def test_spline_of_the_displacement_is_exact_enough_for_images(true_map, points):
    field = true_map.displacement_to_atlas(Phantom().grid)
    expected = true_map.deformation.inverse(points) - points
    assert np.abs(field.at(points) - expected).max() < 0.1


def test_dict_keeps_every_bit(true_map, points):
    copy = TrueMap.from_dict(true_map.to_dict())
    assert np.array_equal(copy.atlas_to_target(points), true_map.atlas_to_target(points))
