"""Converting: from any format to any other, streamed, with nothing lost in silence."""

import itertools

import numpy as np
import pytest
import tifffile

from cloudreg.errors import InputError
from cloudreg.execution import Engine, Ledger
from cloudreg.io import convert, create_volume, describe, downsample, open_volume, write_volume
from cloudreg.space import Grid

SOURCES = ["a.ome.zarr", "precomputed://a", "a.tif", "a.nii.gz", "a.nrrd"]
DESTINATIONS = ["b.ome.zarr", "precomputed://b", "b.tif", "b", "b.nii", "b.nrrd"]
ARRAY = np.random.default_rng(0).integers(0, 999, (9, 70, 20)).astype(np.uint16)
GRID = Grid.from_spacing(ARRAY.shape, (6, 4, 2))


def at(folder, name):
    return f"precomputed://{folder}/{name.split('//')[1]}" if "//" in name else f"{folder}/{name}"


@pytest.mark.parametrize(("source", "destination"), itertools.product(SOURCES, DESTINATIONS))
def test_voxels_and_sizes_are_kept(tmp_path, engine, source, destination):
    write_volume(at(tmp_path, source), ARRAY, GRID, orientation="asr")
    if not source.endswith((".nrrd", ".nii.gz")):
        volume = convert(at(tmp_path, source), at(tmp_path, destination), engine=engine)
    else:
        # Their frames are not the array's axes; letters give it these.
        volume = convert(at(tmp_path, source), at(tmp_path, destination), engine=engine, orientation="asr")
    np.testing.assert_array_equal(volume.read(), ARRAY)
    np.testing.assert_allclose(volume.grid.voxel_size_um, GRID.voxel_size_um, rtol=1e-6)
    np.testing.assert_array_equal(open_volume(at(tmp_path, destination)).read(), ARRAY)
    if source != "a.tif" and destination.endswith(".ome.zarr"):
        assert volume.orientation == "asr" and volume.grid == GRID


@pytest.mark.parametrize("destination", DESTINATIONS)
def test_channels_go_along(tmp_path, engine, destination):
    array = np.stack([ARRAY, ARRAY // 2])
    write_volume(tmp_path / "a.ome.zarr", array, GRID)
    np.testing.assert_array_equal(
        convert(tmp_path / "a.ome.zarr", at(tmp_path, destination), engine=engine).read(channel=None), array
    )


@pytest.mark.parametrize("destination", ["b.ome.zarr", "precomputed://b"])
def test_chunked_formats_get_a_pyramid(tmp_path, engine, destination):
    write_volume(tmp_path / "a.tif", ARRAY, GRID)
    volume = convert(tmp_path / "a.tif", at(tmp_path, destination), engine=engine)
    assert len(volume.levels) > 1
    steps = [round(a / b) for a, b in zip(volume.levels[1].voxel_size_um, GRID.voxel_size_um, strict=True)]
    np.testing.assert_array_equal(volume.read(level=1), downsample(ARRAY, steps, "image"))


def test_a_coarser_level_can_be_taken(tmp_path, engine):
    volume = write_volume(tmp_path / "a.ome.zarr", ARRAY, GRID)
    taken = convert(tmp_path / "a.ome.zarr", tmp_path / "b.nrrd", engine=engine, level=1)
    np.testing.assert_array_equal(taken.read(), volume.read(level=1))
    np.testing.assert_allclose(taken.grid.affine, volume.levels[1].affine)
    with pytest.raises(InputError, match="expected a level from 0 to"):
        convert(tmp_path / "a.ome.zarr", tmp_path / "c.nrrd", engine=engine, level=7)


def test_types_change_only_when_asked_and_round_and_clip(tmp_path, engine):
    array = np.array([[[-3.0, 0.5, 1.5, 70_000.0]]], np.float32)
    write_volume(tmp_path / "a.nrrd", array, Grid.from_spacing(array.shape, (1, 1, 1)))
    same = convert(tmp_path / "a.nrrd", tmp_path / "b.ome.zarr", engine=engine)
    np.testing.assert_array_equal(same.read(), array)
    other = convert(tmp_path / "a.nrrd", tmp_path / "c.ome.zarr", engine=engine, dtype="uint16")
    np.testing.assert_array_equal(other.read().ravel(), [0, 0, 2, 65535])


def test_ids_that_do_not_fit_are_refused(tmp_path, engine):
    array = np.array([[[0, 7, 2**40]]], np.uint64)
    write_volume(tmp_path / "a.nrrd", array, Grid.from_spacing(array.shape, (1, 1, 1)), kind="labels")
    with pytest.raises(InputError, match="32-bit integers for TIFF"):
        convert(tmp_path / "a.nrrd", tmp_path / "b.tif", engine=engine)
    with pytest.raises(InputError, match=r"expected ids of .* that fit uint32, got 1099511627776"):
        convert(tmp_path / "a.nrrd", tmp_path / "b.tif", engine=engine, dtype="uint32")
    assert not (tmp_path / "b.tif").exists()


def test_labels_stay_labels(tmp_path, engine):
    array = np.zeros((70, 6, 8), np.uint16)
    array[:, ::2] = 500
    write_volume(tmp_path / "a.tif", array, Grid.from_spacing(array.shape, (2, 2, 2)))
    volume = convert(tmp_path / "a.tif", tmp_path / "b.ome.zarr", engine=engine, kind="labels")
    assert volume.kind == "labels" and set(np.unique(volume.read(level=1))) <= {0, 500}
    assert convert(volume, tmp_path / "c.nii", engine=engine).kind == "labels"


def test_finished_blocks_are_not_copied_again(tmp_path, engine):
    write_volume(tmp_path / "a.nrrd", ARRAY, GRID)
    convert(tmp_path / "a.nrrd", tmp_path / "b.ome.zarr", engine=engine, ledger=Ledger(tmp_path / "ledger"))
    assert len(Ledger(tmp_path / "ledger")) > 0
    (tmp_path / "ledger2").write_text((tmp_path / "ledger").read_text())
    create_volume(tmp_path / "c.ome.zarr", GRID, ARRAY.dtype)
    nothing = convert(tmp_path / "a.nrrd", tmp_path / "c.ome.zarr", engine=engine, ledger=Ledger(tmp_path / "ledger2"))
    assert not nothing.read().any()
    # A ledger of a volume that is gone says nothing of a new one.
    again = convert(tmp_path / "a.nrrd", tmp_path / "d.ome.zarr", engine=engine, ledger=Ledger(tmp_path / "ledger"))
    np.testing.assert_array_equal(again.read(), ARRAY)


@pytest.mark.parametrize("workers", [1, 2])
def test_bytes_do_not_depend_on_the_engine(tmp_path, workers):
    write_volume(tmp_path / "a.nrrd", ARRAY, GRID)
    folders = []
    for name, memory in (("one", "64MB"), ("two", "1GB")):
        with Engine(workers=workers, memory=memory) as engine:
            convert(tmp_path / "a.nrrd", tmp_path / name / "b.ome.zarr", engine=engine)
        folders.append(
            {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}
        )
    assert folders[0] == folders[1]


def test_what_does_not_fit_in_memory_is_refused_beforehand(tmp_path):
    shape = (400, 400, 300)
    tifffile.imwrite(tmp_path / "a.tif", shape=shape, dtype="uint16")
    with Engine(workers=1, memory="100MB") as engine, pytest.raises(InputError, match=r"0\.192 GB of memory to write"):
        convert(tmp_path / "a.tif", tmp_path / "b.nii", engine=engine, voxel_size_um=(1, 1, 1))


@pytest.mark.parametrize("destination", DESTINATIONS)
def test_what_is_there_is_left_alone(tmp_path, engine, destination):
    write_volume(tmp_path / "a.nrrd", ARRAY, GRID)
    place = tmp_path / destination.split("/")[-1]
    place.mkdir()
    (place / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="expected nothing"):
        convert(tmp_path / "a.nrrd", at(tmp_path, destination), engine=engine)
    assert (place / "thesis.txt").read_text() == "years"


def test_a_description_says_what_a_person_asks_for(tmp_path):
    grid = Grid.from_spacing((9, 70, 20), (6, 4, 2), (1, 2, 3))
    write_volume(tmp_path / "a.ome.zarr", ARRAY, grid, orientation="asr")
    rows = describe(tmp_path / "a.ome.zarr")
    assert rows["format"] == "ome-zarr" and rows["dtype"] == "uint16" and rows["orientation"] == "asr"
    assert rows["shape"].startswith("9 x 70 x 20") and rows["voxel size"] == "6 x 4 x 2 um"
    assert rows["origin"] == "1 2 3 um" and "level 1" in rows


def test_a_stack_without_voxel_size_is_described_all_the_same(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", ARRAY)
    rows = describe(tmp_path / "a.tif")
    assert rows["voxel size"] == "not known: give --voxel-size Z Y X" and rows["shape"].startswith("9 x 70 x 20")
