import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cloudreg.atlas.ids import distinct


@given(arrays.arrays(np.uint32, arrays.array_shapes(min_dims=3, max_dims=3), elements=st.integers(0, 3)))
def test_the_distinct_ids_are_those_that_occur(labels):
    np.testing.assert_array_equal(distinct(labels), np.unique(labels))
