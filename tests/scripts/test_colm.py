"""A COLM acquisition by the 2021 functions: from S3, corrected, stitched."""

import doctest
import os
import shutil
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cloudreg.errors import BlocksFailedError, InputError
from cloudreg.io.objects import list_files, read_json
from cloudreg.tiles import open_acquisition, open_colm, read_project

INI = """[Experiment Settings]
X Resolution = "1024"
Num in stack (Top Left Corner) = "40"
Num Enabled Channels = "2"
[North Scan Region]
Num Horizontal = "3"
Num Vertical = "2"
Stack Step (mm) = "0.0029"
[North Scan Region Stats]
Actual Horizontal Overlap (%) = "15"
Actual Vertical Overlap (%) = "10"
[Objectives]
North = "10x 0.6NA"
"""


@pytest.fixture
def download(legacy):
    return legacy("download_raw_data")


@pytest.fixture
def correct(legacy):
    return legacy("correct_raw_data")


@pytest.fixture
def stitching(legacy):
    return legacy("stitching")


@pytest.fixture(scope="module")
def flat():
    y, x = np.meshgrid(*(np.linspace(-1, 1, 96),) * 2, indexing="ij")
    shape = 1.1 - 0.25 * (y**2 + x**2) + 0.1 * x
    return shape / shape.mean()


@pytest.fixture(scope="module")
def shaded(tmp_path_factory, specimen, flat):
    """The acquisition as a camera with a background of 110 sees it."""
    return specimen(tmp_path_factory.mktemp("shaded") / "raw", shading=flat, background=110)


@pytest.fixture
def raw(shaded, tmp_path):
    """A copy that may be worked in."""
    return shutil.copytree(shaded.path, tmp_path / "raw")


there = set()


@pytest.fixture
def uploaded(shaded, put):
    """The acquisition in a bucket, brought there once."""
    if not there:
        there.add(put(shaded.path, "s3://private/brain"))
    return "s3://private/brain"


class TestDownload:
    """Planes come to where TeraStitcher looks for them."""

    def test_the_example(self, download):
        result = doctest.testmod(download)
        assert result.attempted and not result.failed

    def test_files_of_one_channel_are_listed(self, download, uploaded, put, shaded):
        # Neither another experiment whose name begins alike, nor other files.
        put(shaded.path / "VW0" / "LOC000", "s3://private/brain2/VW0/LOC000")
        for prefix in ("brain", "brain/"):
            keys = download.get_list_of_files_to_process("private", prefix, 1)
            assert len(keys) == 6 * 24
            assert all(k.startswith("brain/VW0/LOC") and "_CHN01_" in k for k in keys)

    def test_all_pages_of_a_listing_are_read(self, download, uploaded):
        import boto3

        client = boto3.client("s3")
        objects = list(download.get_all_s3_objects(client, Bucket="private", Prefix="brain/VW0/LOC000/", MaxKeys=5))
        assert len(objects) == 48 and len({o["Key"] for o in objects}) == 48
        assert list(download.get_all_s3_objects(client, Bucket="private", Prefix="none/")) == []

    def test_a_channel_is_brought_whole(self, download, uploaded, shaded, tmp_path):
        download.download_raw_data("private/brain", 1, str(tmp_path))
        acquisition = open_acquisition(tmp_path)
        assert acquisition.channels == (1,)
        original = open_acquisition(shaded.path)
        for here, there in zip(acquisition.tiles, original.tiles, strict=True):
            np.testing.assert_array_equal(acquisition.read(here, 1, 0, 24), original.read(there, 1, 0, 24))

    def test_planes_that_are_there_are_not_fetched_again(self, download, uploaded, tmp_path):
        download.download_raw_data(uploaded, 0, str(tmp_path))
        planes = sorted(tmp_path.glob("VW0/*/*.tif"))
        planes[0].write_bytes(b"cut off")
        times = {p: p.stat().st_mtime_ns for p in planes[1:]}
        download.download_raw_data(uploaded, 0, str(tmp_path))
        assert planes[0].stat().st_size == planes[1].stat().st_size
        assert {p: p.stat().st_mtime_ns for p in planes[1:]} == times

    def test_a_missing_channel_is_said(self, download, uploaded, tmp_path):
        with pytest.raises(InputError, match=r"expected planes of channel 7 under s3://private/brain/VW0"):
            download.download_raw_data(uploaded, 7, str(tmp_path))

    def test_one_plane_may_be_multiplied_on_the_way(self, download, uploaded, shaded, tmp_path):
        import boto3

        key = download.get_list_of_files_to_process("private", "brain", 0)[30]
        raw = tifffile.imread(shaded.path / key.removeprefix("brain/"))
        bias = np.linspace(0.5, 40, raw.size).reshape(raw.shape)
        download.download_tile(boto3.resource("s3"), "private", key, str(tmp_path), bias)
        found = tifffile.imread(download.get_out_path(key, str(tmp_path)))
        assert found.dtype == np.uint16
        # Clipped, not wrapped.
        np.testing.assert_array_equal(found, np.clip(np.rint(raw * bias), 0, 65535))
        assert (found == 65535).any()
        # Once, however often it is asked for; and nothing is left beside it.
        download.download_tile(boto3.resource("s3"), "private", key, str(tmp_path), bias)
        file = Path(download.get_out_path(key, str(tmp_path)))
        np.testing.assert_array_equal(tifffile.imread(file), found)
        assert [p.name for p in file.parent.iterdir()] == [file.name]
        with pytest.raises(InputError, match=r"expected a correction of \(96, 96\) .* got one of \(2, 2\)"):
            download.download_tile(boto3.resource("s3"), "private", key, str(tmp_path / "wrong"), np.ones((2, 2)))
        assert not list((tmp_path / "wrong").rglob("*.tif"))
        download.download_tiles([key], "private", str(tmp_path / "plain"))
        np.testing.assert_array_equal(tifffile.imread(download.get_out_path(key, str(tmp_path / "plain"))), raw)


class TestCorrect:
    """Background and vignetting are found, and taken off copies."""

    def test_a_plane_is_corrected_beside_itself(self, correct, tmp_path):
        raw = np.array([[0, 100, 110], [120, 1000, 65000]], np.uint16)
        tifffile.imwrite(tmp_path / "p.tif", raw)
        path = correct.correct_tile(str(tmp_path / "p.tif"), np.full((2, 3), 1.5), 110.0)
        assert path == str(tmp_path / "p_corrected.tiff")
        # At least 1 where the camera saw anything; clipped at the end of the type.
        np.testing.assert_array_equal(tifffile.imread(path), [[0, 1, 1], [15, 1335, 65535]])
        np.testing.assert_array_equal(tifffile.imread(tmp_path / "p.tif"), raw)
        (path,) = correct.correct_tiles([str(tmp_path / "p.tif")], np.ones((2, 3)))
        np.testing.assert_array_equal(tifffile.imread(path), raw)
        with pytest.raises(InputError, match=r"expected a correction of \(2, 3\)"):
            correct.correct_tile(str(tmp_path / "p.tif"), np.ones((3, 2)))

    def test_planes_are_summed_without_wrapping(self, correct, tmp_path):
        files = [str(tmp_path / f"{n}.tif") for n in range(3)]
        for file in files:
            tifffile.imwrite(file, np.full((4, 5), 60000, np.uint16))
        np.testing.assert_array_equal(correct.sum_tiles(files), np.full((4, 5), 180000))

    def test_vignetting_of_a_channel_is_taken_off(self, correct, raw, flat, shaded, s3):
        before = open_acquisition(raw)
        recorded = before.read(before.tiles[0], 0, 0, 24)
        correct.correct_raw_data(str(raw / "VW0"), 0, log_s3_path="s3://private/log")
        after = open_acquisition(raw)
        truth = (recorded - 110.0) / flat
        even = after.read(after.tiles[0], 0, 0, 24)
        tissue = truth > 600
        ratio = even[tissue] / truth[tissue]
        assert ratio.std() / ratio.mean() < 0.3 * flat.std() and tissue.mean() > 0.3
        # The other channel, and what was recorded, stay.
        np.testing.assert_array_equal(open_colm(raw, corrected=False).read(before.tiles[0], 0, 0, 24), recorded)
        np.testing.assert_array_equal(after.read(after.tiles[0], 1, 0, 2), before.read(before.tiles[0], 1, 0, 2))
        assert "background" in read_json("s3://private/log/shading/channel_00", "shading.json")
        assert "flat.tif" in list_files("s3://private/log/shading/channel_00")
        assert not list(raw.glob(".correct*"))
        with pytest.raises(InputError, match="is corrected already"):
            correct.correct_raw_data(str(raw), 0)

    @pytest.mark.parametrize(("given", "background"), [({"background_correction": False}, 0.0), ({}, 110.0)])
    def test_the_background_is_found_given_or_left(self, correct, raw, given, background, s3, tmp_path):
        if background:
            tifffile.imwrite(tmp_path / "dark.tif", np.full((96, 96), 110, np.uint16))
            given = {"background_tile": str(tmp_path / "dark.tif")}
        correct.correct_raw_data(str(raw), 1, 20, "s3://private/dark", **given)
        assert read_json("s3://private/dark/shading/channel_01", "shading.json")["background"] == background

    def test_an_empty_corner_shows_the_background(self, correct, tmp_path):
        from cloudreg.tiles import write_colm

        random = np.random.default_rng(0)

        def plane(row, column, channel, number):
            pixels = random.normal(120, 3, (64, 64))
            pixels[:, :30] += 800 * (column == 1)
            return np.rint(pixels).astype(np.uint16)

        write_colm(
            tmp_path / "raw", rows=1, columns=2, tile_shape=(6, 64, 64), voxel_size_um=(5, 2, 2), overlap=(0.1, 0.1),
            channels=1, objective="10x", scanned=np.ones((1, 2), bool), planes=plane,
        )  # fmt: skip
        assert correct.get_background_value(str(tmp_path / "raw" / "VW0")) == pytest.approx(120, abs=3)

    def test_a_stopped_correction_goes_on(self, correct, raw):
        acquisition = open_acquisition(raw)
        victim = acquisition.plane_path(acquisition.tiles[3], 0, 5)
        content = victim.read_bytes()
        # A folder in the place of what is written stops it there.
        hindrance = victim.with_name(f".{victim.stem}_corrected.tiff.unfinished")
        hindrance.mkdir()
        with pytest.raises(BlocksFailedError, match="1 block"):
            correct.correct_raw_data(str(raw), 0, 20)
        hindrance.rmdir()
        with pytest.raises(InputError, match="evened copies of all planes"):
            open_acquisition(raw)
        done = {p: p.stat().st_mtime_ns for p in raw.glob("VW0/*/*_corrected.tiff")}
        correct.correct_raw_data(str(raw), 0, 20)
        assert open_acquisition(raw).channels == (0, 1) and victim.read_bytes() == content
        assert all(p.stat().st_mtime_ns == time for p, time in done.items()) and len(done) == 6 * 24 - 1


class TestStitching:
    """TeraStitcher's files for an acquisition, and its commands, on our own stitching."""

    def test_metadata_are_those_of_the_file(self, stitching, tmp_path):
        (tmp_path / "Experiment.ini").write_text(INI)
        metadata = stitching.get_metadata(str(tmp_path / "Experiment.ini"))
        # x y z; the fraction of a micrometre of the step is kept.
        assert metadata["voxel_size"] == pytest.approx([1.17, 1.17, 2.9])
        assert (metadata["num_rows"], metadata["num_columns"], metadata["num_slices"]) == (2, 3, 40)
        assert metadata["pitch_h"] == pytest.approx(870.4 * 1.17)
        assert metadata["pitch_v"] == pytest.approx(921.6 * 1.17)
        assert (metadata["width"], metadata["height"]) == (2765, 1946)
        assert [metadata[f"search_{axis}"] for axis in "vhd"] == [60, 100, 5]

    @pytest.mark.parametrize(
        ("objective", "search"), [("4x", [30, 30, 10]), ("XL 25X", [30, 30, 10]), ("10x", [60, 100, 5])]
    )
    def test_how_far_alignment_searches(self, stitching, tmp_path, objective, search):
        (tmp_path / "Experiment.ini").write_text(INI.replace("10x 0.6NA", objective))
        metadata = stitching.get_metadata(str(tmp_path / "Experiment.ini"))
        assert [metadata[f"search_{axis}"] for axis in "vhd"] == search

    def test_scanned_cells_are_rows_of_one_and_zero(self, stitching, tmp_path):
        (tmp_path / "Scanned Cells.txt").write_text("1, 1,1\r\n0,1,1\r\n")
        assert stitching.get_scanned_cells(str(tmp_path / "Scanned Cells.txt")) == [[1, 1, 1], [0, 1, 1]]
        (tmp_path / "Scanned Cells.txt").write_text("1,1\n1,1,1\n")
        with pytest.raises(InputError):
            stitching.get_scanned_cells(str(tmp_path / "Scanned Cells.txt"))

    @pytest.mark.parametrize("cells", [[[1, 1, 1], [0, 1, 1]], [["1", "1", "1"], ["0", "1", "1"]]])
    def test_the_project_describes_the_grid(self, stitching, tmp_path, cells):
        (tmp_path / "Experiment.ini").write_text(INI)
        metadata = stitching.get_metadata(str(tmp_path / "Experiment.ini"))
        stitching.write_import_xml(str(tmp_path / "xml_import.xml"), cells, metadata | {"stack_dir": "/data/VW0"})
        project = read_project(tmp_path / "xml_import.xml")
        assert (project.rows, project.columns, project.slices) == (2, 3, 40)
        assert project.voxel_size_um == pytest.approx((2.9, 1.17, 1.17)) and str(project.stacks_dir) == "/data/VW0"
        assert [tile.name for tile in project.tiles] == ["LOC000", "LOC001", "LOC002", "", "LOC004", "LOC005"]
        assert project.tile(1, 2).position_px == pytest.approx((0, 921.6, 2 * 870.4))
        assert project.tile(0, 0).planes == ((0, 40),) and project.tile(1, 0).planes == ()
        text = (tmp_path / "xml_import.xml").read_text()
        assert 'volume_format="TiledXY|2Dseries"' in text and "TeraStitcher.DTD" in text
        with pytest.raises(InputError, match="expected 2 rows of 3 cells"):
            stitching.write_import_xml(str(tmp_path / "x.xml"), [[1, 1]], metadata)

    @pytest.mark.parametrize(("steps", "modules"), [(2, "ssssc"), (1, "ssss"), (0, "c")])
    def test_commands_are_returned_and_written(self, stitching, tmp_path, steps, modules):
        (tmp_path / "Experiment.ini").write_text(INI)
        metadata = stitching.get_metadata(str(tmp_path / "Experiment.ini"))
        script = tmp_path / "commands.sh"
        commands = stitching.write_terastitcher_commands(str(script), metadata, str(tmp_path / "my out"), steps)
        assert [("s" if "scripts.parastitcher" in c else "c") for c in commands] == list(modules)
        assert script.read_text().splitlines()[2:] == commands
        if steps:
            assert "-sV=60 -sH=100 -sD=5" in commands[0] and "-threshold=0.3" in commands[2]
        with pytest.raises(InputError, match="steps to do"):
            stitching.write_terastitcher_commands(str(script), metadata, str(tmp_path), 5)

    def test_metadata_come_from_s3_and_the_commands_run(self, stitching, s3, put, colm, tmp_path):
        put(colm.path, "s3://private/experiment", only="*.*")
        shutil.copytree(colm.path / "VW0", tmp_path / "VW0")
        metadata, commands = stitching.generate_stitching_commands(
            str(tmp_path / "out"), str(tmp_path / "VW0"), "private", "experiment", do_steps=1, channel=0
        )
        assert metadata["num_columns"] == 3 and (tmp_path / "Experiment.ini").exists()
        script = tmp_path / "out" / "terastitcher.sh"
        script.chmod(stat.S_IRWXU)
        done = subprocess.run(
            ["bash", script], capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"}
        )
        assert done.returncode == 0, done.stderr
        found = np.array([tile.position_px for tile in read_project(tmp_path / "out" / "xml_merging.xml").tiles])
        difference = found - colm.positions
        assert np.abs(difference - np.median(difference, axis=0)).max() < 0.5
        assert len(commands) == 4

    def test_an_alignment_is_kept_and_serves_another_channel(self, stitching, s3, colm, tmp_path):
        log, raw = "s3://private/aligned", str(colm.path / "VW0")
        stitching.run_terastitcher(raw, str(tmp_path / "a"), "", log, compute_only=True, channel=0)
        assert list_files(log) == sorted(
            f"xml_{s}.xml" for s in ("displcomp", "displproj", "displthres", "import", "merging")
        )
        assert not list((tmp_path / "a").glob("RES*"))
        metadata = stitching.run_terastitcher(raw, str(tmp_path / "b"), "", log, stitch_only=True, channel=1)
        assert metadata["voxel_size"] == [2.0, 2.0, 5.0]
        (folder,) = (tmp_path / "b").glob("RES*")
        volume = np.stack([tifffile.imread(p) for p in sorted(folder.iterdir())])
        inner = (slice(6, 18), slice(30, -30), slice(30, -30))
        np.testing.assert_allclose(volume[inner], colm.specimen(volume.shape)[inner] // 2, atol=1.5)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"stitch_only": True, "channel": 0}, r"expected xml_merging\.xml in"),
            ({}, "expected the planes of one channel"),
            ({"stitch_only": True, "compute_only": True}, "got both"),
        ],
    )
    def test_what_is_wrong_is_said(self, stitching, colm, tmp_path, changes, message):
        with pytest.raises(InputError, match=message):
            stitching.run_terastitcher(str(colm.path / "VW0"), str(tmp_path / "out"), "", **changes)
