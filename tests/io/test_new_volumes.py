"""Writing: nothing is overwritten, nothing unfinished is taken for finished, and a killed run goes on."""

import json
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest

from cloudreg.errors import InputError
from cloudreg.execution import Ledger
from cloudreg.io import build_pyramid, convert, create_volume, describe, open_volume, remove_volume, write_volume
from cloudreg.space import Box, Grid, split

GRID = Grid.from_spacing((70, 40, 50), (2, 2, 2), (1, 2, 3))
FORMS = ["{}/v.ome.zarr", "precomputed://{}/v"]
ARRAY = np.random.default_rng(0).integers(1, 999, GRID.shape).astype(np.uint16)


@pytest.mark.parametrize("form", FORMS)
def test_an_unfinished_volume_does_not_open_unless_asked_for(tmp_path, form):
    path = form.format(tmp_path)
    writer = create_volume(path, GRID, "uint16")
    with pytest.raises(InputError, match=r"expected a finished volume, got .*v.*whose writing was not"):
        open_volume(path)
    assert open_volume(path, allow_incomplete=True).grid == GRID
    assert describe(path)["note"].startswith("not finished")
    writer.complete()
    assert "note" not in describe(path)
    assert open_volume(path).grid == GRID


@pytest.mark.parametrize("form", FORMS)
def test_an_identical_unfinished_volume_is_continued(tmp_path, form):
    path = form.format(tmp_path)
    first = Box((0, 0, 0), (64, 40, 50))
    create_volume(path, GRID, "uint16").write(first, ARRAY[first.slices])
    writer = pickle.loads(pickle.dumps(create_volume(path, GRID, "uint16")))
    np.testing.assert_array_equal(writer.read(first), ARRAY[first.slices])
    rest = Box((64, 0, 0), (70, 40, 50))
    writer.write(rest, ARRAY[rest.slices])
    np.testing.assert_array_equal(writer.complete().read(), ARRAY)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "change", [{"dtype": "uint8"}, {"kind": "labels"}, {"orientation": "asr"}, {"levels": 1}, {"channels": 2}]
)
def test_another_volume_is_refused_and_left_alone(tmp_path, form, change):
    path = form.format(tmp_path)
    create_volume(path, GRID, "uint16")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=r"expected nothing or the same unfinished volume .* got another one"):
        create_volume(path, GRID, **{"dtype": "uint16", **change})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("form", FORMS)
def test_a_finished_volume_is_replaced_only_when_asked(tmp_path, form):
    path = form.format(tmp_path)
    write_volume(path, ARRAY, GRID)
    with pytest.raises(InputError, match="got a finished volume: choose a new place"):
        create_volume(path, GRID, "uint16")
    np.testing.assert_array_equal(open_volume(path).read(), ARRAY)
    write_volume(path, ARRAY[:3], GRID.cropped(Box((0, 0, 0), (3, 40, 50))), overwrite=True)
    np.testing.assert_array_equal(open_volume(path).read(), ARRAY[:3])


@pytest.mark.parametrize("name", ["v.tif", "v.nii", "v.nrrd"])
def test_a_file_is_replaced_only_when_asked(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=r"expected nothing at .*, got a file: choose a new place"):
        write_volume(tmp_path / name, ARRAY, GRID)
    assert (tmp_path / name).read_text() == "mine"
    write_volume(tmp_path / name, ARRAY, GRID, overwrite=True)
    np.testing.assert_array_equal(open_volume(tmp_path / name).read(), ARRAY)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_folders_of_other_things_are_neither_written_nor_removed(tmp_path):
    (tmp_path / "v.ome.zarr").mkdir()
    (tmp_path / "v.ome.zarr" / "thesis.txt").write_text("years")
    with pytest.raises(InputError, match="a folder that is not empty"):
        create_volume(tmp_path / "v.ome.zarr", GRID, "uint8")
    with pytest.raises(InputError, match="expected a volume written by CloudReg"):
        create_volume(tmp_path / "v.ome.zarr", GRID, "uint8", overwrite=True)
    with pytest.raises(InputError, match="expected a volume written by CloudReg"):
        remove_volume(str(tmp_path / "v.ome.zarr"))
    assert (tmp_path / "v.ome.zarr" / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize("name", ["v.tiff.gz", "v.png", "v.zip", "v.n5"])
def test_names_of_no_format_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="expected a path that ends in"):
        write_volume(tmp_path / name, ARRAY, GRID)


def test_a_full_disk_is_said_before_a_byte_is_written(tmp_path):
    huge = Grid.from_spacing((10**6, 10**5, 10**5), (1, 1, 1))
    with pytest.raises(InputError, match="GB free"):
        create_volume(tmp_path / "v.ome.zarr", huge, "uint16", levels=1)
    assert list(tmp_path.iterdir()) == []


def test_blocks_of_the_wrong_type_or_shape_are_refused(tmp_path):
    writer = create_volume(tmp_path / "v.ome.zarr", GRID, "uint16")
    box = Box((0, 0, 0), (2, 2, 2))
    with pytest.raises(ValueError, match="takes uint16 of shape"):
        writer.write(box, np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="takes uint16 of shape"):
        writer.write(box, np.zeros((2, 2, 3), np.uint16))


def test_types_that_precomputed_lacks_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected a type that precomputed has, got float64"):
        create_volume(f"precomputed://{tmp_path}/v", GRID, "float64")


def fill(path, ledger_path, kill_at):
    """Write ARRAY as a stage does; end the process as the kernel would before block ``kill_at``."""
    writer = create_volume(path, GRID, ARRAY.dtype, chunk=(32, 32, 32))
    ledger = Ledger(ledger_path)
    for i, box in enumerate(split(GRID.shape, writer.block_shape())):
        if i == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if str(box) not in ledger:
            writer.write(box, ARRAY[box.slices])
            ledger.mark(str(box))
    build_pyramid(writer, ledger=ledger)
    writer.complete()


@pytest.mark.parametrize("form", FORMS)
def test_a_killed_run_goes_on_and_gives_the_same_bytes(tmp_path, form):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    arguments = [form.format(killed), str(killed / "ledger"), "3"]
    assert subprocess.run([sys.executable, __file__, *arguments], check=False).returncode == -signal.SIGKILL
    assert len(Ledger(killed / "ledger")) == 3
    with pytest.raises(InputError, match="whose writing was not"):
        open_volume(form.format(killed))
    fill(form.format(killed), killed / "ledger", None)
    fill(form.format(whole), whole / "ledger", None)
    one, other = ({str(p.relative_to(f)): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (killed, whole))
    assert one == other
    np.testing.assert_array_equal(open_volume(form.format(killed)).read(), ARRAY)


@pytest.mark.parametrize(("form", "first"), zip(FORMS, ["v.ome.zarr/zarr.json", "v/info"], strict=True))
def test_a_run_killed_before_its_first_file_starts_again(tmp_path, form, first):
    (tmp_path / first).parent.mkdir()
    (tmp_path / f"{first}.__lock").write_text("")
    np.testing.assert_array_equal(write_volume(form.format(tmp_path), ARRAY, GRID).read(), ARRAY)
    assert not (tmp_path / f"{first}.__lock").exists()


def test_what_a_killed_file_writer_left_is_replaced(tmp_path):
    (tmp_path / ".unfinished.v.nii").write_text("half")
    write_volume(tmp_path / "v.nii", ARRAY, GRID)
    assert [p.name for p in tmp_path.iterdir()] == ["v.nii"]


def test_a_failed_write_leaves_nothing(tmp_path, engine):
    write_volume(tmp_path / "v.ome.zarr", ARRAY, GRID)
    # Damage a chunk: converting must fail in the middle and say where.
    chunk = next(p for p in (tmp_path / "v.ome.zarr" / "0" / "c").rglob("*") if p.is_file())
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(InputError, match=r"could not read box .* of .*v\.ome\.zarr"):
        convert(tmp_path / "v.ome.zarr", tmp_path / "w.tif", engine=engine)
    assert [p.name for p in tmp_path.iterdir()] == ["v.ome.zarr"]


@pytest.mark.parametrize("form", FORMS)
def test_threads_may_write_blocks_in_any_order(tmp_path, engine, form):
    writer = create_volume(form.format(tmp_path), GRID, "uint16", chunk=(16, 16, 16))
    engine.run(lambda box: writer.write(box, ARRAY[box.slices]), split(GRID.shape, (16, 16, 16))[::-1], label="write")
    np.testing.assert_array_equal(writer.read(), ARRAY)


def test_metadata_says_what_no_format_has_a_field_for(tmp_path):
    write_volume(tmp_path / "v.ome.zarr", ARRAY, GRID, orientation="ASR")
    own = json.loads((tmp_path / "v.ome.zarr" / "zarr.json").read_text())["attributes"]["cloudreg"]
    assert own == {"kind": "image", "orientation": "asr", "complete": True}


if __name__ == "__main__":
    fill(sys.argv[1], sys.argv[2], int(sys.argv[3]))
