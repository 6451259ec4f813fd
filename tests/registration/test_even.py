"""The target's preparation: the grid of the tiles and the slow illumination are taken off, if asked for."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from brains import SHAPE, VOXEL_UM, brain
from cloudreg.illumination import common_pattern
from cloudreg.registration.even import even_out
from cloudreg.settings import RegistrationSettings
from cloudreg.space import Grid

GRID = Grid.from_spacing(SHAPE, (VOXEL_UM,) * 3)


def shown():
    return (100 + 900 * brain()).astype(np.float32)


def evened(values, observed=None, mask=None, unit_um=VOXEL_UM, **settings):
    observed = np.ones(values.shape, np.float32) if observed is None else observed
    return even_out(values, observed, GRID, RegistrationSettings(**settings), unit_um=unit_um, mask=mask)


def grid_of(axis):
    """Every fifth line across one of the other axes is darker by 30 %, in all planes across ``axis``."""
    lines = np.ones(SHAPE, np.float32)
    lines[tuple(slice(None, None, 5) if k == (axis + 1) % 3 else slice(None) for k in range(3))] = 0.7
    return lines


def contrast_of_lines(values, axis):
    """How much darker the lines are than the ones beside them, over the whole image."""
    across = (axis + 1) % 3
    profile = values.mean(axis=tuple(k for k in range(3) if k != across))
    inner = np.arange(10, len(profile) - 5, 5)
    return 1 - np.mean(profile[inner] / (0.5 * (profile[inner - 1] + profile[inner + 1])))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_lines_that_all_planes_share_are_taken_off(axis):
    striped = shown() * grid_of(axis)
    assert contrast_of_lines(striped, axis) > 0.25
    even = evened(striped, grid_correction="zyx"[axis])
    assert abs(contrast_of_lines(even.values, axis)) < 0.06
    # Lines across another axis are not looked for.
    other = evened(striped, grid_correction="zyx"[(axis + 1) % 3])
    assert contrast_of_lines(other.values, axis) > 0.2


def test_what_was_not_observed_makes_no_pattern():
    values, observed = shown(), np.ones(SHAPE, np.float32)
    values[:20, :, 13] = 0
    observed[:20, :, 13] = 0
    whole = common_pattern(shown(), np.ones(SHAPE, np.float32), GRID, axis=0, blur_um=300.0)
    lost = common_pattern(values, observed, GRID, axis=0, blur_um=300.0)
    beside = np.abs(np.arange(SHAPE[2]) - 13) > 5
    np.testing.assert_allclose(lost.log_field[..., beside], whole.log_field[..., beside], atol=1e-3)
    assert np.abs(lost.log_field[..., 13] - whole.log_field[..., 13]).max() < 0.35


def test_the_pattern_is_centred_has_no_scale_and_is_not_periodic():
    values = np.full((6, 30, 31), 50, np.float32)
    values[:, 15, :] = 100
    values[:, :, 0] = 200
    grid = Grid.from_spacing(values.shape, (100.0,) * 3)
    ones = np.ones(values.shape, np.float32)
    pattern = common_pattern(values, ones, grid, axis=0, blur_um=250.0).log_field[0]
    # One line in the middle of rows: the same on both sides of it, for even sizes too.
    np.testing.assert_allclose(pattern[14:9:-1, 20], pattern[16:21, 20], atol=1e-5)
    # A bright first column changes nothing at the last one.
    assert np.abs(pattern[3:8, -1]).max() < 1e-3 < np.abs(pattern[3:8, 1]).max()
    again = common_pattern(1000 * values, ones, grid, axis=0, blur_um=250.0).log_field[0]
    np.testing.assert_allclose(again, pattern, atol=1e-6)


def test_a_known_bias_is_taken_off_and_kept():
    bias = gaussian_filter(np.random.default_rng(1).standard_normal(SHAPE), 12)
    tissue = brain() > 0.3
    bias *= 0.15 / bias[tissue].std()
    bias -= bias[tissue].mean()
    biased = (shown() * np.exp(bias)).astype(np.float32)
    even = evened(biased, bias_correction=True)
    left = np.log(even.values / shown())[tissue]
    assert left.std() < 0.4 * bias[tissue].std()
    np.testing.assert_allclose(even.values * np.exp(_on_grid(even.bias)), biased, rtol=0.02)


def _on_grid(field):
    from scipy.ndimage import map_coordinates

    index = np.moveaxis(np.indices(SHAPE), 0, -1).reshape(-1, 3)
    at = field.grid.um_to_index(GRID.index_to_um(index)).T
    return map_coordinates(field.log_field, at, order=1, mode="nearest").reshape(SHAPE)


def test_masked_and_lost_voxels_do_not_matter_for_the_bias():
    values, observed, mask = shown(), np.ones(SHAPE, np.float32), np.ones(SHAPE, np.float32)
    observed[18:24] = 0
    values[18:24] = 0
    mask[:, :, 26:] = 0
    junk = values.copy()
    junk[:, :, 26:] *= 7
    biases = [evened(v, observed, mask, bias_correction=True).bias.log_field for v in (values, junk)]
    np.testing.assert_array_equal(*biases)


def test_off_is_off():
    values = shown()
    assert evened(values).values is values and evened(values).bias is None
