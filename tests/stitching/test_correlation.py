"""Correlation maps, peaks and filters against sums done the slow way."""

import os
import subprocess
import sys

import numpy as np
import pytest

from cloudreg.stitching.correlation import bandpass, correlation_map, correlations_at, quadratic_peak


def slow_correlation(first, second, first_mask, second_mask, lag):
    a, b = [], []
    for index in np.ndindex(second.shape):
        other = tuple(np.add(index, lag))
        if (
            all(0 <= i < n for i, n in zip(other, first.shape, strict=True))
            and first_mask[other]
            and second_mask[index]
        ):
            a.append(first[other])
            b.append(second[index])
    return np.corrcoef(a, b)[0, 1]


@pytest.fixture
def pair():
    random = np.random.default_rng(3)
    first, second = random.standard_normal((7, 9, 8)), random.standard_normal((6, 8, 10))
    return first, second, random.random(first.shape) > 0.2, random.random(second.shape) > 0.2


def test_the_map_is_pearsons_coefficient_of_the_voxels_that_both_masks_keep(pair):
    found = correlation_map(*pair, (-2, -1, -3), (2, 3, 2))
    for index in np.ndindex(found.values.shape):
        expected = slow_correlation(*pair, np.add(index, found.low))
        assert found.values[index] == pytest.approx(expected, abs=2e-5)


def test_masked_voxels_have_no_say(pair):
    first, second, first_mask, second_mask = pair
    spoilt = np.where(first_mask, first, 1e3)
    window = ((-1, -1, -1), (1, 1, 1))
    expected = correlation_map(first, second, first_mask, second_mask, *window)
    np.testing.assert_array_equal(
        correlation_map(spoilt, second, first_mask, second_mask, *window).values, expected.values
    )


def test_few_lags_agree_with_the_map(pair):
    first, second = pair[0].astype(np.float32), pair[1].astype(np.float32)
    first_planes, second_planes = np.arange(7) != 2, np.arange(6) != 4
    masks = [np.broadcast_to(p[:, None, None], v.shape) for p, v in ((first_planes, first), (second_planes, second))]
    expected = correlation_map(first, second, *masks, (-2, -2, -2), (1, 1, 1)).values
    lags = np.array(list(np.ndindex(4, 4, 4))) - 1
    values = correlations_at([(first, second, first_planes, second_planes, (-1, -1, -1))], lags)
    np.testing.assert_allclose(values.reshape(4, 4, 4), expected, atol=2e-5)


_DIGEST = """
import hashlib
import numpy as np
from cloudreg.stitching.correlation import correlations_at
first, second = (np.random.default_rng(i).standard_normal((9, 40, 43)).astype(np.float32) for i in (0, 1))
seen = np.ones(9, bool)
lags = np.array(list(np.ndindex(3, 3, 3)))
print(hashlib.sha256(correlations_at([(first, second, seen, seen, (0, 0, 0))], lags).tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_code_from_the_cache_gives_the_bytes_of_code_just_compiled(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", _DIGEST]
    digests = {subprocess.run(command, env=environment, capture_output=True, check=True).stdout for _ in range(2)}
    assert len(digests) == 1
    assert list(tmp_path.rglob("*_add_sums*.nbc"))


def test_noise_alone_gives_no_peak():
    random = np.random.default_rng(0)
    for _ in range(10):
        a, b = bandpass(random.poisson(100, (16, 60, 30))), bandpass(random.poisson(100, (16, 60, 30)))
        assert correlation_map(a, b, np.ones_like(a), np.ones_like(b), (-3, -8, -8), (3, 8, 8)).peaks() == []


@pytest.mark.parametrize("offset", [(0.0, 0.0, 0.0), (0.3, -0.45, 0.2), (-0.5, 0.5, 0.1)])
def test_the_peak_of_a_tilted_gaussian_is_found_exactly(offset):
    curvature = np.array([[0.5, 0.1, 0.0], [0.1, 0.2, -0.05], [0.0, -0.05, 0.1]])
    points = np.stack(np.mgrid[-1:2, -1:2, -1:2], axis=-1) - offset
    cube = 0.8 * np.exp(-0.5 * np.einsum("...i,ij,...j", points, curvature, points))
    found, curved, height = quadratic_peak(cube)
    np.testing.assert_allclose(found, offset, atol=1e-6)
    np.testing.assert_allclose(curved, curvature, atol=1e-6)
    assert height == pytest.approx(0.8, rel=1e-5)


def test_a_ridge_is_not_sharp_along_itself():
    z, y, _ = np.mgrid[-1:2, -1:2, -1:2]
    offset, curved, _ = quadratic_peak(np.exp(-0.2 * (z - 0.2) ** 2 - 0.2 * y**2))
    np.testing.assert_allclose(offset, (0.2, 0, 0), atol=1e-6)
    assert curved[2, 2] < 1e-3 < curved[1, 1]


def test_the_filter_takes_off_shading_and_touches_planes_one_by_one():
    random = np.random.default_rng(0)
    planes = random.poisson(200, (3, 80, 80)).astype(float)
    ramp = np.linspace(0.9, 1.1, 80)
    plain, shaded = bandpass(planes), bandpass(planes * ramp)
    middle = np.s_[:, 12:-12, 12:-12]
    assert np.abs(plain - shaded)[middle].max() < 0.15 * plain[middle].std()
    spoilt = planes.copy()
    spoilt[1] = 0
    np.testing.assert_array_equal(bandpass(spoilt)[[0, 2]], plain[[0, 2]])
