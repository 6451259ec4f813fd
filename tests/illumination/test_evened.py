"""Illumination taken off while reading, and the stripes that tiles leave."""

import pickle

import numpy as np
import pytest
from scipy import ndimage

from cloudreg.errors import InputError
from cloudreg.illumination import BiasField, correct_volume, evened, find_stripes
from cloudreg.io import write_volume
from cloudreg.settings import IlluminationSettings
from cloudreg.space import Box, Grid

GRID = Grid.from_spacing((70, 80, 90), (10.0, 5.0, 5.0), (30.0, -20.0, 5.0))


@pytest.fixture
def volume(tmp_path):
    values = np.random.default_rng(0).integers(1, 60000, GRID.shape).astype(np.uint16)
    return write_volume(tmp_path / "v.ome.zarr", values, GRID)


def test_reading_is_the_same_as_correcting_first(volume, tmp_path, engine):
    grid = GRID.downsampled((20, 16, 30))
    field = BiasField(grid, np.random.default_rng(1).normal(0, 0.5, grid.shape).astype(np.float32))
    corrected = correct_volume(volume, field, tmp_path / "c.ome.zarr", IlluminationSettings(), engine)
    even = pickle.loads(pickle.dumps(evened(volume, [field])))
    np.testing.assert_array_equal(even.read(), corrected.read())
    box = Box((3, 4, 5), (9, 77, 40))
    np.testing.assert_array_equal(even.read(box, channel=None), corrected.read(box, channel=None))
    # A coarser level is corrected, too: nearly what averaging what was corrected gives.
    usual = corrected.read(level=1).astype(float)
    assert np.median(np.abs(even.read(level=1) - usual) / usual) < 0.1


def test_several_fields_are_taken_off(volume):
    half = BiasField(GRID.downsampled(GRID.shape), np.full((1, 1, 1), np.log(2), np.float32))
    twice = evened(volume, [half, half]).read().astype(float)
    assert np.abs(twice - volume.read() / 4).max() <= 1.01


def test_stripes_along_z_are_found_and_nothing_else(tmp_path, engine):
    shape = (40, 120, 130)
    smooth = np.exp(ndimage.gaussian_filter(np.random.default_rng(2).standard_normal(shape), 12) * 20)
    lines = 1 + 0.3 * ((np.arange(130) // 6) % 2)
    shown = 1000 * smooth * lines
    shown[:, :20] = 0
    volume = write_volume(tmp_path / "v.ome.zarr", shown.astype(np.uint16), Grid.from_spacing(shape, (50,) * 3))
    field = find_stripes(volume, engine=engine, voxel_um=50, blur_um=600)
    assert field.log_field.shape == (1, 120, 130)
    after = evened(volume, [field]).read()[:, 20:].astype(float)
    before = shown[:, 20:]

    def striped(values):
        profile = (values / smooth[:, 20:]).mean(axis=(0, 1))
        return np.abs(np.diff(profile)).max() / profile.mean()

    assert striped(after) < 0.25 * striped(before)
    assert (evened(volume, [field]).read()[:, :20] == 0).all()


def test_labels_have_no_illumination(tmp_path):
    labels = write_volume(
        tmp_path / "l.ome.zarr", np.ones((3, 4, 5), np.uint32), GRID.cropped(Box((0, 0, 0), (3, 4, 5))), kind="labels"
    )
    with pytest.raises(InputError, match="got labels"):
        evened(labels, [])
