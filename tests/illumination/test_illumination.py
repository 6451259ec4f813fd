"""The slow illumination of a volume: found on a phantom with a known one, and taken off exactly."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from cloudreg.errors import InputError
from cloudreg.execution import Engine, Ledger
from cloudreg.illumination import BiasField, correct, correct_volume, estimate_bias, load_bias, save_bias
from cloudreg.illumination.correct import CorrectBlock, correct_block
from cloudreg.illumination.estimate import foreground, n4_log_field, working_voxel_um
from cloudreg.io import create_volume, open_volume, write_volume
from cloudreg.settings import IlluminationSettings
from cloudreg.space import Box, Grid, split

SETTINGS = IlluminationSettings(working_voxels=40_000, spline_distance_um=1200)


def brain(shape=(48, 56, 64), *, seed=0, background=8.0, contrast=0.1):
    """An ellipsoid of textured tissue on a dark background, and where it is."""
    random = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    texture = ndimage.gaussian_filter(random.standard_normal(shape), 1.5)
    inside = (z**2 + y**2 + x**2 < 0.8) | ((abs(y) < 0.1) & (z**2 + x**2 < 0.9))
    tissue = np.where(inside, 900 * np.exp(contrast * texture / texture.std()), background)
    return tissue, inside, np.exp(0.5 * x - 0.3 * y * y + 0.2 * z * x)


def stored(folder, values, *, name="v.ome.zarr", voxel_um=(60.0, 50.0, 50.0), dtype=np.uint16):
    grid = Grid.from_spacing(values.shape, voxel_um, (100.0, -30.0, 7.0))
    if np.dtype(dtype).kind in "iu":
        values = np.rint(values).clip(0, np.iinfo(dtype).max)
    write_volume(folder / name, values.astype(dtype), grid)
    return open_volume(folder / name)


def digest(folder):
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
    return hashlib.sha256(b"".join(str(p.relative_to(folder)).encode() + p.read_bytes() for p in files)).hexdigest()


def rms_error(corrected, tissue, inside):
    """Relative deviation of the smoothed ratio from a constant, over the tissue."""
    ratio = corrected[inside] / tissue[inside]
    return float((ratio / ratio.mean()).std())


@pytest.mark.parametrize("unseen", ["nothing", "areas", "specks"])
def test_a_known_field_is_found(tmp_path, engine, unseen):
    tissue, inside, field = brain()
    shown = np.random.default_rng(1).poisson(tissue * field).astype(float)
    if unseen == "specks":
        # Blocks that were seen in part must not look dark.
        shown[:, :, :32] *= np.random.default_rng(2).random((48, 56, 32)) > 0.3
    if unseen == "areas":
        # A corner of the stage grid that was not scanned, and a lost slab.
        shown[:, :20, :16] = 0
        shown[30:33] = 0
    volume = stored(tmp_path, shown)
    bias = estimate_bias(volume, 0, SETTINGS, engine=engine)
    corrected = correct_volume(volume, bias, tmp_path / "c.ome.zarr", SETTINGS, engine).read()
    seen = inside & (shown > 0)
    assert rms_error(field, np.ones_like(field), seen) > 0.2
    found = np.where(seen, shown / np.maximum(corrected, 1), 1)
    assert rms_error(found, field, seen) < 0.03
    # Grey values keep their size.
    assert corrected[seen].mean() == pytest.approx(shown[seen].mean(), rel=0.05)
    assert not corrected[shown == 0].any()


def test_even_tissue_stays_as_it_is(tmp_path, engine):
    tissue, inside, _ = brain()
    volume = stored(tmp_path, tissue)
    bias = estimate_bias(volume, 0, SETTINGS, engine=engine)
    corrected = correct_volume(volume, bias, tmp_path / "c.ome.zarr", SETTINGS, engine).read()
    assert rms_error(corrected, volume.read(), inside) < 0.03


def test_the_field_does_not_depend_on_the_size_of_the_grey_values(tmp_path):
    tissue, _, field = brain((24, 28, 32))
    a, b = (
        stored(tmp_path, factor * tissue * field, name=f"{factor}.ome.zarr", dtype=np.float32) for factor in (1, 10)
    )
    first, second = estimate_bias(a, 0, SETTINGS), estimate_bias(b, 0, SETTINGS)
    np.testing.assert_allclose(first.log_field, second.log_field, atol=0.005)


def test_n4_gives_the_same_bytes_for_any_number_of_threads():
    import SimpleITK as sitk

    tissue, inside, field = brain((24, 28, 32))
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    try:
        found = []
        for n in (1, 3):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(n)
            found.append(n4_log_field(tissue * field, inside, (2, 2, 2)))
            assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == n
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    np.testing.assert_array_equal(*found)


def test_the_foreground_is_the_tissue():
    tissue, inside, field = brain()
    np.testing.assert_array_equal(foreground(tissue * field, tissue > 0), inside)


def test_tissue_without_background_is_all_foreground():
    values = np.random.default_rng(0).normal(1000, 100, (20, 20, 20))
    observed = np.arange(20)[:, None, None] * np.ones((20, 20)) > 3
    np.testing.assert_array_equal(foreground(np.where(observed, values, 0), observed), observed)


@pytest.mark.parametrize("cap", [10_000, 30_000])
def test_no_more_voxels_are_looked_at_than_allowed(tmp_path, cap):
    tissue, _, _ = brain()
    settings = IlluminationSettings(working_voxels=cap)
    volume = stored(tmp_path, tissue)
    assert estimate_bias(volume, 0, settings).log_field.size <= cap
    assert working_voxel_um(volume, settings) > 15


def field_of(volume, nodes=(4, 5, 6), seed=0):
    """Random gains on nodes that cover the volume, an odd number of voxels apart."""
    factors = [-(-n // k) for n, k in zip(volume.grid.shape, nodes, strict=True)]
    grid = volume.grid.downsampled(factors)
    return BiasField(grid, np.random.default_rng(seed).normal(0, 0.3, grid.shape).astype(np.float32))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32, np.float32])
def test_each_voxel_is_multiplied_with_the_gain_between_the_nodes(tmp_path, engine, dtype):
    tissue, _, _ = brain((20, 24, 28))
    volume = stored(tmp_path, tissue / 5, dtype=dtype)
    # Voxels of 32 bits are taken for labels where the file doesn't say.
    volume = open_volume(volume.path, kind="image")
    bias = field_of(volume)
    corrected = correct_volume(volume, bias, tmp_path / "c.ome.zarr", SETTINGS, engine)
    index = bias.grid.um_to_index(volume.grid.index_to_um(np.stack(np.mgrid[:20, :24, :28], axis=-1)))
    gain = ndimage.map_coordinates(
        np.exp(-bias.log_field.astype(float)), index.transpose(3, 0, 1, 2), order=1, mode="nearest"
    )
    expected = volume.read() * gain
    if np.dtype(dtype).kind in "iu":
        expected = expected.clip(*(np.iinfo(dtype).min, np.iinfo(dtype).max))
        assert np.abs(corrected.read().astype(float) - expected).max() <= 0.5 + 1e-3
    else:
        np.testing.assert_allclose(corrected.read(), expected, rtol=1e-5)
    assert corrected.dtype == dtype
    assert corrected.grid == volume.grid


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint64, np.int64])
def test_values_are_clipped_and_never_wrapped(dtype):
    voxels = np.full((1, 1, 3), np.iinfo(dtype).max, dtype)
    out = np.empty_like(voxels)
    nodes, weights = [np.zeros(n, np.intp) for n in (1, 1, 3)], [np.zeros(n, np.float32) for n in (1, 1, 3)]
    correct_block(voxels, np.full((1, 1, 1), 3, np.float32), nodes, weights, out)
    assert (out > 0.999 * np.iinfo(dtype).max).all()


def test_a_field_of_one_changes_nothing(tmp_path, engine):
    tissue, _, _ = brain((20, 24, 28))
    volume = stored(tmp_path, tissue)
    settings = IlluminationSettings(method="none")
    bias = estimate_bias(volume, 0, settings)
    same = correct_volume(volume, bias, tmp_path / "c.ome.zarr", settings, engine)
    np.testing.assert_array_equal(same.read(), volume.read())
    assert same.levels[1:] == volume.levels[1:]


def test_the_bytes_do_not_depend_on_blocks_and_workers(tmp_path, engine, monkeypatch):
    tissue, _, _ = brain((20, 150, 140))
    volume = stored(tmp_path, tissue, name="v.tif")
    bias = field_of(volume)
    with Engine(workers=1, memory="1GB") as alone:
        correct_volume(volume, bias, tmp_path / "a.ome.zarr", SETTINGS, alone)
    monkeypatch.setattr(correct, "blocks_within", lambda shape, unit, *_: split(shape, unit))
    correct_volume(volume, bias, tmp_path / "b.ome.zarr", SETTINGS, engine)
    assert digest(tmp_path / "a.ome.zarr") == digest(tmp_path / "b.ome.zarr")


def test_a_killed_correction_goes_on_and_gives_the_same_bytes(tmp_path, monkeypatch):
    tissue, _, _ = brain((20, 150, 140))
    volume = stored(tmp_path, tissue, name="v.tif")
    bias, whole, calls = field_of(volume), CorrectBlock.__call__, []
    monkeypatch.setattr(correct, "blocks_within", lambda shape, unit, *_: split(shape, unit))

    def until_killed(self, box):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(str(box))
        whole(self, box)

    with Engine(workers=1, memory="1GB") as alone:
        correct_volume(volume, bias, tmp_path / "a.ome.zarr", SETTINGS, alone)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(CorrectBlock, "__call__", until_killed)
            correct_volume(volume, bias, tmp_path / "b.ome.zarr", SETTINGS, alone, Ledger(tmp_path / "ledger.txt"))
        assert len(Ledger(tmp_path / "ledger.txt")) == 2
        correct_volume(volume, bias, tmp_path / "b.ome.zarr", SETTINGS, alone, Ledger(tmp_path / "ledger.txt"))
    assert digest(tmp_path / "a.ome.zarr") == digest(tmp_path / "b.ome.zarr")


def test_every_channel_is_corrected(tmp_path, engine):
    tissue, _, _ = brain((20, 24, 28))
    writer = create_volume(
        tmp_path / "v.ome.zarr", Grid.from_spacing(tissue.shape, (60, 50, 50)), np.uint16, channels=2
    )
    both = np.stack([np.rint(tissue), 2 * np.rint(tissue)]).astype(np.uint16)
    writer.write(Box.whole(tissue.shape), both, channel=None)
    volume = writer.complete()
    bias = field_of(volume)
    corrected = correct_volume(volume, bias, tmp_path / "c.ome.zarr", SETTINGS, engine).read(channel=None)
    assert np.abs(corrected[1].astype(int) - 2 * corrected[0].astype(int)).max() <= 1


def test_a_field_is_read_back_as_it_was(tmp_path):
    tissue, _, _ = brain((20, 24, 28))
    bias = field_of(stored(tmp_path, tissue))
    save_bias(bias, tmp_path / "bias")
    again = load_bias(tmp_path / "bias")
    np.testing.assert_array_equal(again.log_field, bias.log_field)
    assert again.grid == bias.grid
    assert (tmp_path / "bias" / "bias.png").stat().st_size > 1000


def test_a_folder_without_a_field_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected an illumination field in .*log_bias.tif, bias.json"):
        load_bias(tmp_path)


def test_labels_have_no_illumination(tmp_path):
    grid = Grid.from_spacing((4, 4, 4), (1, 1, 1))
    write_volume(tmp_path / "l.ome.zarr", np.ones((4, 4, 4), np.uint32), grid, kind="labels")
    with pytest.raises(InputError, match="expected a volume of brightness"):
        estimate_bias(open_volume(tmp_path / "l.ome.zarr"), 0, SETTINGS)


@pytest.mark.parametrize("value", [0, 700])
def test_a_constant_volume_has_nothing_to_find_a_field_on(tmp_path, value):
    volume = stored(tmp_path, np.full((20, 20, 20), float(value)))
    with pytest.raises(InputError, match=r"expected tissue in channel 0.*illumination method none"):
        estimate_bias(volume, 0, SETTINGS)


def test_a_field_of_other_axes_is_refused(tmp_path, engine):
    tissue, _, _ = brain((20, 24, 28))
    volume = stored(tmp_path, tissue)
    turned = volume.grid.affine[:, [1, 0, 2, 3]]
    bias = BiasField(Grid((2, 2, 2), turned), np.zeros((2, 2, 2), np.float32))
    with pytest.raises(InputError, match="different axes: find the field on this volume"):
        correct_volume(volume, bias, tmp_path / "c.ome.zarr", SETTINGS, engine)


@pytest.mark.parametrize("name", ["v.ome.zarr", "v.nrrd"])
def test_values_that_are_no_numbers_are_refused(tmp_path, engine, name):
    tissue, _, _ = brain()
    tissue[3, 4, 5] = np.nan
    volume = stored(tmp_path, tissue, name=name, dtype=np.float32)
    with pytest.raises(InputError, match="are no numbers"):
        estimate_bias(volume, 0, SETTINGS, engine=engine)


def test_a_value_that_is_no_number_beside_the_channel_looked_at_is_refused_too(tmp_path, engine):
    tissue, _, _ = brain((12, 14, 16))
    both = np.stack([tissue, tissue]).astype(np.float32)
    both[1, 3, 4, 5] = np.inf
    grid = Grid.from_spacing(tissue.shape, (60.0, 50.0, 50.0))
    volume = write_volume(tmp_path / "v.ome.zarr", both, grid)
    field = BiasField(grid, np.zeros(grid.shape, np.float32))
    with pytest.raises(InputError, match="are no numbers"):
        correct_volume(volume, field, tmp_path / "o.ome.zarr", SETTINGS, engine)


@pytest.mark.parametrize(("shape", "axis"), [((1, 40, 40), "z"), ((40, 40, 1), "x"), ((3, 40, 40), "z")])
def test_a_single_section_is_refused(tmp_path, engine, shape, axis):
    """Three planes of 5 um are one voxel at the working resolution."""
    values = np.random.default_rng(0).integers(1, 1000, shape)
    volume = stored(tmp_path, values, voxel_um=(5.0, 50.0, 50.0), name="v.nrrd")
    with pytest.raises(InputError, match=f"thick along {axis}"):
        estimate_bias(volume, 0, SETTINGS, engine=engine)
