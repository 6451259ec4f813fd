"""Arrays through the map: compared with scipy, with points, and with themselves cut otherwise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from cloudreg.space import Box, Grid, split
from cloudreg.transforms import DisplacementField, Transform, VoxelMap, resample

AFFINE = np.array([[1.04, 0.1, 0.0, 20.0], [-0.08, 0.96, 0.05, -15.0], [0.0, -0.06, 1.03, 30.0], [0, 0, 0, 1.0]])
FIELD_GRID = Grid.from_spacing((7, 6, 8), (90.0, 110.0, 100.0), (-30.0, -20.0, -60.0))
SOURCE = Grid.from_spacing((31, 23, 27), (20.0, 25.0, 22.0), (10.0, 5.0, -8.0))
DESTINATION = Grid.from_spacing((29, 33, 25), (21.0, 17.0, 24.0), (-30.0, 4.0, 12.0))


def smooth_field(seed, size_um):
    vectors = np.random.default_rng(seed).normal(0, size_um, (3, *FIELD_GRID.shape))
    return DisplacementField(FIELD_GRID, vectors)


TRANSFORM = Transform(AFFINE, smooth_field(0, 12.0), smooth_field(1, 12.0))


def voxels(grid):
    return np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3)


def source_index(to, source=SOURCE, destination=DESTINATION, transform=TRANSFORM):
    points = destination.index_to_um(voxels(destination))
    move = transform.target_to_atlas if to == "target" else transform.atlas_to_target
    return source.um_to_index(move(points)[0])


@pytest.mark.parametrize("to", ["target", "atlas"])
def test_linear_values_are_those_of_the_points_mapped_one_by_one(to):
    image = np.random.default_rng(3).normal(100, 20, SOURCE.shape).astype(np.float32)
    got = resample(TRANSFORM, image, SOURCE, DESTINATION, to=to)
    # scipy's "constant" mode has no layer that fades to zero; a padded array gives it one, as specified.
    expected = map_coordinates(np.pad(image.astype(float), 2), source_index(to).T + 2, order=1, cval=0.0)
    np.testing.assert_allclose(got.ravel(), expected, rtol=1e-5, atol=1e-3)
    assert (got == 0).any() and (got > 50).mean() > 0.3


@pytest.mark.parametrize("to", ["target", "atlas"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.uint64])
def test_labels_are_the_nearest_voxels_and_their_ids_survive(to, dtype):
    rng = np.random.default_rng(4)
    ids = rng.integers(1, np.iinfo(dtype).max, SOURCE.shape, dtype=dtype, endpoint=True)
    ids[0, 0, 0] = np.iinfo(dtype).max
    got = resample(TRANSFORM, ids, SOURCE, DESTINATION, to=to, labels=True)
    index = np.floor(source_index(to) + 0.5).astype(int)
    inside = ((index >= 0) & (index < SOURCE.shape)).all(axis=1)
    expected = np.where(inside, ids[tuple(np.clip(index, 0, np.array(SOURCE.shape) - 1).T)], 0)
    assert got.dtype == dtype
    # A position on the very face between two voxels may fall on either side of it in another order of sums.
    assert (got.ravel() == expected).mean() > 0.9999
    assert set(np.unique(got)) <= set(np.unique(ids)) | {0}


def test_the_identity_changes_nothing():
    image = np.random.default_rng(5).integers(0, 2**16, SOURCE.shape).astype(np.uint16)
    identity = Transform.from_affine(np.eye(4), SOURCE)
    for to in ("target", "atlas"):
        np.testing.assert_array_equal(resample(identity, image, SOURCE, SOURCE, to=to), image)
        np.testing.assert_array_equal(resample(identity, image, SOURCE, SOURCE, to=to, labels=True), image)


@settings(max_examples=15, deadline=None)
@given(st.tuples(*[st.integers(1, 34)] * 3), st.booleans(), st.sampled_from(["target", "atlas"]))
def test_blocks_read_only_their_part_of_the_source_and_give_the_same_bytes(block, labels, to):
    block = [max(b, 6) for b in block]
    image = np.random.default_rng(6).integers(0, 2**16, SOURCE.shape).astype(np.uint16)
    whole = resample(TRANSFORM, image, SOURCE, DESTINATION, to=to, labels=labels)
    voxel_map = VoxelMap.between(TRANSFORM, SOURCE, DESTINATION, to)
    parts = np.full_like(whole, 7)
    for box in split(DESTINATION.shape, block):
        reach = voxel_map.source_box(box, SOURCE.shape)
        part = image[reach.slices].copy()
        if labels:
            parts[box.slices] = voxel_map.nearest(part, reach.start, box)[0]
        else:
            parts[box.slices] = voxel_map.linear(part, reach.start, box)
    np.testing.assert_array_equal(parts, whole)


def test_a_block_reads_as_far_as_a_large_displacement_reaches():
    image = np.random.default_rng(9).integers(1, 2**16, SOURCE.shape).astype(np.uint16)
    # Up to 200 um either way, ten voxels, and different from node to node.
    vectors = np.random.default_rng(10).uniform(-200, 200, (3, *FIELD_GRID.shape))
    transform = Transform(AFFINE, *[DisplacementField(FIELD_GRID, vectors)] * 2)
    for to in ("target", "atlas"):
        whole = resample(transform, image, SOURCE, DESTINATION, to=to)
        voxel_map = VoxelMap.between(transform, SOURCE, DESTINATION, to)
        for box in split(DESTINATION.shape, (5, 5, 5)):
            reach = voxel_map.source_box(box, SOURCE.shape)
            part = voxel_map.linear(image[reach.slices], reach.start, box)
            np.testing.assert_array_equal(part, whole[box.slices])


def test_a_small_block_needs_a_small_part_of_the_source():
    voxel_map = VoxelMap.between(TRANSFORM, SOURCE, DESTINATION, "target")
    reach = voxel_map.source_box(Box((10, 10, 10), (14, 14, 14)), SOURCE.shape)
    assert 0 < reach.size < np.prod(SOURCE.shape) / 4


def test_a_block_far_from_the_source_needs_nothing():
    far = Grid.from_spacing((4, 4, 4), (20, 20, 20), (1e7, 0, 0))
    box = Box.whole(far.shape)
    assert VoxelMap.between(TRANSFORM, SOURCE, far, "target").source_box(box, SOURCE.shape).size == 0
    assert not resample(TRANSFORM, np.ones(SOURCE.shape, np.uint16), SOURCE, far, to="target").any()


def test_a_label_at_a_pushed_point_is_the_label_pulled_there():
    blocks = np.indices(SOURCE.shape) // 6
    ids = (1 + blocks[0] + 10 * blocks[1] + 100 * blocks[2]).astype(np.uint32)
    # The atlas is the source; the target is finer, so pulled voxels resolve the borders.
    target = Grid.from_spacing((110, 100, 100), (5.0, 5.0, 5.0), (-20.0, -20.0, -20.0))
    transform = Transform(AFFINE, smooth_field(0, 4.0), smooth_field(1, 4.0))
    pulled = resample(transform, ids, SOURCE, target, to="target", labels=True)
    points = np.random.default_rng(7).integers(0, target.shape, (3000, 3))
    pushed, _ = transform.target_to_atlas(target.index_to_um(points))
    index = np.floor(SOURCE.um_to_index(pushed) + 0.5).astype(int)
    inside = ((index >= 0) & (index < SOURCE.shape)).all(axis=1)
    assert inside.mean() > 0.5
    agree = ids[tuple(index[inside].T)] == pulled[tuple(points[inside].T)]
    assert agree.mean() > 0.999


def test_coarser_destinations_average_instead_of_aliasing():
    # Stripes one voxel wide: picking points would give 0 or 200, the mean is 100.
    stripes = np.zeros((40, 40, 40), np.float32)
    stripes[:, :, ::2] = 200
    fine = Grid.from_spacing(stripes.shape, (10, 10, 10))
    coarse = fine.downsampled((4, 4, 4))
    identity = Transform.from_affine(np.eye(4), fine)
    got = resample(identity, stripes, fine, coarse, to="target")
    np.testing.assert_allclose(got[1:-1, 1:-1, 1:-1], 100)


@pytest.mark.parametrize("factors", [(4, 4, 4), (2, 3, 5)])
def test_averages_over_coarse_voxels_are_centred_on_them(factors):
    fine = Grid.from_spacing((40, 42, 45), (10, 10, 10))
    ramp = (np.indices(fine.shape) * np.array([1, 2, 3])[:, None, None, None]).sum(axis=0).astype(np.float32)
    coarse = fine.downsampled(factors, partial=False)
    got = resample(Transform.from_affine(np.eye(4), fine), ramp, fine, coarse, to="target")
    expected = fine.um_to_index(coarse.index_to_um(voxels(coarse))) @ (1, 2, 3)
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(got[inner], expected.reshape(coarse.shape)[inner], rtol=1e-6)


def test_a_fine_destination_is_sampled_once_per_voxel():
    assert VoxelMap.between(TRANSFORM, SOURCE, DESTINATION, "atlas").samples_per_voxel().tolist() == [1, 1, 1]


def test_a_plane_divides_the_voxels_by_their_source_position():
    plane = np.array([0.0, 0.0, 1.0, -13.2])
    voxel_map = VoxelMap.between(TRANSFORM, SOURCE, DESTINATION, "target")
    box = Box((3, 5, 2), (20, 30, 21))
    _, beyond = voxel_map.nearest(np.ones(SOURCE.shape, np.uint8), (0, 0, 0), box, plane=plane)
    expected = source_index("target")[:, 2].reshape(DESTINATION.shape)[box.slices] > 13.2
    np.testing.assert_array_equal(beyond, expected)
    assert 0.1 < beyond.mean() < 0.9


def test_foreign_byte_order_is_read_right():
    image = np.random.default_rng(8).integers(0, 2**16, SOURCE.shape).astype(np.uint16)
    foreign = image.astype(">u2")
    for labels in (False, True):
        np.testing.assert_array_equal(
            resample(TRANSFORM, foreign, SOURCE, DESTINATION, to="target", labels=labels),
            resample(TRANSFORM, image, SOURCE, DESTINATION, to="target", labels=labels),
        )
