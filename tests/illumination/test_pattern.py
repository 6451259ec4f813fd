"""What all planes have in common, and taking a field off."""

import numpy as np
import pytest
from scipy import ndimage

from cloudreg.illumination import BiasField, common_pattern, correct_volume, divided
from cloudreg.io import write_volume
from cloudreg.settings import IlluminationSettings
from cloudreg.space import Grid

GRID = Grid.from_spacing((70, 80, 90), (10.0, 5.0, 5.0), (30.0, -20.0, 5.0))


@pytest.mark.parametrize("nodes", [(20, 16, 30), (70, 80, 90), (70, 1, 1)])
def test_dividing_an_array_is_the_same_as_correcting_its_volume(nodes, tmp_path, engine):
    values = np.random.default_rng(0).integers(1, 60000, GRID.shape).astype(np.uint16)
    grid = GRID.downsampled(nodes)
    field = BiasField(grid, np.random.default_rng(1).normal(0, 0.5, grid.shape).astype(np.float32))
    volume = write_volume(tmp_path / "v.ome.zarr", values, GRID)
    corrected = correct_volume(volume, field, tmp_path / "c.ome.zarr", IlluminationSettings(), engine)
    np.testing.assert_array_equal(divided(values, field, GRID), corrected.read())


def test_stripes_along_z_are_found_and_nothing_else():
    shape = (40, 120, 130)
    smooth = np.exp(ndimage.gaussian_filter(np.random.default_rng(2).standard_normal(shape), 12) * 20)
    lines = 1 + 0.3 * ((np.arange(130) // 6) % 2)
    shown = (1000 * smooth * lines).astype(np.float32)
    shown[:, :20] = 0
    grid = Grid.from_spacing(shape, (50.0,) * 3)
    field = common_pattern(shown, (shown > 0).astype(np.float32), grid, axis=0, blur_um=600)
    assert field.log_field.shape == (1, 120, 130)
    after, before = divided(shown, field, grid), shown

    def striped(values):
        profile = (values[:, 20:] / smooth[:, 20:]).mean(axis=(0, 1))
        return np.abs(np.diff(profile)).max() / profile.mean()

    assert striped(after) < 0.25 * striped(before)
    assert (after[:, :20] == 0).all()
