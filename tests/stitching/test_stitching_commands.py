"""Alignment and fusion from the command line: the steps' projects, other channels, other methods."""

from importlib.util import find_spec

import numpy as np
import pytest

from cloudreg.flatfield import Shading, save_shading
from cloudreg.flatfield.destripe import Destriping
from cloudreg.io import open_volume
from cloudreg.tiles import open_acquisition, read_project, write_colm

TRUTH = {(0, 0): (0, 0, 0), (0, 1): (2, -3, 94), (1, 0): (-1, 99, 4), (1, 1): (1, 95, 101)}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """2 x 2 tiles of two channels, cut at known whole pixels from spots; the second channel is half as bright."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(4)
    noise = gaussian_filter(random.standard_normal((40, 240, 240)), 2)
    scene = 100 + 1000 * np.exp(noise / noise.std())

    def planes(row, column, channel, plane):
        z, y, x = np.add(TRUTH[row, column], (4, 4, 4))
        part = scene[z + plane, y : y + 128, x : x + 128] / (1 + channel)
        return part.clip(0, 60000).astype(np.uint16)

    folder = tmp_path_factory.mktemp("raw") / "raw"
    write_colm(
        folder,
        rows=2,
        columns=2,
        tile_shape=(30, 128, 128),
        voxel_size_um=(4.0, 2.0, 2.0),
        overlap=(0.25, 0.25),
        channels=2,
        objective="10x",
        scanned=np.ones((2, 2), bool),
        planes=planes,
    )
    return folder


def positions(path):
    return {(t.row, t.column): t.position_px for t in read_project(path).tiles}


def test_terastitchers_way_and_ours_find_the_same_places(cloudreg, raw, tmp_path):
    for name, words in (("ours", ()), ("theirs", ("--method", "projections", "--placement", "tree"))):
        code, _, err = cloudreg("align", raw, tmp_path / f"{name}.xml", *words)
        assert code == 0, err
        found = positions(tmp_path / f"{name}.xml")
        for place, truth in TRUTH.items():
            np.testing.assert_allclose(np.subtract(found[place], found[0, 0]), truth, atol=0.1)


def test_each_step_is_written_and_gone_on_from(cloudreg, raw, tmp_path):
    words = ("--method", "projections", "--placement", "tree")
    assert cloudreg("align", raw, tmp_path / "a.xml", *words, "--steps", tmp_path / "steps")[0] == 0
    assert cloudreg("align", raw, tmp_path / "b.xml", *words, "--from", tmp_path / "steps/xml_displcomp.xml")[0] == 0
    assert (tmp_path / "a.xml").read_bytes() == (tmp_path / "b.xml").read_bytes()
    assert (tmp_path / "steps/xml_merging.xml").read_bytes() == (tmp_path / "a.xml").read_bytes()


def test_one_channels_alignment_serves_the_other(cloudreg, refused, raw, tmp_path):
    assert cloudreg("align", raw, tmp_path / "a.xml")[0] == 0
    code, _, err = cloudreg("align", raw, tmp_path / "b.xml", "--reuse", tmp_path / "a.xml", "--channel", "1")
    assert code == 0, err
    one, other = read_project(tmp_path / "a.xml"), read_project(tmp_path / "b.xml")
    assert positions(tmp_path / "a.xml") == positions(tmp_path / "b.xml")
    assert [t.east for t in one.tiles] == [t.east for t in other.tiles]
    assert "CHN01" in other.tiles[0].pattern
    assert "CHN00" in one.tiles[0].pattern
    assert cloudreg("fuse", tmp_path / "b.xml", tmp_path / "v.ome.zarr", "--channel", "1")[0] == 0
    assert open_volume(tmp_path / "v.ome.zarr").grid.shape[1:] == (128 + 102, 128 + 101)
    line = refused("align", raw, tmp_path / "c.xml", "--reuse", tmp_path / "a.xml", "--steps", tmp_path / "s")
    assert "expected --reuse alone" in line
    assert not (tmp_path / "c.xml").exists()


def test_a_known_field_is_taken_off_new_tiles(cloudreg, refused, raw, tmp_path):
    flat = np.linspace(0.5, 1.5, 128, dtype=np.float32)[None].repeat(128, 0)
    save_shading(Shading(flat, 20.0), tmp_path / "field")
    code, _, err = cloudreg("correct-tiles", raw, tmp_path / "even", "--shading", tmp_path / "field")
    assert code == 0, err
    before, after = open_acquisition(raw), open_acquisition(tmp_path / "even")
    for channel in (0, 1):
        seen = before.read(before.tiles[1], channel, 5, 6)[0].astype(float)
        expected = np.rint(np.maximum(seen - 20, 0) / flat)
        np.testing.assert_array_equal(after.read(after.tiles[1], channel, 5, 6)[0], expected)
    again = tmp_path / "again"
    assert cloudreg("correct-tiles", raw, again, "--shading", tmp_path / "even/shading", "--channels", "1")[0] == 0
    assert "expected a flat field in" in refused("correct-tiles", raw, tmp_path / "x", "--shading", tmp_path)
    assert not (tmp_path / "x").exists()


def test_the_field_of_other_tiles_is_refused_before_anything_is_written(cloudreg, refused, raw, tmp_path):
    save_shading(Shading(np.ones((50, 60), np.float32), 0.0), tmp_path / "field")
    message = "expected a flat field of 128 x 128 pixels, got one of 50 x 60: it is of other tiles"
    assert message in refused("align", raw, tmp_path / "a.xml", "--shading", tmp_path / "field")
    assert not (tmp_path / "a.xml").exists()
    assert cloudreg("align", raw, tmp_path / "a.xml")[0] == 0
    words = ("fuse", tmp_path / "a.xml", tmp_path / "v.ome.zarr", "--shading", tmp_path / "field")
    assert message in refused(*words)
    assert not (tmp_path / "v.ome.zarr").exists()


def test_stripes_are_taken_out_if_asked_for(cloudreg, refused, raw, tmp_path):
    save_shading(Shading(np.ones((128, 128), np.float32), 0.0), tmp_path / "field")
    words = ("correct-tiles", raw, tmp_path / "even", "--shading", tmp_path / "field", "--destripe", "rows")
    if find_spec("pywt") is None:
        assert "pip install 'cloudreg[destripe]'" in refused(*words)
        return
    assert cloudreg(*words, "--channels", "0")[0] == 0
    before, after = open_acquisition(raw), open_acquisition(tmp_path / "even")
    seen = before.read(before.tiles[0], 0, 3, 4)[0].astype(np.float32)
    expected = np.rint(Destriping("rows").apply(seen)).clip(0, 65535)
    np.testing.assert_array_equal(after.read(after.tiles[0], 0, 3, 4)[0], expected)


def test_tiles_that_drift_are_aligned_fused_and_gone_on_from(cloudreg, refused, tmp_path):
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(5)
    noise = gaussian_filter(random.standard_normal((64, 80, 160)), (1.5, 1.5, 1.5))
    scene = 100 + 1000 * np.exp(0.7 * noise / noise.std())

    def planes(row, column, channel, plane):
        # The second tile starts 2 px left of its place and ends 2 px right of it.
        left = 10 if column == 0 else 10 + 60 - 2 + round(4 * plane / 55)
        return scene[plane, 8:72, left : left + 80].clip(0, 60000).astype(np.uint16)

    write_colm(
        tmp_path / "raw",
        rows=1,
        columns=2,
        tile_shape=(56, 64, 80),
        voxel_size_um=(4.0, 2.0, 2.0),
        overlap=(0.25, 0.25),
        channels=1,
        objective="10x",
        scanned=np.ones((1, 2), bool),
        planes=planes,
    )
    options = ("--drift", "layers", "--steps", tmp_path / "steps")
    code, _, err = cloudreg("align", tmp_path / "raw", tmp_path / "a.xml", *options)
    assert code == 0, err
    assert "align: tiles drift sideways over their depth" in err
    assert "without drift" in err
    one, other = (read_project(tmp_path / "a.xml").tile(0, c) for c in range(2))
    ends = [tile.position_px[2] + tile.drift.at([0, 27.5, 55])[:, 1] for tile in (one, other)]
    np.testing.assert_allclose(ends[1] - ends[0], (58, 60, 62), atol=0.5)

    assert cloudreg("fuse", tmp_path / "a.xml", tmp_path / "v.ome.zarr")[0] == 0
    assert open_volume(tmp_path / "v.ome.zarr").grid.shape == (56, 64, 80 + 60 + 2)
    begun = tmp_path / "steps/xml_displcomp.xml"
    assert cloudreg("align", tmp_path / "raw", tmp_path / "b.xml", "--from", begun)[0] == 0
    assert read_project(tmp_path / "b.xml").tile(0, 1).drift == other.drift
    assert cloudreg("align", tmp_path / "raw", tmp_path / "c.xml", "--reuse", tmp_path / "a.xml")[0] == 0
    assert read_project(tmp_path / "c.xml").tile(0, 1).drift == other.drift
    assert read_project(tmp_path / "steps/xml_import.xml").tile(0, 1).drift is None
    words = ("align", tmp_path / "raw", tmp_path / "d.xml", "--drift", "layers", "--method", "projections")
    assert "projections don't show how tiles drift" in refused(*words)
