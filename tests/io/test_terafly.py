"""Volumes in TeraStitcher's folders: resolutions, names, going on after a kill, and what can't be written."""

import numpy as np
import pytest
import tifffile

from cloudreg.errors import BlocksFailedError, InputError
from cloudreg.execution import Ledger
from cloudreg.io import write_volume
from cloudreg.io.terafly import write_terafly
from cloudreg.space import Grid, split

ARRAY = np.random.default_rng(0).integers(0, 999, (9, 14, 12)).astype(np.uint16)
BOXES = split(ARRAY.shape, (4, 8, 8))


@pytest.fixture
def volume(tmp_path):
    return write_volume(tmp_path / "v.ome.zarr", ARRAY, Grid.from_spacing(ARRAY.shape, (2.5, 1, 1)))


def planes(folder):
    return np.stack([tifffile.imread(p) for p in sorted(folder.iterdir())])


@pytest.mark.parametrize("boxes", [BOXES, split(ARRAY.shape, (8, 14, 12))])
def test_each_resolution_is_a_folder_of_planes(volume, tmp_path, engine, boxes):
    fine, coarse = write_terafly(volume, tmp_path / "out", boxes, levels=[0, 2], engine=engine)
    assert (fine.name, coarse.name) == ("RES(14x12x9)", "RES(4x3x3)")
    np.testing.assert_array_equal(planes(fine), ARRAY)
    assert [p.name for p in sorted(coarse.iterdir())] == [f"000000_000000_{z:06d}.tif" for z in (0, 100, 200)]
    # Two roundings to nearest.
    assert abs(float(planes(coarse)[1, 1, 1]) - ARRAY[4:8, 4:8, 4:8].mean()) <= 1


def test_a_stopped_conversion_goes_on(volume, tmp_path, engine, monkeypatch):
    ledger = tmp_path / "ledger"
    read = type(volume.source).read

    def failing(self, level, channels, box):
        if box == BOXES[-1]:
            raise RuntimeError("stopped")
        return read(self, level, channels, box)

    with monkeypatch.context() as patch:
        patch.setattr(type(volume.source), "read", failing)
        with pytest.raises(BlocksFailedError):
            write_terafly(volume, tmp_path / "out", BOXES, engine=engine, ledger=Ledger(ledger))
    assert [p.name for p in (tmp_path / "out").iterdir()] == [".unfinished.RES(14x12x9)"]
    assert len(Ledger(ledger)) == len(BOXES) - 1
    (folder,) = write_terafly(volume, tmp_path / "out", BOXES, engine=engine, ledger=Ledger(ledger))
    np.testing.assert_array_equal(planes(folder), ARRAY)


def test_channels_have_folders_with_tiles_of_their_own(tmp_path, engine):
    two = write_volume(
        tmp_path / "two.ome.zarr", np.stack([ARRAY, 999 - ARRAY]), Grid.from_spacing(ARRAY.shape, (2, 1, 1))
    )
    fine, coarse = write_terafly(two, tmp_path / "out", BOXES, form="tiles_4d", levels=[0, 1], engine=engine)
    assert (fine.name, coarse.name) == ("RES(14x12x9)", "RES(7x6x5)")
    for folder, size in ((fine, 1), (coarse, 2)):
        assert sorted(p.name for p in folder.iterdir()) == ["CH_1", "CH_2"]
        assert len(list(folder.glob("CH_2/*/*/*.tif"))) == len(BOXES)
        # The tile at 8 planes (2 um each), 8 rows and 0 columns of the finest level.
        tiles = [
            tifffile.imread(folder / name / "000080" / "000080_000000" / "000080_000000_000160.tif")
            for name in ("CH_1", "CH_2")
        ]
        if size == 1:
            np.testing.assert_array_equal(tiles[0].reshape(1, 6, 8), ARRAY[8:9, 8:14, 0:8])
        assert tiles[0].shape == tiles[1].shape and np.abs(tiles[0] + tiles[1].astype(float) - 999).max() <= 1


def test_isotropic_resolutions_halve_the_finest_axes(volume, tmp_path, engine):
    # Planes are 2.5 um apart, pixels 1 um: the first halving makes them 2 um.
    folders = write_terafly(volume, tmp_path / "out", BOXES, levels=[0, 1, 2], isotropic=True, engine=engine)
    assert [f.name for f in folders] == ["RES(14x12x9)", "RES(7x6x9)", "RES(4x3x5)"]
    half = planes(folders[1])
    assert np.abs(half - ARRAY.reshape(9, 7, 2, 6, 2).mean(axis=(2, 4))).max() <= 0.5


def test_what_can_not_be_written_is_said(volume, tmp_path, engine):
    write_terafly(volume, tmp_path / "out", BOXES, engine=engine)
    with pytest.raises(InputError, match=r"got a finished volume: choose a new place"):
        write_terafly(volume, tmp_path / "out", BOXES, engine=engine)
    two = write_volume(tmp_path / "two.ome.zarr", np.stack([ARRAY, ARRAY]), volume.grid)
    with pytest.raises(InputError, match="expected a volume of one channel"):
        write_terafly(two, tmp_path / "two", BOXES, engine=engine)
    thin = write_volume(tmp_path / "thin.ome.zarr", ARRAY, Grid.from_spacing(ARRAY.shape, (0.02, 1, 1)))
    with pytest.raises(InputError, match=r"expected planes at least 0\.1 um apart"):
        write_terafly(thin, tmp_path / "thin", BOXES, engine=engine)
