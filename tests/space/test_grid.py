"""Grids: whatever is done to the voxels, they stay where they are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudreg.errors import InputError
from cloudreg.space import Box, Grid

small = st.tuples(*[st.integers(1, 12)] * 3)
lengths = st.tuples(*[st.floats(0.1, 200)] * 3)
places = st.tuples(*[st.floats(-5000, 5000)] * 3)


@st.composite
def grids(draw):
    shape, size, origin = draw(small), draw(lengths), draw(places)
    grid = Grid.from_spacing(shape, size, origin)
    if draw(st.booleans()):
        rotation, _ = np.linalg.qr(np.random.default_rng(draw(st.integers(0, 99))).normal(size=(3, 3)))
        affine = grid.affine.copy()
        affine[:3, :3] = rotation @ affine[:3, :3]
        grid = Grid(shape, affine)
    return grid


def centres(grid):
    return grid.index_to_um(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1))


@given(grids(), st.tuples(*[st.integers(0, 5)] * 3), st.tuples(*[st.integers(0, 5)] * 3))
def test_padding_and_cropping_leave_every_voxel_where_it_is(grid, before, after):
    padded = grid.padded(before, after)
    inside = Box(before, tuple(b + n for b, n in zip(before, grid.shape, strict=True)))
    np.testing.assert_allclose(centres(padded)[inside.slices], centres(grid), atol=1e-6)
    assert padded.cropped(inside) == grid


@given(grids(), st.tuples(*[st.integers(1, 4)] * 3))
def test_a_coarse_voxel_lies_at_the_mean_of_its_full_block(grid, factors):
    coarse = grid.downsampled(factors)
    full = grid.downsampled(factors, partial=False)
    fine = centres(grid)
    for index in np.ndindex(*[n // f for n, f in zip(grid.shape, factors, strict=True)]):
        block = fine[tuple(slice(i * f, i * f + f) for i, f in zip(index, factors, strict=True))]
        np.testing.assert_allclose(coarse.index_to_um(index), block.reshape(-1, 3).mean(axis=0), atol=1e-6)
    assert coarse.shape == tuple(-(-n // f) for n, f in zip(grid.shape, factors, strict=True))
    np.testing.assert_allclose(full.affine, coarse.affine)


@given(grids(), st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(1, 3)] * 3))
def test_downsampling_twice_is_downsampling_by_the_product(grid, first, second):
    twice = grid.downsampled(first).downsampled(second)
    assert twice == grid.downsampled([a * b for a, b in zip(first, second, strict=True)])


@given(grids(), places)
def test_micrometres_and_indices_are_inverse(grid, um):
    np.testing.assert_allclose(grid.index_to_um(grid.um_to_index(um)), um, atol=1e-5)


@given(grids(), lengths)
def test_resampling_keeps_the_outer_corner_and_covers_the_extent(grid, size):
    new = grid.resampled(size)
    np.testing.assert_allclose(new.corner_um(), grid.corner_um(), atol=1e-4)
    assert (new.size_um >= grid.size_um * (1 - 1e-5)).all() or max(new.shape) == 1
    np.testing.assert_allclose(new.voxel_size_um, size, rtol=1e-9)


@given(grids(), places)
def test_moving_a_corner_moves_only_the_origin(grid, corner):
    moved = grid.with_corner_at(corner)
    np.testing.assert_allclose(moved.corner_um(), corner, atol=1e-6)
    np.testing.assert_allclose(moved.affine[:3, :3], grid.affine[:3, :3])


@given(grids())
def test_a_grid_survives_json(grid):
    assert Grid.from_dict(grid.to_dict()) == grid


@given(grids())
def test_bounds_hold_all_voxels(grid):
    low, high = grid.bounds_um()
    points = centres(grid).reshape(-1, 3)
    assert (points > low - 1e-6).all() and (points < high + 1e-6).all()


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.eye(3), np.full((4, 4), np.nan)])
def test_an_affine_that_places_nothing_is_refused(affine):
    with pytest.raises(InputError, match="finite invertible 4 x 4 affine"):
        Grid((2, 2, 2), affine)


def test_a_grid_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        Grid.from_spacing((2, 2, 2), (1, 1, 1)).affine[0, 0] = 3


def test_axes_that_run_backwards_are_not_the_physical_axes():
    assert Grid.from_spacing((2, 2, 2), (1, 2, 3)).is_axis_aligned
    assert not Grid((2, 2, 2), np.diag([1.0, -1, 1, 1])).is_axis_aligned
    assert not Grid((2, 2, 2), np.eye(4)[[1, 0, 2, 3]]).is_axis_aligned
