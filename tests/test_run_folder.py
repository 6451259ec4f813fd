"""A run does what is not done, redoes what changed, and touches nothing else."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cloudreg.errors import InputError
from cloudreg.run_folder import RunFolder, content_fingerprint, open_run, write_atomically
from cloudreg.settings import AlignSettings, FusionSettings, IlluminationSettings, RunSettings, ShadingSettings


def run_chain(path, *, settings=None, fingerprint="f0", source="/raw", stop_in=None, resumable=False):
    """Shade, align and fuse two channels in miniature; return the names of the stages that did something."""
    settings = settings or RunSettings()
    worked = []

    def work(stage, output):
        if stage.needed:
            worked.append(stage.name)
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(f"half of {stage.name}")
            stage.ledger.mark("first half")
            if stage.name == stop_in:
                raise KeyboardInterrupt
            output.write_text(f"{stage.name} {stage.key}")

    with open_run(path, source=source, fingerprints={"0": fingerprint}, settings=settings, command="test") as run:
        folder = run.folder
        with run.stage("shade", settings=settings.shading, after=[fingerprint], outputs=[folder.shading(0)]) as shade:
            work(shade, folder.shading(0))
        with run.stage("align", settings=settings.align, after=[shade], outputs=[folder.project]) as align:
            work(align, folder.project)
        with run.stage(
            "fuse",
            settings=settings.fusion,
            after=[shade, align],
            outputs=[folder.stitched(0)],
            resumable=resumable,
        ) as fuse:
            work(fuse, folder.stitched(0))
        with run.stage("regions", settings={}, after=[fuse], outputs=[folder.regions]) as regions:
            work(regions, folder.regions)
    return worked


ALL = ["shade", "align", "fuse", "regions"]


def contents(path):
    return {
        str(file.relative_to(path)): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in sorted(Path(path).rglob("*"))
        if file.is_file()
    }


def test_a_finished_run_does_nothing_more(tmp_path):
    assert run_chain(tmp_path / "out") == ALL
    assert run_chain(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("changed", "redone"),
    [
        (RunSettings(shading=ShadingSettings(samples=20)), ALL),
        (RunSettings(align=AlignSettings(minimum_correlation=0.5)), ["align", "fuse", "regions"]),
        (RunSettings(fusion=FusionSettings(blending="linear")), ["fuse", "regions"]),
        (RunSettings(illumination=IlluminationSettings(method="none")), []),
    ],
)
def test_a_changed_setting_redoes_what_depends_on_it_and_nothing_else(tmp_path, changed, redone):
    run_chain(tmp_path / "out")
    assert run_chain(tmp_path / "out", settings=changed) == redone
    assert run_chain(tmp_path / "out", settings=changed) == []


def test_changed_raw_data_at_the_same_place_redoes_everything(tmp_path):
    run_chain(tmp_path / "out")
    assert run_chain(tmp_path / "out", fingerprint="f1") == ALL


def test_the_same_raw_data_at_another_place_redoes_nothing(tmp_path):
    run_chain(tmp_path / "out")
    assert run_chain(tmp_path / "out", source="/elsewhere") == []


def test_a_run_of_other_raw_data_is_refused_and_untouched(tmp_path):
    run_chain(tmp_path / "out")
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"holds a run of /raw, not of /other: choose another output folder"):
        run_chain(tmp_path / "out", source="/other", fingerprint="f1")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["brain.tif", ".hidden", "sub/file"])
def test_a_folder_that_is_no_run_is_refused_and_untouched(tmp_path, name):
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("precious")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="is not the folder of a run"):
        run_chain(tmp_path / "out")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"kind": "registration"}', '{"kind": "run"}'])
def test_a_manifest_that_is_not_a_runs_is_refused(tmp_path, text):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="choose another folder"):
        run_chain(tmp_path / "out")


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="found a file"):
        run_chain(tmp_path / "out")


def test_an_empty_folder_is_a_new_run(tmp_path):
    (tmp_path / "out").mkdir()
    assert run_chain(tmp_path / "out") == ALL


@pytest.mark.parametrize("stop_in", ALL)
def test_a_stopped_run_goes_on_with_the_stage_that_it_was_in(tmp_path, stop_in):
    with pytest.raises(KeyboardInterrupt):
        run_chain(tmp_path / "out", stop_in=stop_in)
    manifest = RunFolder(tmp_path / "out").read_manifest()
    assert manifest["stages"][stop_in]["status"] == "stopped"
    assert run_chain(tmp_path / "out") == ALL[ALL.index(stop_in) :]


def test_a_resumable_stage_keeps_its_half_under_the_same_key_only(tmp_path):
    linear = RunSettings(fusion=FusionSettings(blending="linear"))

    def half_is_kept(settings):
        with (
            open_run(tmp_path / "out", source="/raw", fingerprints={}, settings=settings, command="") as run,
            run.stage(
                "fuse", settings=settings.fusion, after=[], outputs=[run.folder.stitched(0)], resumable=True
            ) as stage,
        ):
            kept = run.folder.stitched(0).exists() and "block" in stage.ledger
            run.folder.stitched(0).parent.mkdir(parents=True, exist_ok=True)
            run.folder.stitched(0).write_text("half")
            stage.ledger.mark("block")
            raise KeyError(kept)

    for settings, expected in [(RunSettings(), False), (RunSettings(), True), (linear, False), (linear, True)]:
        with pytest.raises(KeyError) as error:
            half_is_kept(settings)
        assert error.value.args == (expected,)


def test_a_stage_that_cannot_resume_starts_from_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_chain(tmp_path / "out", stop_in="align")
    with (
        open_run(tmp_path / "out", source="/raw", fingerprints={}, settings=RunSettings(), command="") as run,
        run.stage("align", settings=AlignSettings(), after=[], outputs=[run.folder.project]) as stage,
    ):
        assert stage.needed
        assert len(stage.ledger) == 0
        assert not run.folder.project.exists()


def test_a_lost_output_is_made_again(tmp_path):
    run_chain(tmp_path / "out")
    RunFolder(tmp_path / "out").project.unlink()
    assert run_chain(tmp_path / "out") == ["align"]


def test_a_run_killed_while_it_clears_an_output_does_not_take_it_for_whole(tmp_path, monkeypatch):
    run_chain(tmp_path / "out")
    changed = RunSettings(fusion=FusionSettings(blending="linear"))
    monkeypatch.setattr("cloudreg.run_folder.Run._clear", lambda self, name: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_chain(tmp_path / "out", settings=changed)
    monkeypatch.undo()
    assert run_chain(tmp_path / "out") == ["fuse"]


def test_two_runs_do_not_share_a_folder(tmp_path):
    with (
        open_run(tmp_path / "out", source="/raw", fingerprints={}, settings=RunSettings(), command=""),
        pytest.raises(InputError, match="another cloudreg is running"),
    ):
        run_chain(tmp_path / "out")


def test_the_lock_of_a_killed_process_does_not_block(tmp_path):
    script = (
        "import sys, time; from cloudreg.run_folder import open_run; from cloudreg.settings import RunSettings\n"
        "with open_run(sys.argv[1], source='/raw', fingerprints={}, settings=RunSettings(), command=''):\n"
        "    print('open', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "out")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"open\n"
    with pytest.raises(InputError, match="another cloudreg is running"):
        run_chain(tmp_path / "out")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert run_chain(tmp_path / "out") == ALL


def test_the_manifest_tells_what_ran(tmp_path):
    run_chain(tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["command"] == "test"
    assert manifest["input"] == {"path": "/raw", "fingerprints": {"0": "f0"}}
    assert manifest["settings"] == RunSettings().model_dump(mode="json")
    assert {"cloudreg", "python", "numpy"} <= manifest["versions"].keys()
    assert [(name, stage["status"]) for name, stage in manifest["stages"].items()] == [(name, "done") for name in ALL]
    assert all(stage["seconds"] >= 0 for stage in manifest["stages"].values())


def test_what_a_stage_warned_of_stays_in_the_manifest(tmp_path):
    def align(warning):
        with (
            open_run(tmp_path, source="/raw", fingerprints={"0": "f0"}, settings=RunSettings(), command="test") as run,
            run.stage("align", settings={}, after=[], outputs=[run.folder.project]) as stage,
        ):
            if stage.needed:
                run.folder.project.write_text("")
                stage.warnings.append(warning)
        return json.loads((tmp_path / "manifest.json").read_text())["stages"]["align"]["warnings"]

    assert align("a tile is loose") == ["a tile is loose"]
    assert align("this is not done again") == ["a tile is loose"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    write_atomically(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_a_fingerprint_sees_names_and_bytes(tmp_path):
    folder = tmp_path / "volume"
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    first = content_fingerprint(folder)
    os.utime(folder / "a", (0, 0))
    assert content_fingerprint(folder, None) == first
    (folder / "a").write_bytes(b"2")
    assert content_fingerprint(folder) != first
    (folder / "a").write_bytes(b"1")
    (folder / "a").rename(folder / "b")
    assert content_fingerprint(folder) != first
    assert content_fingerprint("gs://bucket/one") != content_fingerprint("gs://bucket/two")
