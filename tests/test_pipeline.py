"""The whole way of the data on a small phantom: it ends in a table, resumes, and redoes no more than it must."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cloudreg import pipeline
from cloudreg.datasets import DemoSize, make_acquisition
from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.illumination import estimate_bias_by_regions, load_bias
from cloudreg.io import open_volume
from cloudreg.run_folder import RunFolder
from cloudreg.settings import override, save_settings

TINY = DemoSize(
    rows=2,
    columns=2,
    side=96,
    planes=64,
    voxel_size_um=(60.0, 45.0),
    jitter_um=(60.0, 90.0, 90.0),
    template_um=110.0,
    labels_um=110.0,
    node_um=50.0,
)
STAGES = [
    "shade_00",
    "shade_01",
    "align",
    "fuse_00",
    "fuse_01",
    "register",
    "correct_00",
    "correct_01",
    "regions",
    "report",
]


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """A small acquisition with its atlas."""
    return make_acquisition(tmp_path_factory.mktemp("tiny") / "acquisition", size=TINY)


@pytest.fixture(scope="module")
def settings(truth):
    from cloudreg.settings import AtlasSettings, RunSettings

    return override(
        RunSettings(atlas=AtlasSettings(name=str(truth.atlas)), orientation=truth.orientation),
        {
            "shading.samples": 64,
            "align.search_um": (120.0, 180.0, 180.0),
            "fusion.chunk": (16, 32, 32),
            "illumination.working_voxel_um": 120.0,
            "registration.levels": 2,
            "registration.resolution_um": 220.0,
            "registration.iterations": (3, 3),
        },
    )


@pytest.fixture(scope="module")
def whole(truth, settings, tmp_path_factory):
    """A run that nothing stopped, with one worker."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with Engine(workers=1, memory="1GB") as engine:
        pipeline.run(truth.acquisition, out, settings, engine, command="cloudreg run")
    return RunFolder(out)


def starts(folder):
    return {name: stage["started"] for name, stage in folder.read_manifest()["stages"].items()}


def contents(folder, names=("shading", "project.xml", "stitched", "corrected", "registration", "regions.csv")):
    """Bytes of every output; a registration's manifest names its own place, so it is left out."""
    files = {}
    for name in names:
        root = folder.path / name
        for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if file.is_file() and file != folder.registration / "manifest.json":
                files[str(file.relative_to(folder.path))] = file.read_bytes()
    return files


def test_a_run_leaves_everything_it_promises(whole):
    manifest = whole.read_manifest()
    assert {name: stage["status"] for name, stage in manifest["stages"].items()} == dict.fromkeys(STAGES, "done")
    for channel in (0, 1):
        stitched, corrected = open_volume(whole.stitched(channel)), open_volume(whole.corrected(channel))
        assert stitched.grid == corrected.grid
        assert len(stitched.levels) > 1
    assert whole.settings.exists()
    assert "</html>" in whole.report.read_text()
    promised = {
        "manifest.json",
        "affine.txt",
        "displacement_atlas_to_target.ome.zarr",
        "displacement_target_to_atlas.ome.zarr",
        "labels_in_target.ome.zarr",
        "template_in_target.ome.zarr",
        "target_in_atlas.ome.zarr",
        "weights.ome.zarr",
        "energies.csv",
        "regions.csv",
    }
    assert promised <= {entry.name for entry in whole.registration.iterdir()}


def test_the_region_table_has_every_channel_and_both_sides(whole, truth):
    with whole.regions.open() as file:
        rows = list(csv.DictReader(file))
    statistics = [f"{what}_channel_{c:02d}" for c in (0, 1) for what in ("mean", "median", "sum")]
    assert list(rows[0]) == ["id", "acronym", "name", "side", "volume_mm3", *statistics, "doubt"]
    assert {row["side"] for row in rows} == {"left", "right"}
    total = sum(float(row["volume_mm3"]) for row in rows)
    assert total == pytest.approx(truth.regions.volume_mm3.sum(), rel=0.25)


def test_a_finished_run_is_left_as_it_is(whole, truth, settings, engine):
    before = {path: path.stat().st_mtime_ns for path in whole.path.rglob("*") if path.is_file()}
    pipeline.run(truth.acquisition, whole.path, settings, engine, command="cloudreg run")
    after = {path: path.stat().st_mtime_ns for path in whole.path.rglob("*") if path.is_file()}
    changed = {path.name for path in after if before.get(path) != after[path]}
    assert changed <= {"manifest.json", "settings.yaml"}
    assert before.keys() == after.keys()


def test_a_run_killed_in_every_stage_gives_the_same_bytes(whole, truth, settings, tmp_path):
    file, folder = tmp_path / "settings.yaml", RunFolder(tmp_path / "out")
    save_settings(settings, file)
    command = [sys.executable, "-m", "cloudreg", "run", truth.acquisition, folder.path, "--settings", file]
    began = {}
    for stage in STAGES:
        process = subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        reached = wait_for(folder, stage, process)
        os.kill(process.pid, signal.SIGKILL)
        output = process.communicate()[0].decode()
        assert reached, f"{stage} did not begin: {output}"
        assert process.returncode == -signal.SIGKILL, output
        now = starts(folder)
        assert {name: now[name] for name in began} == began, "a finished stage was redone"
        done = folder.read_manifest()["stages"]
        began = {name: now[name] for name in done if done[name]["status"] == "done"}
    finished = subprocess.run([*command, "--workers", "2"], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    expected, found = contents(whole), contents(folder)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def wait_for(folder, stage, process, limit_s=120.0):
    """Wait until a stage runs, and where it keeps a ledger, until a block is in it; False if the process ends."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end and process.poll() is None:
        manifest = folder.read_manifest() if folder.manifest.exists() else None
        record = (manifest or {"stages": {}})["stages"].get(stage, {})
        resumable = stage.startswith(("fuse", "correct"))
        if record.get("status") == "done":
            return False
        if record.get("status") == "running" and (not resumable or folder.ledger(stage).exists()):
            return True
        time.sleep(0.002)
    return False


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ({"illumination.working_voxel_um": 130.0}, {"correct_00", "correct_01", "regions", "report"}),
        ({"registration.iterations": (2, 2)}, {"register", "correct_00", "correct_01", "regions", "report"}),
        ({"registration_channel": (0, 1)}, {"register", "correct_00", "correct_01", "regions", "report"}),
    ],
)
def test_a_changed_setting_redoes_what_depends_on_it(truth, settings, whole, tmp_path, engine, change, redone):
    folder = RunFolder(tmp_path / "out")
    shutil.copytree(whole.path, folder.path)
    before = starts(folder)
    pipeline.run(truth.acquisition, folder.path, override(settings, change), engine)
    after = starts(folder)
    assert {name for name in after if after[name] != before[name]} == redone


def test_the_input_is_never_changed(truth, settings, whole):
    manifest = whole.read_manifest()
    acquisition = pipeline.open_acquisition(truth.acquisition)
    for channel in acquisition.channels:
        assert acquisition.fingerprint((channel,)) == manifest["input"]["fingerprints"][f"channel {channel}"]


def test_one_channel_can_be_added_without_redoing_the_other(truth, settings, tmp_path, engine, monkeypatch):
    monkeypatch.setattr(
        pipeline, "register_to_atlas", lambda *args, **options: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    folder = RunFolder(tmp_path / "out")
    for channels in ((0,), (0, 1)):
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(truth.acquisition, folder.path, override(settings, {"channels": channels}), engine)
        if channels == (0,):
            before = {path: path.stat().st_mtime_ns for path in folder.stitched(0).rglob("*")}
    assert {path: path.stat().st_mtime_ns for path in folder.stitched(0).rglob("*")} == before
    assert open_volume(folder.stitched(1)).grid == open_volume(folder.stitched(0)).grid


def test_a_run_registers_by_several_channels_together(truth, settings, whole, tmp_path, engine, monkeypatch):
    import shutil

    folder = RunFolder(tmp_path / "out")
    shutil.copytree(whole.path, folder.path)
    fitted = {}

    def look(target, *_, channels, **__):
        fitted.update(target=target, channels=tuple(channels))
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "register_to_atlas", look)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(truth.acquisition, folder.path, override(settings, {"registration_channel": (1, 0)}), engine)
    assert fitted["channels"] == (0, 1)
    for number, channel in enumerate((1, 0)):
        expected = open_volume(folder.stitched(channel)).read()
        np.testing.assert_array_equal(fitted["target"].read(channel=number), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"registration_channel": (0, 5)}, "has no channel 5"),
        ({"registration_channel": ()}, "got none"),
        ({"channels": (0, 7)}, "has no channel 7: choose one of 0, 1"),
        ({"registration_channel": 5}, "has no channel 5"),
        ({"channels": (0,), "registration_channel": 1}, "registration channel 1 is not among the channels to process"),
        ({"orientation": "asl"}, "mirror images"),
        ({"orientation": "xyz"}, "an orientation is three letters"),
        ({"atlas": {"name": "no_such_atlas_9um"}}, "no_such_atlas_9um"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(truth, settings, tmp_path, engine, change, message):
    with pytest.raises(InputError, match=message) as error:
        pipeline.run(truth.acquisition, tmp_path / "out", override(settings, change), engine)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_seen_before_anything_is_written(truth, settings, tmp_path, engine, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(InputError, match="GB free: make room or choose another output place"):
        pipeline.run(truth.acquisition, tmp_path / "out", settings, engine)
    assert not (tmp_path / "out").exists()


def test_figures_of_the_run_are_those_of_its_files(whole):
    manifest = json.loads((whole.registration / "manifest.json").read_text())
    affine = np.loadtxt(whole.registration / "affine.txt")
    scales = np.linalg.svd(affine[:3, :3], compute_uv=False)
    np.testing.assert_allclose(manifest["figures"]["affine_scales"], scales, rtol=1e-6)
    assert Path(manifest["target"]["path"]) == whole.stitched(0)


def test_the_light_is_told_from_the_tissue_by_the_registered_regions(whole, settings, engine):
    for channel in (0, 1):
        volume, labels = open_volume(whole.stitched(channel)), open_volume(whole.labels)
        expected = estimate_bias_by_regions(volume, 0, labels, settings.illumination, engine=engine)
        np.testing.assert_array_equal(load_bias(whole.bias(channel)).log_field, expected.log_field)


def test_light_that_no_region_tells_from_tissue_is_found_before_any_registration(
    truth, settings, whole, tmp_path, engine
):
    folder = RunFolder(tmp_path / "out")
    shutil.copytree(whole.path, folder.path)
    alone = override(settings, {"illumination.method": "n4"})
    pipeline.run(truth.acquisition, folder.path, alone, engine)
    before = starts(folder)
    pipeline.run(truth.acquisition, folder.path, override(alone, {"registration.iterations": (2, 2)}), engine)
    after = starts(folder)
    assert {name for name in after if after[name] != before[name]} == {"register", "regions", "report"}
