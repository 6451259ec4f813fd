"""Volumes to a bucket and back through the command line: bit-exact, whatever happens on the way."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import zarr

from cloudreg.execution import Engine
from cloudreg.io import convert, downsample, open_volume, write_volume
from cloudreg.io.tiff_writing import create_tiff_series
from cloudreg.space import Box, Grid
from object_store import FaultyProxy, S3Server

RNG = np.random.default_rng(0)
ARRAY = RNG.integers(0, 4000, (100, 140, 130)).astype(np.uint16)
GRID = Grid.from_spacing(ARRAY.shape, (2, 2, 2))
FORMS = ["precomputed://s3://private/{}/v", "s3://private/{}/v.ome.zarr"]


def run(*arguments):
    command = [sys.executable, "-m", "cloudreg", *(str(a) for a in arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


# Small blocks, so that there is a half way.
SMALL = ["--workers", "1", "--memory", "64MB"]
BIG = np.tile(ARRAY, (3, 3, 3))[:, :350, :300]


def write_series(folder, array):
    folder.mkdir()
    grid = Grid.from_spacing(array.shape, (2, 2, 2))
    create_tiff_series(folder, 1, grid, array.dtype).write(Box.whole(array.shape), array, 0)
    return folder


@pytest.fixture
def series(tmp_path):
    """A folder of planes."""
    return write_series(tmp_path / "series", ARRAY)


@pytest.fixture
def big_series(tmp_path):
    """As many planes as need several blocks."""
    return write_series(tmp_path / "series", BIG)


@pytest.mark.parametrize("sharded", ["--sharded", "--no-sharded"])
@pytest.mark.parametrize("form", FORMS)
def test_there_and_back_with_requests_that_fail(s3, cloudreg, monkeypatch, tmp_path, series, form, sharded):
    proxy = FaultyProxy(s3.endpoint, 0.05, seed=1)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
    place = form.format(f"faulty{sharded}")
    assert cloudreg("convert", series, place, sharded, "--verify", "--workers", 2)[0] == 0
    assert cloudreg("download", place, tmp_path / "back", "--verify", "--workers", 2)[0] == 0
    proxy.stop()
    assert proxy.faults > 0
    np.testing.assert_array_equal(open_volume(tmp_path / "back").read(), ARRAY)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "home", "series"]
    assert not list(tmp_path.rglob("*.ledger"))


@pytest.mark.parametrize("form", FORMS)
def test_there_and_back_when_the_program_and_the_server_are_killed(tmp_path, monkeypatch, s3, big_series, form):
    server = S3Server(tmp_path / "server")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    place = form.format("killed")
    options = ["--no-sharded", *SMALL]
    try:
        process = subprocess.Popen([sys.executable, "-m", "cloudreg", "convert", big_series, place, *options])
        cache = tmp_path / "home" / ".cache" / "cloudreg"
        wait_for(lambda: any(f.read_text().count("\n") >= 1 for f in cache.glob("*.ledger")))
        server.kill()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        server.start()
        done = next(cache.glob("*.ledger")).read_text().count("\n")
        assert run("info", place).stdout.startswith("path")
        # While the second run goes on, the server dies again and comes back.
        done_before = sum(f.read_text().count("\n") for f in cache.glob("*.ledger"))
        process = subprocess.Popen(
            [sys.executable, "-m", "cloudreg", "convert", big_series, place, *options, "--verify"]
        )
        wait_for(lambda: sum(f.read_text().count("\n") for f in cache.glob("*.ledger")) > done_before)
        server.kill()
        time.sleep(1)
        server.start()
        assert process.wait(timeout=300) == 0
        assert done >= 1 and not list(cache.glob("*.ledger"))
        run("download", place, tmp_path / "back")
    finally:
        server.kill()
    np.testing.assert_array_equal(open_volume(tmp_path / "back").read(), BIG)


def wait_for(condition):
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def test_a_download_that_was_killed_goes_on(tmp_path, s3, big_series):
    with Engine(workers=2, memory="1GB") as engine:
        convert(big_series, "s3://private/download/v.ome.zarr", engine=engine, sharded=False)
    arguments = ["download", "s3://private/download/v.ome.zarr", tmp_path / "back", *SMALL]
    process = subprocess.Popen([sys.executable, "-m", "cloudreg", *(str(a) for a in arguments)])
    wait_for(lambda: any(f.read_text() for f in tmp_path.glob(".back.ledger")) or process.poll() is not None)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "back").exists()
    run(*arguments)
    np.testing.assert_array_equal(open_volume(tmp_path / "back").read(), BIG)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith((".back", ".unfinished"))]


def test_a_level_and_a_box_of_it_come_where_they_lie(tmp_path, cloudreg):
    volume = write_volume(tmp_path / "v.ome.zarr", ARRAY, Grid.from_spacing(ARRAY.shape, (2, 2, 2), (10, 20, 30)))
    for name in ("a.nii.gz", "a.nrrd", "a.tif", "a.ome.zarr"):
        options = ["--level", 1, "--region", "10:20,30:60,5:60"]
        assert cloudreg("download", tmp_path / "v.ome.zarr", tmp_path / name, *options)[0] == 0
        taken = open_volume(tmp_path / name)
        np.testing.assert_array_equal(taken.read(), downsample(ARRAY, (2, 2, 2))[10:20, 30:60, 5:60])
        if name != "a.tif":
            np.testing.assert_allclose(taken.grid.origin_um, volume.levels[1].index_to_um((10, 30, 5)), atol=1e-3)
    assert cloudreg("download", tmp_path / "v.ome.zarr", tmp_path / "b.nrrd", "--resolution", 5)[0] == 0
    assert open_volume(tmp_path / "b.nrrd").grid.voxel_size_um == (4, 4, 4)


def test_a_volume_without_a_voxel_size_is_fetched_with_the_one_given(tmp_path, cloudreg, refused):
    zarr.create_array(tmp_path / "v.zarr", data=ARRAY, chunks=(64, 64, 64))
    assert "give --voxel-size Z Y X" in refused("download", tmp_path / "v.zarr", tmp_path / "v.nrrd")
    assert cloudreg("download", tmp_path / "v.zarr", tmp_path / "v.nrrd", "--voxel-size", 3, 2, 1)[0] == 0
    assert open_volume(tmp_path / "v.nrrd").grid.voxel_size_um == (3, 2, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--level", 7], "expected a level from 0 to 2"),
        (["--region", "0:9,0:9"], "a region is Z0:Z1"),
        (["--region", "0:9,0:9,120:131"], "expected a region within"),
        (["--region", "0:9,5:5,1:2"], "expected a region within"),
        (["--resolution", 0], "expected a voxel size in micrometres above 0"),
        (["--resolution", -4], "expected a voxel size in micrometres above 0"),
        (["--level", 1, "--resolution", 3], "expected --level or --resolution, got both"),
    ],
)
def test_parts_that_are_not_there_are_refused(tmp_path, refused, options, message):
    write_volume(tmp_path / "v.ome.zarr", ARRAY, GRID)
    assert message in refused("download", tmp_path / "v.ome.zarr", tmp_path / "a.nrrd", *options)
    assert [p.name for p in tmp_path.iterdir()] == ["v.ome.zarr"]


def test_the_cost_is_said_beforehand_and_is_the_cost(cloudreg, s3, series, monkeypatch):
    proxy = FaultyProxy(s3.endpoint, 0.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
    for form in FORMS:
        place = form.format("cost")
        rows = dict(
            line.split(maxsplit=1)
            for line in cloudreg("convert", series, place, "--sharded", "--dry-run")[1].splitlines()
        )
        assert proxy.requests == 0
        assert cloudreg("convert", series, place, "--sharded", "--workers", 2)[0] == 0
        objects = int(rows["objects"].split(",")[0])
        # The metadata of the volume, twice, and of each level.
        assert objects < proxy.puts <= objects + 5
        proxy.requests = proxy.puts = 0
    proxy.stop()


CORNER = Box((0, 0, 0), (50, 100, 100))


def test_a_terabyte_takes_a_hundredth_of_the_requests_of_old(tmp_path):
    """The first CloudReg made 30.5 million objects of 128 x 128 x 1 voxels at the finest level."""
    from cloudreg.io import describe_cost
    from cloudreg.io.volume import Volume

    grid = Grid.from_spacing((5000, 10000, 10000), (1, 1, 1))
    terabyte = Volume("", "tiff", "image", np.dtype("uint16"), 1, (grid,), (1, 1, 1), None)
    small = Volume("", "tiff", "image", np.dtype("uint16"), 1, (grid.cropped(CORNER),), (1, 1, 1), None)
    for place in ("s3://b/v.ome.zarr", "precomputed://s3://b/v"):
        rows = describe_cost(terabyte, place)
        objects = int(rows["objects"].split(",")[0])
        assert int(rows["level 0"].split(", ")[1].split()[0]) < 30.5e6 / 100
        assert objects < 30.5e6 / 100
        assert int(rows["a terabyte"].split()[0]) == objects
        # A small volume of the same proportions tells the same, though it would not be sharded itself.
        assert int(describe_cost(small, place)["a terabyte"].split()[0]) == objects
