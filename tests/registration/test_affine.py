"""The groups of affine maps: what each may change, and what it leaves."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cloudreg.registration.affine import affine_group

CENTRES = np.array([4000.0, 3500.0, 4200.0]), np.array([3000.0, 3900.0, 4100.0])
PARAMETERS = {"rigid": 6, "similarity": 7, "scales": 9, "affine": 12}


def starting():
    """Target to atlas: a turn of the target, then other scales along each of the atlas's axes."""
    matrix = np.eye(4)
    turn = Rotation.from_rotvec([0.4, -0.3, 0.9]).as_matrix()
    matrix[:3, :3] = np.diag([0.9, 1.05, 1.2]) @ turn
    matrix[:3, 3] = [100.0, -50.0, 70.0]
    return matrix


def moved(kind, seed=0, size=0.2):
    group = affine_group(kind, *CENTRES, 6000.0)
    by = size * np.random.default_rng(seed).standard_normal(PARAMETERS[kind])
    return group.moved(starting(), by)


def atlas_scales(to_atlas):
    """Scales along the atlas's axes of the map from atlas to target, and the cosines between these axes there."""
    columns = np.linalg.inv(to_atlas)[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    cosines = (columns / lengths).T @ (columns / lengths)
    return lengths, cosines


@pytest.mark.parametrize("kind", PARAMETERS)
def test_tangents_are_what_small_steps_do(kind):
    group = affine_group(kind, *CENTRES, 6000.0)
    tangents = group.tangents(starting())
    assert tangents.shape == (PARAMETERS[kind], 4, 4)
    assert np.linalg.matrix_rank(tangents.reshape(len(tangents), -1)) == PARAMETERS[kind]
    for k, tangent in enumerate(tangents):
        by = np.zeros(len(tangents))
        by[k] = 1e-6
        change = (group.moved(starting(), by) - group.moved(starting(), -by)) / 2e-6
        np.testing.assert_allclose(change, tangent @ starting(), rtol=1e-5, atol=1e-5)


def test_rigid_keeps_the_scales_that_it_starts_from():
    before, _ = atlas_scales(starting())
    after, cosines = atlas_scales(moved("rigid"))
    np.testing.assert_allclose(after, before)
    np.testing.assert_allclose(cosines, np.eye(3), atol=1e-12)
    assert np.abs(moved("rigid")[:3, :3] - starting()[:3, :3]).max() > 0.1


def test_similarity_changes_all_scales_alike():
    before, _ = atlas_scales(starting())
    after, cosines = atlas_scales(moved("similarity"))
    np.testing.assert_allclose(after / before, (after / before)[0])
    np.testing.assert_allclose(cosines, np.eye(3), atol=1e-12)
    assert abs((after / before)[0] - 1) > 0.01


def test_scales_change_each_on_its_own_but_the_atlas_axes_stay_at_right_angles():
    before, _ = atlas_scales(starting())
    after, cosines = atlas_scales(moved("scales"))
    assert np.ptp(after / before) > 0.1
    np.testing.assert_allclose(cosines, np.eye(3), atol=1e-12)


def test_affine_shears_too():
    _, cosines = atlas_scales(moved("affine"))
    assert np.abs(cosines - np.eye(3)).max() > 0.05
