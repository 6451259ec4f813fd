"""Combining what several depth layers say about one pair."""

import numpy as np
import pytest

from cloudreg.stitching.layers import FLOOR_PX, agree_closely, combine_layers
from cloudreg.stitching.pairwise import Shift

PERFECT = 1 / FLOOR_PX**2


def shift(lag, sigma=0.1, correlation=0.8):
    information = np.diag(1 / np.broadcast_to(sigma, 3).astype(float) ** 2)
    return Shift(np.array(lag, dtype=float), correlation, 0.1 * np.eye(3), 1000, information)


def test_layers_that_agree_are_averaged_by_what_they_know():
    mean = combine_layers([shift((0, 0, 10)), shift((0, 0, 11), sigma=0.2)])
    np.testing.assert_allclose(mean.lag_px, (0, 0, 10.2), atol=1e-6)


def test_each_layer_counts_in_the_directions_in_which_it_knows_the_shift():
    mean = combine_layers([shift((1, 0, 7), sigma=(0.01, 0.01, 50)), shift((1, 0.5, 3), sigma=(0.01, 50, 0.01))])
    np.testing.assert_allclose(mean.lag_px, (1, 0, 3), atol=0.01)


def test_a_layer_that_contradicts_is_left_out_and_lowers_the_information():
    agreed = [shift((1, 2, 10)), shift((1, 2, 10.2))]
    mean = combine_layers([shift((0, 9, 30), correlation=0.9), *agreed])
    np.testing.assert_allclose(mean.lag_px, (1, 2, 10.1), atol=1e-6)
    assert mean.information[0, 0] < 0.7 * combine_layers(agreed).information[0, 0]


def test_layers_that_scatter_more_than_they_should_know_less():
    agreed = combine_layers([shift((0, 0, 0), 0.05), shift((0, 0, 0.02), 0.05)]).information
    scattered = combine_layers([shift((0, 0, 0), 0.05), shift((0, 0, 0.9), 0.05)]).information
    assert scattered[2, 2] < 0.3 * agreed[2, 2]


def test_nothing_is_known_better_than_the_floor_nor_along_an_edge():
    information = combine_layers([shift((0, 0, 0), sigma=(1e-3, 1e-3, 1e3))]).information
    assert information[0, 0] == pytest.approx(PERFECT, rel=0.01)
    assert information[2, 2] < 1e-5


def test_two_close_layers_are_enough():
    assert not agree_closely([shift((0, 0, 0))])
    assert not agree_closely([shift((0, 0, 0)), shift((0, 0, 1))])
    assert agree_closely([shift((0, 0, 0)), shift((0, 0, 1)), shift((0, 0.1, 1))])
