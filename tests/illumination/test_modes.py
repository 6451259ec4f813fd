"""Histogram flow: illumination that is known is found, from greys alone."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from cloudreg.errors import InputError
from cloudreg.illumination import flow_to_modes
from cloudreg.space import Grid

SHAPE = (48, 40, 44)
GRID = Grid.from_spacing(SHAPE, (200.0,) * 3)
SMOOTH_UM = 1000.0


@pytest.fixture(scope="module")
def phantom():
    """Two grey classes in an ellipsoid, and a smooth field of 15 % (standard deviation)."""
    rng = np.random.default_rng(0)
    axes = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    inside = ((axes / 0.85) ** 2).sum(axis=0) < 1
    grey = np.where(gaussian_filter(rng.standard_normal(SHAPE), 2.0) > 0, 600.0, 300.0)
    grey *= 1 + 0.05 * rng.standard_normal(SHAPE)
    bias = gaussian_filter(rng.standard_normal(SHAPE), 14)
    bias *= 0.15 / bias[inside].std()
    return np.where(inside, grey, 10).astype(np.float32), bias - bias[inside].mean(), inside


def error(field, bias, where):
    """Standard deviation of the difference: the brightness of the whole is nobody's."""
    return (field.log_field - bias)[where].std()


def test_a_known_field_over_two_grey_classes_is_found_to_two_per_cent(phantom):
    clean, bias, inside = phantom
    shown = (clean * np.exp(bias)).astype(np.float32)
    field = flow_to_modes(shown, inside.astype(np.float32), GRID, smooth_um=SMOOTH_UM)
    assert error(field, bias, inside) < 0.02
    assert np.average(np.exp(field.log_field[inside])) == pytest.approx(1, abs=1e-3)


def test_even_light_is_left_alone(phantom):
    clean, _, inside = phantom
    field = flow_to_modes(clean, inside.astype(np.float32), GRID, smooth_um=SMOOTH_UM)
    assert np.abs(field.log_field[inside]).max() < 0.03


def test_the_scale_of_the_greys_does_not_matter(phantom):
    clean, bias, inside = phantom
    shown = (clean * np.exp(bias)).astype(np.float32)
    weight = inside.astype(np.float32)
    one, other = (flow_to_modes(k * shown, weight, GRID, smooth_um=SMOOTH_UM) for k in (np.float32(1), np.float32(37)))
    np.testing.assert_allclose(one.log_field, other.log_field, atol=0.005)


def test_a_turned_image_has_a_turned_field(phantom):
    clean, bias, inside = phantom
    shown = (clean * np.exp(bias)).astype(np.float32)
    straight = flow_to_modes(shown, inside.astype(np.float32), GRID, smooth_um=SMOOTH_UM).log_field
    turned = np.ascontiguousarray(shown[::-1].transpose(2, 0, 1))
    weight = np.ascontiguousarray(inside[::-1].transpose(2, 0, 1)).astype(np.float32)
    grid = Grid.from_spacing(turned.shape, (200.0,) * 3)
    there = flow_to_modes(turned, weight, grid, smooth_um=SMOOTH_UM).log_field
    np.testing.assert_allclose(there, straight[::-1].transpose(2, 0, 1), atol=0.005)


def test_what_has_no_weight_has_no_voice(phantom):
    clean, bias, inside = phantom
    shown = (clean * np.exp(bias)).astype(np.float32)
    weight = inside.astype(np.float32)
    weight[20:26] = 0
    fields = []
    for junk in (0.0, 9000.0):
        damaged = shown.copy()
        damaged[20:26] = junk
        fields.append(flow_to_modes(damaged, weight, GRID, smooth_um=SMOOTH_UM))
    np.testing.assert_array_equal(fields[0].log_field, fields[1].log_field)
    assert error(fields[0], bias, inside & (weight > 0)) < 0.02


def test_no_tissue_is_said():
    with pytest.raises(InputError, match="check the channel and the mask"):
        flow_to_modes(np.ones(SHAPE, np.float32), np.zeros(SHAPE, np.float32), GRID, smooth_um=SMOOTH_UM)


def test_one_grey_has_no_field():
    field = flow_to_modes(np.full(SHAPE, 7, np.float32), np.ones(SHAPE, np.float32), GRID, smooth_um=SMOOTH_UM)
    np.testing.assert_allclose(field.log_field, 0, atol=1e-6)
