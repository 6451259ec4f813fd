"""Volumes of one grid, read as the channels of one."""

import pickle

import numpy as np
import pytest

from cloudreg.errors import InputError
from cloudreg.io import open_volume, read_resampled, stacked, write_volume
from cloudreg.space import Box, Grid

GRID = Grid.from_spacing((12, 14, 16), (4.0, 2.0, 2.0))


@pytest.fixture
def volumes(tmp_path):
    rng = np.random.default_rng(0)
    for name in "ab":
        write_volume(tmp_path / f"{name}.ome.zarr", rng.integers(0, 999, GRID.shape).astype(np.uint16), GRID)
    return [open_volume(tmp_path / f"{name}.ome.zarr") for name in "ab"]


def test_every_channel_is_the_volume_that_it_was(volumes):
    both = pickle.loads(pickle.dumps(stacked(volumes)))
    assert both.channels == 2 and both.path == volumes[0].path
    box = Box((1, 2, 3), (7, 9, 12))
    for number, volume in enumerate(volumes):
        np.testing.assert_array_equal(both.read(channel=number), volume.read())
        np.testing.assert_array_equal(both.read(box, channel=None)[number], volume.read(box))
        np.testing.assert_array_equal(read_resampled(both, 4.0, channel=number)[0], read_resampled(volume, 4.0)[0])
    assert stacked(volumes[:1]).read(channel=None).shape == (1, *GRID.shape)


def test_other_grids_are_refused(volumes, tmp_path):
    other = Grid.from_spacing(GRID.shape, (4.0, 2.0, 3.0))
    write_volume(tmp_path / "c.ome.zarr", np.ones(GRID.shape, np.uint16), other)
    with pytest.raises(InputError, match="one grid and type"):
        stacked([volumes[0], open_volume(tmp_path / "c.ome.zarr")])
