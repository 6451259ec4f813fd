"""Stripes go, tissue stays."""

import numpy as np
import pytest
from scipy import ndimage

from cloudreg.errors import InputError
from cloudreg.flatfield.destripe import Destriping

pytest.importorskip("pywt", reason="pip install 'cloudreg[destripe]'")


def tissue(shape=(300, 400)):
    random = np.random.default_rng(0)
    layers = [ndimage.gaussian_filter(random.standard_normal(shape), s) for s in (2, 12)]
    return 1500 * np.exp(sum(0.25 * layer / layer.std() for layer in layers))


def stripes(rows):
    """Shadows some pixels wide, each all along a row."""
    noise = np.random.default_rng(1).standard_normal(rows)
    profile = ndimage.gaussian_filter1d(noise, 1) - ndimage.gaussian_filter1d(noise, 4)
    return np.exp(0.12 * profile / profile.std())[:, None]


def off(found, truth):
    ratio = np.log(found / truth)
    return ratio.std()


@pytest.mark.parametrize("along", ["rows", "columns"])
def test_most_of_the_stripes_go(along):
    truth = tissue()
    striped = np.random.default_rng(2).poisson(truth * stripes(300)).astype(np.uint16)
    if along == "columns":
        truth, striped = truth.T, striped.T
    found = Destriping(along).apply(striped)
    assert found.shape == striped.shape
    assert found.dtype == np.float32
    smooth = [ndimage.gaussian_filter(image.astype(float), 1) for image in (striped, found, truth)]
    assert off(smooth[0], smooth[2]) > 0.08
    assert off(smooth[1], smooth[2]) < 0.6 * off(smooth[0], smooth[2])
    assert found.mean() == pytest.approx(striped.mean(), rel=0.02)


def test_tissue_without_stripes_hardly_changes_and_black_stays_black():
    truth = tissue()
    assert off(Destriping("rows").apply(truth), truth) < 0.06
    assert not Destriping("rows").apply(np.zeros((64, 64), np.uint16)).any()


def test_lengths_that_mean_nothing_are_refused():
    with pytest.raises(InputError, match="expected stripes at least some pixels long"):
        Destriping("rows", widest_px=1)
