import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cloudreg.atlas.ids import as_ids, distinct
from cloudreg.errors import InputError


@given(arrays.arrays(np.uint32, arrays.array_shapes(min_dims=3, max_dims=3), elements=st.integers(0, 3)))
def test_the_distinct_ids_are_those_that_occur(labels):
    np.testing.assert_array_equal(distinct(labels), np.unique(labels))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.float32, np.float64])
def test_whole_numbers_of_any_type_are_ids(dtype):
    labels = as_ids(np.array([0, 3, 255 if dtype == np.uint8 else 30_000], dtype=dtype))
    assert labels.dtype == (np.uint64 if dtype == np.float64 else np.uint32)
    assert labels.tolist() == [0, 3, 255 if dtype == np.uint8 else 30_000]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.5, -1.0, 2.0**32])
def test_numbers_that_are_no_ids_are_refused(value):
    with pytest.raises(InputError, match=r"labels are whole numbers from 0 up, a\.tif \(float32\) holds"):
        as_ids(np.array([1, value, 2], np.float32), "a.tif")


def test_negative_numbers_are_no_ids():
    with pytest.raises(InputError, match="holds -4"):
        as_ids(np.array([1, -4], np.int16))
