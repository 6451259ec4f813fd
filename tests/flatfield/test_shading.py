"""Shadings are applied, kept and written to tiles."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudreg.errors import InputError
from cloudreg.execution import Engine, Ledger
from cloudreg.flatfield import Shading, load_shading, save_shading
from cloudreg.flatfield.apply import correct_tiles
from cloudreg.tiles import open_acquisition


def some_shading(height=96, width=80, background=100.0):
    flat = np.random.default_rng(0).uniform(0.6, 1.4, (height, width)).astype(np.float32)
    return Shading(flat / flat.mean(), background)


@given(background=st.floats(0, 500), seed=st.integers(0, 99))
def test_applying_undoes_what_the_camera_did(background, seed):
    rng = np.random.default_rng(seed)
    shading = some_shading(8, 6, background)
    tissue = rng.uniform(0, 5000, (3, 8, 6))
    np.testing.assert_allclose(shading.apply(tissue * shading.flat + background), tissue, atol=0.01)


def test_nothing_is_below_zero_and_lost_planes_stay_zero():
    shading = some_shading(8, 6)
    planes = np.full((3, 8, 6), 50, np.uint16)
    planes[1] = 0
    assert not shading.apply(planes).any()
    assert shading.apply(planes).dtype == np.float32


def test_a_part_is_corrected_as_within_the_whole():
    shading = some_shading()
    planes = np.random.default_rng(1).integers(0, 3000, (2, 96, 80)).astype(np.uint16)
    rows, columns = slice(10, 40), slice(70, None)
    np.testing.assert_array_equal(
        shading.apply(planes[:, rows, columns], rows, columns), shading.apply(planes)[:, rows, columns]
    )


def test_a_flat_field_of_one_and_no_background_change_nothing():
    planes = np.random.default_rng(1).integers(0, 65535, (2, 9, 9)).astype(np.uint16)
    np.testing.assert_array_equal(Shading(np.ones((9, 9), np.float32), 0).apply(planes), planes)


def test_what_is_saved_is_loaded(tmp_path):
    shading = some_shading()
    save_shading(shading, tmp_path / "shading")
    again = load_shading(tmp_path / "shading")
    np.testing.assert_array_equal(again.flat, shading.flat)
    assert again.background == shading.background
    assert (tmp_path / "shading" / "shading.png").stat().st_size > 1000
    save_shading(again, tmp_path / "twice")
    for name in ("flat.tif", "shading.json"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "shading" / name).read_bytes()


@pytest.mark.parametrize("damage", ["json", "tif", "values"])
def test_a_folder_without_a_shading_is_refused_in_one_line(tmp_path, damage):
    save_shading(some_shading(), tmp_path)
    if damage == "json":
        (tmp_path / "shading.json").write_text('{"background": ')
    elif damage == "tif":
        (tmp_path / "flat.tif").unlink()
    else:
        save_shading(Shading(np.zeros((4, 4), np.float32), 1.0), tmp_path)
    with pytest.raises(InputError, match=r"expected .*flat.* ") as error:
        load_shading(tmp_path)
    assert "\n" not in str(error.value)


def test_corrected_tiles_are_an_acquisition_without_shading(make_tiles, tmp_path, engine):
    raw, flat = make_tiles(rows=2, columns=2, depth=5, lost={(0, 1, 2)}, unscanned=[(1, 0)])
    before = raw.fingerprint([0])
    shading = Shading(flat.astype(np.float32), 100.0)
    corrected = correct_tiles(raw, {0: shading}, tmp_path / "even", engine)
    assert (corrected.tile_shape, corrected.voxel_size_um, corrected.overlap) == (
        raw.tile_shape,
        raw.voxel_size_um,
        raw.overlap,
    )
    assert [tile.name for tile in corrected.tiles] == [tile.name for tile in raw.tiles]
    for tile, even in zip(raw.tiles, corrected.tiles, strict=True):
        assert corrected.lost_planes(even, 0) == raw.lost_planes(tile, 0)
        expected = np.rint((raw.read(tile, 0, 0, 5).astype(np.float32) - 100).clip(0) / shading.flat)
        np.testing.assert_array_equal(corrected.read(even, 0, 0, 5), expected)
    assert open_acquisition(raw.path).fingerprint([0]) == before


def test_bright_pixels_are_clipped_and_never_wrap(make_tiles, tmp_path, engine):
    raw, _ = make_tiles(rows=1, columns=1, depth=1, volume=lambda shape: np.full(shape, 60000.0))
    dark = Shading(np.full((96, 80), 0.25, np.float32), 0.0)
    corrected = correct_tiles(raw, {0: dark}, tmp_path / "even", engine)
    assert (corrected.read(corrected.tiles[0], 0, 0, 1) == 65535).all()


def test_a_stopped_correction_goes_on_and_gives_the_same_bytes(make_tiles, tmp_path, engine, monkeypatch):
    raw, flat = make_tiles(rows=2, columns=2, depth=3)
    shading = Shading(flat.astype(np.float32), 100.0)
    whole = correct_tiles(raw, {0: shading}, tmp_path / "whole", engine)

    apply = Shading.apply
    calls = []

    def fail_later(self, planes):
        calls.append(1)
        if len(calls) > 4:
            raise KeyboardInterrupt
        return apply(self, planes)

    monkeypatch.setattr(Shading, "apply", fail_later)
    ledger = tmp_path / "ledger.txt"
    with Engine(workers=1) as alone, pytest.raises(KeyboardInterrupt):
        correct_tiles(raw, {0: shading}, tmp_path / "even", alone, Ledger(ledger))
    with pytest.raises(InputError, match=r"Experiment\.ini"):
        open_acquisition(tmp_path / "even")
    assert len(Ledger(ledger)) == 1

    monkeypatch.setattr(Shading, "apply", lambda self, planes: calls.append(1) or apply(self, planes))
    calls.clear()
    corrected = correct_tiles(raw, {0: shading}, tmp_path / "even", engine, Ledger(ledger))
    assert len(calls) == 9
    files = sorted(p.relative_to(whole.path) for p in whole.path.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(corrected.path) for p in corrected.path.rglob("*") if p.is_file())
    assert all((whole.path / f).read_bytes() == (corrected.path / f).read_bytes() for f in files)


def test_corrected_tiles_overwrite_nothing(make_tiles, tmp_path, engine):
    raw, flat = make_tiles(rows=1, columns=1, depth=1)
    shading = Shading(flat.astype(np.float32), 100.0)
    with pytest.raises(InputError, match=r"expected a new or empty folder .* exists: choose another place"):
        correct_tiles(raw, {0: shading}, raw.path, engine, Ledger(tmp_path / "ledger.txt"))
    with pytest.raises(InputError, match="expected a flat field of 96 x 80 pixels, got one of"):
        correct_tiles(raw, {0: some_shading(8, 8)}, tmp_path / "even", engine)
    with pytest.raises(InputError, match="has no channel 1"):
        correct_tiles(raw, {1: shading}, tmp_path / "even", engine)
    assert not (tmp_path / "even").exists()


def test_a_full_disk_is_found_before_writing(make_tiles, tmp_path, engine, monkeypatch):
    import shutil

    raw, flat = make_tiles(rows=1, columns=1, depth=2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 20_000))
    with pytest.raises(InputError, match=r"the corrected acquisition needs .* GB and the disk of .* free"):
        correct_tiles(raw, {0: Shading(flat.astype(np.float32), 100.0)}, tmp_path / "even", engine)
    assert not (tmp_path / "even").exists()


def test_the_numbers_are_written_last(tmp_path):
    save_shading(some_shading(), tmp_path)
    assert json.loads((tmp_path / "shading.json").read_text())["background"] == 100.0
    times = {name: (tmp_path / name).stat().st_mtime_ns for name in ("flat.tif", "shading.png", "shading.json")}
    assert max(times, key=times.get) == "shading.json"
