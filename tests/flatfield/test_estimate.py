"""The flat field is found: on phantoms whose truth is known, and on real tiles."""

import re
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.flatfield import estimate_shading
from cloudreg.flatfield.fit import Witness, basis, combine, evaluate
from cloudreg.flatfield.mean_tile import find_background, find_mean_tile, usual_brightness
from cloudreg.flatfield.overlaps import PARTS, Overlaps, compare_overlaps
from cloudreg.flatfield.sampling import block_centres, block_means
from cloudreg.settings import ShadingSettings
from cloudreg.tiles import write_colm

with_basicpy = pytest.mark.skipif(find_spec("basicpy") is None, reason="needs the extra basic")

SETTINGS = ShadingSettings(samples=128, working_side=48)


def rms_percent(found, truth):
    ratio = found / truth
    return 100 * np.sqrt(np.mean((ratio / ratio.mean() - 1) ** 2))


def test_the_field_of_a_few_tiles_of_one_brain_is_found(make_tiles, engine):
    lost = {(1, 1, plane) for plane in range(4, 9)}
    acquisition, flat = make_tiles(lost=lost, unscanned=[(0, 0)])
    assert rms_percent(np.ones_like(flat), flat) > 9
    shading = estimate_shading(acquisition, 0, SETTINGS, engine)
    assert shading.flat.shape == flat.shape
    assert shading.flat.dtype == np.float32
    assert shading.flat.mean() == pytest.approx(1, abs=1e-6)
    assert rms_percent(shading.flat, flat) < 1.0
    assert shading.background == pytest.approx(100, abs=1)


def test_tiles_of_different_exposure_do_not_spoil_the_field(make_tiles, engine):
    gains = np.exp(np.random.default_rng(0).normal(0, 0.2, (3, 4)))
    acquisition, flat = make_tiles(gains=gains)
    settings = ShadingSettings(samples=128, working_side=48)
    found = estimate_shading(acquisition, 0, settings, engine).flat
    # Tiles that happen to be brighter from column to column look like a camera that is brighter at one side.
    assert rms_percent(found, flat) < 4
    y, x = (axis.ravel() for axis in np.mgrid[-1 : 1 : flat.shape[0] * 1j, -1 : 1 : flat.shape[1] * 1j])
    slope, ratio = np.stack([np.ones_like(y), y, x], axis=1), np.log(found / flat).ravel()
    rest = ratio - slope @ np.linalg.lstsq(slope, ratio, rcond=None)[0]
    assert 100 * rest.std() < 0.7


def test_no_field_is_invented(make_tiles, engine):
    acquisition, _ = make_tiles(flat=np.ones((96, 80)))
    assert rms_percent(estimate_shading(acquisition, 0, SETTINGS, engine).flat, 1.0) < 1.0


def test_without_overlaps_the_mean_tile_decides(make_tiles, engine):
    def even(shape):
        return 800 * np.exp(0.1 * np.random.default_rng(0).normal(size=shape))

    acquisition, flat = make_tiles(rows=1, columns=1, volume=even)
    settings = ShadingSettings(samples=128, working_side=48, background=100)
    shading = estimate_shading(acquisition, 0, settings, engine)
    assert shading.background == 100
    assert rms_percent(shading.flat, flat) < 1.5


@pytest.mark.parametrize("method", ["combined", "mean", "n4", pytest.param("basic", marks=with_basicpy)])
def test_every_method_finds_the_field_of_many_even_tiles(make_tiles, engine, method):
    def even(shape):
        return 800 * np.exp(0.1 * np.random.default_rng(0).normal(size=shape))

    acquisition, flat = make_tiles(rows=2, columns=3, volume=even)
    settings = ShadingSettings(method=method, samples=128, working_side=48, background=100)
    assert rms_percent(estimate_shading(acquisition, 0, settings, engine).flat, flat) < 1.5


@pytest.mark.skipif(find_spec("basicpy") is not None, reason="basicpy is installed")
def test_without_its_library_basic_says_what_to_install(make_tiles, engine):
    acquisition, _ = make_tiles(rows=1, columns=1, depth=2)
    with pytest.raises(InputError, match=r"basicpy|BaSiCPy.*cloudreg\[basic\]"):
        estimate_shading(acquisition, 0, ShadingSettings(method="basic"), engine)


@with_basicpy
def test_basic_looks_at_tissue_only(make_tiles, engine):
    def corner(shape):
        """Even tissue in the upper left of the volume."""
        y, x = (np.arange(n) for n in shape[1:])
        inside = (y[:, None] < 0.6 * shape[1]) & (x[None] < 0.7 * shape[2])
        return 800 * np.exp(0.1 * np.random.default_rng(0).normal(size=shape)) * inside

    acquisition, flat = make_tiles(rows=2, columns=3, volume=corner)
    settings = ShadingSettings(method="basic", samples=64, working_side=48)
    assert rms_percent(estimate_shading(acquisition, 0, settings, engine).flat, flat) < 3


def test_a_sparse_brain_does_not_shade_the_field(make_tiles, engine):
    def corner(shape):
        """Tissue in a part of four tiles only."""
        y, x = (np.arange(n) for n in shape[1:])
        inside = (y[:, None] - 0.35 * shape[1]) ** 2 + (x[None] - 0.4 * shape[2]) ** 2 < (0.3 * shape[1]) ** 2
        texture = ndimage.gaussian_filter(np.random.default_rng(8).normal(size=shape), 1.5)
        return 900 * np.exp(0.2 * texture / texture.std()) * inside

    acquisition, flat = make_tiles(volume=corner)
    assert rms_percent(estimate_shading(acquisition, 0, SETTINGS, engine).flat, flat) < 1.5
    plain = SETTINGS.model_copy(update={"method": "n4"})
    assert rms_percent(estimate_shading(acquisition, 0, plain, engine).flat, flat) > 5


def test_the_result_does_not_depend_on_the_number_of_workers(make_tiles):
    acquisition, _ = make_tiles(rows=2, columns=2, depth=6)
    found = []
    for workers in (1, 3):
        with Engine(workers=workers, memory="500MB") as engine:
            found.append(estimate_shading(acquisition, 0, SETTINGS, engine))
    assert found[0].flat.tobytes() == found[1].flat.tobytes()
    assert found[0].background == found[1].background


def test_the_method_none_finds_the_background_only(make_tiles, engine):
    acquisition, _ = make_tiles(rows=2, columns=2, depth=4)
    shading = estimate_shading(acquisition, 0, ShadingSettings(method="none"), engine)
    np.testing.assert_array_equal(shading.flat, np.ones((96, 80), np.float32))
    assert shading.background == pytest.approx(100, abs=2)


def test_what_shows_nothing_is_refused(make_tiles, tmp_path, engine):
    acquisition, _ = make_tiles(rows=1, columns=2, depth=2)
    with pytest.raises(InputError, match="has no channel 3: choose one of 0"):
        estimate_shading(acquisition, 3, SETTINGS, engine)
    constant = write_colm(
        tmp_path / "constant",
        rows=1,
        columns=1,
        tile_shape=(2, 64, 64),
        voxel_size_um=(5, 3, 3),
        overlap=(0.1, 0.1),
        channels=1,
        objective="4x",
        scanned=np.ones((1, 1), bool),
        planes=lambda row, column, channel, plane: np.full((64, 64), 100, np.uint16),
    )
    with pytest.raises(InputError, match=r"expected tissue in channel 0 of .*, its planes are constant"):
        estimate_shading(constant, 0, SETTINGS, engine)


@pytest.mark.parametrize("noise", [2, 10])
@pytest.mark.parametrize("empty", [1.0, 0.5, 0.02])
def test_the_background_is_found_whether_the_field_is_empty_or_full(noise, empty):
    rng = np.random.default_rng(0)
    light = 50 + 400 * np.exp(0.4 * rng.normal(size=(40, 96, 96)))
    light[:, :, : round(96 * empty) if empty > 0.1 else 14] *= 0 if empty > 0.1 else 1
    if empty < 0.1:
        light[:, :14, :14] = 0
    planes = rng.poisson(light) + rng.normal(100, noise, light.shape)
    assert find_background(planes.astype(np.float32)) == pytest.approx(100, abs=0.6)


def test_a_plane_counts_relative_to_its_own_level_and_only_where_there_is_tissue():
    rng = np.random.default_rng(1)
    factor = np.exp(np.linspace(-0.3, 0.3, 32))[None] * np.ones((32, 1))
    light = np.zeros((4, 5, 32, 32), np.float32)
    for index in np.ndindex(4, 5):
        light[index] = 500 * 4 ** rng.random() * factor * np.exp(0.02 * rng.normal(size=(32, 32)))
        # Half-empty planes are empty at the bright side: a plain mean would not see the slope.
        light[index][:, rng.integers(12, 32) :] = 0
    mean = find_mean_tile(light, light > 0)
    seen = mean.weight > 0
    assert np.std((mean.log - np.log(factor))[seen]) < 0.02
    plain = light.mean(axis=(0, 1, 2))
    assert plain[-1] < plain[0]


def test_the_usual_brightness_is_that_of_tissue_however_little_there_is():
    light = np.random.default_rng(0).normal(0, 4, (4, 3, 16, 16)).astype(np.float32)
    light[0, :, :4] += 900
    light[0, 0, 0, 0] = 60000
    assert usual_brightness(light) == pytest.approx(900, rel=0.01)
    assert usual_brightness(np.zeros((1, 1, 4, 4), np.float32)) == 0


def test_overlaps_measure_a_field_whatever_the_tissue(make_tiles):
    height, width, block = 96, 80, 4
    acquisition, flat = make_tiles(rows=2, columns=2, depth=2)
    texture = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=(2, 300, 300)), (0, 6, 6))
    tissue = np.exp(0.5 * texture / texture.std())
    pitch = [round(p) for p in acquisition.pitch_px]
    assert pitch == [82, 68]
    acquisition_light = []
    for tile in acquisition.tiles:
        y, x = tile.row * 80, tile.column * 68
        planes = tissue[:, y : y + height, x : x + width].repeat(1, axis=0)
        acquisition_light.append([block_means(plane, block) * block_means(flat, block) for plane in planes])
    light = np.array(acquisition_light, np.float32)
    functions = basis(*((2 * block_centres(n, block) + 1) / n - 1 for n in (height, width)))
    # Only horizontal neighbours are on the lattice of blocks, so that they agree exactly; the lower ones are dark.
    light[2:] = 0
    log = np.log(block_means(flat, block))
    constant = np.concatenate([np.ones((1, *log.shape)), functions]).reshape(28, -1)
    truth = np.linalg.lstsq(constant.T, log.ravel(), rcond=None)[0][1:]
    for moved in ((0, 0), (-1, -1)):
        # The stage errs by a block down and to the right: the same tissue is found again.
        light[1] = np.roll(light[1], moved, axis=(1, 2))
        light[1] /= np.roll(block_means(flat, block), moved, axis=(0, 1)) / block_means(flat, block)
        overlaps = compare_overlaps(acquisition, light, functions, block, 0.1)
        assert overlaps.ratio.size > 30
        assert np.median(np.abs(overlaps.design @ truth - overlaps.ratio)) < 0.04
        assert np.median(np.abs(overlaps.ratio)) > 0.08
        assert set(overlaps.pair) == {overlaps.pair[0]}
        # Tiles beside each other: the overlap is a strip from top to bottom, its parts lie one below the other.
        assert set(overlaps.part) == set(range(PARTS * overlaps.pair[0], PARTS * overlaps.pair[0] + PARTS))
        assert (np.diff(overlaps.part) >= 0).all()


def test_sure_overlaps_win_over_an_unsure_mean_and_the_other_way_round():
    rng = np.random.default_rng(3)
    truth = np.zeros(27)
    truth[[0, 1, 6]] = (0.1, -0.2, 0.05)
    design = rng.normal(size=(400, 27))
    pair = np.repeat(np.arange(20), 20)
    ratio = design @ truth + 0.001 * rng.normal(size=400)
    ratio[:40] += 1.0
    wrong = truth + 0.1
    unsure = combine(Witness(wrong, np.full(27, 0.01), 1.0), Overlaps(design, ratio, pair, pair))
    assert np.abs(unsure - truth).max() < 0.005
    noisy = Overlaps(design, design @ wrong + 5 * rng.normal(size=400), pair, pair)
    assert np.abs(combine(Witness(truth, np.full(27, 1e-9), 1.0), noisy) - truth).max() < 0.02
    nothing = Overlaps(np.empty((0, 27)), np.empty(0), np.empty(0, np.intp), np.empty(0, np.intp))
    np.testing.assert_array_equal(combine(Witness(wrong, np.full(27, 0.01), 1.0), nothing), wrong)


def test_a_mean_tile_is_believed_where_no_overlap_looks_as_far_as_it_is_right_where_they_do():
    rng = np.random.default_rng(6)
    finer = np.array([i + j > 2 for i in range(7) for j in range(7) if 0 < i + j <= 6])
    truth = np.where(finer, 0.05 * rng.normal(size=27), 0.0)
    blind = np.flatnonzero(finer)[::4]
    design = rng.normal(size=(400, 27))
    design[:, blind] = 0
    pair = np.repeat(np.arange(20), 20)
    overlaps = Overlaps(design, design @ truth + 0.001 * rng.normal(size=400), pair, pair)
    errors = {}
    for scatter in (0.001, 0.2):
        # It says of itself that it is known to 0.001.
        mean = Witness(truth + scatter * rng.normal(size=27), np.full(27, 0.001**2), 1e6)
        errors[scatter] = np.abs(combine(mean, overlaps) - truth)
    assert errors[0.001].max() < 0.005
    assert np.delete(errors[0.2], blind).max() < 0.005
    # What contradicts the overlaps is taken for nothing where they are blind.
    assert errors[0.2][blind].max() < 2 * np.abs(truth[blind]).max()


def test_the_middle_of_the_camera_is_found_though_no_overlap_shows_it(make_tiles, engine):
    def even(shape):
        return 800 * np.exp(0.1 * np.random.default_rng(0).normal(size=shape))

    y, x = np.linspace(-1, 1, 96)[:, None], np.linspace(-1, 1, 80)[None]
    flat = (1 - 0.2 * (x**2 + y**2)) * (1 - 0.1 * np.exp(-(x**2 + y**2) / (2 * 0.5**2)))
    acquisition, flat = make_tiles(flat=flat / flat.mean(), volume=even)
    settings = SETTINGS.model_copy(update={"background": 100})
    found = estimate_shading(acquisition, 0, settings, engine).flat
    middle = np.s_[36:60, 30:50]
    assert abs(found[middle].mean() / flat[middle].mean() - 1) < 0.004


def test_evaluating_is_summing_the_functions():
    y, x = np.linspace(-1, 1, 7), np.linspace(-1, 1, 5)
    coefficients = np.random.default_rng(4).normal(size=27)
    expected = np.tensordot(coefficients, basis(y, x), 1)
    np.testing.assert_allclose(evaluate(coefficients, y, x), expected, atol=1e-12)


def test_block_means_are_means_even_at_the_cut_edge():
    plane = np.random.default_rng(5).integers(0, 65535, (10, 7)).astype(np.uint16)
    means = block_means(plane, 4)
    assert means.shape == (3, 2)
    assert means[2, 1] == pytest.approx(plane[8:, 4:].mean())
    assert means[0, 0] == pytest.approx(plane[:4, :4].mean())
    np.testing.assert_array_equal(block_centres(10, 4), [1.5, 5.5, 8.5])


@pytest.mark.real
def test_the_seams_of_a_real_section_vanish(test_data, tmp_path, engine):
    """63 tiles of a real brain section; overlaps in the left half must agree by the field of the right half."""
    shutil.unpack_archive(test_data / "tiles" / "WSI_brain.tar", tmp_path)
    folder = tmp_path / "WSI_brain"
    layout = (folder / "TileConfiguration.txt").read_text()
    entries = re.findall(r"(\S+\.tif); ; \(([-\d.]+), ([-\d.]+)\)", layout)
    tiles = {
        (round(float(y) / 460), round(float(x) / 460)): tifffile.imread(folder / name).astype(np.uint16)
        for name, x, y in entries
    }
    rows, columns = (max(place[axis] for place in tiles) + 1 for axis in (0, 1))

    def half(name, keep):
        scanned = np.array([[(r, c) in tiles and keep(c) for c in range(columns)] for r in range(rows)])
        acquisition = write_colm(
            tmp_path / name,
            rows=rows,
            columns=columns,
            tile_shape=(1, 512, 512),
            voxel_size_um=(1, 1, 1),
            overlap=(1 - 460 / 512, 1 - 460 / 512),
            channels=1,
            objective="",
            scanned=scanned,
            planes=lambda row, column, channel, plane: tiles[row, column],
        )
        return estimate_shading(acquisition, 0, ShadingSettings(), engine)

    left, right = half("left", lambda c: c < columns // 2), half("right", lambda c: c >= columns // 2)
    assert rms_percent(left.flat, right.flat) < 3

    def seam(flat):
        ratios = []
        for (row, column), tile in tiles.items():
            if column + 1 >= columns // 2 or (row, column + 1) not in tiles:
                continue
            a, b = (
                ndimage.uniform_filter((t - right.background) / flat, 9)
                for t in (tile.astype(float), tiles[row, column + 1].astype(float))
            )
            a, b = a[::8, 460::8], b[::8, :52:8]
            bright = (a > 2500) & (b > 2500)
            ratios.append(np.log(a[bright] / b[bright]))
        return np.median(np.abs(np.concatenate(ratios)))

    assert seam(np.ones((512, 512))) > 0.15
    assert seam(right.flat) < 0.04
