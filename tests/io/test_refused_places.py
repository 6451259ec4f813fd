"""Places to which nothing can be written, and words that name nothing: one line, and nothing is made."""

import numpy as np
import pytest
import tifffile

from cloudreg.io import open_volume, write_volume
from cloudreg.space import Grid

ARRAY = np.random.default_rng(0).integers(0, 200, (20, 30, 40)).astype(np.uint8)
GRID = Grid.from_spacing(ARRAY.shape, (2, 2, 2))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder, in which we are, beside a volume."""
    write_volume(tmp_path / "v.ome.zarr", ARRAY, GRID)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("s3://bucket/v.nii.gz", "expected a place on this machine for files, got s3://bucket/v.nii.gz"),
        ("gs://bucket/planes", "expected a place on this machine for files, got gs://bucket/planes"),
        ("https://server/v.ome.zarr", "expected a folder or a bucket to write to, got the web server"),
        ("precomputed://http://server/v", "expected a folder or a bucket to write to, got the web server"),
        ("ftp://server/v.ome.zarr", "expected a path, or an address that starts with s3://, gs:// or https://"),
        ("azure://server/v.tif", "expected a path, or an address that starts with s3://, gs:// or https://"),
        ("precomputed://s3://", "expected the name of a bucket or a server after s3://"),
        ("", "expected the name of a new volume, got ''"),
        ("/", "expected the name of a new volume, got '/'"),
        ("precomputed://", "expected the name of a new volume, got 'precomputed://'"),
    ],
)
def test_addresses_that_cannot_be_written_to(here, refused, place, message):
    assert message in refused("convert", "../v.ome.zarr", place)
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("ftp://server/v", "expected a path, or an address that starts with"),
        ("s3://", "expected the name of a bucket or a server after s3://"),
        ("https://", "expected the name of a bucket or a server after https://"),
    ],
)
def test_addresses_that_cannot_be_read(here, refused, path, message):
    assert message in refused("info", path)


@pytest.mark.parametrize("place", ["../v.ome.zarr/w.ome.zarr", "precomputed://../v.ome.zarr/w", "../v.ome.zarr/w.tif"])
def test_nothing_is_written_into_what_is_read(here, refused, place):
    before = sorted(str(p) for p in here.parent.rglob("*"))
    assert "expected a place outside" in refused("convert", "../v.ome.zarr", place)
    assert sorted(str(p) for p in here.parent.rglob("*")) == before


def test_nothing_is_written_among_the_planes_that_are_read(here, refused):
    for z, plane in enumerate(ARRAY):
        tifffile.imwrite(here / f"p{z:02}.tif", plane)
    assert "expected a place outside" in refused("convert", here, here / "stack.tif", "--voxel-size", 1, 1, 1)
    assert len(list(here.iterdir())) == len(ARRAY)


@pytest.mark.parametrize(("place", "options"), [("w.ome.zarr", []), ("w.ome.zarr", ["--dry-run"]), ("w.nrrd", [])])
def test_types_that_are_none(here, refused, place, options):
    message = refused("convert", "../v.ome.zarr", place, "--dtype", "uint9", *options)
    assert "expected a type out of uint8, uint16" in message and message.endswith("got uint9")
    assert not list(here.iterdir())


def test_another_volume_at_the_place_is_named(here, refused):
    message = refused("convert", "../v.ome.zarr", "precomputed://../v.ome.zarr")
    assert "got another volume's zarr.json: choose a new place or remove it" in message
    (here / "mine").write_text("a file")
    assert "got a file: choose a new place" in refused("convert", "../v.ome.zarr", "precomputed://mine")


def test_a_file_address_is_a_path(here, cloudreg):
    for name in ("w.nii.gz", "w.ome.zarr", "w"):
        assert cloudreg("convert", f"file://{here.parent}/v.ome.zarr", f"file://{here}/{name}")[0] == 0
        np.testing.assert_array_equal(open_volume(here / name).read(), ARRAY)
    assert sorted(p.name for p in here.iterdir()) == ["w", "w.nii.gz", "w.ome.zarr"]
