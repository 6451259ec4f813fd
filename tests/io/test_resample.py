"""Reading at another resolution: true means at true places."""

import numpy as np
import pytest

from cloudreg.io import open_volume, read_resampled, write_volume
from cloudreg.space import Grid


def ramp(shape, size, origin):
    """A volume whose voxels say where they are."""
    grid = Grid.from_spacing(shape, size, origin)
    z, y, x = (grid.affine[i, i] * np.arange(n) + origin[i] for i, n in enumerate(shape))
    return (z[:, None, None] + 1000 * y[:, None] + x / 1000).astype(np.float32), grid


@pytest.mark.parametrize("name", ["v.ome.zarr", "v.nrrd", "v.tif"])
@pytest.mark.parametrize("voxel_um", [2.0, 6.0, 11.0, 40.0])
def test_values_of_a_ramp_match_the_grid_returned(tmp_path, engine, name, voxel_um):
    array, grid = ramp((40, 84, 168), (4.0, 2.0, 1.0), (0.0, 0.0, 0.0))
    volume = write_volume(tmp_path / name, array, grid)
    result, found = read_resampled(volume, voxel_um, engine=engine)
    assert result.dtype == np.float32 and result.shape == found.shape
    full = tuple(
        slice(0, int(n * s / t + 1e-6))
        for n, s, t in zip(grid.shape, grid.voxel_size_um, found.voxel_size_um, strict=True)
    )
    where = found.index_to_um(np.stack(np.meshgrid(*map(np.arange, found.shape), indexing="ij"), -1))
    expected = where @ (1.0, 1000.0, 0.001)
    np.testing.assert_allclose(result[full], expected[full], rtol=1e-5, atol=1e-2)
    for size, own in zip(found.voxel_size_um, grid.voxel_size_um, strict=True):
        assert size == own if own >= voxel_um else 1 / 1.5 <= size / voxel_um <= 1.5


def test_blocks_do_not_show(tmp_path, monkeypatch, engine):
    array = np.random.default_rng(0).integers(0, 999, (50, 60, 70)).astype(np.uint16)
    volume = write_volume(tmp_path / "v.nrrd", array, Grid.from_spacing(array.shape, (2, 2, 2)))
    whole, _ = read_resampled(volume, 6)
    monkeypatch.setattr("cloudreg.io.blocks._LARGEST_BYTES", 10_000)
    volume = write_volume(tmp_path / "v.ome.zarr", array, volume.grid, levels=1)
    pieces, _ = read_resampled(volume, 6, engine=engine)
    np.testing.assert_array_equal(whole, pieces)


def test_the_weight_is_the_fraction_of_voxels_that_were_seen(tmp_path):
    array = np.full((8, 8, 8), 5, np.uint16)
    array[:3] = 0
    volume = write_volume(tmp_path / "v.tif", array, Grid.from_spacing(array.shape, (1, 1, 1)))
    means, grid, weight = read_resampled(volume, 2, weight=True)
    np.testing.assert_allclose(weight[:, 0, 0], [0, 0.5, 1, 1])
    np.testing.assert_allclose(means[:, 0, 0], [0, 2.5, 5, 5])
    assert weight.shape == grid.shape


def test_the_coarsest_level_that_is_fine_enough_is_read(tmp_path):
    array = np.zeros((200, 200, 200), np.uint8)
    volume = write_volume(tmp_path / "v.ome.zarr", array, Grid.from_spacing(array.shape, (2, 2, 2)))
    assert len(volume.levels) == 3
    assert [volume.level_near(um) for um in (0.5, 2, 3.9, 4, 7.9, 8, 500)] == [0, 0, 0, 1, 1, 2, 2]


def test_an_axis_that_is_coarse_from_the_start_does_not_hold_the_others_back(tmp_path):
    array = np.zeros((20, 300, 300), np.uint8)
    volume = write_volume(tmp_path / "v.ome.zarr", array, Grid.from_spacing(array.shape, (16, 2, 2)))
    assert volume.level_near(8) == 2
    assert volume.levels[2].voxel_size_um == (16, 8, 8)


def test_channels_are_read_one_by_one(tmp_path):
    array = np.stack([np.full((4, 4, 4), v, np.uint8) for v in (10, 20)])
    write_volume(tmp_path / "v.ome.zarr", array, Grid.from_spacing((4, 4, 4), (1, 1, 1)))
    assert read_resampled(open_volume(tmp_path / "v.ome.zarr"), 2, channel=1)[0].mean() == 20
