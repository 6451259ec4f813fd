"""Pyramids: exact averages, true ids, and the same bytes however they are made."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cloudreg.errors import InputError
from cloudreg.execution import Engine, Ledger
from cloudreg.io import build_pyramid, create_volume, downsample, open_volume, pyramid_grids, write_volume
from cloudreg.io import pyramid as pyramid_module
from cloudreg.io.blocks import blocks_within
from cloudreg.space import Box, Grid

shapes = st.tuples(*[st.integers(1, 9)] * 3)
factors = st.tuples(*[st.integers(1, 3)] * 3)


def blocks(array, factor):
    """Every block with the index of the coarse voxel that it makes."""
    for index in np.ndindex(*[-(-n // f) for n, f in zip(array.shape, factor, strict=True)]):
        yield index, array[tuple(slice(i * f, i * f + f) for i, f in zip(index, factor, strict=True))].ravel()


@given(
    hnp.arrays(st.sampled_from(["uint8", "uint16", "uint32", "int8", "int16", "int32"]).map(np.dtype), shapes), factors
)
def test_integer_means_are_rounded_to_nearest_halves_up(array, factor):
    result = downsample(array, factor, "image")
    assert result.dtype == array.dtype
    for index, block in blocks(array, factor):
        exact = sum(int(v) for v in block)
        # Integers all the way: floor(mean + 1/2).
        assert int(result[index]) == (2 * exact + block.size) // (2 * block.size)


def test_a_mean_of_one_and_a_half_is_two():
    assert downsample(np.array([[[1, 2]]], np.uint8), (1, 1, 2), "image").item() == 2
    assert downsample(np.array([[[255, 254]]], np.uint8), (1, 1, 2), "image").item() == 255


@given(hnp.arrays(np.float32, shapes, elements=st.floats(-1e6, 1e6, width=32)), factors)
def test_float_means_are_those_of_float64(array, factor):
    result = downsample(array, factor, "image")
    assert result.dtype == np.float32
    for index, block in blocks(array, factor):
        np.testing.assert_allclose(result[index], block.astype(float).mean(), rtol=1e-6, atol=1e-6)


big_ids = st.sampled_from([0, 1, 7, 614_454_277, 2**31 + 11, 2**63 + 1])


@given(hnp.arrays(np.uint64, shapes, elements=big_ids), factors)
def test_a_label_is_the_most_frequent_id_and_the_first_of_equals(array, factor):
    result = downsample(array, factor, "labels")
    assert set(np.unique(result)) <= set(np.unique(array))
    for index, block in blocks(array, factor):
        values, first, counts = np.unique(block, return_index=True, return_counts=True)
        most = counts == counts.max()
        assert result[index] == values[most][np.argmin(first[most])]


@given(hnp.arrays(np.uint16, shapes), factors)
def test_the_array_is_left_as_it_was(array, factor):
    before = array.copy()
    downsample(array, factor, "image")
    downsample(array, factor, "labels")
    np.testing.assert_array_equal(array, before)


def test_ids_are_not_averaged():
    with pytest.raises(InputError, match="ids, which have no mean"):
        downsample(np.ones((2, 2, 2), np.uint64), (2, 2, 2), "image")


@given(st.tuples(*[st.integers(1, 3000)] * 3), st.tuples(*[st.floats(0.1, 50)] * 3))
def test_voxels_of_a_pyramid_become_cubes_and_stay_where_they_are(shape, size):
    grids = pyramid_grids(Grid.from_spacing(shape, size))
    for fine, coarse in itertools.pairwise(grids):
        step = np.rint(np.divide(coarse.voxel_size_um, fine.voxel_size_um)).astype(int)
        assert set(step) <= {1, 2} and fine.downsampled(step) == coarse
        halved = np.flatnonzero(step == 2)
        long = [i for i in range(3) if fine.shape[i] > 1]
        assert min(long, key=lambda i: fine.voxel_size_um[i]) in halved
        before, after = (np.asarray(g.voxel_size_um)[long] for g in (fine, coarse))
        assert after.max() / after.min() <= before.max() / before.min() * (1 + 1e-5)
    assert max(grids[-1].shape) <= 64


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((2, 2, 2), [(2, 2, 2), (4, 4, 4), (8, 8, 8)]),
        ((10, 1, 1), [(10, 1, 1), (10, 2, 2), (10, 4, 4), (10, 8, 8), (20, 16, 16)]),
        ((50, 40, 40), [(50, 40, 40), (100, 80, 80)]),
        ((8, 2, 4), [(8, 2, 4), (8, 4, 4), (8, 8, 8), (16, 16, 16)]),
    ],
)
def test_an_axis_is_halved_only_while_it_is_among_the_finest(size, expected):
    grids = pyramid_grids(Grid.from_spacing((1000, 1000, 1000), size), len(expected))
    assert [g.voxel_size_um for g in grids] == expected


def make(path, array, grid, kind, engine):
    writer = create_volume(path, grid, array.dtype, kind=kind, chunk=(16, 16, 16))
    writer.write(Box.whole(array.shape), array)
    build_pyramid(writer, engine=engine)
    return writer.complete()


@pytest.mark.parametrize("kind", ["image", "labels"])
@pytest.mark.parametrize("form", ["{}/v.ome.zarr", "precomputed://{}/v"])
def test_bytes_depend_on_neither_workers_nor_blocks(tmp_path, monkeypatch, kind, form):
    rng = np.random.default_rng(0)
    array = (rng.random((70, 81, 93)) ** 8 * 500).astype(np.uint32)
    array[20:40] = 0
    grid = Grid.from_spacing(array.shape, (4, 2, 2), (1, 2, 3))
    found = []
    for workers, largest in ((1, 10**9), (2, 300_000), (2, 10**9)):
        folder = tmp_path / f"{workers}_{largest}"
        monkeypatch.setattr(
            pyramid_module, "blocks_within", lambda s, u, b, m, n=largest: blocks_within(s, u, b, min(m, n))
        )
        with Engine(workers=workers, memory="1GB") as engine:
            volume = make(form.format(folder), array, grid, kind, engine)
        found.append({str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    assert found[0] == found[1] == found[2]
    whole = array
    for level in range(1, len(volume.levels)):
        step = np.rint(np.divide(volume.levels[level].voxel_size_um, volume.levels[level - 1].voxel_size_um)).astype(
            int
        )
        whole = downsample(whole, step, kind)
        np.testing.assert_array_equal(volume.read(level=level), whole)


def test_blocks_finished_before_are_not_made_again(tmp_path, engine):
    array = np.random.default_rng(0).integers(0, 99, (64, 64, 130)).astype(np.uint8)
    grid = Grid.from_spacing(array.shape, (1, 1, 1))
    writer = create_volume(tmp_path / "v.ome.zarr", grid, "uint8")
    writer.write(Box.whole(array.shape), array)
    build_pyramid(writer, engine=engine, ledger=Ledger(tmp_path / "ledger"))
    level = writer.levels[1]
    writer.write(Box.whole(level.shape), np.zeros(level.shape, np.uint8), level=1)
    build_pyramid(writer, engine=engine, ledger=Ledger(tmp_path / "ledger"))
    assert not writer.read(level=1).any()
    build_pyramid(writer, engine=engine)
    assert writer.read(level=1).any()


@pytest.mark.parametrize("form", ["{}/v.ome.zarr", "precomputed://{}/v"])
def test_a_volume_without_levels_gets_them_in_place(tmp_path, engine, form):
    array = np.random.default_rng(0).integers(0, 99, (40, 100, 130)).astype(np.uint16)
    # An offset that level 0 could say in whole voxels and level 1 could not.
    grid = Grid.from_spacing(array.shape, (2, 2, 2), (2, 6, 0))
    path = form.format(tmp_path)
    write_volume(path, array, grid, orientation="asr", levels=1)
    assert len(open_volume(path).levels) == 1
    build_pyramid(path, engine=engine)
    volume = open_volume(path)
    assert volume.levels == (grid, *pyramid_grids(grid)[1:]) and len(volume.levels) == 3
    assert volume.orientation == "asr"
    np.testing.assert_array_equal(volume.read(), array)
    np.testing.assert_array_equal(volume.read(level=1), downsample(array, (2, 2, 2), "image"))


MEASURE = """
import sys
from pathlib import Path
from cloudreg.execution import Engine
from cloudreg.io import build_pyramid, create_volume
from cloudreg.space import Grid

def make(name, shape, engine):
    writer = create_volume(f"{sys.argv[1]}/{name}.ome.zarr", Grid.from_spacing(shape, (1, 1, 1)), "uint16")
    build_pyramid(writer, engine=engine)
    # Not ru_maxrss, which begins with the peak of the program that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

with Engine(workers=1, memory="128MB") as engine:
    before = make("small", (130, 130, 130), engine)
    print(make("large", (512, 1024, 1024), engine) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is measured on Linux")
def test_the_memory_of_a_pyramid_is_that_of_one_block_however_large_the_volume(tmp_path):
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], check=True, capture_output=True, text=True)
    # A gigabyte of voxels. The small volume has warmed everything up; allocators keep some of what was freed.
    assert int(done.stdout) < 2 * 128e6


@pytest.mark.parametrize("form", ["{}/v.ome.zarr", "precomputed://{}/v"])
def test_a_volume_whose_voxels_are_not_all_there_gets_no_levels(tmp_path, form):
    grid = Grid.from_spacing((70, 80, 90), (1, 1, 1))
    half = Box((0, 0, 0), (64, 80, 90))
    path = form.format(tmp_path)
    create_volume(path, grid, "uint8").write(half, np.ones(half.shape, np.uint8))
    with pytest.raises(InputError, match="expected a finished volume"):
        build_pyramid(path)
    with pytest.raises(InputError, match="expected a finished volume"):
        open_volume(path)


@pytest.mark.parametrize("form", ["{}/v.ome.zarr", "precomputed://{}/v"])
def test_a_pyramid_that_was_stopped_goes_on(tmp_path, form, monkeypatch):
    array = np.random.default_rng(0).integers(1, 99, (64, 64, 130)).astype(np.uint8)
    path = form.format(tmp_path)
    expected = write_volume(path, array, Grid.from_spacing(array.shape, (1, 1, 1)))
    expected = [expected.read(level=level) for level in range(len(expected.levels))]
    monkeypatch.setattr(pyramid_module, "_TOGETHER_BYTES", 1)
    calls = []

    def stops_at_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return downsample(*arguments)

    with monkeypatch.context() as broken:
        broken.setattr(pyramid_module, "downsample", stops_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            build_pyramid(path, ledger=Ledger(tmp_path / "ledger"))
    with pytest.raises(InputError, match="expected a finished volume"):
        open_volume(path)
    done = len(Ledger(tmp_path / "ledger"))
    made = []
    monkeypatch.setattr(pyramid_module, "downsample", lambda *a: made.append(a) or downsample(*a))
    volume = build_pyramid(path, ledger=Ledger(tmp_path / "ledger"))
    assert done >= 1 and len(Ledger(tmp_path / "ledger")) == done + len(made)
    for level, voxels in enumerate(expected):
        np.testing.assert_array_equal(volume.read(level=level), voxels)
    # One that is finished is begun anew: its finest level may be another one.
    again = []
    monkeypatch.setattr(pyramid_module, "downsample", lambda *a: again.append(a) or downsample(*a))
    build_pyramid(path, ledger=Ledger(tmp_path / "ledger"))
    assert len(again) == done + len(made)


def test_a_volume_of_another_program_is_not_touched(tmp_path, engine):
    write_volume(tmp_path / "v.nrrd", np.ones((3, 4, 5), np.uint8), Grid.from_spacing((3, 4, 5), (1, 1, 1)))
    with pytest.raises(InputError, match="expected an OME-Zarr or precomputed volume, got nrrd"):
        build_pyramid(tmp_path / "v.nrrd", engine=engine)


@given(st.tuples(*[st.integers(1, 100)] * 3), st.tuples(*[st.integers(4, 40)] * 3), st.integers(1, 10**6))
def test_blocks_are_whole_units_that_fit_the_memory(shape, unit, memory):
    boxes = blocks_within(shape, unit, 2, memory)
    assert sum(b.size for b in boxes) == np.prod(shape)
    smallest = np.prod([min(u, n) for u, n in zip(unit, shape, strict=True)])
    for box in boxes:
        assert all(a % u == 0 for a, u in zip(box.start, unit, strict=True))
        assert 2 * box.size <= max(memory, 2 * smallest)
