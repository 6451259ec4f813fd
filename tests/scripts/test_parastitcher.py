"""TeraStitcher's steps as functions and as programs: on our stitching, and on TeraStitcher's own programs."""

import doctest
import os
import re
import stat
import subprocess
import sys

import numpy as np
import pytest
import tifffile

from cloudreg.errors import BlocksFailedError, CloudRegError, InputError
from cloudreg.scripts import _words
from cloudreg.tiles import open_acquisition, read_project, to_project, write_project


@pytest.fixture
def para(legacy):
    return legacy("parastitcher")


@pytest.fixture
def converter(legacy):
    return legacy("paraconverter")


@pytest.fixture
def quiet(monkeypatch):
    from cloudreg.execution import progress

    monkeypatch.setattr(progress, "_console", None)


@pytest.fixture
def imported(colm, tmp_path):
    """The project of the acquisition before any step."""
    write_project(to_project(open_acquisition(colm.path), 0), tmp_path / "xml_import.xml", step="import")
    return tmp_path / "xml_import.xml"


def test_the_examples():
    result = doctest.testmod(_words)
    assert result.attempted >= 6 and not result.failed


def test_the_words_are_those_of_the_command_line(para, converter, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["parastitcher.py", "-2", "-projin=a b.xml"])
    assert para.extract_params() == converter.extract_params() == ["-2", "-projin=a b.xml"]


def test_words_are_found_quoted_and_joined(para):
    words = ["-2", "-projin=a b.xml", "-sV=20"]
    assert para.check_flag(words, "-sH=", False) is None
    assert para.check_flag(words, "-sV=", False) == "20" and words[-1] == "-sV=20"
    assert para.check_flag(words, "-sV=", True) == "20" and words == ["-2", "-projin=a b.xml"]
    assert para.check_double_quote(words) == ["-2", '-projin="a b.xml"']
    assert para.eliminate_double_quote(para.check_double_quote(words)) == words
    assert para.check_double_quote("two words") == '"two words"'
    assert para.check_double_quote('"two words"') == '"two words"'
    assert para.collect_instructions(["a", "b c"]) == "a b c"


@pytest.mark.parametrize(
    ("default", "text", "value"), [(1, "7", 7), (1.0, "0.5", 0.5), ("x", "y", "y"), (True, "False", False)]
)
def test_items_have_the_type_of_their_default(para, default, text, value):
    found = para.read_item([f"-item={text}"], "-item=", default)
    assert found == value and type(found) is type(default)
    assert para.read_item([], "-item=", default, message=False) == default


def test_a_wrong_item_is_said(para):
    with pytest.raises(InputError, match="expected int for depth, got 'x'"):
        para.read_item(["-depth=x"], "-depth=", 5)


def test_paths_are_cut_at_the_last_slash(para):
    assert para.find_last_slash("/a/b/c.xml") == ["/a/b/", "c.xml"]
    assert para.find_last_slash("c.xml") == ["", "c.xml"]


def test_entries_of_a_file_are_found(para, tmp_path):
    file = tmp_path / "info.txt"
    file.write_text('HEIGHT=100 WIDTH="2 00"\nDEPTH=30\nXDEPTH=9\n')
    assert para.search_for_entry("HEIGHT=", str(file)) == "100"
    assert para.search_for_entry(["WIDTH=", "DEPTH=", "NONE="], str(file)) == ["2 00", "30", None]
    assert para.search_for_entry("DEPTH=", str(file), 1) is None
    assert para.read_input(str(file), 2)[1] == "DEPTH=30" and len(para.read_input(str(file))) == 3


def test_the_planes_of_a_project_are_read(para, imported, colm):
    assert para.extract_np(str(imported)) == colm.depth


class TestCommands:
    """The commands of a parallel conversion."""

    WORDS = ("prog", "-6", "-sfmt=TIFF (unstitched, 3D)", "-dfmt=TIFF (series, 2D)", "-resolutions=01", "-depth=8")

    @pytest.fixture
    def made(self, converter, imported, tmp_path, monkeypatch):
        words = [*self.WORDS, f"-s={imported}", f"-d={tmp_path / 'out'}", "-height=64", "-width=64"]
        monkeypatch.setattr(sys, "argv", words)
        return converter.create_commands(2), converter.read_params()

    def test_the_source_is_measured(self, made, imported, tmp_path, colm):
        _, params = made
        name, out, wb1, wb2, wb3, sfmt, dfmt, levels, most, _, last, height, width, depth = params
        assert (name, out) == (str(imported), str(tmp_path / "out"))
        assert (wb1, wb2, wb3, levels, most) == (8, 64, 64, [0, 1], 1)
        assert (sfmt, dfmt, last) == ("TIFF (unstitched, 3D)", "TIFF (series, 2D)", "-6")
        assert (depth, height, width) == colm.nominal_shape

    def test_the_blocks_of_the_commands_are_the_whole_volume(self, made, colm):
        (first, commands, sizes, final), _ = made
        assert sum(w * h * d for w, h, d in sizes.values()) == np.prod(colm.nominal_shape)
        assert commands.keys() == sizes.keys()
        for index, command in commands.items():
            edges = [int(n) for n in re.findall(r"-[VHD][01]=(\d+)", command)]
            v0, v1, h0, h1, d0, d1 = edges
            assert [h1 - h0, v1 - v0, d1 - d0] == sizes[index]
            assert '-sfmt="TIFF (unstitched, 3D)"' in command and "-resolutions=01" in command
        assert first != final and all('-dfmt="TIFF (series, 2D)"' in c for c in (first, final))

    def test_each_command_can_be_made_by_itself(self, converter, made):
        (first, _, _, final), read = made
        shared = read[:11]
        assert converter.generate_first_command(*shared) == first
        assert converter.generate_final_command(*shared) == final
        # Width, height, depth.
        only = converter.generate_parallel_command([[0, 10, 4]], [[64, 30, 8]], *shared)
        assert list(only) == [0]
        assert all(word in only[0] for word in ("-H0=0 -H1=64", "-V0=10 -V1=30", "-D0=4 -D1=8"))

    def test_memory_is_printed_on_demand(self, converter, made, capsys):
        converter.create_commands(2, info=True)
        assert re.search(r"memory needed: [0-9.]+ GBytes", capsys.readouterr().out)


class TestQueue:
    """Commands are run side by side; a failure is an error, and what is done is remembered."""

    def test_all_are_run(self, para, tmp_path):
        para.main_step2([f"touch '{tmp_path}/a {n}'" for n in range(5)])
        assert len(list(tmp_path.iterdir())) == 5

    def test_done_commands_are_not_run_again(self, converter, para, tmp_path):
        queue = [f"mkdir {tmp_path}/{n}" for n in range(3)]
        converter.main(queue[:2], str(tmp_path / "resume"))
        # mkdir would fail for the first two.
        para.main_step6(queue, str(tmp_path / "resume"))
        assert (tmp_path / "2").is_dir()

    def test_a_failure_is_said_after_the_others_are_done(self, para, tmp_path):
        with pytest.raises(BlocksFailedError, match="1 block"):
            para.main_step2([f"ls {tmp_path}/none", f"touch {tmp_path}/b"])
        assert (tmp_path / "b").exists()
        with pytest.raises(CloudRegError, match="ended with exit status 3"):
            para.worker("sh -c 'exit 3'")

    def test_a_subordinate_has_nothing_to_do(self, para, converter):
        assert para.subordinate() is None and converter.subordinate() is None


def run(module, *words, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore::FutureWarning", "-m", f"cloudreg.scripts.{module}", *(str(w) for w in words)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    return done.returncode, done.stderr


def test_the_documented_steps_stitch_an_acquisition(para, quiet, colm, imported, tmp_path, monkeypatch):
    step = {name: tmp_path / f"xml_{name}.xml" for name in ("displcomp", "displproj", "displthres", "merging")}
    assert (
        para.program(["-2", f"-projin={imported}", f"-projout={step['displcomp']}", "-sV=12", "-sH=12", "-sD=4"]) == 0
    )
    measured = read_project(step["displcomp"])
    assert sum(len(tile.east) + len(tile.south) for tile in measured.tiles) == 7
    assert para.program(["-3", f"-projin={step['displcomp']}", f"-projout={step['displproj']}"]) == 0
    assert para.program(["-4", f"-projin={step['displproj']}", f"-projout={step['displthres']}", "-threshold=0.3"]) == 0
    assert para.program(["-5", f"-projin={step['displthres']}", f"-projout={step['merging']}"]) == 0
    placed = read_project(step["merging"])
    found = np.array([tile.position_px for tile in placed.tiles])
    difference = found - colm.positions
    assert np.abs(difference - np.median(difference, axis=0)).max() < 0.5

    out = tmp_path / "out"
    plugin = "-volout_plugin=TIFF (series, 2D)"
    assert para.program(["-6", f"-projin={step['merging']}", f"-volout={out}", plugin, "-resolutions=01"]) == 0
    folders = sorted(out.iterdir())
    assert [folder.name[:4] for folder in folders] == ["RES("] * 2 and len(list(out.glob(".*"))) == 0
    fine, coarse = sorted(folders, key=lambda f: -len(list(f.iterdir())))
    planes = sorted(fine.iterdir())
    assert [p.name for p in planes[:2]] == ["000000_000000_000000.tif", "000000_000000_000050.tif"]
    volume = np.stack([tifffile.imread(p) for p in planes])
    depth, height, width = volume.shape
    assert fine.name == f"RES({height}x{width}x{depth})"
    # Where the specimen was, there it is again.
    np.testing.assert_allclose(
        volume[8:20, 30:-30, 30:-30], colm.specimen(volume.shape)[8:20, 30:-30, 30:-30], atol=1.5
    )
    halves = [tifffile.imread(p) for p in sorted(coarse.iterdir())]
    assert sorted(coarse.iterdir())[1].name == "000000_000000_000100.tif"
    block = volume[4:6, 40:42, 50:52].astype(float)
    assert abs(halves[2][20, 25] - block.mean()) <= 0.51


@pytest.mark.parametrize(("form", "planes"), [("TIFF, tiled, 3D", 8), ("TIFF (tiled, 2D)", 1), ("TIFF, tiled, 4D", 8)])
def test_tiles_are_as_large_as_asked_for(converter, quiet, imported, tmp_path, colm, form, planes):
    out = tmp_path / "out"
    words = [f"-s={imported}", f"-d={out}", "-sfmt=TIFF (unstitched, 3D)", f"-dfmt={form}", "-resolutions=0"]
    assert converter.program([*words, "-depth=8", "-height=64", "-width=80"]) == 0
    series = tmp_path / "series"
    assert converter.program([f"-s={imported}", f"-d={series}", "-dfmt=TIFF (series, 2D)"]) == 0
    (res,) = out.iterdir()
    (planar,) = series.iterdir()
    assert res.name == planar.name
    whole = np.stack([tifffile.imread(p) for p in sorted(planar.iterdir())])
    if "4D" in form:
        # The tiles of each channel are in a folder of its own.
        (res,) = res.iterdir()
        assert res.name == "CH_1"
    files = sorted(res.glob("*/*/*.tif"))
    read = 0
    for file in files:
        tile = np.atleast_3d(tifffile.imread(file)) if planes > 1 else tifffile.imread(file)[None]
        v, h, d = (int(n) / 10 for n in file.stem.split("_"))
        z, y, x = round(d / colm.voxel[0]), round(v / colm.voxel[1]), round(h / colm.voxel[2])
        assert tile.shape[0] <= planes and file.parent.name == "_".join(file.stem.split("_")[:2])
        np.testing.assert_array_equal(tile, whole[z : z + tile.shape[0], y : y + tile.shape[1], x : x + tile.shape[2]])
        read += tile.size
    assert read == whole.size


@pytest.mark.parametrize("form", ["TIFF (3D)", "Vaa3D raw", "HDF5 (Imaris IMS)", "OME-Zarr"])
def test_other_formats_are_refused_with_what_writes_them(converter, quiet, imported, tmp_path, capsys, form):
    assert converter.program([f"-s={imported}", f"-d={tmp_path / 'out'}", f"-dfmt={form}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"got {form!r}: for one TIFF file or OME-Zarr run cloudreg convert" in line and "--engine" in line
    assert not (tmp_path / "out").exists()


def test_sources_that_can_not_be_read_are_refused(converter, quiet, imported, tmp_path, capsys):
    words = [f"-s={imported}", f"-d={tmp_path / 'out'}", "-sfmt=Vaa3D raw (tiled, 3D)"]
    assert converter.program(words) == 2
    assert "got 'Vaa3D raw (tiled, 3D)': leave -sfmt out" in capsys.readouterr().err


def test_the_memory_is_said_and_nothing_done_with_info(converter, quiet, imported, tmp_path, capsys):
    assert converter.program([f"-s={imported}", f"-d={tmp_path / 'out'}", "-info"]) == 0
    assert re.search(r"memory needed: [0-9.]+ GBytes", capsys.readouterr().out)
    assert not (tmp_path / "out").exists()


def test_isotropic_resolutions_keep_the_planes_that_are_far_apart(converter, quiet, colm, imported, tmp_path):
    words = [f"-s={imported}", f"-d={tmp_path / 'out'}", "-resolutions=01", "-isotropic"]
    assert converter.program(words) == 0
    # 5 um from plane to plane, 2 um from pixel to pixel: the planes stay, the pixels become 4 um.
    depth, height, width = colm.nominal_shape
    names = {f"RES({height}x{width}x{depth})", f"RES({-(-height // 2)}x{-(-width // 2)}x{depth})"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names


def test_what_our_engine_does_not_need_is_named(para, quiet, imported, tmp_path, capsys):
    words = ["-2", f"-projin={imported}", f"-projout={tmp_path / 'o.xml'}", "-algorithm=MIPNCC", "-sV=9"]
    assert para.program([*words, "-noprogressbar"]) == 0
    assert "not used here: algorithm, noprogressbar\n" in capsys.readouterr().err


def test_alignment_is_by_the_channel_asked_for(para, quiet, imported, tmp_path, monkeypatch, capsys):
    from cloudreg.scripts import _steps

    seen = []
    align = _steps.align_in_steps
    monkeypatch.setattr(
        _steps, "align_in_steps", lambda a, channel, *rest: seen.append(channel) or align(a, channel, *rest)
    )
    words = ["-2", f"-projin={imported}", f"-projout={tmp_path / 'o.xml'}"]
    for more in ([], ["-imin_channel=1"], ["-imin_channel=all"]):
        assert para.program([*words, *more]) == 0
    assert seen == [0, 1, 0]
    assert para.program([*words, "-imin_channel=R"]) == 2
    assert "expected one of the channels 0, 1 of" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["parastitcher", "paraconverter"])
def test_help_shows_the_command_lines(legacy, quiet, capsys, module):
    assert legacy(module).program(["--help"]) == 0
    printed = capsys.readouterr().out
    assert f"python -m cloudreg.scripts.{module} -" in printed and "-resolutions=012" in printed


def test_a_volume_is_converted_as_a_program(tmp_path):
    planes = np.random.default_rng(0).integers(0, 60000, (10, 20, 30)).astype(np.uint16)
    (tmp_path / "in").mkdir()
    for z, plane in enumerate(planes):
        tifffile.imwrite(tmp_path / "in" / f"z{z:03d}.tif", plane)
    source, out = tmp_path / "in", tmp_path / "out"
    words = [f"-s={source}", f"-d={out}", "-sfmt=TIFF (series, 2D)", "-dfmt=TIFF (series, 2D)", "-resolutions=12"]
    code, err = run("paraconverter", *words)
    assert code == 0, err
    assert sorted(p.name for p in out.iterdir()) == ["RES(10x15x5)", "RES(5x8x3)"]
    half = np.stack([tifffile.imread(p) for p in sorted((out / "RES(10x15x5)").iterdir())])
    means = planes.reshape(5, 2, 10, 2, 15, 2).mean(axis=(1, 3, 5))
    assert np.abs(half - means).max() <= 0.5
    code, err = run("paraconverter", *words)
    assert code == 2 and "got a finished volume: choose a new place" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected one step, -2 to -6"),
        (["-2"], "expected -projin="),
        (["-2", "-projin=none.xml"], "expected a TeraStitcher project at none.xml"),
        (["-6", "-projin=none.xml"], "expected -s= .* and -d="),
        (["-2", "-projin=x", "--engine", "mpi"], "--engine own or terastitcher"),
        (["-2", "-projin=x", "-np", "two"], "expected a number of processes for -np, got 'two'"),
    ],
)
def test_what_is_wrong_with_a_command_line_is_said(para, quiet, capsys, words, message):
    assert para.program(words) == 2
    assert re.search(message, capsys.readouterr().err)


def test_processes_of_mpi_leave_the_work_to_the_first(para, quiet, imported, tmp_path, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    assert para.program(["-2", f"-projin={imported}", f"-projout={tmp_path / 'out.xml'}"]) == 0
    assert not (tmp_path / "out.xml").exists()


PROGRAM = """#!{python}
import sys, shutil
from pathlib import Path
with (Path({log!r})).open("a") as log:
    log.write("\\t".join([Path(sys.argv[0]).name, *sys.argv[1:]]) + "\\n")
values = dict(word.lstrip("-").partition("=")[::2] for word in sys.argv[1:])
if "projout" in values:
    shutil.copyfile(values["projin"], values["projout"])
if "d" in values and "parallel" in values:
    Path(values["d"], "_".join(values[k] for k in ("V0", "H0", "D0")) + ".block").write_text("")
"""


class TestTeraStitcherItself:
    """Programs on the PATH that note how they were called, and write what was asked for."""

    @pytest.fixture
    def programs(self, tmp_path, monkeypatch):
        folder, log = tmp_path / "bin", tmp_path / "log"
        folder.mkdir()
        for name in ("terastitcher", "teraconverter"):
            (folder / name).write_text(PROGRAM.format(python=sys.executable, log=str(log)))
            (folder / name).chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return lambda: [line.split("\t") for line in log.read_text().splitlines()]

    def test_alignment_runs_in_parts_that_hold_every_pair_and_plane(self, para, quiet, programs, imported, tmp_path):
        # With displacements in it, so that each part's project has some.
        measured = tmp_path / "measured.xml"
        assert para.program(["-2", f"-projin={imported}", f"-projout={measured}"]) == 0
        out = tmp_path / "out.xml"
        words = ["-2", f"-projin={measured}", f"-projout={out}", "-sV=9", "-subvoldim=10"]
        assert para.program([*words, "--engine", "terastitcher", "-np=3"]) == 0
        calls = programs()
        pairs, planes = set(), set()
        for name, *given in calls:
            values = dict(word.lstrip("-").partition("=")[::2] for word in given)
            assert name == "terastitcher" and "2" in values and values["sV"] == "9" and "engine" not in values
            rows = range(int(values["R0"]), int(values["R1"]) + 1)
            columns = range(int(values["C0"]), int(values["C1"]) + 1)
            depth = tuple(range(int(values["D0"]), int(values["D1"]) + 1))
            assert len(depth) <= 10
            planes |= set(depth)
            pairs |= {(r, c, r, c + 1, depth[0]) for r in rows for c in columns if c + 1 in columns}
            pairs |= {(r, c, r + 1, c, depth[0]) for r in rows for c in columns if r + 1 in rows}
        layers = {p[4] for p in pairs}
        assert planes == set(range(24)) and len(calls) >= 6
        expected = {(r, c, r, c + 1) for r in range(2) for c in range(2)} | {(0, c, 1, c) for c in range(3)}
        assert {p[:4] for p in pairs} == expected and len(pairs) == len(expected) * len(layers)
        # Parts that share a pair agree on it, and it is kept once.
        assert read_project(out).tiles == read_project(measured).tiles
        assert not list(tmp_path.glob(".parts*"))

    def test_conversion_makes_folders_then_blocks_then_metadata(self, converter, quiet, programs, imported, tmp_path):
        out = tmp_path / "out"
        words = [f"-s={imported}", f"-d={out}", "-sfmt=TIFF (unstitched, 3D)", "-dfmt=TIFF (series, 2D)"]
        assert converter.program([*words, "-depth=8", "-height=64", "-width=64", "--engine=terastitcher"]) == 0
        calls = programs()
        assert {call[0] for call in calls} == {"teraconverter"}
        assert calls[0][1] == "--makedirs" and calls[-1][1] == "--metadata"
        assert all(call[1] == "--parallel" for call in calls[1:-1])
        assert "-sfmt=TIFF (unstitched, 3D)" in calls[1]
        assert len(list(out.glob("*.block"))) == len(calls) - 2 > 4

    @pytest.mark.parametrize("when", ["--parallel", "--makedirs", "--metadata"])
    def test_an_exit_status_of_theirs_stops_it(self, converter, quiet, programs, imported, tmp_path, capsys, when):
        fail = f"if {when!r} in sys.argv:\n    sys.exit('out of memory')\n"
        program = tmp_path / "bin" / "teraconverter"
        program.write_text(program.read_text() + fail)
        words = [f"-s={imported}", f"-d={tmp_path / 'out'}", "-depth=8", "-height=64", "-width=64"]
        assert converter.program([*words, "--engine=terastitcher"]) == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and "ended with exit status 1: out of memory" in error
        # What comes after a failure is not begun; what is done is not done again.
        done = [call[1] for call in programs()]
        assert ("--metadata" in done) == (when == "--metadata")
        program.write_text(program.read_text().replace(fail, ""))
        assert converter.program([*words, "--engine=terastitcher"]) == 0
        later = [call[1] for call in programs()][len(done) :]
        assert later.count("--parallel") == (0 if when == "--metadata" else done.count("--parallel") or len(later) - 2)

    def test_several_of_them_run_at_a_time(self, para, quiet, programs, imported, tmp_path):
        program = tmp_path / "bin" / "terastitcher"
        meet = (
            "import time\n"
            f"Path({str(tmp_path)!r}, 'here.' + values['D0']).write_text('')\n"
            "until = time.monotonic() + 20\n"
            f"while len(list(Path({str(tmp_path)!r}).glob('here.*'))) < 2:\n"
            "    time.sleep(0.01)\n"
            "    if time.monotonic() > until:\n"
            "        sys.exit('nobody else runs')\n"
        )
        program.write_text(program.read_text() + meet)
        words = ["-2", f"-projin={imported}", f"-projout={tmp_path / 'o.xml'}", "-subvoldim=12"]
        assert para.program([*words, "--engine=terastitcher", "-np=2"]) == 0

    def test_other_steps_are_passed_on(self, para, quiet, programs, imported, tmp_path):
        words = ["-4", f"-projin={imported}", f"-projout={tmp_path / 'o.xml'}", "-threshold=0.5"]
        assert para.program([*words, "--engine=terastitcher"]) == 0
        assert programs() == [["terastitcher", *words]]

    def test_programs_that_are_missing_are_said(self, para, quiet, imported, capsys, monkeypatch):
        monkeypatch.setenv("PATH", "/nonexistent")
        words = ["-2", f"-projin={imported}", "-projout=o.xml", "--engine=terastitcher"]
        assert para.program(words) == 2
        assert "expected TeraStitcher's program terastitcher on the PATH" in capsys.readouterr().err
