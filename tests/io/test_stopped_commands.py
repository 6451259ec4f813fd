"""A command that was stopped goes on when it is given again, and never with what another command left."""

import sys

import numpy as np
import pytest

from cloudreg import commands
from cloudreg.errors import InputError, VerificationError
from cloudreg.execution import Engine, Ledger
from cloudreg.io import create_volume, open_volume, write_volume
from cloudreg.io.objects import read_json
from cloudreg.io.verify import verify_volume
from cloudreg.io.volume import Volume
from cloudreg.space import Box, Grid

SHAPE = (130, 70, 140)
GRID = Grid.from_spacing(SHAPE, (2, 2, 2))
ONE, OTHER = (np.random.default_rng(seed).integers(1, 999, SHAPE).astype(np.uint16) for seed in (0, 1))
CONVERT = sys.modules["cloudreg.io.convert"]  # its name in the package is the function's
PLACES = ["{}/v.ome.zarr", "precomputed://{}/v", "{}/v.tif", "{}/planes"]


@pytest.fixture(autouse=True)
def many_blocks(monkeypatch):
    """Blocks of one chunk, so that there is a half way."""
    monkeypatch.setattr("cloudreg.io.blocks._LARGEST_BYTES", 10**6)
    monkeypatch.setattr("cloudreg.io.pyramid._TOGETHER_BYTES", 10**6)


@pytest.fixture
def sources(tmp_path):
    """Two volumes that are alike but for their voxels."""
    write_volume(tmp_path / "one.ome.zarr", ONE, GRID)
    write_volume(tmp_path / "other.ome.zarr", OTHER, GRID)
    return tmp_path / "one.ome.zarr", tmp_path / "other.ome.zarr"


def run(source, out, *, stop_at=None, **options):
    """Convert as the command line does, to the end or until so many boxes were read; return how many were."""
    return counting(lambda engine: commands.convert(str(source), out, engine, **options), stop_at)


def counting(command, stop_at=None):
    """Run a command, to the end or until so many boxes were read; return how many were."""
    count = 0
    read = Volume.read

    def counted(volume, *arguments, **more):
        nonlocal count
        count += 1
        if stop_at is not None and count > stop_at:
            raise KeyboardInterrupt
        return read(volume, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch, Engine(workers=1, memory="64MB") as engine:
        patch.setattr(Volume, "read", counted)
        if stop_at is None:
            command(engine)
        else:
            with pytest.raises(KeyboardInterrupt):
                command(engine)
    return count


@pytest.mark.parametrize("place", PLACES)
def test_it_goes_on_and_reads_only_what_is_left(tmp_path, sources, place):
    out = place.format(tmp_path / "out")
    whole = run(sources[0], place.format(tmp_path / "whole"))
    run(sources[0], out, stop_at=3)
    assert run(sources[0], out) == whole - 3
    np.testing.assert_array_equal(open_volume(out).read(), ONE)
    assert not list((tmp_path / "out").glob(".*"))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("stop_other_at", [0, 2])
def test_commands_that_were_stopped_in_turns_do_not_mix(tmp_path, sources, place, stop_other_at):
    out = place.format(tmp_path / "out")
    run(sources[0], out, stop_at=3)
    run(sources[1], out, stop_at=stop_other_at)
    run(sources[0], out)
    np.testing.assert_array_equal(open_volume(out).read(), ONE)
    assert not list((tmp_path / "out").glob(".*"))


def test_a_command_that_is_refused_takes_nothing_from_the_one_that_was_stopped(tmp_path, sources):
    out = f"{tmp_path}/out/v.ome.zarr"
    whole = run(sources[0], f"{tmp_path}/whole/v.ome.zarr")
    run(sources[0], out, stop_at=3)
    with Engine(workers=1, memory="64MB") as engine, pytest.raises(InputError, match="got another one"):
        commands.convert(str(sources[0]), out, engine, dtype="uint8")
    assert run(sources[0], out) == whole - 3


@pytest.mark.parametrize("place", ["{}/v.tif", "{}/planes"])
def test_another_type_is_not_written_into_the_files_of_the_first(tmp_path, sources, place):
    out = place.format(tmp_path / "out")
    run(sources[0], out, stop_at=3)
    run(sources[0], out, dtype="uint8")
    found = open_volume(out).read()
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.minimum(ONE, 255))


@pytest.mark.parametrize("place", PLACES)
def test_one_that_was_stopped_while_it_read_back_goes_on(tmp_path, sources, place, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    out = place.format(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(CONVERT, "verify_volume", stop)
        with pytest.raises(KeyboardInterrupt):
            run(sources[0], out, verify=True)
    if "/v.tif" not in out and "/planes" not in out:
        assert open_volume(out, allow_incomplete=True).grid == GRID
    whole = run(sources[0], place.format(tmp_path / "whole"), verify=True)
    again = run(sources[0], out, verify=True)
    written = run(sources[0], place.format(tmp_path / "third"))
    assert again == whole - written, "it wrote what was written"
    np.testing.assert_array_equal(open_volume(out).read(), ONE)


@pytest.mark.parametrize("place", PLACES)
def test_what_reads_back_wrong_never_counts_as_finished_and_is_written_again(tmp_path, sources, place, monkeypatch):
    out = place.format(tmp_path / "out")

    def spoil(read, written, *, engine):
        if "zarr" in out or "precomputed" in out:
            create_volume(out, GRID, "uint16").write(Box.whole((64, 64, 64)), OTHER[:64, :64, :64])
        else:
            file = max((f for f in (tmp_path / "out").rglob("*.tif")), key=lambda f: f.stat().st_size)
            content = bytearray(file.read_bytes())
            content[len(content) // 2 : len(content) // 2 + 100] = bytes(100)
            file.write_bytes(content)
        verify_volume(read, written, engine=engine)

    with monkeypatch.context() as patch:
        patch.setattr(CONVERT, "verify_volume", spoil)
        with pytest.raises(VerificationError, match="differs from what was written in 1 of"):
            run(sources[0], out, verify=True)
    if "v.tif" in out or "planes" in out:
        assert not any(p.name[0] != "." for p in (tmp_path / "out").iterdir())
    else:
        root = read_json(out.removeprefix("precomputed://"), "zarr.json" if "zarr" in out else "info")
        assert root.get("attributes", root)["cloudreg"]["complete"] is False
    run(sources[0], out, verify=True)
    np.testing.assert_array_equal(open_volume(out).read(), ONE)


@pytest.mark.parametrize("place", PLACES[:2])
def test_levels_are_gone_on_with(tmp_path, monkeypatch, place):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("stopped", "whole"):
        write_volume(place.format(tmp_path / name), ONE, GRID, levels=1)
    out, expected = (place.format(tmp_path / name) for name in ("stopped", "whole"))
    whole = counting(lambda engine: commands.pyramid(expected, engine))
    counting(lambda engine: commands.pyramid(out, engine), stop_at=1)
    with pytest.raises(InputError, match="expected a finished volume"):
        open_volume(out)
    assert counting(lambda engine: commands.pyramid(out, engine)) == whole - 1
    one, other = (
        {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for folder in (tmp_path / "stopped", tmp_path / "whole")
    )
    assert one == other and len(open_volume(out).levels) == 3
    assert not list((tmp_path / "cache").rglob("*.ledger"))


def test_a_ledger_says_nothing_of_a_volume_that_is_gone(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    ledger.mark("0:64,0:64,0:64")
    create_volume(tmp_path / "v.ome.zarr", GRID, "uint16", ledger=ledger)
    assert len(ledger) == 0 and not (tmp_path / "ledger").exists()
    ledger.mark("0:64,0:64,0:64")
    create_volume(tmp_path / "v.ome.zarr", GRID, "uint16", ledger=ledger)
    assert len(ledger) == 1
