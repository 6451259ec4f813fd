"""Each module runs as a program, with the names of the 2021 command lines."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cloudreg.io import open_volume

CLI = json.loads((Path(__file__).parent / "legacy_cli.json").read_text())["modules"]


class Captured(Exception):
    """Carries a parser out of a main function."""


@pytest.fixture
def parser_of(legacy, monkeypatch):
    """Returns the parser that a module's main function makes."""

    def caught(parser, *args, **more):
        raise Captured(parser)

    def get(module):
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", caught)
            with pytest.raises(Captured) as found:
                legacy(module).main([])
        return found.value.args[0]

    return get


def as_value(text):
    """Return the default that the list of command lines describes; descriptions in words stay as they are."""
    known = {"[50.0] * 3": [50.0] * 3, "None": None, "True": True, "False": False, "": None}
    if text in known:
        return known[text]
    try:
        return json.loads(text)
    except ValueError:
        return text


@pytest.mark.parametrize("module", sorted(CLI))
def test_names_kinds_and_defaults_are_those_of_2021(parser_of, module):
    actions = {
        name: action
        for action in parser_of(module)._actions
        for name in (action.option_strings or [action.dest])
        if name not in ("-h", "--help")
    }
    positional = [entry["name"] for entry in CLI[module] if entry["positional"]]
    assert [a for a in actions if not a.startswith("-")] == positional
    for entry in CLI[module]:
        action = actions[entry["name"]]
        assert action.nargs == {"+": "+", "3": 3}.get(entry.get("values")), entry
        wanted = as_value(entry["default"]) if "default" in entry else None
        if isinstance(wanted, str) and "public precomputed" in wanted:
            # No address of somebody's server is built in; left out, it is BrainGlobe's atlas: docs/migrating.md.
            assert not action.required and action.default is None, entry
        elif "default" in entry:
            assert (action.default or None) == (wanted or None), entry
    # What is new may be left out.
    known = {entry["name"] for entry in CLI[module]}
    assert not [name for name, action in actions.items() if name not in known and action.required]


def run(module, *words):
    return subprocess.run(
        [sys.executable, "-m", f"cloudreg.scripts.{module}", *(str(word) for word in words)],
        capture_output=True,
        text=True,
        timeout=120,
    )


ALL_AS_PROGRAMS = """
import contextlib, io, json, runpy, sys, warnings
told = {}
for module in sys.argv[1:]:
    sys.argv = [module, "-h"]
    out, err = io.StringIO(), io.StringIO()
    shown = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with warnings.catch_warnings(record=True) as caught, shown[0], shown[1]:
        warnings.simplefilter("always", FutureWarning)
        try:
            runpy.run_module(f"cloudreg.scripts.{module}", run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            code = stop.code
    warned = [str(w.message) for w in caught if w.category is FutureWarning]
    told[module] = [code, out.getvalue(), err.getvalue(), warned]
print(json.dumps(told))
"""


def test_modules_warn_and_explain_themselves_as_programs():
    modules = [*sorted(CLI), "parastitcher", "paraconverter"]
    done = subprocess.run(
        [sys.executable, "-c", ALL_AS_PROGRAMS, *modules], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for module, (code, out, err, warned) in json.loads(done.stdout).items():
        assert len(warned) == 1 and f"cloudreg.scripts.{module} is the interface of 2021" in warned[0], module
        assert code in (0, None) and not err, module
        # Parameters of TeraStitcher's manner have no list: their help shows whole command lines.
        documented = [entry["name"] for entry in CLI.get(module, [])] or ["-projin=" if "stitcher" in module else "-s="]
        assert all(name in out for name in documented), module


def test_planes_go_to_a_volume_and_to_a_file_by_programs(tmp_path):
    planes = np.random.default_rng(0).integers(0, 999, (5, 20, 30)).astype(np.uint16)
    (tmp_path / "in").mkdir()
    for z, plane in enumerate(planes):
        tifffile.imwrite(tmp_path / "in" / f"{z}.tif", plane)
    done = run("create_precomputed_volume", tmp_path / "in", 2, 2, 5, tmp_path / "v")
    assert done.returncode == 0, done.stderr
    assert open_volume(f"precomputed://{tmp_path}/v").grid.voxel_size_um == (5, 2, 2)
    done = run("download_data", tmp_path / "v", tmp_path / "v.tif", 1000, "--isotropic", "False")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "v.tif"), planes)
    done = run("ingest_image_stack", "-s3_path", tmp_path / "w", "-img_stack", tmp_path / "in", "-fmt", "tif",
               "-voxel_size", 2, 2, 5, "--dtype", "uint8")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert open_volume(f"precomputed://{tmp_path}/w").dtype == np.uint8


WRONG = {
    "download_data nowhere v.tif 1000": "expected",
    "create_precomputed_volume in 1 2 out": "three voxel sizes and one path",
    "correct_raw_data -raw_data_path nowhere -channel 0": "expected the folder of a raw acquisition",
    "correct_stitched_data nowhere out": "expected",
    "stitching --stack_dir /nowhere/VW0": "expected Experiment.ini beside /nowhere/VW0",
    "registration_accuracy -target_viz_link no -atlas_viz_link no": "a state of Neuroglancer at no",
    "colm_pipeline s3://a/b s3://a/c 2 5": "autofluorescence channel within 0 to 1",
    "registration -input_s3_path x -log_s3_path y -orientation LPS --bias_correction maybe": "expected True or False",
    "registration -input_s3_path x -log_s3_path y -orientation LPS --atlas_s3_path t": "got one",
    "registration -input_s3_path x -log_s3_path y -orientation LPS --atlas_orientation RAS": "orientation PIR for the",
    "ingest_image_stack -s3_path o -img_stack nowhere -fmt tif -voxel_size 1 1 0": "a voxel size is three positive",
}


@pytest.mark.parametrize("line", WRONG)
def test_bad_input_is_one_line_and_exit_2(legacy, monkeypatch, capsys, tmp_path, line):
    from cloudreg.execution import progress

    monkeypatch.setattr(progress, "_console", None)
    monkeypatch.chdir(tmp_path)
    module, *words = line.split()
    try:
        code = legacy(module).main(words)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert WRONG[line] in capsys.readouterr().err.splitlines()[-1]
    assert not any(tmp_path.iterdir())
