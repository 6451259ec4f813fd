"""The map itself: fields, affine, inverse, and how it is written."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudreg.errors import InputError
from cloudreg.space import Grid
from cloudreg.transforms import (
    DisplacementField,
    Transform,
    inverse_consistency_um,
    jacobian_determinant,
    load_affine,
    save_affine,
)

AFFINE = np.array([[1.05, 0.08, 0.0, 40.0], [-0.06, 0.97, 0.05, -25.0], [0.02, -0.04, 1.02, 60.0], [0, 0, 0, 1.0]])


def nodes(grid):
    return grid.index_to_um(np.moveaxis(np.indices(grid.shape), 0, -1))


def wave(points, amplitude_um, length_um=1500.0):
    """A smooth displacement, different along each axis."""
    z, y, x = np.moveaxis(points / length_um * 2 * np.pi, -1, 0)
    return amplitude_um * np.stack([np.sin(y + 0.3), np.cos(z - x), np.sin(x + 0.5 * z + 1)], axis=-1)


def diffeomorphism(amplitude_um=60.0, affine=AFFINE, shape=(31, 28, 33), spacing=(50.0, 60.0, 50.0)):
    """A transform whose inverse is found to machine precision at the nodes by fixed-point iteration."""
    grid = Grid.from_spacing(shape, spacing, (-100.0, -150.0, -50.0))
    points = nodes(grid)
    forward = wave(points, amplitude_um)
    backward = np.zeros_like(points)
    for _ in range(60):
        backward = -wave(points + backward, amplitude_um)
    fields = [DisplacementField(grid, np.moveaxis(u, -1, 0)) for u in (forward, backward)]
    return Transform(affine, *fields)


def interior_points(n=500, seed=0):
    return np.random.default_rng(seed).uniform(150, 1050, (n, 3))


def test_a_field_is_exact_for_a_linear_displacement_between_anisotropic_rotated_nodes():
    affine = np.eye(4)
    affine[:3, :3] = [[0, 30, 2], [50, 0, 1], [3, 0, 20]]
    affine[:3, 3] = (5, -7, 100)
    grid = Grid((6, 7, 9), affine)
    slope = np.array([[0.1, 0.02, -0.03], [0.0, -0.05, 0.01], [0.2, 0.0, 0.07]])
    field = DisplacementField(grid, np.moveaxis(nodes(grid) @ slope.T, -1, 0))
    points = grid.index_to_um(np.random.default_rng(1).uniform(0, 1, (200, 3)) * (5, 6, 8))
    np.testing.assert_allclose(field.displacement(points), points @ slope.T, atol=1e-4)


def test_a_field_keeps_the_edge_value_outside_and_says_where_it_ends():
    grid = Grid.from_spacing((3, 4, 5), (10, 10, 10))
    vectors = np.random.default_rng(2).normal(size=(3, 3, 4, 5)).astype(np.float32)
    field = DisplacementField(grid, vectors)
    np.testing.assert_allclose(field.displacement([[-500, 30, 900]]), vectors[None, :, 0, 3, 4])
    inside = field.contains([[-5, 0, 0], [-5.1, 0, 0], [25, 35, 45], [25, 35, 45.1], [np.nan, 0, 0]])
    assert inside.tolist() == [True, False, True, False, False]


def test_a_field_of_one_plane_is_constant_across_it():
    field = DisplacementField(Grid.from_spacing((1, 1, 2), (10, 10, 10)), np.arange(6).reshape(3, 1, 1, 2))
    np.testing.assert_allclose(field.displacement([[99, -3, 5]]), [[0.5, 2.5, 4.5]])


@pytest.mark.parametrize("vectors", [np.zeros((3, 2, 2, 3)), np.full((3, 2, 2, 2), np.nan)])
def test_a_field_refuses_vectors_that_do_not_fit_its_grid(vectors):
    with pytest.raises(InputError, match="displacement field"):
        DisplacementField(Grid.from_spacing((2, 2, 2), (1, 1, 1)), vectors)


def test_inverse_after_forward_is_the_identity():
    transform = diffeomorphism()
    points = interior_points()
    there, inside = transform.atlas_to_target(points)
    assert inside.all()
    assert np.linalg.norm(there - points, axis=1).min() > 20
    back, inside = transform.target_to_atlas(there)
    assert inside.all()
    # Both fields are linear between nodes 60 um apart: 1 um is a sixtieth of that.
    assert np.linalg.norm(back - points, axis=1).max() < 1.5
    np.testing.assert_allclose(inverse_consistency_um(transform, points), np.linalg.norm(back - points, axis=1))


def test_the_affine_acts_after_the_deformation():
    transform = diffeomorphism(amplitude_um=80)
    point = np.array([[400.0, 500.0, 600.0]])
    moved = point + transform.to_target.displacement(point)
    np.testing.assert_allclose(transform.atlas_to_target(point)[0], moved @ AFFINE[:3, :3].T + AFFINE[:3, 3])


def test_points_outside_the_field_and_nan_are_flagged():
    transform = diffeomorphism()
    points, inside = transform.atlas_to_target([[1e6, 0, 0], [np.nan, 1, 2], [500, 500, 500]])
    assert inside.tolist() == [False, False, True]
    assert np.isfinite(points[0]).all() and np.isnan(points[1]).any()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-0.3, 0.3), min_size=9, max_size=9), st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3))
def test_an_affine_alone_is_undone_exactly(linear, shift):
    affine = np.eye(4)
    affine[:3, :3] += np.reshape(linear, (3, 3))
    affine[:3, 3] = shift
    if abs(np.linalg.det(affine)) < 0.05:
        return
    transform = Transform.from_affine(affine, Grid.from_spacing((3, 3, 3), (500, 500, 500)))
    points = interior_points(10)
    np.testing.assert_allclose(inverse_consistency_um(transform, points), 0, atol=1e-7)


affines = st.integers(0, 999).map(lambda seed: random_affine(np.random.default_rng(seed)))


def random_affine(rng):
    """Any rotation or mirror, anisotropic scale and shear, far from singular."""
    left, right = (np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(2))
    affine = np.eye(4)
    affine[:3, :3] = left @ np.diag(rng.uniform(0.4, 2.5, 3)) @ right
    affine[:3, 3] = rng.uniform(-5000, 5000, 3)
    return affine


def through(affine, points):
    return points @ affine[:3, :3].T + affine[:3, 3]


@settings(max_examples=20, deadline=None)
@given(affines)
def test_the_inverse_transform_goes_the_other_way_exactly(affine):
    transform = diffeomorphism(affine=affine)
    inverse = transform.inverse()
    points = np.concatenate([interior_points(40), [[-9000.0, 300.0, 20000.0]]])
    there, inside = transform.atlas_to_target(points)
    swapped, swapped_inside = inverse.target_to_atlas(points)
    np.testing.assert_allclose(swapped, there, atol=2e-3)
    np.testing.assert_array_equal(swapped_inside, inside)
    np.testing.assert_allclose(inverse.atlas_to_target(there)[0], transform.target_to_atlas(there)[0], atol=2e-3)
    np.testing.assert_allclose(inverse.inverse().atlas_to_target(points)[0], there, atol=2e-3)
    assert inverse.affine[3].tolist() == [0, 0, 0, 1]


@settings(max_examples=20, deadline=None)
@given(affines, affines)
def test_other_frames_name_the_same_places(atlas, target):
    transform = diffeomorphism()
    moved = transform.in_frames(atlas=atlas, target=target)
    points = interior_points(40)
    there = transform.atlas_to_target(points)[0]
    np.testing.assert_allclose(moved.atlas_to_target(through(atlas, points))[0], through(target, there), atol=2e-3)
    back = transform.target_to_atlas(there)[0]
    np.testing.assert_allclose(moved.target_to_atlas(through(target, there))[0], through(atlas, back), atol=2e-3)


def test_a_field_with_more_nodes_is_the_same_map():
    field = diffeomorphism().to_target
    far = np.array([[-700.0, 500.0, 400.0], [900.0, 4000.0, 1200.0]])
    extended = field.extended(far)
    assert extended.contains(far).all() and not field.contains(far).any()
    points = np.random.default_rng(3).uniform(-600, 4000, (300, 3))
    np.testing.assert_allclose(extended.displacement(points), field.displacement(points), atol=1e-4)
    middle = np.array([[600.0, 600.0, 600.0]])
    assert field.extended(middle) is field


def test_the_jacobian_determinant_of_a_stretch_and_of_a_fold():
    affine = np.eye(4)
    affine[:3, :3] = [[0, 25, 0], [40, 0, 0], [0, 0, 10]]
    grid = Grid((5, 6, 7), affine)
    stretch = np.array([0.1, -0.2, 0.5])
    field = DisplacementField(grid, np.moveaxis(nodes(grid) * stretch, -1, 0))
    np.testing.assert_allclose(jacobian_determinant(field), np.prod(1 + stretch), rtol=1e-5)
    folded = DisplacementField(grid, np.moveaxis(nodes(grid) * (0, 0, -1.5), -1, 0))
    assert (jacobian_determinant(folded) < 0).all()


def test_a_transform_travels_to_workers():
    transform = pickle.loads(pickle.dumps(diffeomorphism()))
    points = interior_points(5)
    np.testing.assert_array_equal(transform.atlas_to_target(points)[0], diffeomorphism().atlas_to_target(points)[0])


def test_a_transform_is_saved_and_loaded_bit_for_bit(tmp_path):
    transform = diffeomorphism()
    transform.save(tmp_path / "registration")
    loaded = Transform.load(tmp_path / "registration")
    np.testing.assert_array_equal(loaded.affine, transform.affine)
    for before, after in ((transform.to_target, loaded.to_target), (transform.to_atlas, loaded.to_atlas)):
        np.testing.assert_array_equal(after.vectors, before.vectors)
        assert after.grid == before.grid
    transform.save(tmp_path / "registration")
    with pytest.raises(InputError, match="another registration"):
        diffeomorphism(amplitude_um=10).save(tmp_path / "registration")
    assert inverse_consistency_um(Transform.load(tmp_path / "registration"), interior_points()).max() < 1.5


def test_what_a_killed_save_left_is_no_transform_and_is_written_anew(tmp_path):
    diffeomorphism(amplitude_um=10).save(tmp_path)
    (tmp_path / "affine.txt").unlink()
    with pytest.raises(InputError, match="finished registration"):
        Transform.load(tmp_path)
    diffeomorphism().save(tmp_path)
    np.testing.assert_array_equal(Transform.load(tmp_path).to_atlas.vectors, diffeomorphism().to_atlas.vectors)


def test_an_affine_file_keeps_every_bit(tmp_path):
    save_affine(AFFINE / 3 + np.diag([0, 0, 0, 2 / 3]), tmp_path / "a.txt")
    np.testing.assert_array_equal(load_affine(tmp_path / "a.txt"), AFFINE / 3 + np.diag([0, 0, 0, 2 / 3]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 0 0\n0 1 0\n0 0 1\n", "4 x 4"),
        ("1 0 0 0\n0 1 0 0\n0 0 0 0\n0 0 0 1\n", "invertible"),
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n9 0 0 1\n", "last row"),
        ("1 0 0 0\n0 1 0 0\n0 0 nan 0\n0 0 0 1\n", "finite|invertible"),
        ("1 0 0 hello\n", "numbers"),
    ],
)
def test_a_wrong_affine_file_is_one_line(tmp_path, text, message):
    (tmp_path / "affine.txt").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_affine(tmp_path / "affine.txt")
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_registration_says_so(tmp_path):
    with pytest.raises(InputError, match="finished registration"):
        Transform.load(tmp_path)
