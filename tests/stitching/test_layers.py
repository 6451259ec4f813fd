"""Combining what several depth layers say about one pair."""

import numpy as np
import pytest

from cloudreg.stitching.layers import agree_closely, combine_layers
from cloudreg.stitching.pairwise import Shift


def shift(lag, correlation=0.8, sharpness=0.1):
    return Shift(np.array(lag, dtype=float), correlation, np.full(3, sharpness))


def test_layers_that_agree_are_averaged_by_their_weight():
    mean, weight = combine_layers([shift((0, 0, 10)), shift((0, 0, 11), 0.4)])
    np.testing.assert_allclose(mean.lag_px, (0, 0, 10.2))
    assert 0.2 < weight[0] < 0.6


def test_a_layer_that_contradicts_is_left_out_and_lowers_the_weight():
    agreed = [shift((1, 2, 10)), shift((1, 2, 10.2))]
    mean, weight = combine_layers([shift((0, 9, 30), 0.9), *agreed])
    np.testing.assert_allclose(mean.lag_px, (1, 2, 10.1))
    assert weight[0] < 0.7 * combine_layers(agreed)[1][0]


def test_an_axis_along_which_the_peak_is_flat_has_no_weight():
    flat = Shift(np.zeros(3), 0.9, np.array([0.2, 0.2, 1e-5]))
    weight = combine_layers([flat])[1]
    assert weight[0] == pytest.approx(0.81, rel=0.05)
    assert weight[2] < 0.01


def test_two_close_layers_are_enough():
    assert not agree_closely([shift((0, 0, 0))])
    assert not agree_closely([shift((0, 0, 0)), shift((0, 0, 1))])
    assert agree_closely([shift((0, 0, 0)), shift((0, 0, 1)), shift((0, 0.1, 1))])
