"""Bad input gives one line, exit code 2, and untouched files; each command does what it says on a small volume."""

import csv
import json
import shutil
import subprocess
import sys
import time

import nibabel
import numpy as np
import pytest
import tifffile

from cloudreg.atlas import Region, Regions, save_atlas
from cloudreg.io import open_volume, write_volume
from cloudreg.settings import RunSettings, load_settings
from cloudreg.space import Grid
from cloudreg.tiles import open_acquisition, read_project, write_colm


def blobs(shape, seed=0):
    """Return a smooth brain-like image: an ellipsoid with texture."""
    from scipy.ndimage import gaussian_filter

    texture = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 3)
    axes = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    inside = ((axes / np.array([0.8, 0.7, 0.75])[:, None, None, None]) ** 2).sum(axis=0) < 1
    image = inside * (2000 + 8000 * np.clip(texture / texture.std() / 4 + 0.5, 0, 1))
    return gaussian_filter(image, 0.7).astype(np.uint16)


def labels_of(image):
    """Return two regions a side."""
    z, _, x = np.indices(image.shape)
    ids = 1 + (z > image.shape[0] // 2) + 2 * (x > image.shape[2] // 2)
    return np.where(image > 1000, ids, 0).astype(np.uint32)


@pytest.fixture(scope="module")
def brain():
    return blobs((40, 36, 44))


@pytest.fixture(scope="module")
def raw_source(tmp_path_factory, brain):
    """A COLM acquisition of 1 x 2 tiles and one channel, cut from a larger image."""
    scene = blobs((20, 64, 112), seed=1)

    def planes(row, column, channel, plane):
        return scene[plane, :, 48 * column : 48 * column + 64] + np.uint16(100)

    folder = tmp_path_factory.mktemp("raw") / "raw"
    write_colm(
        folder,
        rows=1,
        columns=2,
        tile_shape=(20, 64, 64),
        voxel_size_um=(20.0, 20.0, 20.0),
        overlap=(0.25, 0.25),
        channels=1,
        objective="10x 0.6NA",
        scanned=np.ones((1, 2), dtype=bool),
        planes=planes,
    )
    return folder


@pytest.fixture
def raw(raw_source, tmp_path):
    return shutil.copytree(raw_source, tmp_path / "raw")


@pytest.fixture(scope="module")
def atlas(tmp_path_factory, brain):
    """A saved atlas of which `brain` is the template."""
    folder = tmp_path_factory.mktemp("atlas") / "atlas"
    regions = Regions([Region(i, f"R{i}", f"region {i}") for i in range(1, 5)])
    grid = Grid.from_spacing(brain.shape, (100.0, 100.0, 100.0))
    save_atlas(
        folder, name="blobs", template=brain, labels=labels_of(brain), grid=grid, orientation="asr", regions=regions
    )
    return folder


@pytest.fixture(scope="module")
def target(tmp_path_factory, brain):
    path = tmp_path_factory.mktemp("target") / "target.tif"
    moved = np.roll(brain, (1, 2, -1), axis=(0, 1, 2))
    write_volume(path, moved, Grid.from_spacing(moved.shape, (100.0, 100.0, 100.0)))
    return path


FAST = "registration: {iterations: [3, 3, 4]}\n"


@pytest.fixture(scope="module")
def registration(tmp_path_factory, atlas, target):
    """A registration folder made by the command line."""
    folder = tmp_path_factory.mktemp("registration")
    (folder / "fast.yaml").write_text(FAST)
    command = [sys.executable, "-m", "cloudreg", "register", str(target), str(folder / "out"), "--atlas", str(atlas)]
    command += ["--orientation", "asr", "--settings", str(folder / "fast.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "out"


def contents(folder):
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


# Bad acquisitions


def without_ini(raw):
    (raw / "Experiment.ini").unlink()


def half_an_ini(raw):
    text = (raw / "Experiment.ini").read_bytes()
    (raw / "Experiment.ini").write_bytes(text[: len(text) // 3])


def other_cells(raw):
    (raw / "Scanned Cells.txt").write_text("1,1,1\n1,1,1\n")


def no_folder(raw):
    shutil.rmtree(raw / "VW0" / "LOC001")


def a_plane(raw):
    return sorted((raw / "VW0" / "LOC001").glob("*.tif*"))[5]


def truncated(raw):
    a_plane(raw).write_bytes(a_plane(raw).read_bytes()[:700])


def wrong_size(raw):
    tifffile.imwrite(a_plane(raw), np.zeros((64, 60), np.uint16))


def mixed_types(raw):
    tifffile.imwrite(a_plane(raw), np.zeros((64, 64), np.uint8))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_ini, "Experiment.ini"),
        (half_an_ini, "Experiment.ini"),
        (other_cells, "Scanned Cells.txt"),
        (no_folder, "LOC001"),
    ],
)
def test_a_damaged_acquisition_is_refused(refused, raw, atlas, tmp_path, damage, words):
    damage(raw)
    before = contents(raw)
    line = refused("run", raw, tmp_path / "out", "--atlas", atlas, "--orientation", "asr")
    assert words in line
    assert contents(raw) == before


@pytest.mark.parametrize(
    ("damage", "words"),
    [(truncated, "is truncated"), (wrong_size, "got 64 x 60 of uint16"), (mixed_types, "got 64 x 64 of uint8")],
)
def test_a_plane_that_cannot_be_used_is_refused_if_strict(refused, raw, atlas, tmp_path, damage, words):
    damage(raw)
    before = contents(raw)
    line = refused("run", raw, tmp_path / "out", "--atlas", atlas, "--orientation", "asr", "--strict")
    assert "PLN0005" in line
    assert words in line
    assert contents(raw) == before
    assert not (tmp_path / "out").exists()


def test_an_unknown_channel_is_refused(refused, raw, atlas, tmp_path):
    assert "channel 3" in refused("run", raw, tmp_path / "out", "--atlas", atlas, "--channels", "0,3")
    words = ["--atlas", atlas, "--registration-channel", "0,3"]
    assert "channel 3" in refused("run", raw, tmp_path / "out", *words)
    assert "channel 3" in refused("align", raw, tmp_path / "p.xml", "--channel", "3")
    assert not (tmp_path / "out").exists()


def test_an_unknown_atlas_is_refused(refused, target, tmp_path):
    line = refused("register", target, tmp_path / "out", "--atlas", "no_such_mouse_1um", "--orientation", "asr")
    assert "no_such_mouse_1um" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("letters", "words"), [("xyz", "three letters"), ("asl", "mirror images")])
def test_wrong_letters_are_refused(refused, target, atlas, tmp_path, letters, words):
    assert words in refused("register", target, tmp_path / "out", "--atlas", atlas, "--orientation", letters)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("value", "words"), [(np.nan, "NaN"), (7.0, "same value 7 everywhere")])
def test_a_volume_without_content_is_refused(refused, brain, atlas, tmp_path, value, words):
    bad = brain.astype(np.float32) if np.isnan(value) else np.full(brain.shape, value, np.float32)
    bad[3, 4, 5] = value
    path = tmp_path / "bad.nii"
    nibabel.save(nibabel.Nifti1Image(bad, np.diag([0.1, 0.1, 0.1, 1])), path)
    line = refused("register", path, tmp_path / "out", "--atlas", atlas, "--orientation", "asr")
    assert words in line
    assert not (tmp_path / "out").exists()


def nan_in(values):
    values = values.astype(np.float32)
    values[3, 3, 3] = np.nan
    return values


@pytest.mark.parametrize(
    ("change", "voxel_um", "words", "said"),
    [
        (np.zeros_like, 100.0, [], "same value 0 everywhere"),
        (lambda v: np.stack([v, np.full_like(v, 9)]), 100.0, ["--channel", "0,1"], "same value 9 everywhere"),
        (nan_in, 100.0, [], "no numbers"),
        (lambda v: v[20:21], 100.0, [], "one voxel thick along z"),
        (lambda v: v, 0.1, [], "check both voxel sizes, which are in micrometres"),
        (lambda v: v, 25.0, [], "0.25 times as wide as the atlas's"),
        (lambda v: v, 100.0, ["--translation", 50000, 0, 0], "leaves 0% in common"),
        (lambda v: v, 100.0, ["--mask", "empty.nrrd"], "check the mask"),
        (lambda v: v, 100.0, ["--mask", "empty.nrrd", "--bias-correction"], "check the mask"),
        (lambda v: v, 100.0, ["--mask", "elsewhere.nrrd"], "check the mask"),
        (np.ones_like, 100.0, ["--bias-correction", "--grid-correction", "y"], "same value 1 everywhere"),
    ],
    ids=[
        *("constant", "constant channel", "nan", "one slice", "millimetres", "atlas four times too large"),
        *("no overlap", "empty mask", "empty mask with bias", "mask elsewhere", "constant with corrections"),
    ],
)
def test_what_can_not_be_registered_is_refused_and_nothing_is_left(
    refused, brain, atlas, tmp_path, monkeypatch, change, voxel_um, words, said
):
    monkeypatch.chdir(tmp_path)
    values = change(brain)
    write_volume("target.ome.zarr", values, Grid.from_spacing(values.shape[-3:], (voxel_um,) * 3))
    write_volume("empty.nrrd", np.zeros(brain.shape, np.uint8), Grid.from_spacing(brain.shape, (100.0,) * 3))
    far = Grid.from_spacing((5, 5, 5), (100.0,) * 3, (1e6, 1e6, 1e6))
    write_volume("elsewhere.nrrd", np.ones((5, 5, 5), np.uint8), far)
    before = {p.name for p in tmp_path.iterdir()}
    line = refused("register", "target.ome.zarr", "out", "--atlas", atlas, "--orientation", "asr", *words)
    assert said in line
    assert {p.name for p in tmp_path.iterdir()} == before


def test_labels_outside_the_template_are_refused(refused, brain, target, tmp_path):
    grid = Grid.from_spacing(brain.shape, (100.0, 100.0, 100.0), (50.0, 50.0, 50.0))
    far = Grid.from_spacing(brain.shape, (100.0, 100.0, 100.0), (1550.0, 50.0, 50.0))
    write_volume(tmp_path / "template.nii.gz", brain, grid, orientation="ipl")
    write_volume(tmp_path / "labels.nii.gz", labels_of(brain), far, kind="labels", orientation="ipl")
    files = ["--template", tmp_path / "template.nii.gz", "--labels", tmp_path / "labels.nii.gz"]
    assert "inside the template" in refused("register", target, tmp_path / "out", *files, "--orientation", "ipl")


def test_an_output_of_another_run_is_refused_and_untouched(refused, raw, atlas, target, registration, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").write_text("precious")
    before = contents(tmp_path / "out")
    assert "choose another" in refused("run", raw, tmp_path / "out", "--atlas", atlas)
    assert contents(tmp_path / "out") == before
    before = contents(registration)
    assert "exists already" in refused("register", target, registration, "--atlas", atlas, "--orientation", "asr")
    assert contents(registration) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("registration: {levles: 3}", "there is no setting registration.levles"),
        ("registration: {levles: 3}", "closest: registration.levels"),
        ("registratoin: {levels: 3}", "closest: registration"),
        ("levels: 3", "closest: registration.levels"),
        ("xyzzy: 3", "see settings.yaml in the folder of any run"),
        ("3", "see settings.yaml in the folder of any run"),
        ("shading: {samples: 0}", "shading.samples"),
        ("- a list", "settings by name"),
        ("a: [", "YAML"),
    ],
)
def test_wrong_settings_are_refused(refused, raw, tmp_path, text, words):
    (tmp_path / "s.yaml").write_text(text)
    line = refused("run", raw, tmp_path / "out", "--settings", tmp_path / "s.yaml")
    assert words in line and "Extra inputs" not in line


def test_a_section_with_nothing_below_it_holds_no_settings(tmp_path):
    (tmp_path / "s.yaml").write_text("registration:\nshading:\n  # samples: 3\natlas:\norientation:\n")
    settings = load_settings(tmp_path / "s.yaml")
    assert settings == RunSettings()
    assert not settings.names_atlas


@pytest.mark.parametrize("text", ["registration: {levels: 3}\n", "atlas:\n", "\n"])
def test_no_atlas_is_taken_that_nobody_chose(refused, target, tmp_path, text):
    (tmp_path / "s.yaml").write_text(text)
    line = refused("register", target, tmp_path / "out", "--settings", tmp_path / "s.yaml")
    assert "expected an atlas to register to, got none" in line
    assert "s.yaml" in line


def test_the_atlas_of_the_settings_is_taken(refused, target, tmp_path):
    (tmp_path / "s.yaml").write_text("atlas: {name: no_such_mouse_1um}\n")
    assert "no_such_mouse_1um" in refused("register", target, tmp_path / "out", "--settings", tmp_path / "s.yaml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "brain.tif", "out"], "a table (.csv, .yaml) or a project (.xml) would do too"),
        (["convert", "brain.tif", "b.nii.gz", "--dry-run"], "leave --dry-run out"),
        (["convert", "brain.tif", "planes", "--dry-run"], "leave --dry-run out"),
        (
            ["register", "brain.tif", "out", "--atlas", "ATLAS", "--orientation", "asl"],
            "registration.allow_mirror: true",
        ),
    ],
)
def test_refusals_say_what_to_do(refused, target, atlas, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    shutil.copy(target, "brain.tif")
    assert said in refused(*(atlas if word == "ATLAS" else word for word in words))
    assert [p.name for p in tmp_path.iterdir()] == ["brain.tif"]


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there may be a CUDA device")
@pytest.mark.parametrize("command", ["run", "register"])
def test_a_device_that_is_not_there_is_refused_before_anything_runs(refused, raw, target, atlas, tmp_path, command):
    source = raw if command == "run" else target
    line = refused(command, source, tmp_path / "out", "--atlas", atlas, "--device", "cuda")
    assert "expected a CUDA device for --device cuda" in line or "pip install 'cloudreg[gpu]'" in line
    assert not (tmp_path / "out").exists()


def test_a_tiff_without_voxel_size_says_what_to_do(refused, brain, atlas, tmp_path):
    tifffile.imwrite(tmp_path / "plain.tif", brain)
    line = refused("register", tmp_path / "plain.tif", tmp_path / "out", "--atlas", atlas, "--orientation", "asr")
    assert "--voxel-size" in line


def test_debug_shows_the_traceback(monkeypatch, tmp_path):
    command = [sys.executable, "-m", "cloudreg", "info", str(tmp_path / "nothing.nii")]
    plain = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (plain.returncode, plain.stdout) == (2, "")
    assert plain.stderr.startswith("error: ")
    assert plain.stderr.count("\n") == 1
    debug = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False)
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


def test_a_full_disk_while_writing_is_one_line_and_exit_code_1(cloudreg, monkeypatch, tmp_path, brain):
    from cloudreg import commands

    def full(*words, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(commands, "convert", full)
    code, _, err = cloudreg("convert", tmp_path / "a.tif", tmp_path / "b.nii.gz")
    assert (code, err) == (1, "error: [Errno 28] No space left on device\n")


def test_help_answers_at_once():
    command = [sys.executable, "-X", "importtime", "-c", "from cloudreg.cli import app; app(['--help'])"]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert time.monotonic() - start < 5
    assert "register" in done.stdout
    heavy = ("numpy", "dask", "distributed", "SimpleITK", "matplotlib", "numba", "tensorstore", "pydantic")
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert imported.isdisjoint(heavy)


# Each command on a small volume


def test_a_registration_does_not_wait_for_what_stitches_tiles():
    code = "import sys, cloudreg.commands; from cloudreg.registration import register_volume; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "cloudreg.registration.register" in imported
    assert imported.isdisjoint({"cloudreg.stitching", "cloudreg.flatfield.estimate", "cloudreg.viewer"})


def test_info_says_what_a_path_holds(cloudreg, raw, target, registration):
    assert "1 x 2 cells, 2 scanned" in cloudreg("info", raw)[1]
    assert "40 x 36 x 44" in cloudreg("info", target)[1]
    assert "blobs" in cloudreg("info", registration)[1]


@pytest.mark.parametrize("name", ["b.ome.zarr", "b.nii.gz", "b.nrrd", "b.tif"])
def test_convert_keeps_voxels(cloudreg, target, tmp_path, name):
    assert cloudreg("convert", target, tmp_path / name, "--orientation", "asr")[0] == 0
    first, second = open_volume(target), open_volume(tmp_path / name)
    np.testing.assert_array_equal(second.read(), first.read())
    np.testing.assert_allclose(second.grid.voxel_size_um, first.grid.voxel_size_um)


def test_pyramid_makes_the_levels_anew(cloudreg, target, tmp_path):
    cloudreg("convert", target, tmp_path / "v.ome.zarr")
    volume = open_volume(tmp_path / "v.ome.zarr")
    expected = [volume.read(level=level) for level in range(len(volume.levels))]
    assert cloudreg("pyramid", tmp_path / "v.ome.zarr")[0] == 0
    again = open_volume(tmp_path / "v.ome.zarr")
    for level, array in enumerate(expected):
        np.testing.assert_array_equal(again.read(level=level), array)


def test_correct_tiles_align_and_fuse_by_hand(cloudreg, raw, tmp_path):
    code, _, err = cloudreg("correct-tiles", raw, tmp_path / "even")
    assert code == 0, err
    assert open_acquisition(tmp_path / "even").tile_shape == (20, 64, 64)
    assert (tmp_path / "even" / "shading" / "channel_00" / "flat.tif").exists()
    assert not list(tmp_path.glob(".even*"))
    code, _, err = cloudreg("align", tmp_path / "even", tmp_path / "p.xml")
    assert code == 0, err
    project = read_project(tmp_path / "p.xml")
    np.testing.assert_allclose(np.subtract(project.position_px(0, 1), project.position_px(0, 0)), (0, 0, 48), atol=0.2)
    code, _, err = cloudreg("fuse", tmp_path / "p.xml", tmp_path / "whole.ome.zarr")
    assert code == 0, err
    assert open_volume(tmp_path / "whole.ome.zarr").grid.shape == (20, 64, 112)
    code, _, err = cloudreg("correct-volume", tmp_path / "whole.ome.zarr", tmp_path / "flat.ome.zarr")
    assert code == 0, err
    assert open_volume(tmp_path / "flat.ome.zarr").grid.shape == (20, 64, 112)


def test_register_leaves_everything_it_promises(registration):
    promised = {"manifest.json", "affine.txt", "energies.csv", "regions.csv", "report.html"}
    promised |= {f"displacement_{way}.ome.zarr" for way in ("atlas_to_target", "target_to_atlas")}
    promised |= {"labels_in_target.ome.zarr", "template_in_target.ome.zarr", "target_in_atlas.ome.zarr"}
    assert promised <= {entry.name for entry in registration.iterdir()}
    settings = json.loads((registration / "manifest.json").read_text())["settings"]
    assert settings["registration"]["iterations"] == [3, 3, 4]
    assert settings["command"].startswith("cloudreg register ")


def test_register_finds_the_shift(registration):
    affine = np.loadtxt(registration / "affine.txt")
    np.testing.assert_allclose(affine[:3, 3] + affine[:3, :3] @ [1950, 1750, 2150], [2050, 1950, 2050], atol=60)


def test_points_go_there_and_back(cloudreg, registration, tmp_path):
    (tmp_path / "p.csv").write_text("name,z_um,y_um,x_um\nsoma,2000,1800,2200\nfar,1e6,0,0\n")
    assert cloudreg("apply-points", registration, tmp_path / "p.csv", tmp_path / "a.csv", "--to", "atlas")[0] == 0
    assert cloudreg("apply-points", registration, tmp_path / "a.csv", tmp_path / "t.csv", "--to", "target")[0] == 0
    with (tmp_path / "t.csv").open() as file:
        soma, far = csv.DictReader(file)
    back = [float(soma[axis]) for axis in ("z_um", "y_um", "x_um")]
    np.testing.assert_allclose(back, (2000, 1800, 2200), atol=5)
    assert (soma["name"], soma["inside"], far["inside"], far["z_um"]) == ("soma", "1", "0", "nan")


def test_apply_takes_the_grid_of_the_other_side_or_of_a_volume(cloudreg, registration, target, atlas, tmp_path):
    assert cloudreg("apply", registration, target, tmp_path / "a.ome.zarr", "--to", "atlas")[0] == 0
    template = open_volume(atlas / "template.ome.zarr")
    assert open_volume(tmp_path / "a.ome.zarr").grid == template.grid
    write_volume(tmp_path / "like.nrrd", np.zeros((8, 7, 9), np.uint8), Grid.from_spacing((8, 7, 9), (500.0,) * 3))
    labels = atlas / "labels.ome.zarr"
    like = ["--like", tmp_path / "like.nrrd"]
    code, _, err = cloudreg("apply", registration, labels, tmp_path / "l.nrrd", "--to", "target", "--labels", *like)
    assert code == 0, err
    assert open_volume(tmp_path / "l.nrrd").grid.shape == (8, 7, 9)
    assert set(np.unique(open_volume(tmp_path / "l.nrrd").read())) <= {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("form", "holds"),
    [
        ("itk", {"atlas_images_to_target.h5", "affine_atlas_images_to_target.tfm", "README.txt"}),
        ("nifti", {"warp_atlas_images_to_target.nii.gz", "affine_atlas_images_to_target.tfm", "README.txt"}),
        ("rfc5", {"zarr.json", "coordinateTransformations"}),
        ("brainglobe", {"brainreg.json", "deformation_field_2.tiff", "registered_atlas.tiff", "README.txt"}),
    ],
)
def test_a_transform_is_written_for_other_programs(cloudreg, refused, registration, tmp_path, form, holds):
    code, _, err = cloudreg("export-transform", registration, tmp_path / "out", "--format", form)
    assert code == 0, err
    assert holds <= {entry.name for entry in (tmp_path / "out").iterdir()}
    before = contents(tmp_path / "out")
    assert "exists already" in refused("export-transform", registration, tmp_path / "out", "--format", form)
    assert contents(tmp_path / "out") == before


def test_a_registration_starts_from_an_exported_affine(cloudreg, refused, registration, target, atlas, tmp_path):
    """Hardly any iteration is done, so where it starts is where it ends, to a hundredth of a voxel."""
    cloudreg("export-transform", registration, tmp_path / "itk", "--format", "itk")
    (tmp_path / "none.yaml").write_text("registration: {iterations: [0, 0, 0]}\n")
    words = ["--atlas", atlas, "--orientation", "asr", "--settings", tmp_path / "none.yaml", "--no-report"]
    start = ["--initial-affine", tmp_path / "itk" / "affine_atlas_images_to_target.tfm"]
    way = ["--initial-affine-from", "target"]
    code, _, err = cloudreg("register", target, tmp_path / "out", *words, *start, *way)
    assert code == 0, err
    np.testing.assert_allclose(
        np.loadtxt(tmp_path / "out" / "affine.txt"), np.loadtxt(registration / "affine.txt"), atol=1.0
    )
    (tmp_path / "far.txt").write_text("1 0 0 1e6\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    line = refused("register", target, tmp_path / "far", *words, "--initial-affine", tmp_path / "far.txt")
    assert "0% in common" in line
    assert not (tmp_path / "far").exists()


def test_a_registration_starts_from_angles(cloudreg, registration, target, atlas, tmp_path):
    """Letters that say back for front and left for right, made up for by half a turn about y."""
    (tmp_path / "fast.yaml").write_text(FAST)
    words = ["--atlas", atlas, "--settings", tmp_path / "fast.yaml", "--no-report", "--orientation", "psl"]
    start = ["--rotation", 0, 170, 0, "--translation", 100, -50, 0, "--scale", "1.02", "--affine", "similarity"]
    code, _, err = cloudreg("register", target, tmp_path / "out", *words, *start)
    assert code == 0, err
    found, known = (np.loadtxt(folder / "affine.txt") for folder in (tmp_path / "out", registration))
    np.testing.assert_allclose(found[:3, :3], known[:3, :3], atol=0.05)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["figures"]["pose"] == "given"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rotation", 0, 0, 90], "give --orientation too"),
        (["--orientation", "asr", "--rotation", 0, 0, 5, "--initial-affine", "start.txt"], "one place to start from"),
        (["--orientation", "asr", "--scale", 2, "--initial-affine", "start.txt"], "one place to start from"),
        (["--affine", "similarity", "--scale", "1,1.1,1"], "a similarity has one scale"),
        (["--scale", "1,2"], "one number, or three"),
        (["--scale", "0"], "greater than 0"),
    ],
)
def test_starts_that_contradict_themselves_are_refused(refused, target, atlas, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start.txt").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n")
    assert said in refused("register", target, tmp_path / "out", "--atlas", atlas, *words)
    assert not (tmp_path / "out").exists()


def test_regions_counts_cells(cloudreg, registration, tmp_path):
    (tmp_path / "cells.csv").write_text("z_um,y_um,x_um\n2000,1800,1500\n2000,1800,1600\n")
    code, _, err = cloudreg("regions", registration, "--cells", tmp_path / "cells.csv", "--out", tmp_path / "r.csv")
    assert code == 0, err
    with (tmp_path / "r.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["cells"]) for row in rows) == 2
    assert {"mean_channel_00", "median_channel_00", "sum_channel_00"} <= rows[0].keys()


def test_evaluate_prints_landmark_errors(cloudreg, registration, tmp_path):
    (tmp_path / "atlas.csv").write_text("z_um,y_um,x_um\n2000,1800,2200\n1500,1500,1800\n")
    (tmp_path / "target.csv").write_text("z_um,y_um,x_um\n2100,2000,2100\n1600,1700,1700\n")
    points = ["--points-target", tmp_path / "target.csv", "--points-atlas", tmp_path / "atlas.csv"]
    code, out, err = cloudreg("evaluate", registration, *points)
    assert code == 0, err
    assert "landmark_median_um" in out
    assert "one list" not in out


def test_report_is_made_anew(cloudreg, registration, tmp_path):
    copy = shutil.copytree(registration, tmp_path / "copy")
    (copy / "report.html").unlink()
    code, _, err = cloudreg("report", copy)
    assert code == 0, err
    page = (copy / "report.html").read_text()
    assert page.count("data:image/") > 20
    assert "http" not in page.replace("http://www.w3.org", "")


# Outputs that would overwrite, or that can't be written


def test_a_table_of_regions_overwrites_nothing_not_even_its_own_cells(refused, registration, tmp_path):
    cells = tmp_path / "cells.csv"
    cells.write_text("z_um,y_um,x_um\n2000,1800,1500\n")
    line = refused("regions", registration, "--cells", cells, "--out", cells)
    assert "cells.csv exists already" in line
    assert cells.read_text() == "z_um,y_um,x_um\n2000,1800,1500\n"


def test_mapped_points_overwrite_nothing(refused, registration, tmp_path):
    (tmp_path / "p.csv").write_text("z_um,y_um,x_um\n2000,1800,1500\n")
    (tmp_path / "thesis.csv").write_text("precious")
    words = [registration, tmp_path / "p.csv", tmp_path / "thesis.csv"]
    assert "thesis.csv exists already" in refused("apply-points", *words, "--to", "atlas")
    assert (tmp_path / "thesis.csv").read_text() == "precious"


@pytest.mark.parametrize("text", ["z_um,y_um,x_um\n1,2\n", "a,b\n1,2\n", "z_um,y_um,x_um\n1,2,none\n"])
def test_refused_points_leave_nothing(refused, registration, tmp_path, text):
    (tmp_path / "p.csv").write_text(text)
    refused("apply-points", registration, tmp_path / "p.csv", tmp_path / "out.csv", "--to", "atlas")
    assert [p.name for p in tmp_path.iterdir()] == ["p.csv"]


def test_a_folder_is_no_name_for_a_table(refused, registration, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.csv").write_text("z_um,y_um,x_um\n2000,1800,1500\n")
    (tmp_path / "folder").mkdir()
    before = contents(tmp_path)
    for out in (".", "folder", "/"):
        assert "got the folder" in refused("apply-points", registration, "p.csv", out, "--to", "atlas")
        assert "got the folder" in refused("regions", registration, "--out", out)
    assert contents(tmp_path) == before
    assert {p.name for p in tmp_path.iterdir()} == {"p.csv", "folder"}


@pytest.mark.parametrize(("parent", "words"), [("brain.tif", "got a file"), ("/proc", "no file can be made in /proc")])
def test_an_output_where_nothing_can_be_is_refused_before_anything_is_read(
    refused, raw, atlas, registration, tmp_path, monkeypatch, parent, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "brain.tif").write_bytes(b"no volume, and never read")
    out = f"{parent}/R1"
    assert words in refused("register", "brain.tif", out, "--atlas", atlas)
    assert words in refused("apply-points", registration, "no.csv", out, "--to", "atlas")
    assert words in refused("regions", registration, "--out", out)
    assert words in refused("export-transform", registration, out, "--format", "itk")
    assert words in refused("demo", out)
    assert words in refused("run", raw, out, "--atlas", atlas)
    assert words in refused("align", raw, f"{out}.xml")
    for volume in (f"{out}.ome.zarr", f"{out}.nrrd"):
        assert words in refused("apply", registration, "brain.tif", volume, "--to", "atlas")
        assert words in refused("correct-volume", "brain.tif", volume)
        assert words in refused("fuse", "no.xml", volume)


@pytest.mark.parametrize(
    ("name", "words"),
    [("thesis.doc", "choose another place"), ("acquisition/thesis.doc", "expected a demo acquisition")],
)
def test_a_demo_is_not_mixed_with_other_files(refused, tmp_path, name, words):
    (tmp_path / "mine" / name).parent.mkdir(parents=True)
    (tmp_path / "mine" / name).write_text("precious")
    assert words in refused("demo", tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").rglob("*") if p.is_file()] == ["thesis.doc"]


def test_an_image_without_such_a_channel_leaves_the_place_to_the_corrected_command(
    cloudreg, refused, registration, target, tmp_path
):
    words = ["apply", registration, target, tmp_path / "a.ome.zarr", "--to", "atlas"]
    assert "has 1 channel, number 0; channel 4 was asked for" in refused(*words, "--channel", 4)
    assert not list(tmp_path.iterdir())
    assert cloudreg(*words)[0] == 0


def test_an_image_that_can_not_be_read_to_its_end_leaves_nothing(cloudreg, registration, target, tmp_path):
    cloudreg("convert", target, tmp_path / "v.ome.zarr")
    # Bytes that can't be decoded, in every chunk.
    for file in (tmp_path / "v.ome.zarr").rglob("c/**/*"):
        if file.is_file():
            file.write_bytes(b"no chunk")
    code, _, err = cloudreg("apply", registration, tmp_path / "v.ome.zarr", tmp_path / "a.ome.zarr", "--to", "atlas")
    assert code != 0, err
    assert not (tmp_path / "a.ome.zarr").exists()


# Labels that are none


@pytest.mark.parametrize("value", [np.nan, 1.5, -1])
def test_labels_that_are_no_whole_numbers_are_refused(refused, registration, brain, tmp_path, value):
    labels = labels_of(brain).astype(np.float32)
    labels[20, 18, 22] = value
    write_volume(tmp_path / "l.nrrd", labels, Grid.from_spacing(brain.shape, (100.0,) * 3))
    assert "labels are whole numbers from 0 up" in refused(
        "evaluate", registration, "--labels-target", tmp_path / "l.nrrd"
    )
    for name in ("out.ome.zarr", "out.nrrd"):
        words = ["apply", registration, tmp_path / "l.nrrd", tmp_path / name, "--to", "atlas", "--labels"]
        assert "labels are whole numbers from 0 up" in refused(*words)
    assert [p.name for p in tmp_path.iterdir()] == ["l.nrrd"]


def test_labels_of_another_shape_than_the_template_are_refused(refused, brain, target, tmp_path):
    tifffile.imwrite(tmp_path / "t.tif", brain)
    tifffile.imwrite(tmp_path / "l.tif", labels_of(brain)[20:21])
    words = ["--template", tmp_path / "t.tif", "--labels", tmp_path / "l.tif", "--atlas-voxel-size", 100, 100, 100]
    line = refused("register", target, tmp_path / "out", *words, "--atlas-orientation", "asr", "--orientation", "asr")
    assert "shape (40, 36, 44), got shape (1, 36, 44)" in line


def test_landmarks_without_a_place_are_refused(refused, registration, tmp_path):
    (tmp_path / "atlas.csv").write_text("z_um,y_um,x_um\n2000,1800,2200\n1500,1500,1800\n")
    (tmp_path / "target.csv").write_text("z_um,y_um,x_um\n2100,2000,2100\nnan,nan,nan\n")
    points = ["--points-target", tmp_path / "target.csv", "--points-atlas", tmp_path / "atlas.csv"]
    assert "for landmark 2 in the target: leave the pair out" in refused("evaluate", registration, *points)


# Volumes that can't be evened out


@pytest.mark.parametrize("change", [lambda v: v[20:21], nan_in], ids=["one section", "nan"])
def test_what_can_not_be_evened_out_is_refused_and_nothing_is_left(refused, brain, tmp_path, change):
    values = change(brain)
    write_volume(tmp_path / "v.nrrd", values, Grid.from_spacing(values.shape, (100.0,) * 3))
    write_volume(tmp_path / "l.nrrd", labels_of(brain)[: len(values)], Grid.from_spacing(values.shape, (100.0,) * 3))
    words = ["correct-volume", tmp_path / "v.nrrd", tmp_path / "o.ome.zarr"]
    said = ("one voxel of 100 um thick along z", "are no numbers (NaN or infinite): clean it first")
    assert any(s in refused(*words) for s in said)
    assert any(s in refused(*words, "--labels", tmp_path / "l.nrrd") for s in said)
    assert {p.name for p in tmp_path.iterdir()} == {"v.nrrd", "l.nrrd"}


# Folders that are not what they say


@pytest.mark.parametrize(
    "text", ["{", "[]", '"run"', "\x00", '{"kind": "run"}', '{"kind": "run", "stages": {"align": 3}}', '{"format": 1}']
)
def test_a_damaged_manifest_is_named(refused, tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    for command in ("info", "report"):
        assert f"{tmp_path / 'manifest.json'} is " in refused(command, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_a_damaged_stage_is_named(refused, tmp_path):
    run = dict.fromkeys(("command", "versions", "settings"), "") | {"input": {"path": "", "fingerprints": {}}}
    (tmp_path / "manifest.json").write_text(json.dumps(run | {"kind": "run", "stages": {"align": []}}))
    assert "expected stages.align.status in it" in refused("info", tmp_path)


# Words that are no command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["register", "a", "b", "-v", "200", "--orientation", "asr"], "'--orientation'"),
        (["register", "a", "b", "-v", "200"], "requires 3 arguments"),
        (["register", "a"], "Missing argument 'out'"),
        (["register", "a", "b", "--atlass", "x"], "No such option: --atlass"),
        (["registr", "a", "b"], "No such command 'registr'"),
        (["run", "a", "b", "--workers", "0"], "'0'"),
        (["run", "a", "b", "--workers", "many"], "'many'"),
        (["apply", "a", "b", "c", "--to", "x"], "'x' is not one of 'target', 'atlas'"),
        (["register", "a", "b", "--channel", "x"], "such as 0,1; got 'x'"),
        (["register", "a", "b", "--channel", "0,0"], "expected each number once, got '0,0'"),
        (["info", "a", "b"], "extra argument"),
        (["register", "a", "b"], "expected an atlas to register to, got none"),
        (["cluster", "begin"], "No such command 'begin'"),
        (["aws", "share", "bucket"], "expected who may look, got none"),
    ],
)
def test_words_that_are_no_command_are_refused_in_one_line(refused, words, said):
    line = refused(*words)
    assert said in line
    assert "expected" in line or "--help" in line


def test_no_words_bring_the_help_and_an_interrupt_ends(cloudreg, monkeypatch):
    code, out, err = cloudreg()
    assert (code, err) == (2, "") and "Usage" in out and "region table" in out
    assert "error" not in cloudreg("cluster")[2]

    def interrupted(*words, **options):
        raise KeyboardInterrupt

    from cloudreg import commands

    monkeypatch.setattr(commands, "info", interrupted)
    assert cloudreg("info", "x")[0] in (1, 130)


def test_the_version_is_told(cloudreg):
    from cloudreg import __version__

    assert cloudreg("--version") == (0, f"cloudreg {__version__}\n", "")


def test_points_far_away_are_counted_and_warn_of_nothing(cloudreg, registration, tmp_path):
    (tmp_path / "p.csv").write_text("z_um,y_um,x_um\n1e400,1,1\n2000,1800,2200\n1e300,-1e308,1\n")
    code, out, err = cloudreg("apply-points", registration, tmp_path / "p.csv", tmp_path / "a.csv", "--to", "atlas")
    assert (code, err) == (0, "")
    assert out.startswith("2 of 3 points lie outside the registration's field")
    (tmp_path / "v.csv").write_text("z,y,x\n1e400,1,1\n")
    code, out, err = cloudreg("apply-points", registration, tmp_path / "v.csv", tmp_path / "b.csv", "--to", "target")
    assert (code, err) == (0, "")
    assert out.startswith("1 of 1 points lie outside")


def test_a_project_is_named_xml_before_anything_is_computed(refused, raw, tmp_path):
    assert "*.xml" in refused("align", raw, tmp_path / "p.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]
