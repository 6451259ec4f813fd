"""What is written is read back: voxels, places, letters, types; by us and by other programs."""

import gzip
import hashlib
import json
import pickle

import nibabel as nib
import numpy as np
import pytest
import tensorstore
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

from cloudreg.errors import InputError
from cloudreg.io import create_volume, open_volume, write_volume
from cloudreg.space import Box, Grid, axes_between

FORMATS = ["v.ome.zarr", "precomputed://v", "v.tif", "v.nii", "v.nii.gz", "v.nrrd"]
KEEPS_ORIGIN = [f for f in FORMATS if not f.endswith(".tif")]
TYPES = ["uint8", "uint16", "uint32", "int16", "float32"]


def at(folder, name):
    return f"precomputed://{folder}/v" if name.startswith("precomputed") else f"{folder}/{name}"


def numbers(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1000, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", TYPES)
def test_every_format_keeps_every_type_and_the_voxel_size(tmp_path, name, dtype):
    array = numbers((5, 70, 9), dtype)
    grid = Grid.from_spacing(array.shape, (8.0, 2.5, 1.25))
    write_volume(at(tmp_path, name), array, grid)
    volume = open_volume(at(tmp_path, name))
    assert volume.dtype == dtype and volume.read().dtype == dtype
    np.testing.assert_array_equal(volume.read(), array)
    np.testing.assert_allclose(volume.grid.voxel_size_um, grid.voxel_size_um, rtol=1e-6)
    assert volume.grid.shape == array.shape and volume.orientation is None and not volume.has_own_frame


@pytest.mark.parametrize("name", FORMATS)
def test_a_box_is_that_part_of_the_whole(tmp_path, name):
    array = numbers((20, 33, 41), "uint16")
    volume = write_volume(at(tmp_path, name), array, Grid.from_spacing(array.shape, (1, 1, 1)))
    box = Box((3, 5, 7), (11, 30, 8))
    np.testing.assert_array_equal(volume.read(box), array[box.slices])
    copy = pickle.loads(pickle.dumps(volume))
    np.testing.assert_array_equal(copy.read(box, channel=None), array[box.slices][None])
    for bad in (Box((0, 0, 0), (21, 1, 1)), Box((-1, 0, 0), (1, 1, 1))):
        with pytest.raises(InputError, match="reaches outside"):
            volume.read(bad)
    with pytest.raises(InputError, match="has 1 channel, number 0"):
        volume.read(channel=1)
    with pytest.raises(InputError, match="level 9"):
        volume.read(level=9)


@pytest.mark.parametrize("name", KEEPS_ORIGIN)
@pytest.mark.parametrize("origin", [(30.0, -20.0, 12.5), (0.3, 7.77, -1234.5)])
def test_origins_are_kept(tmp_path, name, origin):
    grid = Grid.from_spacing((4, 70, 6), (10.0, 2.5, 2.5), origin)
    volume = write_volume(at(tmp_path, name), numbers(grid.shape, "uint8"), grid)
    np.testing.assert_allclose(volume.grid.affine, grid.affine, rtol=1e-6, atol=1e-4)
    assert volume.has_own_frame


@pytest.mark.parametrize("name", KEEPS_ORIGIN)
@pytest.mark.parametrize("letters", ["ipl", "asr", "lps", "sal"])
def test_letters_keep_every_voxel_on_its_side_of_the_body(tmp_path, name, letters):
    grid = oblique((4, 70, 6))
    volume = write_volume(at(tmp_path, name), numbers(grid.shape, "uint8"), grid, orientation=letters)
    index = np.array([[0, 0, 0], [3, 60, 5], [1, 2, 3]])
    turn = axes_between(letters, volume.orientation, allow_mirror=True)
    np.testing.assert_allclose(volume.grid.index_to_um(index), grid.index_to_um(index) @ turn.T, atol=1e-2)


@pytest.mark.parametrize("name", KEEPS_ORIGIN)
def test_turned_grids_without_letters_are_kept(tmp_path, name):
    grid = oblique((70, 5, 6))
    volume = write_volume(at(tmp_path, name), numbers(grid.shape, "uint8"), grid)
    np.testing.assert_allclose(volume.grid.affine, grid.affine, rtol=1e-5, atol=1e-3)
    for coarse, fine in zip(volume.levels[1:], volume.levels[:-1], strict=True):
        factors = np.rint(np.divide(coarse.voxel_size_um, fine.voxel_size_um)).astype(int)
        assert fine.downsampled(factors) == coarse
    assert volume.orientation is None


def oblique(shape):
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * (10.0, 5.0, 2.5)
    affine[:3, 3] = 100.0, -2000.0, 3.5
    return Grid(shape, affine)


@pytest.mark.parametrize("name", FORMATS)
def test_channels_are_kept_apart(tmp_path, name):
    array = numbers((3, 4, 70, 6), "float32")
    volume = write_volume(at(tmp_path, name), array, Grid.from_spacing(array.shape[1:], (2, 2, 2)))
    volume = open_volume(at(tmp_path, name))
    assert volume.channels == 3
    np.testing.assert_array_equal(volume.read(channel=None), array)
    np.testing.assert_array_equal(volume.read(channel=2), array[2])


@pytest.mark.parametrize("name", [f for f in FORMATS if not f.endswith(".tif")])
def test_ids_that_need_64_bits_survive(tmp_path, name):
    ids = np.array([0, 1, 2**31 + 5, 614_454_277, 2**40 + 1, 2**63 + 9], np.uint64)
    array = np.random.default_rng(0).choice(ids, (6, 7, 8))
    volume = write_volume(at(tmp_path, name), array, Grid.from_spacing(array.shape, (25, 25, 25)), kind="labels")
    np.testing.assert_array_equal(volume.read(), array)
    assert open_volume(at(tmp_path, name)).kind == "labels"


def test_tiff_refuses_what_it_has_no_type_for(tmp_path):
    array = np.zeros((2, 3, 4), np.uint64)
    with pytest.raises(InputError, match="32-bit integers for TIFF, got uint64"):
        write_volume(tmp_path / "v.tif", array, Grid.from_spacing(array.shape, (1, 1, 1)))
    assert list(tmp_path.iterdir()) == []


@given(
    shape=st.tuples(*[st.integers(1, 80)] * 3),
    size=st.tuples(*[st.floats(0.05, 500)] * 3),
    origin=st.tuples(*[st.floats(-1e5, 1e5)] * 3),
    precomputed=st.booleans(),
)
def test_any_grid_is_kept_at_every_level(tmp_path_factory, shape, size, origin, precomputed):
    folder = tmp_path_factory.mktemp("grid")
    grid = Grid.from_spacing(shape, size, origin)
    path = at(folder, "precomputed://v" if precomputed else "v.ome.zarr")
    writer = create_volume(path, grid, "uint8")
    volume = writer.complete()
    assert len(volume.levels) == len(writer.levels)
    for read, written in zip(volume.levels, writer.levels, strict=True):
        assert read.shape == written.shape
        # The precomputed format counts in nanometres.
        np.testing.assert_allclose(read.affine, written.affine, rtol=1e-5 if precomputed else 1e-12, atol=1e-3)


def test_zarr_python_reads_our_ome_zarr(tmp_path):
    array = numbers((2, 9, 130, 140), "uint16")
    grid = Grid.from_spacing(array.shape[1:], (4.0, 2.0, 2.0), (1.0, 2.0, 3.0))
    write_volume(tmp_path / "v.ome.zarr", array, grid, channel_names=["red", "green"])
    group = zarr.open_group(tmp_path / "v.ome.zarr", mode="r")
    np.testing.assert_array_equal(group["0"][:], array)
    ome = group.attrs["ome"]
    assert ome["version"] == "0.5"
    (multiscale,) = ome["multiscales"]
    assert [a["name"] for a in multiscale["axes"]] == ["c", "z", "y", "x"]
    assert {a.get("unit") for a in multiscale["axes"][1:]} == {"micrometer"}
    assert list(group["0"].metadata.dimension_names) == ["c", "z", "y", "x"]
    scales = [d["coordinateTransformations"] for d in multiscale["datasets"]]
    assert scales[0] == [
        {"type": "scale", "scale": [1.0, 4.0, 2.0, 2.0]},
        {"type": "translation", "translation": [0.0, 1.0, 2.0, 3.0]},
    ]
    # z is coarser and waits; y and x move by half of what their voxels grow.
    assert scales[1] == [
        {"type": "scale", "scale": [1.0, 4.0, 4.0, 4.0]},
        {"type": "translation", "translation": [0.0, 1.0, 3.0, 4.0]},
    ]
    assert group["1"].shape == (2, 9, 65, 70)
    assert open_volume(tmp_path / "v.ome.zarr").channel_names == ("red", "green")


@pytest.mark.parametrize("kind", ["image", "labels"])
def test_tensorstore_reads_our_precomputed(tmp_path, kind):
    array = numbers((70, 65, 9), "uint32")
    grid = Grid.from_spacing(array.shape, (4.0, 2.0, 1.0), (40.0, 20.0, 10.0))
    write_volume(f"precomputed://{tmp_path}/v", array, grid, kind=kind)
    store = tensorstore.open(
        {"driver": "neuroglancer_precomputed", "kvstore": f"file://{tmp_path}/v/", "scale_index": 0}
    ).result()
    np.testing.assert_array_equal(store.read().result()[..., 0].transpose(), array)
    info = json.loads((tmp_path / "v" / "info").read_text())
    assert info["type"] == ("segmentation" if kind == "labels" else "image")
    assert info["scales"][0]["resolution"] == [1000.0, 2000.0, 4000.0]
    assert info["scales"][0]["size"] == [9, 65, 70]
    assert info["scales"][0]["encoding"] == ("compressed_segmentation" if kind == "labels" else "raw")


def test_precomputed_says_whole_offsets_to_other_programs(tmp_path):
    grid = Grid.from_spacing((100, 100, 100), (2.0, 2.0, 2.0), (16.0, 32.0, -8.0))
    volume = create_volume(f"precomputed://{tmp_path}/v", grid, "uint8").complete()
    info = json.loads((tmp_path / "v" / "info").read_text())
    assert [s["voxel_offset"] for s in info["scales"]] == [[-4, 16, 8], [-2, 8, 4]]
    assert "affine" not in info["cloudreg"]
    assert volume.levels == (grid, grid.downsampled((2, 2, 2)))


def test_nibabel_sees_the_body_where_it_is(tmp_path):
    # asr: z grows to the back, y down, x to the left.
    grid = Grid.from_spacing((4, 5, 6), (1000.0, 2000.0, 3000.0), (7000.0, 8000.0, 9000.0))
    write_volume(tmp_path / "v.nii", np.zeros(grid.shape, np.uint8), grid, orientation="asr")
    image = nib.load(tmp_path / "v.nii")
    expected = [[0, 0, -3, -9], [-1, 0, 0, -7], [0, -2, 0, -8], [0, 0, 0, 1]]
    np.testing.assert_allclose(image.affine, expected, atol=1e-6)
    np.testing.assert_allclose(image.header.get_qform(), expected, atol=1e-4)
    assert nib.aff2axcodes(image.affine) == ("P", "I", "L")
    assert image.header.get_xyzt_units()[0] == "mm"


def test_tifffile_reads_our_voxel_size(tmp_path):
    grid = Grid.from_spacing((4, 5, 6), (3.5, 2.0, 1.0))
    write_volume(tmp_path / "v.tif", np.ones(grid.shape, np.uint16), grid)
    with tifffile.TiffFile(tmp_path / "v.tif") as tif:
        assert tif.series[0].axes == "ZYX"
        assert 'PhysicalSizeZ="3.5" PhysicalSizeZUnit="µm"' in tif.ome_metadata


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_volume_has_the_same_bytes(tmp_path, name):
    array = numbers((4, 70, 6), "uint16")
    grid = Grid.from_spacing(array.shape, (3, 2, 1), (1, 2, 3))
    digests = []
    for folder in ("one", "two"):
        write_volume(at(tmp_path / folder, name), array, grid, orientation="asr")
        digests.append(contents(tmp_path / folder))
    assert digests[0] == digests[1]


def contents(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_gzipped_files_are_gzipped(tmp_path):
    array = numbers((4, 5, 6), "uint16")
    write_volume(tmp_path / "v.nii.gz", array, Grid.from_spacing(array.shape, (1, 1, 1)))
    assert gzip.decompress((tmp_path / "v.nii.gz").read_bytes())[344:348] == b"n+1\0"
