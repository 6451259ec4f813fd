"""Numbers become integers by rounding and clipping, never by wrapping."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cloudreg.errors import InputError
from cloudreg.io import to_dtype
from cloudreg.io.dtypes import held_dtype, likely_kind

integers = st.sampled_from(["uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"])
every = integers | st.sampled_from(["float32", "float64"])


@given(every.flatmap(lambda d: hnp.arrays(d, 5)), integers)
def test_integers_are_the_nearest_that_the_type_has(array, wanted):
    result = to_dtype(array, wanted)
    assert result.dtype == wanted
    limits = np.iinfo(wanted)
    for before, after in zip(array.tolist(), result.tolist(), strict=True):
        if before != before:
            assert after == 0
        else:
            nearest = round(before) if abs(before) < 2.0**70 else int(np.sign(before)) * 2**70
            assert after == min(max(nearest, limits.min), limits.max)


@given(integers.flatmap(lambda d: hnp.arrays(d, 5)))
def test_the_same_type_is_the_same_array(array):
    assert to_dtype(array, array.dtype) is array


def test_the_input_is_left_as_it_was():
    array = np.array([1.5, np.nan, 300.0])
    np.testing.assert_array_equal(to_dtype(array, "uint8"), [2, 0, 255])
    np.testing.assert_array_equal(array, [1.5, np.nan, 300.0])


def test_types_that_are_no_numbers_are_refused():
    assert held_dtype(">u2", "v") == np.uint16 and held_dtype(">u2", "v").isnative
    assert held_dtype("bool", "v") == np.uint8 and held_dtype("float16", "v") == np.float32
    for odd in ("complex64", "U3", "datetime64[s]"):
        with pytest.raises(InputError, match=r"expected voxels of type .*; v holds"):
            held_dtype(odd, "v")


def test_wide_integers_are_ids():
    kinds = {d: likely_kind(np.dtype(d)) for d in ("uint8", "uint16", "float32", "uint32", "uint64", "int32")}
    assert kinds == {
        "uint8": "image",
        "uint16": "image",
        "float32": "image",
        "uint32": "labels",
        "uint64": "labels",
        "int32": "labels",
    }
