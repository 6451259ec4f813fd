"""Places that may be read and not written, or not even read: one line, exit code 2, and nothing is made."""

import os
import subprocess

import numpy as np
import pytest

from cloudreg.io import write_volume
from cloudreg.space import Grid

ARRAY = np.random.default_rng(0).integers(0, 200, (20, 70, 40)).astype(np.uint8)
GRID = Grid.from_spacing(ARRAY.shape, (2, 2, 2))
PLACES = ["{}/w.ome.zarr", "precomputed://{}/w", "{}/w.tif", "{}/w", "{}/w.nii.gz", "{}/w.nrrd", "{}/new/w.ome.zarr"]


@pytest.fixture
def locked(tmp_path):
    """A folder that we may read and not write, with a volume in it."""
    folder = tmp_path / "locked"
    folder.mkdir()
    write_volume(folder / "v.ome.zarr", ARRAY, GRID, levels=1)
    if os.geteuid() != 0:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(path.stat().st_mode & ~0o222)
        yield folder
        for path in [folder, *folder.rglob("*")]:
            path.chmod(path.stat().st_mode | 0o200)
        return
    # Root may write everywhere but on a disk that nobody may write on.
    if subprocess.run(["mount", "--bind", folder, folder], check=False).returncode != 0:
        pytest.skip("no right to mount")
    subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("place", PLACES)
def test_a_folder_that_may_not_be_written_is_named(refused, locked, tmp_path, place):
    line = refused("convert", locked / "v.ome.zarr", place.format(locked))
    if "ome.zarr" not in place and "precomputed" not in place:
        assert f"you have no right to write in {locked}" in line
    assert "right to write" in line or "Read-only file system" in line
    assert [p.name for p in locked.iterdir()] == ["v.ome.zarr"]


def test_a_volume_that_may_not_be_written_gets_no_levels(refused, locked):
    before = {p: p.read_bytes() for p in locked.rglob("*") if p.is_file()}
    assert "could not write" in refused("pyramid", locked / "v.ome.zarr")
    assert {p: p.read_bytes() for p in locked.rglob("*") if p.is_file()} == before


def test_what_may_not_be_written_is_read_and_left_as_it_is(cloudreg, locked, tmp_path):
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in locked.rglob("*") if p.is_file()}
    for name in ("a.ome.zarr", "a.tif", "a"):
        assert cloudreg("convert", locked / "v.ome.zarr", tmp_path / name, "--verify")[0] == 0
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in locked.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("place", PLACES)
def test_a_file_in_the_place_of_a_folder_is_named(refused, tmp_path, place):
    write_volume(tmp_path / "v.nrrd", ARRAY, GRID)
    (tmp_path / "file").write_text("in the way")
    line = refused("convert", tmp_path / "v.nrrd", place.format(tmp_path / "file"))
    assert f"expected a folder at {tmp_path}/file" in line and "got a file" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "v.nrrd"]


@pytest.mark.parametrize("name", ["v.ome.zarr", "v.tif", "v.nrrd", "v.nii.gz"])
def test_a_volume_that_may_not_be_read_is_named(refused, tmp_path, name):
    write_volume(tmp_path / name, ARRAY, GRID)
    (tmp_path / name).chmod(0)
    if os.geteuid() == 0:
        os.setreuid(65534, -1)  # root may read everything; it is asked as whom the program was started
    try:
        assert f"{name}: you have no right to" in refused("convert", tmp_path / name, tmp_path / "w.tif")
    finally:
        if os.geteuid() == 0:
            os.setreuid(0, -1)
        (tmp_path / name).chmod(0o700)
    assert [p.name for p in tmp_path.iterdir()] == [name]
