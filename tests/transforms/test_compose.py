"""One map after another: the laws of a group, as far as a grid can hold them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudreg.errors import InputError
from cloudreg.space import Grid
from cloudreg.transforms import DisplacementField, Transform, compose
from cloudreg.transforms.transform import inverted

GRID = Grid.from_spacing((25, 25, 25), (50.0, 50.0, 50.0), (-100.0, -100.0, -100.0))
BOX = st.integers(0, 999)


def affine(rng, size=0.15):
    matrix = np.eye(4)
    matrix[:3, :3] += rng.uniform(-size, size, (3, 3))
    matrix[:3, 3] = rng.uniform(-50, 50, 3)
    return matrix


def smooth(seed, amplitude_um=20.0):
    """A random affine after a slow wave whose inverse is found at the nodes."""
    rng = np.random.default_rng(seed)
    waves, phases = rng.uniform(-1, 1, (3, 3)) * 2 * np.pi / 3000, rng.uniform(0, 6, 3)

    def wave(points):
        return amplitude_um * np.sin(points @ waves.T + phases)

    nodes = GRID.index_to_um(np.moveaxis(np.indices(GRID.shape), 0, -1))
    back = np.zeros_like(nodes)
    for _ in range(40):
        back = -wave(nodes + back)
    fields = [DisplacementField(GRID, np.moveaxis(u, -1, 0)) for u in (wave(nodes), back)]
    return Transform(affine(rng), *fields)


def points(seed, n=200):
    return np.random.default_rng(seed).uniform(200, 800, (n, 3))


def distance(one, other, at):
    there = np.linalg.norm(one.atlas_to_target(at)[0] - other.atlas_to_target(at)[0], axis=1).max()
    end = one.atlas_to_target(at)[0]
    back = np.linalg.norm(one.target_to_atlas(end)[0] - other.target_to_atlas(end)[0], axis=1).max()
    return max(there, back)


# Waves of 3 mm between nodes 50 um apart: trilinear interpolation loses a seventh of a micrometre each time.
TOLERANCE_UM = 0.5


@settings(max_examples=10, deadline=None)
@given(BOX, BOX)
def test_a_chain_is_one_transform_after_the_other_both_ways(seed, other):
    first, second = smooth(seed), smooth(other)
    both = compose(first, second)
    at = points(seed)
    end = second.atlas_to_target(first.atlas_to_target(at)[0])[0]
    assert np.linalg.norm(both.atlas_to_target(at)[0] - end, axis=1).max() < TOLERANCE_UM
    start = first.target_to_atlas(second.target_to_atlas(end)[0])[0]
    assert np.linalg.norm(both.target_to_atlas(end)[0] - start, axis=1).max() < TOLERANCE_UM


@settings(max_examples=5, deadline=None)
@given(BOX)
def test_the_identity_before_or_after_changes_nothing(seed):
    transform = smooth(seed)
    identity = Transform.from_affine(np.eye(4), GRID)
    for both in (compose(identity, transform, grid=GRID), compose(transform, identity, grid=GRID)):
        assert distance(both, transform, points(seed)) < 1e-3


@settings(max_examples=5, deadline=None)
@given(BOX)
def test_a_transform_and_its_inverse_cancel(seed):
    transform = smooth(seed)
    identity = Transform.from_affine(np.eye(4), GRID)
    assert distance(compose(transform, transform.inverse()), identity, points(seed)) < TOLERANCE_UM
    assert distance(compose(transform.inverse(), transform), identity, points(seed)) < TOLERANCE_UM


@settings(max_examples=4, deadline=None)
@given(BOX, BOX, BOX)
def test_a_chain_of_three_does_not_depend_on_which_pair_is_joined_first(a, b, c):
    one, two, three = smooth(a), smooth(b), smooth(c)
    left, right = compose(compose(one, two), three), compose(one, compose(two, three))
    assert distance(left, right, points(a)) < 2 * TOLERANCE_UM


@settings(max_examples=5, deadline=None)
@given(BOX, BOX)
def test_the_inverse_of_a_chain_is_the_chain_of_inverses_backwards(a, b):
    one, two = smooth(a), smooth(b)
    forward, backward = compose(one, two).inverse(), compose(two.inverse(), one.inverse())
    at = compose(one, two).atlas_to_target(points(a))[0]
    assert distance(forward, backward, at) < 2 * TOLERANCE_UM


@settings(max_examples=20, deadline=None)
@given(BOX)
def test_affines_are_multiplied_exactly(seed):
    rng = np.random.default_rng(seed)
    one, two = affine(rng, 0.5), affine(rng, 0.5)
    if min(abs(np.linalg.det(m)) for m in (one, two)) < 0.05:
        return
    both = compose(Transform.from_affine(one, GRID), Transform.from_affine(two, GRID), grid=GRID)
    np.testing.assert_allclose(both.affine, two @ one, atol=1e-9)
    at = points(seed) * 100
    there, _ = both.atlas_to_target(at)
    np.testing.assert_allclose(there, at @ (two @ one)[:3, :3].T + (two @ one)[:3, 3], atol=1e-2)
    back = inverted(two @ one)
    np.testing.assert_allclose(both.target_to_atlas(there)[0], there @ back[:3, :3].T + back[:3, 3], atol=1e-2)


def test_a_grid_too_fine_to_hold_is_refused():
    fine = Transform.from_affine(np.eye(4), Grid.from_spacing((2, 2, 2), (0.1, 0.1, 0.1)))
    with pytest.raises(InputError, match="coarser grid"):
        compose(fine, Transform.from_affine(np.eye(4), GRID))
