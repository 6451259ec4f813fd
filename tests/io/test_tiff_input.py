"""TIFF as microscopes and other programs write it, and as disks spoil it."""

import numpy as np
import pytest
import tifffile

from cloudreg.errors import InputError
from cloudreg.io import open_volume
from cloudreg.space import Box

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 4000, (12, 30, 40)).astype(np.uint16)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zlib"},
        {"compression": "lzw", "predictor": True},
        {"compression": "zstd", "tile": (16, 16)},
        {"byteorder": ">"},
        {"bigtiff": True},
        {"byteorder": ">", "compression": "zlib", "metadata": None},
        {"rowsperstrip": 7},
        {"metadata": {"axes": "TYX"}},
        {"imagej": True, "metadata": {"axes": "ZYX"}},
    ],
    ids=str,
)
def test_stacks_are_read_whatever_their_encoding(tmp_path, options):
    tifffile.imwrite(tmp_path / "s.tif", STACK, **options)
    volume = open_volume(tmp_path / "s.tif", voxel_size_um=(3, 2, 1))
    assert volume.dtype == np.uint16 and volume.read().dtype.isnative
    np.testing.assert_array_equal(volume.read(), STACK)
    box = Box((3, 4, 5), (9, 30, 7))
    np.testing.assert_array_equal(volume.read(box), STACK[box.slices])
    assert volume.grid.voxel_size_um == (3, 2, 1) and not volume.has_own_frame


@pytest.mark.parametrize("axes", ["ZCYX", "CZYX", "TZCYX"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_channels_come_first_wherever_the_file_has_them(tmp_path, axes, compression):
    array = RNG.integers(0, 99, (2, 5, 6, 7)).astype(np.uint8)
    stored = array if axes == "CZYX" else array.swapaxes(0, 1)
    stored = stored[None] if axes[0] == "T" else stored
    tifffile.imwrite(tmp_path / "c.ome.tif", stored, ome=True, compression=compression, metadata={"axes": axes})
    volume = open_volume(tmp_path / "c.ome.tif", voxel_size_um=(1, 1, 1))
    np.testing.assert_array_equal(volume.read(channel=None), array)
    np.testing.assert_array_equal(volume.read(Box((1, 2, 3), (3, 4, 5)), channel=1), array[1, 1:3, 2:4, 3:5])


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_colours_are_channels(tmp_path, compression, planar):
    array = RNG.integers(0, 99, (5, 6, 7, 3)).astype(np.uint8)
    stored = array if planar == "contig" else np.moveaxis(array, -1, 1)
    tifffile.imwrite(
        tmp_path / "rgb.tif", stored, photometric="rgb", planarconfig=planar, compression=compression, metadata=None
    )
    volume = open_volume(tmp_path / "rgb.tif", voxel_size_um=(1, 1, 1))
    np.testing.assert_array_equal(volume.read(channel=None), np.moveaxis(array, -1, 0))


def test_voxel_sizes_come_from_ome_xml_in_its_units(tmp_path):
    metadata = {
        "axes": "ZYX",
        "PhysicalSizeX": 500,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.75,
        "PhysicalSizeZ": 0.004,
        "PhysicalSizeZUnit": "mm",
    }
    tifffile.imwrite(tmp_path / "o.ome.tif", STACK, ome=True, metadata=metadata)
    np.testing.assert_allclose(open_volume(tmp_path / "o.ome.tif").grid.voxel_size_um, (4, 0.75, 0.5))


@pytest.mark.parametrize(("unit", "um"), [("micron", 1), ("um", 1), ("\\u00B5m", 1), ("mm", 1000)])
def test_voxel_sizes_come_from_imagej(tmp_path, unit, um):
    tifffile.imwrite(
        tmp_path / "i.tif", STACK, imagej=True, resolution=(4, 2), metadata={"axes": "ZYX", "spacing": 3, "unit": unit}
    )
    volume = open_volume(tmp_path / "i.tif")
    np.testing.assert_allclose(volume.grid.voxel_size_um, np.array((3, 0.5, 0.25)) * um)


@pytest.mark.parametrize("metadata", [None, {"axes": "ZYX"}])
def test_a_stack_without_voxel_size_asks_for_one(tmp_path, metadata):
    tifffile.imwrite(tmp_path / "s.tif", STACK, metadata=metadata)
    with pytest.raises(InputError, match=r"expected a voxel size in .*s\.tif.*--voxel-size Z Y X"):
        open_volume(tmp_path / "s.tif")


@pytest.mark.parametrize("size", [(1, 1), (0, 1, 1), (1, -1, 1), (1, 1, float("nan"))])
def test_voxel_sizes_are_three_positive_lengths(tmp_path, size):
    tifffile.imwrite(tmp_path / "s.tif", STACK)
    with pytest.raises(InputError, match="three positive micrometres"):
        open_volume(tmp_path / "s.tif", voxel_size_um=size)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "metadata": None}, {"imagej": True}], ids=str)
@pytest.mark.parametrize("share", [0.98, 0.9, 0.5, 0.05])
def test_a_stack_cut_short_is_named(tmp_path, options, share):
    tifffile.imwrite(tmp_path / "s.tif", STACK, **options)
    whole = (tmp_path / "s.tif").read_bytes()
    (tmp_path / "s.tif").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"expected a whole TIFF file, got .*s\.tif, which is damaged") as error:
        open_volume(tmp_path / "s.tif", voxel_size_um=(1, 1, 1))
    assert "\n" not in str(error.value)


def test_planes_whose_data_is_spoilt_are_named(tmp_path):
    tifffile.imwrite(tmp_path / "s.tif", STACK, compression="zlib", metadata=None)
    with tifffile.TiffFile(tmp_path / "s.tif") as tif:
        offset = tif.pages[5].dataoffsets[0]
    data = bytearray((tmp_path / "s.tif").read_bytes())
    data[offset : offset + 50] = bytes(50)
    (tmp_path / "s.tif").write_bytes(data)
    volume = open_volume(tmp_path / "s.tif", voxel_size_um=(1, 1, 1))
    np.testing.assert_array_equal(volume.read(Box((0, 0, 0), (5, 30, 40))), STACK[:5])
    with pytest.raises(InputError, match=r"got .*s\.tif, which is damaged"):
        volume.read()


def series(folder, compression=None):
    folder.mkdir()
    for z, plane in enumerate(STACK):
        tifffile.imwrite(folder / f"p{z + 1}.tif", plane, compression=compression)
    return folder


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_folder_of_planes_is_in_natural_order(tmp_path, compression):
    folder = series(tmp_path / "planes", compression)
    (folder / "notes.txt").write_text("not a plane")
    volume = open_volume(folder, voxel_size_um=(5, 1, 1))
    assert volume.format == "tiff-series"
    np.testing.assert_array_equal(volume.read(), STACK)
    np.testing.assert_array_equal(volume.read(Box((9, 2, 3), (12, 4, 8))), STACK[9:12, 2:4, 3:8])


def test_planes_of_another_size_or_type_are_named(tmp_path):
    folder = series(tmp_path / "planes")
    tifffile.imwrite(folder / "p7.tif", STACK[6][:-1])
    with pytest.raises(
        InputError, match=r"expected planes of 30 x 40 uint16 as in p1\.tif, got 29 x 40 uint16 in .*p7"
    ):
        open_volume(folder, voxel_size_um=(1, 1, 1))
    tifffile.imwrite(folder / "p7.tif", STACK[6].astype(np.uint8))
    with pytest.raises(InputError, match=r"got 30 x 40 uint8 in .*p7\.tif"):
        open_volume(folder, voxel_size_um=(1, 1, 1))
    tifffile.imwrite(folder / "p7.tif", STACK)
    with pytest.raises(InputError, match=r"expected one plane in each file .* got 12 in p7\.tif"):
        open_volume(folder, voxel_size_um=(1, 1, 1))


@pytest.mark.parametrize("share", [0.9, 0.5, 0.0])
def test_a_plane_cut_short_is_named(tmp_path, share):
    folder = series(tmp_path / "planes")
    whole = (folder / "p4.tif").read_bytes()
    (folder / "p4.tif").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"got .*p4\.tif, which is damaged"):
        open_volume(folder, voxel_size_um=(1, 1, 1))


def test_a_folder_of_planes_without_voxel_size_asks_for_one(tmp_path):
    with pytest.raises(InputError, match="--voxel-size Z Y X"):
        open_volume(series(tmp_path / "planes"))
