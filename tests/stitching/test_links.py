"""Measured displacements of phantoms whose offsets are known to a fraction of a pixel."""

import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.flatfield import Shading
from cloudreg.settings import AlignSettings
from cloudreg.stitching import links, measure_links
from cloudreg.stitching.pairwise import Shift, Strip, _clear_winner, _halved, _is_plausible, measure_shift

SETTINGS = AlignSettings(search_um=(6, 10, 10))


def link_errors(phantom, links):
    return np.array(
        [
            np.linalg.norm(np.subtract(k.shift_px, phantom.truth_px[k.second] - phantom.truth_px[k.first]))
            for k in links
            if not k.is_empty
        ]
    )


def test_shifts_are_right_to_a_fraction_of_a_pixel(phantom, engine):
    links = measure_links(phantom.acquisition, 0, None, SETTINGS, engine)
    errors = link_errors(phantom, links)
    assert [(k.first, k.second) for k in links] == [(0, 1), (0, 3), (1, 2), (1, 4), (2, 5), (3, 4), (4, 5)]
    assert np.median(errors) < 0.1
    assert errors.max() < 0.25
    assert min(k.correlation for k in links) > 0.9
    for k in links:
        assert np.linalg.eigvalsh(k.information).min() > 25


def test_more_noise_than_texture_costs_little(make_phantom, engine):
    phantom = make_phantom(grid=(1, 3), photons=30)
    links = measure_links(phantom.acquisition, 0, None, SETTINGS, engine)
    errors = link_errors(phantom, links)
    assert len(errors) == 2
    assert errors.max() < 0.25


def test_lost_planes_do_not_move_a_tile(make_phantom, engine):
    phantom = make_phantom(grid=(1, 3), lost={(0, 0): [2, 3], (0, 1): range(8, 14)})
    errors = link_errors(phantom, measure_links(phantom.acquisition, 0, None, SETTINGS, engine))
    assert len(errors) == 2
    assert errors.max() < 0.25


def test_planes_of_zeros_are_lost_planes(make_phantom, engine):
    phantom = make_phantom(grid=(1, 2), lost={(0, 1): range(8, 14)})
    zeroed = make_phantom(grid=(1, 2))
    zeroed.acquisition.stacks[0, 1][8:14] = 0
    a, b = (measure_links(p.acquisition, 0, None, SETTINGS, engine) for p in (phantom, zeroed))
    assert a == b


def test_errors_are_as_large_as_the_information_says():
    random = np.random.default_rng(3)
    scene = sum(ndimage.gaussian_filter(random.normal(0, s, (24, 140, 150)), s) for s in (1.5, 4.0))
    # Tissue in a few places only; the more of it, the better the shift is known.
    scene = 400 * np.exp(scene) * (ndimage.gaussian_filter(random.normal(0, 1, scene.shape), 14) > 0)
    measured = []
    for y in range(0, 80, 20):
        for x in range(0, 80, 10):
            pair = [scene[:, y : y + 50, x : x + 60], scene[:, y + 2 : y + 52, x + 3 : x + 63]]
            strips = [Strip(random.poisson(c + 5).astype(np.uint16), np.ones(24, dtype=bool)) for c in pair]
            measured.append(measure_shift(*strips, (0, 0, 0), (2, 5, 5), (2, 1, 1)))
    found = [m for m in measured if m is not None]
    off = [m.lag_px - (0, 2, 3) for m in found]
    squared = [e @ m.information @ e / 3 for e, m in zip(off, found, strict=True)]
    assert len(found) > 20
    assert 0.2 < np.median(squared) < 3


def test_two_shifts_that_fit_as_well_are_none():
    random = np.random.default_rng(4)
    stripe = ndimage.gaussian_filter(random.normal(0, 1, (24, 64, 8)), 1.0, mode="wrap")
    scene = 300 + 400 * np.tile(stripe, 8)
    strips = [Strip(random.poisson(scene.clip(1)).astype(np.uint16), np.ones(24, dtype=bool)) for _ in range(2)]
    assert measure_shift(*strips, (0, 0, 0), (2, 4, 12), (2, 1, 1)) is None
    assert measure_shift(*strips, (0, 0, 0), (2, 4, 3), (2, 1, 1)) is not None


def test_peaks_along_a_slanted_edge_are_one_shift_known_across_it():
    random = np.random.default_rng(9)
    pattern = ndimage.gaussian_filter(random.normal(0, 1, (90, 70)), 1.5)
    pattern = 300 * np.exp(0.5 * pattern / pattern.std())
    # Each plane is the one before, moved down by a row: along that direction all is the same.
    scene = np.stack([pattern[z : z + 60] for z in range(24)])
    strips = [Strip(random.poisson(scene[:, :, k : k + 60]).astype(np.uint16), np.ones(24, dtype=bool)) for k in (0, 3)]
    shift = measure_shift(*strips, (0, 0, 0), (6, 8, 8), (2, 1, 1))
    along, across = np.array((1, -1, 0)) / 2**0.5, np.array((1, 1, 0)) / 2**0.5
    assert shift.lag_px[2] == pytest.approx(3, abs=0.1)
    assert shift.lag_px @ across == pytest.approx(0, abs=0.1)
    assert along @ shift.information @ along < 0.1 * across @ shift.information @ across


@pytest.mark.parametrize(("known", "rivals"), [(0.02, False), (25.0, True)])
def test_peaks_that_differ_along_what_both_leave_open_are_no_rivals(known, rivals):
    information = np.diag([100.0, known, 100.0])
    lower, higher = (Shift(np.array([0.0, y, 2.0]), c, np.eye(3), 1, information) for y, c in ((-4, 0.94), (5, 0.95)))
    assert _clear_winner([lower, higher]) is (None if rivals else higher)


@pytest.mark.parametrize(("lag", "known", "plausible"), [(5, 0.01, True), (7, 0.01, False), (7, 4.0, True)])
def test_a_shift_beyond_the_largest_deviation_must_be_known_in_all_directions(lag, known, plausible):
    shift = Shift(np.array([0.0, -lag, 2.0]), 0.98, np.eye(3), 10_000, np.diag([100.0, known, 100.0]))
    assert _is_plausible(shift, (0, 0, 0), (2, 6, 6)) is plausible


def test_a_shift_known_in_one_direction_only_gets_no_vote():
    turn = np.linalg.qr(np.random.default_rng(6).normal(size=(3, 3)))[0]
    surface, edge = (turn @ np.diag(known) @ turn.T for known in ((0.5, 0.01, 100), (0.01, 4, 100)))
    assert not links.is_trusted(surface)
    assert links.is_trusted(edge)


def test_empty_overlaps_get_no_vote(make_phantom, engine):
    phantom = make_phantom(blank=[(0, 0)])
    links = measure_links(phantom.acquisition, 0, None, SETTINGS, engine)
    assert [k.is_empty for k in links] == [True, True, False, False, False, False, False]
    assert links[0].shift_px == links[0].nominal_px
    assert not np.any(links[0].information)


def test_vignetting_alone_is_no_texture(in_memory, engine):
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    flat = 1 - 0.4 * (y * y + x * x)
    random = np.random.default_rng(0)
    stacks = {(0, c): random.poisson(400 * flat, (24, 96, 96)).astype(np.uint16) for c in range(3)}
    links = measure_links(in_memory(stacks, (1, 3), (0.2, 0.2)), 0, None, SETTINGS, engine)
    assert all(k.is_empty for k in links)


def test_shading_does_not_pull_tiles_to_their_nominal_places(make_phantom, engine):
    phantom = make_phantom(grid=(1, 3))
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    flat = (1.2 - 0.5 * (y * y + x * x)).astype(np.float32)
    for stack in phantom.acquisition.stacks.values():
        stack[:] = 100 + (stack.astype(float) - 100).clip(0) * flat
    shading = Shading(flat, 100.0)
    for given in (None, shading):
        errors = link_errors(phantom, measure_links(phantom.acquisition, 0, given, SETTINGS, engine))
        assert errors.max() < 0.25


def test_the_answer_is_the_same_for_any_number_of_workers(phantom, engine):
    with Engine(workers=1, memory="1GB") as alone:
        assert measure_links(phantom.acquisition, 0, None, SETTINGS, alone) == measure_links(
            phantom.acquisition, 0, None, SETTINGS, engine
        )


def test_deep_tiles_are_read_in_a_few_layers_only(in_memory, make_phantom, engine):
    phantom = make_phantom(grid=(1, 2), tile_shape=(240, 40, 64), overlap=0.4)
    links = measure_links(phantom.acquisition, 0, None, AlignSettings(search_um=(6, 6, 6)), engine)
    assert link_errors(phantom, links).max() < 0.25
    assert sum(phantom.acquisition.reads.values()) < 0.4 * 240 * 2


def test_too_little_memory_is_said_before_anything_is_read(phantom):
    with (
        Engine(workers=2, memory="100MB") as small,
        pytest.raises(InputError, match=r"GB of memory for each worker.*more memory or fewer workers"),
    ):
        measure_links(phantom.acquisition, 0, None, SETTINGS, small)


def test_lost_planes_are_left_out_of_the_smaller_copies():
    values = np.random.default_rng(0).random((8, 6, 7))
    observed = np.array([1, 0, 0, 0, 1, 1, 0, 1], dtype=bool)
    smaller = _halved(Strip(np.where(observed[:, None, None], values, 0), observed), np.array([2, 1, 2]))
    assert list(smaller.observed) == [True, False, True, True]
    pairs = values[:, :, :6].reshape(8, 6, 3, 2).mean(axis=3)
    np.testing.assert_allclose(smaller.values[[0, 3]], pairs[[0, 7]], rtol=1e-6)
    np.testing.assert_allclose(smaller.values[2], pairs[4:6].mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("lag", [(1, 37, -14), (-2, -20, 9)])
def test_large_strips_are_searched_coarse_to_fine(lag):
    random = np.random.default_rng(1)
    scene = random.normal(0, 1, (24, 400, 300)).astype(np.float32)
    for axis in range(3):
        scene = scene + np.roll(scene, 1, axis) + np.roll(scene, 2, axis)
    scene = 1000 + 200 * scene / scene.std()
    start = np.add((3, 40, 40), lag)
    cut = [scene[tuple(slice(s, s + n) for s, n in zip(o, (16, 300, 200), strict=True))] for o in ((3, 40, 40), start)]
    strips = [Strip(random.poisson(c.clip(1)).astype(np.uint16), np.ones(16, dtype=bool)) for c in cut]
    shift = measure_shift(*strips, (0, 0, 0), (4, 45, 45), (2, 1, 1))
    np.testing.assert_allclose(shift.lag_px, lag, atol=0.03)


@pytest.mark.parametrize("shaded", [False, True])
def test_a_pair_takes_the_memory_that_was_foreseen(in_memory, shaded):
    scene = np.random.default_rng(0).poisson(300, (24, 900, 1600)).astype(np.uint16)
    tiles = in_memory({(0, 0): scene[:, :, :900], (0, 1): scene[:, :, 700:]}, (1, 2), (0.2, 2 / 9))
    shading = Shading(np.ones((900, 900), np.float32), 100.0) if shaded else None
    task, pair = links._Measure(tiles, 0, shading, (6, 60, 60)), links._Pair(0, 1, "pair")
    task(pair)
    tracemalloc.start()
    found = task(pair)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(found.shift_px, (0, 0, 700), atol=0.02)
    assert 0.3 * task.strip_bytes(pair) < peak < task.strip_bytes(pair)
