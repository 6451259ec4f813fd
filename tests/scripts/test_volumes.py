"""Planes to volumes, volumes to files, and the illumination taken off, as the 2021 documentation says."""

import imagecodecs
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from cloudreg.errors import InputError, MissingExtraError
from cloudreg.io import open_volume, write_volume
from cloudreg.io.objects import write_json
from cloudreg.space import Grid

PLANES = np.random.default_rng(0).integers(1, 60000, (7, 20, 30)).astype(np.uint16)


def write_planes(folder, planes=PLANES, ending="tif"):
    folder.mkdir()
    for z, plane in enumerate(planes):
        file = folder / f"z{z}.{ending}"
        if ending in ("tif", "tiff"):
            tifffile.imwrite(file, plane)
        else:
            imagecodecs.imwrite(file, plane)
    return folder


def write_layer(path, size=(30, 20, 7), mips=2, chunk=(16, 16, 1), dtype="uint16", kind="image"):
    """Write the description of an empty volume with levels halved in x and y, as CloudReg 1 made it."""
    scales = [
        {
            "key": f"mip{mip}",
            "size": [-(-size[0] // 2**mip), -(-size[1] // 2**mip), size[2]],
            "resolution": [2000 * 2**mip, 2000 * 2**mip, 5000],
            "voxel_offset": [0, 0, 0],
            "chunk_sizes": [list(chunk)],
            "encoding": "raw",
        }
        for mip in range(mips + 1)
    ]
    info = {"@type": "neuroglancer_multiscale_volume", "type": kind, "data_type": dtype, "num_channels": 1}
    write_json(str(path), "info", info | {"scales": scales})
    return str(path)


class TestCreate:
    """create_precomputed_volume and its parts."""

    @pytest.fixture
    def create(self, legacy):
        return legacy("create_precomputed_volume")

    @pytest.mark.parametrize("ending", ["tif", "tiff", "png"])
    def test_a_series_becomes_a_volume_in_a_bucket(self, create, s3, tmp_path, ending):
        folder = write_planes(tmp_path / "in", ending=ending)
        (folder / "notes.txt").write_text("not a plane")
        path = f"s3://private/created_{ending}"
        create.create_precomputed_volume(str(folder), np.array([2.0, 3.0, 5.0]), path, extension=ending)
        volume = open_volume(f"precomputed://{path}")
        # x y z in, z y x here.
        assert volume.grid.voxel_size_um == (5, 3, 2) and volume.dtype == np.uint16
        np.testing.assert_array_equal(volume.read(), PLANES)

    def test_only_files_of_the_extension_are_planes(self, create, tmp_path):
        folder = write_planes(tmp_path / "in")
        tifffile.imwrite(folder / "z0_corrected.tiff", PLANES[0])
        create.create_precomputed_volume(str(folder), [1, 1, 1], f"{tmp_path}/out")
        assert open_volume(f"precomputed://{tmp_path}/out").grid.shape == PLANES.shape

    def test_dimensions_are_x_y_z(self, create, tmp_path):
        folder = write_planes(tmp_path / "in")
        assert create.get_image_dims(sorted(str(p) for p in folder.iterdir())) == [30, 20, 7]
        with pytest.raises(InputError, match="got none"):
            create.get_image_dims([])

    def test_a_plane_is_written_with_its_smaller_copies(self, create, tmp_path):
        folder, layer = write_planes(tmp_path / "in"), write_layer(tmp_path / "layer")
        create.process(4, str(folder / "z4.tif"), layer, 2)
        volume = open_volume(f"precomputed://{layer}")
        np.testing.assert_array_equal(volume.read()[4], PLANES[4])
        assert not volume.read()[:4].any() and not volume.read()[5:].any()
        halved = PLANES[4].reshape(10, 2, 15, 2).mean(axis=(1, 3))
        assert np.abs(volume.read(level=1)[4] - halved).max() <= 0.5
        assert volume.read(level=2)[4].shape == (5, 8) and volume.read(level=2)[4].any()

    @pytest.mark.parametrize(
        ("z", "mips", "message"), [(7, 1, "within 0 to 6"), (0, 3, r"up to 2 levels of the same planes")]
    )
    def test_a_plane_that_does_not_fit_is_said(self, create, tmp_path, z, mips, message):
        folder, layer = write_planes(tmp_path / "in"), write_layer(tmp_path / "layer")
        with pytest.raises(InputError, match=message):
            create.process(z, str(folder / "z0.tif"), layer, mips)

    def test_missing_folders_planes_and_pictures_are_said(self, create, tmp_path):
        with pytest.raises(InputError, match=r"expected a folder of \.tif files .* got nothing"):
            create.create_precomputed_volume(f"{tmp_path}/none", [1, 1, 1], f"{tmp_path}/out")
        folder = write_planes(tmp_path / "in")
        with pytest.raises(InputError, match=r"expected \.png files in"):
            create.create_precomputed_volume(str(folder), [1, 1, 1], f"{tmp_path}/out", extension="png")
        (folder / "z3.tif").write_bytes(b"nothing")
        with pytest.raises(InputError, match=r"z3\.tif"):
            create.create_precomputed_volume(str(folder), [1, 1, 1], f"{tmp_path}/out")
        with pytest.raises(InputError, match=r"expected a picture at .*z3\.tif"):
            create.get_image_dims([str(folder / "z3.tif")])
        pictures = write_planes(tmp_path / "pictures", ending="png")
        imagecodecs.imwrite(pictures / "z5.png", PLANES[5][:9])
        with pytest.raises(InputError, match=r"expected planes of \(20, 30\) uint16 .* in .*z5\.png"):
            create.create_precomputed_volume(str(pictures), [1, 1, 1], f"{tmp_path}/out", extension="png")

    def test_isotropic_and_compressed_on_demand(self, create, tmp_path):
        folder = write_planes(tmp_path / "in", np.tile(np.arange(30, dtype=np.uint16) * 100, (8, 20, 1)))
        create.create_precomputed_volume(str(folder), [2, 2, 5], f"{tmp_path}/iso", resample_iso=True)
        volume = open_volume(f"precomputed://{tmp_path}/iso")
        assert volume.grid.voxel_size_um == (5, 5, 5) and volume.grid.shape == (8, 8, 12)
        # A slope along x stays that slope.
        slope = np.diff(volume.read()[4, 4].astype(float))[1:-2]
        np.testing.assert_allclose(slope, 250, atol=20)
        large = write_planes(tmp_path / "large", np.tile(np.arange(128, dtype=np.uint16), (8, 128, 1)))
        create.create_precomputed_volume(str(large), [2, 2, 5], f"{tmp_path}/small", compress=True)
        size = sum(p.stat().st_size for p in (tmp_path / "small").rglob("*"))
        assert size < 8 * 128 * 128 * 2 / 10

    @pytest.mark.parametrize("where", ["before", "after"])
    def test_voxel_sizes_stand_before_or_after_the_path(self, create, tmp_path, monkeypatch, where):
        from cloudreg.execution import progress

        monkeypatch.setattr(progress, "_console", None)
        folder, out = write_planes(tmp_path / "in"), str(tmp_path / "out")
        sizes = ["1.5", "2", "3"]
        words = [*sizes, out] if where == "before" else [out, *sizes]
        assert create.main([str(folder), *words]) == 0
        assert open_volume(f"precomputed://{out}").grid.voxel_size_um == (3, 2, 1.5)

    def test_a_cloud_volume_is_made_and_filled(self, create, legacy, tmp_path):
        pytest.importorskip("cloudvolume")
        words = (f"{tmp_path}/layer", [30, 20, 7], [2000, 2000, 5000], 2, [16, 16, 1])
        vol = create.create_cloud_volume(*words)
        assert [list(s["size"]) for s in vol.scales] == [[30, 20, 7], [15, 10, 7], [8, 5, 7]]
        assert [list(s["resolution"]) for s in vol.scales][1] == [4000, 4000, 5000]
        assert vol.dtype == "uint16" and vol.layer_type == "image" and tuple(vol.chunk_size) == (16, 16, 1)
        vol[:, :, 3] = PLANES[3].T[:, :, None]
        np.testing.assert_array_equal(open_volume(f"precomputed://{tmp_path}/layer").read()[3], PLANES[3])
        assert create.create_cloud_volume(*words).shape == vol.shape
        # CloudVolume's own object is what get_mip_at_res takes.
        mip, resolution = legacy("download_data").get_mip_at_res(vol, 5000)
        assert mip == 1 and list(resolution) == [4000, 4000, 5000]
        with pytest.raises(InputError, match="got another one"):
            create.create_cloud_volume(*words, dtype="uint8")

    def test_without_cloud_volume_the_command_to_install_it_is_said(self, create, tmp_path, monkeypatch):
        import sys

        monkeypatch.setitem(sys.modules, "cloudvolume", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'cloudreg\[legacy\]'"):
            create.create_cloud_volume(f"{tmp_path}/layer", [3, 2, 1], [1, 1, 1], 0, [1, 1, 1])
        assert not (tmp_path / "layer").exists()


class Levels:
    """What get_mip_at_res looks at of a CloudVolume."""

    def __init__(self, *resolutions):
        self.scales = [{"resolution": list(r)} for r in resolutions]


class TestDownload:
    """download_data and the level it chooses."""

    @pytest.fixture
    def download(self, legacy):
        return legacy("download_data")

    @pytest.mark.parametrize(
        ("wanted", "mip"), [(1, 0), (4000, 0), (7999, 0), (8000, 1), (15000, 1), (16000, 2), (1e9, 2)]
    )
    def test_the_level_is_at_least_as_fine_as_asked_for(self, download, wanted, mip):
        levels = Levels((4000, 4000, 5000), (8000, 8000, 5000), (16000, 16000, 5000))
        found, resolution = download.get_mip_at_res(levels, wanted)
        assert found == mip
        np.testing.assert_array_equal(resolution, levels.scales[mip]["resolution"])

    @pytest.fixture(scope="class")
    def volume(self, tmp_path_factory):
        path = f"{tmp_path_factory.mktemp('v')}/v"
        z, y, x = np.indices((64, 80, 96))
        values = (x + 10 * y + 100 * z).astype(np.uint16)
        write_volume(f"precomputed://{path}", values, Grid.from_spacing(values.shape, (8, 4, 4)), levels=3)
        return path, values

    @pytest.mark.parametrize(("wanted", "voxel"), [(1000, (4, 4, 8)), (15000, (8, 8, 8)), (16000, (16, 16, 16))])
    def test_the_whole_volume_is_written_at_that_resolution(self, download, volume, tmp_path, wanted, voxel):
        path, values = volume
        resolution, size = download.download_data(path, str(tmp_path / "v.nrrd"), wanted, return_size=True)
        np.testing.assert_array_equal(resolution, voxel)
        image = sitk.ReadImage(str(tmp_path / "v.nrrd"))
        np.testing.assert_array_equal(size, image.GetSize())
        np.testing.assert_allclose(image.GetSpacing(), resolution / 1000)
        if wanted == 1000:
            np.testing.assert_array_equal(sitk.GetArrayFromImage(image), values)

    def test_isotropic_voxels_are_as_long_as_the_longest(self, download, volume, tmp_path):
        path, values = volume
        resolution = download.download_data(path, str(tmp_path / "v.tif"), 4000, resample_isotropic=True)
        np.testing.assert_array_equal(resolution, (8, 8, 8))
        found = tifffile.imread(tmp_path / "v.tif")
        assert found.shape == (64, 40, 48)
        means = values.reshape(64, 40, 2, 48, 2).mean(axis=(2, 4))
        assert np.abs(found - means)[:, 1:-1, 1:-1].max() <= 0.51

    def test_a_file_that_stands_is_kept(self, download, volume, tmp_path):
        (tmp_path / "v.nrrd").write_text("mine")
        with pytest.raises(InputError, match="choose a new place"):
            download.download_data(volume[0], str(tmp_path / "v.nrrd"))
        assert (tmp_path / "v.nrrd").read_text() == "mine"


class TestIngest:
    """ingest_image_stack."""

    @pytest.mark.parametrize("form", ["folder", "file"])
    def test_a_stack_becomes_a_volume(self, legacy, s3, tmp_path, form):
        ingest = legacy("ingest_image_stack").ingest_image_stack
        if form == "folder":
            stack = write_planes(tmp_path / "in")
        else:
            stack = tmp_path / "in.tif"
            tifffile.imwrite(stack, PLANES)
        path = f"s3://private/ingested_{form}"
        ingest(path, [2.0, 3.0, 5.0], str(stack), "tif", "uint8")
        volume = open_volume(f"precomputed://{path}")
        assert volume.grid.voxel_size_um == (5, 3, 2)
        # Clipped, not wrapped.
        np.testing.assert_array_equal(volume.read(), np.minimum(PLANES, 255))


class TestCorrect:
    """correct_stitched_data and process_slice."""

    def test_a_known_illumination_is_taken_off(self, legacy, s3, tmp_path):
        shape = (24, 40, 48)
        z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
        inside = z**2 + y**2 + x**2 < 0.8
        tissue = np.where(inside, np.where(np.sin(12 * x) * np.sin(11 * y) > 0, 1000.0, 1150.0), 8)
        shown = tissue * np.exp(0.5 * x - 0.3 * y)
        source, out = "s3://private/stitched", "s3://private/stitched_even"
        write_volume(f"precomputed://{source}", shown.astype(np.uint16), Grid.from_spacing(shape, (200,) * 3))
        legacy("correct_stitched_data").correct_stitched_data(source, out, resolution=200, num_procs=2)
        volume = open_volume(f"precomputed://{out}")
        assert volume.grid == open_volume(f"precomputed://{source}").grid and volume.dtype == np.uint16

        def unevenness(values):
            ratio = values[inside] / tissue[inside]
            return (ratio / ratio.mean()).std()

        assert unevenness(volume.read()) < 0.3 * unevenness(shown)
        np.testing.assert_array_equal(open_volume(f"precomputed://{source}").read(), shown.astype(np.uint16))

    def test_a_plane_is_multiplied_rounded_and_clipped(self, legacy, tmp_path):
        source = f"{tmp_path}/source"
        write_volume(f"precomputed://{source}", PLANES, Grid.from_spacing(PLANES.shape, (5, 2, 2)))
        out = write_layer(tmp_path / "out")
        bias = np.linspace(0.5, 2, 600).reshape(20, 30)
        legacy("correct_stitched_data").process_slice(sitk.GetImageFromArray(bias), 2, source, out)
        expected = np.clip(np.rint(PLANES[2] * bias.astype(np.float32).astype(float)), 0, 65535)
        found = open_volume(f"precomputed://{out}").read()[2]
        assert np.abs(found - expected).max() <= 1 and (expected == 65535).any()

    def test_a_coarse_correction_covers_the_whole_plane(self, legacy, tmp_path):
        source, flat = f"{tmp_path}/source", np.full((1, 20, 30), 100, np.uint16)
        write_volume(f"precomputed://{source}", flat, Grid.from_spacing(flat.shape, (5, 2, 2)))
        out = write_layer(tmp_path / "out", size=(30, 20, 1))
        coarse = np.tile(np.array([1, 2, 3], np.float32), (2, 1))
        legacy("correct_stitched_data").process_slice(sitk.GetImageFromArray(coarse), 0, source, out)
        found = open_volume(f"precomputed://{out}").read()[0]
        # Coarse pixel 1 covers columns 10 to 19; its middle is between 14 and 15.
        assert abs(found[10, 14:16].mean() - 200) <= 1
        assert (found[:, :5] == 100).all() and (found[:, -5:] == 300).all()
        assert (np.diff(found[5].astype(int)) >= 0).all()
