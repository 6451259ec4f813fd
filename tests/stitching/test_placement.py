"""Global placement: exact links in, exact positions out, and what happens to wrong and missing ones."""

import dataclasses
import math

import numpy as np
import pytest

from cloudreg.settings import AlignSettings
from cloudreg.stitching import Link, align, measure_links, place_tiles
from cloudreg.stitching.links import neighbours
from cloudreg.tiles import read_project, write_project

SETTINGS = AlignSettings()


def known(sigma_z, sigma_y=None, sigma_x=None):
    """Information on a shift that is known to so many pixels along z, y and x."""
    sigma = (sigma_z, sigma_z if sigma_y is None else sigma_y, sigma_z if sigma_x is None else sigma_x)
    return tuple(tuple(row) for row in np.diag(1 / np.square(sigma)).tolist())


@pytest.fixture
def grid(in_memory):
    """Make a grid of tiles with jittered positions, and its exact links."""

    def make(rows, columns, *, missing=(), drift=(0.0, 0.0, 0.0), jitter=3.0, seed=0):
        pixels = np.zeros((4, 100, 100), dtype=np.uint8)
        cells = [(r, c) for r in range(rows) for c in range(columns) if (r, c) not in missing]
        acquisition = in_memory(dict.fromkeys(cells, pixels), (rows, columns), (0.1, 0.1))
        nominal = np.array([acquisition.nominal_px(tile) for tile in acquisition.tiles])
        random = np.random.default_rng(seed)
        steps = np.array([tile.column for tile in acquisition.tiles])[:, None] * drift
        truth = nominal + random.normal(0, jitter, nominal.shape) + steps
        links = [
            Link(i, j, tuple(truth[j] - truth[i]), tuple(nominal[j] - nominal[i]), 0.9, known(0.1), (0.1,) * 3)
            for i, j in neighbours(acquisition.tiles)
        ]
        return acquisition, truth, links

    return make


def emptied(link):
    return Link(link.first, link.second, link.nominal_px, link.nominal_px)


def moved(link, by):
    return Link(link.first, link.second, tuple(np.add(link.shift_px, by)), link.nominal_px, 0.5, known(0.2), (0.1,) * 3)


def errors(found, truth):
    difference = found - truth
    return np.linalg.norm(difference - np.median(difference, axis=0), axis=1)


def test_exact_links_give_exact_positions(grid):
    acquisition, truth, links = grid(4, 5)
    placement = place_tiles(acquisition, links, SETTINGS)
    assert errors(placement.positions_px, truth).max() < 0.05
    assert not placement.outliers.any()
    assert np.abs(placement.residuals_px).max() < 0.05
    assert placement.stage_only == ()


def test_positions_stay_in_the_frame_of_the_stage(grid):
    acquisition, _, links = grid(4, 5)
    nominal = np.array([acquisition.nominal_px(tile) for tile in acquisition.tiles])
    deviation = place_tiles(acquisition, links, SETTINGS).positions_px - nominal
    assert np.abs(deviation.mean(axis=0)).max() < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_wrong_links_are_found_by_their_loops(grid, seed):
    acquisition, truth, links = grid(4, 5, seed=seed)
    wrong = np.random.default_rng(seed).choice(len(links), 4, replace=False)
    for k in wrong:
        links[k] = moved(links[k], (3, -25, 14))
    placement = place_tiles(acquisition, links, SETTINGS)
    assert set(np.flatnonzero(placement.outliers)) == set(wrong)
    assert errors(placement.positions_px, truth).max() < 0.2
    assert np.linalg.norm(placement.residuals_px[wrong], axis=1).min() > 20


def test_a_shift_known_across_an_edge_only_decides_nothing_along_it(grid):
    acquisition, truth, links = grid(3, 3)
    edge = next(i for i, k in enumerate(links) if (k.first, k.second) == (1, 4))
    wrong = np.add(links[edge].shift_px, (0, 0, 6))
    links[edge] = dataclasses.replace(links[edge], shift_px=tuple(wrong), information=known(0.1, 0.1, 100))
    placement = place_tiles(acquisition, links, SETTINGS)
    assert errors(placement.positions_px, truth).max() < 0.05
    assert not placement.outliers.any()


def test_of_two_links_that_contradict_the_vaguer_one_gives_way(grid):
    acquisition, truth, links = grid(2, 2)
    links[1] = dataclasses.replace(moved(links[1], (0, 3, 0)), information=known(3.0))
    placement = place_tiles(acquisition, links, SETTINGS)
    assert not placement.outliers.any()
    assert errors(placement.positions_px, truth).max() < 0.2


def test_the_weakest_link_of_a_single_loop_is_the_wrong_one(grid):
    acquisition, truth, links = grid(2, 2)
    links[1] = moved(links[1], (0, 20, 0))
    placement = place_tiles(acquisition, links, SETTINGS)
    assert list(placement.outliers) == [False, True, False, False]
    assert errors(placement.positions_px, truth).max() < 0.2


def test_a_corner_of_empty_tiles_follows_the_stage_as_it_moved(grid):
    # The stage moves 4 px too far per column: over eight columns the nominal positions are off by 32.
    acquisition, truth, links = grid(6, 9, drift=(0.5, -2.0, 4.0), jitter=1.0)
    corner = {i for i, tile in enumerate(acquisition.tiles) if tile.row < 3 and tile.column > 5}
    links = [emptied(k) if {k.first, k.second} & corner else k for k in links]
    placement = place_tiles(acquisition, links, SETTINGS)
    found = errors(placement.positions_px, truth)
    assert set(placement.stage_only) == corner
    assert np.delete(found, list(corner)).max() < 0.2
    # They can't be better than the stage's own jitter.
    assert found[list(corner)].max() < 5


def test_two_islands_are_held_together_by_the_stage(grid):
    acquisition, truth, links = grid(2, 3, missing=[(0, 1), (1, 1)], jitter=1.0)
    placement = place_tiles(acquisition, links, SETTINGS)
    assert np.isfinite(placement.positions_px).all()
    assert errors(placement.positions_px, truth).max() < 6
    for k in links:
        np.testing.assert_allclose(
            placement.positions_px[k.second] - placement.positions_px[k.first], k.shift_px, atol=0.05
        )


def test_no_link_at_all_leaves_the_nominal_positions(grid):
    acquisition, _, links = grid(2, 3)
    placement = place_tiles(acquisition, [emptied(k) for k in links], SETTINGS)
    nominal = [acquisition.nominal_px(tile) for tile in acquisition.tiles]
    np.testing.assert_allclose(placement.positions_px, nominal, atol=1e-6)
    assert placement.stage_only == tuple(range(6))
    assert np.isnan(placement.residuals_px).all()


def test_a_link_below_the_smallest_correlation_does_not_vote(grid):
    acquisition, _, links = grid(1, 2)
    below = AlignSettings(minimum_correlation=0.95)
    np.testing.assert_allclose(place_tiles(acquisition, links, below).positions_px[1], (0, 0, 90), atol=1e-6)


def test_a_single_tile_is_placed(grid):
    acquisition, _, links = grid(1, 1)
    np.testing.assert_allclose(place_tiles(acquisition, links, SETTINGS).positions_px, [[0, 0, 0]])


ALIGN = AlignSettings(search_um=(6, 10, 10))


@pytest.mark.parametrize(
    "damage",
    [
        {},
        {"missing": [(0, 1)], "lost": {(1, 1): [5, 6]}},
        {"grid": (3, 3), "empty_overlaps": 0.3},
        {"grid": (3, 3), "empty_overlaps": 0.3, "seed": 1, "photons": 100},
    ],
)
def test_tiles_of_a_phantom_are_placed_to_a_fraction_of_a_pixel(make_phantom, engine, damage):
    phantom = make_phantom(**damage)
    links = measure_links(phantom.acquisition, 0, None, ALIGN, engine)
    found = phantom.errors(place_tiles(phantom.acquisition, links, ALIGN).positions_px)
    assert np.median(found) < 0.15
    assert found.max() < 0.5


def test_a_blank_corner_tile_moves_no_other(make_phantom, engine):
    phantom = make_phantom(grid=(3, 3), blank=[(0, 0)])
    links = measure_links(phantom.acquisition, 0, None, ALIGN, engine)
    placement = place_tiles(phantom.acquisition, links, ALIGN)
    found = phantom.errors(placement.positions_px)
    assert placement.stage_only == (0,)
    assert found[1:].max() < 0.3
    assert found[0] < 10


def test_the_project_keeps_positions_and_links(make_phantom, engine, tmp_path):
    phantom = make_phantom(blank=[(0, 0)], missing=[(1, 2)])
    project = align(phantom.acquisition, 0, None, ALIGN, engine)
    positions = np.array([project.position_px(t.row, t.column) for t in phantom.acquisition.tiles])
    assert phantom.errors(positions)[1:].max() < 0.3
    (east,) = project.tile(0, 1).east
    assert math.dist([axis.px for axis in east.axes], phantom.truth_px[2] - phantom.truth_px[1]) < 0.3
    assert min(axis.reliability for axis in east.axes) > 0.8
    (empty,) = project.tile(0, 0).east
    assert [axis.reliability for axis in empty.axes] == [0, 0, 0]
    assert [t.stitchable for t in project.tiles] == [False, True, True, True, True, False]

    write_project(project, tmp_path / "project.xml", step="merging")
    again = read_project(tmp_path / "project.xml")
    np.testing.assert_allclose(
        [again.position_px(t.row, t.column) for t in phantom.acquisition.tiles], positions, atol=1e-6
    )


@pytest.mark.real
def test_tiles_cut_from_a_real_brain_find_their_places(test_data, in_memory, engine):
    import tifffile

    brain = tifffile.imread(test_data / "mouse_stpt" / "brain_psl_50x40x40um.tif")
    random = np.random.default_rng(0)
    cells = [(row, column) for row in range(3) for column in range(4) if (row, column) != (2, 3)]
    truth = np.array([(30, 2 + 54 * r, 5 + 61 * c) for r, c in cells])
    truth += random.integers(-2, 3, truth.shape)
    stacks = {}
    for cell, start in zip(cells, truth, strict=True):
        seen = brain[tuple(slice(s, s + n) for s, n in zip(start, (200, 80, 80), strict=True))]
        stacks[cell] = random.poisson(100 + 2000 / brain.max() * seen).astype(np.uint16)
    assert {stack.shape for stack in stacks.values()} == {(200, 80, 80)}  # none hangs over the volume's edge
    acquisition = in_memory(stacks, (3, 4), (26 / 80, 19 / 80), voxel_size_um=(50, 40, 40))
    settings = AlignSettings(search_um=(300, 320, 320))
    links = measure_links(acquisition, 0, None, settings, engine)
    found = errors(place_tiles(acquisition, links, settings).positions_px, truth)
    assert np.median(found) < 0.15
    assert found.max() < 0.5
