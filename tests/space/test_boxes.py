"""Boxes: cutting a volume loses and doubles nothing."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cloudreg.space import Box, split

shapes = st.tuples(*[st.integers(1, 40)] * 3)
blocks = st.tuples(*[st.integers(1, 50)] * 3)


@given(shapes, blocks)
def test_split_covers_every_voxel_exactly_once(shape, block):
    count = np.zeros(shape, int)
    for box in split(shape, block):
        assert all(n <= b for n, b in zip(box.shape, block, strict=True))
        count[box.slices] += 1
    assert (count == 1).all()


@given(shapes, blocks)
def test_boxes_have_unique_names_for_the_ledger(shape, block):
    names = [str(box) for box in split(shape, block)]
    assert len(set(names)) == len(names)


@given(shapes, blocks, st.tuples(*[st.integers(-30, 30)] * 3))
def test_intersection_is_what_arrays_share(shape, block, offset):
    one, other = Box.whole(shape), Box.whole(block).shifted(offset)
    common = one.intersection(other)
    voxels = np.zeros(shape, bool)
    voxels[tuple(slice(max(0, a), max(0, b)) for a, b in zip(other.start, other.stop, strict=True))] = True
    assert common.size == voxels.sum()
    assert common == other.intersection(one) or common.size == 0


@given(shapes, st.tuples(*[st.integers(0, 5)] * 3))
def test_a_grown_box_stays_within_the_array(shape, margin):
    for box in split(shape, (7, 8, 9)):
        grown = box.grown(margin, shape)
        assert grown.intersection(Box.whole(shape)) == grown
        assert box.intersection(grown) == box
