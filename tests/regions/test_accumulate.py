"""Counts, sums and medians against numpy's own."""

from itertools import pairwise

import hypothesis
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudreg.regions.accumulate import RegionSums, key_values, value_keys

SHAPE = (12, 10, 14)
IDS = np.array([0, 1, 7, 4_000_000_000, 2**40 + 1], dtype=np.uint64)


def example(seed, dtype=np.uint16, shape=SHAPE):
    rng = np.random.default_rng(seed)
    labels = IDS[rng.integers(0, len(IDS), shape)]
    right = rng.integers(0, 2, shape).astype(np.uint8)
    if np.dtype(dtype).kind == "f":
        values = rng.normal(0, 300, shape).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        values = rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    values[rng.random(shape) < 0.2] = 0
    return labels, right, values


def summed(labels, right, values, cuts=(0, None)):
    total = RegionSums([values.dtype])
    for a, b in pairwise(cuts):
        part = RegionSums([values.dtype])
        part.add(labels[a:b].copy(), right[a:b].copy(), [values[a:b].copy()])
        total.merge(part)
    return total


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.uint32, np.float32, np.float64])
def test_every_figure_is_numpys(dtype):
    labels, right, values = example(0, dtype)
    total = summed(labels, right, values)
    assert set(total.row_of) == set(IDS[1:].tolist())
    channel = total.channels[0]
    for region, row in total.row_of.items():
        for side in (0, 1):
            here = (labels == region) & (right == side)
            seen = values[here & (values != 0)]
            code = 2 * row + side
            assert total.voxels[code] == here.sum()
            assert channel.observed[code] == seen.size
            if np.dtype(dtype).kind == "f":
                np.testing.assert_allclose(channel.sums[code], seen.sum(dtype=np.float64), rtol=1e-9)
            else:
                assert int(channel.sums[code]) == sum(seen.tolist())
            exact = np.dtype(dtype).itemsize <= 2
            np.testing.assert_allclose(channel.median(code), np.median(seen), rtol=0 if exact else 0.004)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, SHAPE[0] - 1), max_size=4, unique=True))
def test_blocks_add_up_to_the_whole_in_any_cut(cuts):
    labels, right, values = example(1)
    whole = summed(labels, right, values)
    parts = summed(labels, right, values, [0, *sorted(cuts), SHAPE[0]])
    for region, row in whole.row_of.items():
        for side in (0, 1):
            a, b = 2 * row + side, 2 * parts.row_of[region] + side
            assert whole.voxels[a] == parts.voxels[b]
            assert whole.channels[0].sums[a] == parts.channels[0].sums[b]
            assert whole.channels[0].median(a) == parts.channels[0].median(b)


def test_a_region_that_was_not_observed_has_volume_but_no_brightness():
    labels = np.full((2, 2, 2), 7, np.uint32)
    for nothing in (np.zeros((2, 2, 2), np.uint16), np.full((2, 2, 2), np.nan, np.float32)):
        total = summed(labels, np.zeros((2, 2, 2), np.uint8), nothing)
        assert total.voxels.tolist() == [8, 0]
        assert total.channels[0].observed.tolist() == [0, 0]
        assert np.isnan(total.channels[0].median(0))


def test_background_is_no_region():
    total = summed(np.zeros((2, 3, 4), np.uint32), np.ones((2, 3, 4), np.uint8), np.ones((2, 3, 4), np.uint8))
    assert not total.row_of


@settings(max_examples=100, deadline=None)
@hypothesis.example([0.0, -0.0])
@hypothesis.example([-0.0, 0.0])
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False), min_size=2))
def test_keys_sort_as_the_values_and_decode_to_within_their_bin(values):
    values = np.sort(np.array(values, np.float32))
    keys = value_keys(values)
    assert (np.diff(keys.astype(int)) >= 0).all()
    big = np.abs(values) > 1e-30
    finite = np.abs(values) < 1e38
    np.testing.assert_allclose(key_values(keys, values.dtype)[big & finite], values[big & finite], rtol=0.004)
