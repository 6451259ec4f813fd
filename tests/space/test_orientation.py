"""Orientation letters: all 48, and how they turn into each other."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudreg.errors import InputError
from cloudreg.space import axes_between, parse_orientation, proper_orientations
from cloudreg.space.orientation import left_right_axis

ALL = sorted(
    "".join(letters) for axes in itertools.permutations(("ap", "si", "lr")) for letters in itertools.product(*axes)
)
# What one step along an axis that starts at this side does, as (right, anterior, superior).
STEP = {"l": (1, 0, 0), "r": (-1, 0, 0), "p": (0, 1, 0), "a": (0, -1, 0), "i": (0, 0, 1), "s": (0, 0, -1)}
codes = st.sampled_from(ALL)


def world(code):
    return np.array([STEP[c] for c in code], dtype=float).T


def test_there_are_48_orientations_and_half_of_them_are_rotations_of_one():
    assert len(ALL) == 48
    proper = proper_orientations("asr")
    assert len(proper) == 24 and "asr" in proper
    assert set(proper) == {c for c in ALL if np.linalg.det(world(c)) * np.linalg.det(world("asr")) > 0}


@given(codes, codes, st.tuples(*[st.floats(-10, 10)] * 3))
def test_a_vector_points_to_the_same_side_in_both_spaces(source, destination, vector):
    turned = axes_between(source, destination, allow_mirror=True) @ vector
    np.testing.assert_allclose(world(destination) @ turned, world(source) @ np.array(vector))


@given(codes, codes, codes)
def test_going_by_a_third_space_changes_nothing(a, b, c):
    direct = axes_between(a, c, allow_mirror=True)
    np.testing.assert_array_equal(axes_between(b, c, allow_mirror=True) @ axes_between(a, b, allow_mirror=True), direct)
    np.testing.assert_array_equal(axes_between(c, a, allow_mirror=True), direct.T)


@given(codes, codes)
def test_mirrors_are_refused_unless_asked_for(source, destination):
    if np.linalg.det(world(source)) * np.linalg.det(world(destination)) < 0:
        with pytest.raises(InputError, match="mirror images"):
            axes_between(source, destination)
    else:
        assert np.linalg.det(axes_between(source, destination)) == pytest.approx(1)


@pytest.mark.parametrize("letters", ["", "as", "asrr", "aar", "xyz", "apl", "a s"])
def test_letters_that_name_no_orientation_are_refused(letters):
    with pytest.raises(InputError, match="three letters"):
        parse_orientation(letters)


def test_letters_may_be_capitals():
    assert parse_orientation(" ASR ") == "asr"


@given(codes)
def test_the_left_right_axis_starts_at_the_side_it_says(code):
    axis, sign = left_right_axis(code)
    # Away from the right is toward the left.
    assert world(code)[0, axis] == -sign
