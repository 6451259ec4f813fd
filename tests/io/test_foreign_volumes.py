"""Volumes of other programs: their axes, units, frames and quirks."""

import functools
import http.server
import json
import threading

import nibabel as nib
import nrrd
import numpy as np
import pytest
import tensorstore
import zarr

from cloudreg.errors import InputError
from cloudreg.io import describe, open_volume
from cloudreg.space import Box, Grid, axes_between

RNG = np.random.default_rng(0)
ARRAY = RNG.integers(0, 999, (6, 7, 8)).astype(np.uint16)


def multiscale(axes, levels, **more):
    """OME metadata: levels as (path, scale, translation)."""
    datasets = []
    for path, scale, translation in levels:
        steps = [{"type": "scale", "scale": scale}]
        if translation is not None:
            steps.append({"type": "translation", "translation": translation})
        datasets.append({"path": path, "coordinateTransformations": steps})
    return [{"axes": axes, "datasets": datasets, **more}]


def space(names, unit="micrometer"):
    return [{"name": n, "type": "space", **({"unit": unit} if unit else {})} for n in names]


def write_zarr(folder, arrays, multiscales, version):
    group = zarr.open_group(folder, mode="w", zarr_format=2 if version == "0.4" else 3)
    for name, array in arrays.items():
        group.create_array(name, data=array, chunks=tuple(min(4, n) for n in array.shape))
    group.attrs.update({"multiscales": multiscales} if version == "0.4" else {"ome": {"multiscales": multiscales}})
    return folder


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(("unit", "um"), [("micrometer", 1), ("nanometer", 1e-3), ("millimeter", 1000)])
def test_ome_zarr_units_and_places(tmp_path, version, unit, um):
    levels = [("0", [3, 2, 1], [30, 20, 10]), ("1", [6, 4, 2], [31.5, 21, 10.5])]
    arrays = {"0": ARRAY, "1": ARRAY[::2, ::2, ::2]}
    volume = open_volume(write_zarr(tmp_path / "v.zarr", arrays, multiscale(space("zyx", unit), levels), version))
    np.testing.assert_array_equal(volume.read(), ARRAY)
    np.testing.assert_array_equal(volume.read(level=1), arrays["1"])
    np.testing.assert_allclose(volume.grid.affine, np.array(affine((3, 2, 1), (30, 20, 10), um)))
    np.testing.assert_allclose(volume.levels[1].affine, volume.grid.downsampled((2, 2, 2)).affine)
    assert volume.dtype == np.uint16 and volume.kind == "image" and volume.orientation is None


def affine(scale, translation, um=1.0):
    matrix = np.diag([*(um * np.array(scale)), 1.0])
    matrix[:3, 3] = um * np.array(translation)
    return matrix


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("order", ["tczyx", "czyx", "tzyx", "xyz", "zyxc"])
def test_ome_zarr_axes_in_any_order(tmp_path, version, order):
    array = RNG.integers(0, 999, (1, 3, 6, 7, 8)).astype(np.uint16)
    named = dict(zip("tczyx", [1, 3, 6, 7, 8], strict=True))
    kept = "".join(a for a in "tczyx" if a in order)
    smaller = array[tuple(slice(None) if a in kept else 0 for a in "tczyx")]
    stored = smaller.transpose([kept.index(a) for a in order])
    kinds = {"t": "time", "c": "channel"}
    axes = [{"name": a, "type": kinds.get(a, "space"), "unit": "micrometer" if a in "zyx" else None} for a in order]
    size = {"z": 3.0, "y": 2.0, "x": 1.0}
    levels = [("0", [size.get(a, 1.0) for a in order], [10 * size.get(a, 0.0) for a in order])]
    volume = open_volume(write_zarr(tmp_path / "v.zarr", {"0": stored}, multiscale(axes, levels), version))
    expected = array[0] if "c" in order else array[0, :1]
    np.testing.assert_array_equal(volume.read(channel=None), expected)
    assert volume.channels == (named["c"] if "c" in order else 1)
    np.testing.assert_allclose(volume.grid.affine, affine((3, 2, 1), (30, 20, 10)))
    assert all(c <= 4 for c in volume.chunk)


def test_ome_zarr_common_transformation_comes_last(tmp_path):
    common = [{"type": "scale", "scale": [10, 10, 10]}, {"type": "translation", "translation": [1, 1, 1]}]
    scales = multiscale(space("zyx"), [("0", [3, 2, 1], [1, 2, 3])], coordinateTransformations=common)
    volume = open_volume(write_zarr(tmp_path / "v.zarr", {"0": ARRAY}, scales, "0.4"))
    np.testing.assert_allclose(volume.grid.affine, affine((30, 20, 10), (11, 21, 31)))


def test_ome_zarr_channel_names_and_label_mark(tmp_path):
    array = np.stack([ARRAY, ARRAY])
    axes = [{"name": "c", "type": "channel"}, *space("zyx")]
    folder = write_zarr(tmp_path / "v.zarr", {"0": array}, multiscale(axes, [("0", [1, 1, 1, 1], None)]), "0.4")
    zarr.open_group(folder).attrs["omero"] = {"channels": [{"label": "DAPI"}, {"label": "cFos"}]}
    assert open_volume(folder).channel_names == ("DAPI", "cFos")
    zarr.open_group(folder).attrs["image-label"] = {}
    assert open_volume(folder).kind == "labels" and open_volume(folder, kind="image").kind == "image"


def test_several_time_points_are_refused(tmp_path):
    axes = [{"name": "t", "type": "time"}, *space("zyx")]
    array = np.stack([ARRAY, ARRAY])
    folder = write_zarr(tmp_path / "v.zarr", {"0": array}, multiscale(axes, [("0", [1, 1, 1, 1], None)]), "0.5")
    with pytest.raises(InputError, match=r"expected one time point in .*, got 2"):
        open_volume(folder)


def test_an_ome_zarr_whose_level_is_missing_is_refused(tmp_path):
    folder = write_zarr(tmp_path / "v.zarr", {}, multiscale(space("zyx"), [("0", [1, 1, 1], None)]), "0.5")
    with pytest.raises(InputError, match=r"expected an array at .*v\.zarr/0"):
        open_volume(folder)


def test_units_that_are_no_length_ask_for_the_voxel_size(tmp_path):
    scales = multiscale(space("zyx", "parsec"), [("0", [1, 1, 1], None)])
    folder = write_zarr(tmp_path / "v.zarr", {"0": ARRAY}, scales, "0.5")
    with pytest.raises(InputError, match=r"unit of length .* got 'parsec': give --voxel-size"):
        open_volume(folder)
    assert open_volume(folder, voxel_size_um=(3, 2, 1)).grid == Grid.from_spacing(ARRAY.shape, (3, 2, 1))


@pytest.mark.parametrize("size", [(0.1, 0.1, 0.1), (10.0, 200.0, 10.0)])
def test_without_a_unit_no_brain_is_a_metre_long(tmp_path, size):
    scales = multiscale(space("zyx", None), [("0", list(size), None)])
    volume = open_volume(write_zarr(tmp_path / "v.zarr", {"0": ARRAY}, scales, "0.4"))
    um = 1 if max(size) > 100 else 1000
    np.testing.assert_allclose(volume.grid.voxel_size_um, np.array(size) * um)
    assert "taken as" in describe(volume)["note"]


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_plain_zarr_array_needs_its_voxel_size(tmp_path, zarr_format):
    zarr.create_array(tmp_path / "a.zarr", data=ARRAY, chunks=(4, 4, 4), zarr_format=zarr_format)
    with pytest.raises(InputError, match=r"expected a voxel size for the Zarr array .*: give --voxel-size Z Y X"):
        open_volume(tmp_path / "a.zarr")
    volume = open_volume(f"zarr://{tmp_path}/a.zarr", voxel_size_um=(3, 2, 1))
    np.testing.assert_array_equal(volume.read(Box((1, 2, 3), (5, 6, 7))), ARRAY[1:5, 2:6, 3:7])
    assert volume.chunk == (4, 4, 4)


def test_a_group_that_is_no_image_is_refused(tmp_path):
    zarr.open_group(tmp_path / "g.zarr", mode="w").create_array("a", data=ARRAY)
    with pytest.raises(InputError, match="got a group: give the path of one in it"):
        open_volume(tmp_path / "g.zarr")


def test_sharded_zarr_is_read(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=ARRAY, chunks=(2, 2, 2), shards=(6, 8, 8))
    volume = open_volume(tmp_path / "a.zarr", voxel_size_um=(1, 1, 1))
    np.testing.assert_array_equal(volume.read(), ARRAY)


def test_n5_pyramids_are_read_as_xyz(tmp_path):
    for level, array in enumerate((ARRAY, ARRAY[::2, ::2, ::2])):
        n5(tmp_path / "v.n5" / f"s{level}", array)
    attributes = {"pixelResolution": {"unit": "um", "dimensions": [1.0, 2.0, 3.0]}}
    (tmp_path / "v.n5" / "attributes.json").write_text(json.dumps(attributes))
    volume = open_volume(tmp_path / "v.n5")
    np.testing.assert_array_equal(volume.read(), ARRAY)
    np.testing.assert_array_equal(volume.read(level=1), ARRAY[::2, ::2, ::2])
    assert volume.levels == (Grid.from_spacing(ARRAY.shape, (3, 2, 1)), volume.grid.downsampled((2, 2, 2)))
    alone = open_volume(tmp_path / "v.n5" / "s0", voxel_size_um=(3, 2, 1))
    np.testing.assert_array_equal(alone.read(), ARRAY)
    with pytest.raises(InputError, match=r"expected a voxel size in .*s0, got none"):
        open_volume(tmp_path / "v.n5" / "s0")


def test_n5_levels_are_as_coarse_as_they_say(tmp_path):
    # By their shapes alone, 7 and 3 voxels, the levels would be coarser by 2.33.
    for level, array in enumerate((ARRAY, ARRAY[:6:2, :6:2, ::2])):
        n5(tmp_path / "v.n5" / f"s{level}", array)
    attributes = {"resolution": [1.0, 2.0, 3.0], "units": ["um"] * 3, "axes": ["x", "y", "z"]}
    for more in ({"scales": [[1, 1, 1], [2, 2, 2]]}, {"downsamplingFactors": [[1, 1, 1], [2, 2, 2]]}):
        (tmp_path / "v.n5" / "attributes.json").write_text(json.dumps({**attributes, **more}))
        volume = open_volume(tmp_path / "v.n5")
        assert volume.levels[1].voxel_size_um == (6, 4, 2) and volume.levels[1].shape == (3, 3, 4)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_plane_is_a_volume_one_voxel_thick(tmp_path, zarr_format):
    zarr.create_array(tmp_path / "a.zarr", data=ARRAY[0], chunks=(4, 4), zarr_format=zarr_format)
    volume = open_volume(tmp_path / "a.zarr", voxel_size_um=(3, 2, 1))
    assert volume.chunk == (1, 4, 4)
    np.testing.assert_array_equal(volume.read(), ARRAY[:1])


def n5(folder, array):
    metadata = {
        "dimensions": list(array.shape[::-1]),
        "blockSize": [4, 4, 4],
        "dataType": str(array.dtype),
        "compression": {"type": "gzip"},
    }
    spec = {"driver": "n5", "kvstore": f"file://{folder}/", "metadata": metadata}
    tensorstore.open(spec, create=True).result().write(array.transpose()).result()


@pytest.mark.parametrize("sharded", [False, True])
def test_precomputed_of_others(tmp_path, sharded):
    scales = []
    for factor in (1, 2):
        scale = {
            "key": str(factor),
            "size": [-(-n // factor) for n in (8, 7, 6)],
            "resolution": [1000 * factor, 2000 * factor, 3000 * factor],
            "voxel_offset": [10 // factor, 20 // factor, -4 // factor],
            "chunk_sizes": [[4, 4, 4]],
            "encoding": "raw",
        }
        if sharded:
            scale["sharding"] = {
                "@type": "neuroglancer_uint64_sharded_v1",
                "preshift_bits": 1,
                "hash": "identity",
                "minishard_bits": 1,
                "shard_bits": 1,
                "minishard_index_encoding": "gzip",
                "data_encoding": "gzip",
            }
        scales.append(scale)
    info = {"type": "image", "data_type": "uint16", "num_channels": 1, "scales": scales}
    (tmp_path / "info").write_text(json.dumps(info))
    spec = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{tmp_path}/", "scale_index": 0}
    tensorstore.open(spec).result().write(ARRAY.transpose()[..., None]).result()
    volume = open_volume(tmp_path)
    assert volume.format == "precomputed"
    np.testing.assert_array_equal(volume.read(), ARRAY)
    assert volume.grid == Grid.from_spacing((6, 7, 8), (3, 2, 1), (-12, 40, 10))
    assert volume.levels[1] == volume.grid.downsampled((2, 2, 2))
    np.testing.assert_array_equal(open_volume(f"precomputed://{tmp_path}").read(), ARRAY)


def test_precomputed_that_is_no_volume(tmp_path):
    with pytest.raises(InputError, match="expected a volume with info at"):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x").write_text("")
        open_volume(f"precomputed://{tmp_path}/a")
    (tmp_path / "info").write_text(json.dumps({"@type": "neuroglancer_annotations_v1"}))
    with pytest.raises(InputError, match="got neuroglancer_annotations_v1"):
        open_volume(tmp_path)
    (tmp_path / "info").write_text("{")
    with pytest.raises(InputError, match=r"expected JSON in .*/info"):
        open_volume(tmp_path)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_volumes_are_read_from_a_web_server(tmp_path):
    write_zarr(tmp_path / "v.zarr", {"0": ARRAY}, multiscale(space("zyx"), [("0", [3, 2, 1], [1, 2, 3])]), "0.5")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        np.testing.assert_array_equal(open_volume(f"{address}/v.zarr").read(), ARRAY)
        with pytest.raises(InputError, match="got none of their metadata"):
            open_volume(f"{address}/other.zarr")
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.tif", "got nothing"),
        ("empty", "an empty folder"),
        ("notes.txt", "the end of its name"),
        ("x.nii", "NIfTI"),
    ],
)
def test_paths_that_hold_no_volume_are_named(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "x.nii").write_text("hello")
    with pytest.raises(InputError, match=message) as error:
        open_volume(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)


def nifti(file, matrix, codes=(1, 1), unit="mm", array=ARRAY):
    image = nib.Nifti1Image(array, matrix)
    image.set_sform(matrix, code=codes[0])
    image.set_qform(matrix, code=codes[1])
    image.header.set_xyzt_units(unit)
    nib.save(image, file)
    return file


LAS = np.array([[-0.5, 0, 0, 10], [0, 0.25, 0, -20], [0, 0, 2, 5], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(("unit", "um"), [("mm", 1000), ("micron", 1), ("unknown", 1000)])
def test_a_nifti_lies_where_its_header_says(tmp_path, unit, um):
    volume = open_volume(nifti(tmp_path / "v.nii", LAS, unit=unit))
    assert volume.orientation == "ipl" and volume.has_own_frame
    index = np.array([2.0, 3.0, 4.0])
    x, y, z = um * (LAS @ [*index, 1])[:3]
    np.testing.assert_allclose(volume.grid.index_to_um(index), (z, y, x))
    np.testing.assert_array_equal(volume.read(), ARRAY)


def test_a_nifti_overridden_by_letters_has_the_axes_of_its_array(tmp_path):
    file = nifti(tmp_path / "v.nii", LAS)
    assert open_volume(file, orientation="rpi").grid == Grid.from_spacing(ARRAY.shape, (500, 250, 2000))
    assert open_volume(file, orientation="rpi").orientation == "rpi"
    sized = open_volume(file, voxel_size_um=(5, 6, 7))
    # The header's first axis grows to the left, so it starts at the right.
    assert sized.grid == Grid.from_spacing(ARRAY.shape, (5, 6, 7)) and sized.orientation == "rpi"
    assert not sized.has_own_frame


def test_a_nifti_without_world_has_no_letters(tmp_path):
    image = nib.Nifti1Image(ARRAY, None)
    image.header.set_zooms((0.5, 0.25, 2))
    image.header.set_xyzt_units("mm")
    nib.save(image, tmp_path / "v.nii")
    volume = open_volume(tmp_path / "v.nii")
    assert volume.orientation is None and volume.grid == Grid.from_spacing(ARRAY.shape, (500, 250, 2000))


def test_a_nifti_whose_matrix_nobody_vouches_for_has_the_voxel_size_of_its_header(tmp_path):
    image = nib.Nifti1Image(ARRAY, None)
    image.header.set_zooms((0.5, 0.25, 2))
    image.header.set_xyzt_units("mm")
    image.set_sform(np.eye(4), code=0, update_affine=False)
    nib.save(image, tmp_path / "v.nii")
    assert nib.load(tmp_path / "v.nii").header.get_sform().tolist() == np.eye(4).tolist()
    assert open_volume(tmp_path / "v.nii").grid == Grid.from_spacing(ARRAY.shape, (500, 250, 2000))


def test_a_scaled_nifti_gives_true_values(tmp_path):
    image = nib.Nifti1Image(ARRAY.astype(np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "v.nii")
    with (tmp_path / "v.nii").open("r+b") as file:  # nibabel resets the scale of integers as it saves
        file.seek(112)
        file.write(np.array([0.5, -3], "<f4").tobytes())
    volume = open_volume(tmp_path / "v.nii")
    assert volume.dtype == np.float32
    np.testing.assert_allclose(volume.read(), 0.5 * ARRAY - 3)


def test_a_damaged_nifti_is_named(tmp_path):
    nifti(tmp_path / "v.nii.gz", LAS)
    whole = (tmp_path / "v.nii.gz").read_bytes()
    (tmp_path / "v.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"v\.nii\.gz"):
        open_volume(tmp_path / "v.nii.gz").read()


def test_an_nrrd_in_lps_is_turned_to_ras(tmp_path):
    header = {
        "space": "left-posterior-superior",
        "space directions": np.diag([0.5, 0.25, 2.0]),
        "space origin": [10.0, 20.0, 30.0],
    }
    nrrd.write(str(tmp_path / "v.nrrd"), ARRAY, header)
    volume = open_volume(tmp_path / "v.nrrd")
    assert volume.orientation == "ipl"
    # One step along the first axis goes half a millimetre to the left, which is minus x.
    np.testing.assert_allclose(volume.grid.affine[:3, 0], (0, 0, -500))
    np.testing.assert_allclose(volume.grid.origin_um, (30_000, -20_000, -10_000))
    np.testing.assert_array_equal(volume.read(), ARRAY)
    # LPS says where axes grow to; letters where they start.
    np.testing.assert_allclose(axes_between("ipl", "rai", allow_mirror=True) @ volume.grid.affine[:3, 1], (0, 250, 0))


@pytest.mark.parametrize(
    ("more", "um"),
    [({}, 1000), ({"space units": ["microns", "microns", "microns"]}, 1), ({"space units": ["mm", "mm", "mm"]}, 1000)],
)
def test_nrrd_units(tmp_path, more, um):
    header = {"space dimension": 3, "space directions": np.diag([3.0, 2.0, 1.0]), "space origin": [0, 0, 0], **more}
    nrrd.write(str(tmp_path / "v.nrrd"), ARRAY, header)
    np.testing.assert_allclose(open_volume(tmp_path / "v.nrrd").grid.voxel_size_um, np.array((3, 2, 1)) * um)


def test_an_nrrd_with_spacings_only(tmp_path):
    nrrd.write(str(tmp_path / "v.nrrd"), ARRAY, {"spacings": [300.0, 200.0, 100.0]})
    volume = open_volume(tmp_path / "v.nrrd")
    assert volume.grid == Grid.from_spacing(ARRAY.shape, (300, 200, 100)) and volume.orientation is None


def test_a_damaged_nrrd_is_named(tmp_path):
    nrrd.write(str(tmp_path / "v.nrrd"), ARRAY, {"spacings": [300.0, 200.0, 100.0]})
    whole = (tmp_path / "v.nrrd").read_bytes()
    (tmp_path / "v.nrrd").write_bytes(whole[:-60])
    with pytest.raises(InputError, match=r"v\.nrrd, got a damaged one"):
        open_volume(tmp_path / "v.nrrd").read()


@pytest.mark.real
class TestSamples:
    """Files of other projects."""

    @pytest.fixture
    def formats(self, test_data):
        return test_data / "formats"

    @pytest.mark.parametrize("version", ["0.4", "0.5"])
    def test_neuroglancer_ome_zarr(self, formats, version):
        folder = formats / "neuroglancer" / "testdata" / "datasource" / "zarr" / "ome_zarr" / f"simple_{version}"
        volume = open_volume(folder)
        assert [g.shape for g in volume.levels] == [(1, 10, 10), (1, 5, 5), (1, 2, 2)]
        np.testing.assert_allclose(volume.grid.voxel_size_um[1:], (0.004, 0.030))
        for coarse in volume.levels[1:]:
            # 2, 15 and 6, 45 nm: the half voxels that the samples state.
            np.testing.assert_allclose(coarse.corner_um()[1:], volume.grid.corner_um()[1:], atol=1e-9)
        assert volume.read().shape == (1, 10, 10) and volume.read().any()

    @pytest.mark.parametrize(
        ("name", "scale", "translation"),
        [
            ("basic/identity", (1, 1, 1), (0, 0, 0)),
            ("basic/scale", (4, 3, 2), (0, 0, 0)),
            ("basic/sequenceScaleTranslation", (4, 3, 2), (32, 21, 10)),
            ("simple/affine", (4, 3, 2), (32, 21, 10)),
        ],
    )
    def test_ome_zarr_to_come(self, formats, name, scale, translation):
        root = formats / "neuroglancer" / "testdata" / "datasource" / "zarr" / "ome_zarr" / "all_0.6"
        volume = open_volume(root / f"{name}.zarr")
        np.testing.assert_allclose(volume.grid.affine, affine(scale, translation))

    @pytest.mark.parametrize("name", ["3d.chunked.compressed.sharded.i2", "3d.chunked.i2", "2d.chunked.ragged.i2"])
    def test_zarr_v3_arrays(self, formats, name):
        root = formats / "neuroglancer" / "testdata" / "datasource" / "zarr" / "zarr_v3" / "from_zarrita" / "data.zarr"
        array = open_volume(root / name, voxel_size_um=(1, 1, 1)).read()
        np.testing.assert_array_equal(np.diff(array.ravel()), 1)

    @pytest.mark.parametrize("name", ["deprecated", "modern"])
    def test_n5_viewer_levels(self, formats, name):
        folder = formats / "neuroglancer" / "testdata" / "datasource" / "n5" / f"n5_viewer_multiscale_{name}"
        with pytest.raises(InputError, match=r"expected a unit of length .* got 's'"):  # y is in seconds there
            open_volume(folder)
        volume = open_volume(folder, voxel_size_um=(1, 20, 10))
        assert [g.voxel_size_um for g in volume.levels] == [(1, 20, 10), (1, 40, 20), (1, 80, 40)]

    @pytest.mark.parametrize("name", ["test_cv_sharded", "test_seg_unsharded"])
    def test_compresso_is_named(self, formats, name):
        with pytest.raises(InputError, match="got compresso"):
            open_volume(formats / "cloud-volume" / "test" / name)

    def test_niivue_brain(self, formats):
        volume = open_volume(formats / "niivue" / "mni152_axial.ome.zarr")
        # Axes x, y, z of one axial plane; no unit, so millimetres.
        assert volume.grid.shape[0] == 1 and len(volume.levels) == 4
        np.testing.assert_allclose(volume.grid.voxel_size_um, (737.463116645813,) * 3)
        np.testing.assert_allclose(volume.grid.origin_um, (7146.018385887146, -110762.53509521484, -75762.53509521484))
        assert volume.read(level=2).std() > 0

    @pytest.mark.parametrize("name", ["3d.chunked.i2", "3d.chunked.mixed.i2.C", "3d.chunked.mixed.i2.F"])
    def test_zarr_v2_arrays(self, formats, name):
        root = formats / "neuroglancer" / "testdata" / "datasource" / "zarr" / "zarr_v2" / "from_zarr-python"
        volume = open_volume(root / "data.zarr" / name, voxel_size_um=(1, 1, 1))
        np.testing.assert_array_equal(volume.read(), np.arange(27).reshape(3, 3, 3))

    def test_precomputed_information(self, formats):
        root = formats / "neuroglancer" / "testdata" / "datasource" / "precomputed"
        volume = open_volume(root / "two_channels")
        assert volume.channels == 2 and [g.shape for g in volume.levels] == [(30, 20, 10), (15, 10, 5), (8, 5, 3)]
        np.testing.assert_allclose(volume.grid.voxel_size_um, (0.005, 0.004, 0.003))

    def test_allen_labels_keep_their_ids(self, test_data):
        folder = test_data / "allen_ccfv3"
        labels = open_volume(folder / "annotation_100.nrrd", orientation="asr")
        template = open_volume(folder / "average_template_100.nrrd", orientation="asr")
        assert labels.grid == template.grid == Grid.from_spacing((132, 80, 114), (100, 100, 100))
        assert labels.kind == "labels" and template.kind == "image" and not labels.has_own_frame
        assert labels.read().max() == 614_454_277

    def test_a_real_brain_stack_is_read_by_planes(self, test_data):
        volume = open_volume(test_data / "mouse_stpt" / "brain_psl_50x40x40um.tif", voxel_size_um=(50, 40, 40))
        assert volume.grid.shape == (270, 193, 271) and volume.dtype == np.uint16
        middle = volume.read(Box((135, 0, 0), (136, 193, 271)))
        assert middle.mean() > volume.read(Box((0, 0, 0), (1, 193, 271))).mean()
