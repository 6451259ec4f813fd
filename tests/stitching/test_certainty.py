"""How well the place of each tile is known, and the tiles that the images don't hold."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from cloudreg.execution import Engine
from cloudreg.settings import AlignSettings
from cloudreg.stitching import Link, align, measure_links, place_tiles
from cloudreg.stitching.certainty import doubt_lines, doubts
from cloudreg.stitching.links import neighbours
from cloudreg.stitching.stage import learned_stage
from cloudreg.tiles import read_project, write_project

ALIGN = AlignSettings(search_um=(6, 10, 10))


def known(*sigma_px):
    """Information on a shift that is known to so many pixels along z, y and x."""
    return tuple(tuple(row) for row in np.diag(1 / np.square(sigma_px)).tolist())


def placed_with_noise(in_memory, rows, columns, sigma_px, jitter_px, seed, vague=()):
    """Place a grid whose links err as they say; return placement and truth."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((4, 100, 100), dtype=np.uint8)
    cells = [(r, c) for r in range(rows) for c in range(columns)]
    acquisition = in_memory(dict.fromkeys(cells, pixels), (rows, columns), (0.1, 0.1))
    nominal = np.array([acquisition.nominal_px(tile) for tile in acquisition.tiles])
    truth = nominal + random.normal(0, jitter_px, nominal.shape)
    links = []
    for i, j in neighbours(acquisition.tiles):
        sigma = (sigma_px, 1e3, sigma_px) if set(vague) & {i, j} else (sigma_px,) * 3
        shift = truth[j] - truth[i] + random.normal(0, np.minimum(sigma, 8))
        links.append(Link(i, j, tuple(shift), tuple(nominal[j] - nominal[i]), 0.9, known(*sigma), (0.1,) * 3))
    return place_tiles(acquisition, links, AlignSettings()), truth


def errors_of(placement, truth, reference):
    off = placement.positions_px - truth
    return off - off[reference].mean(axis=0)


def test_errors_are_as_large_as_the_certainties_say(in_memory):
    squared = []
    for seed in range(30):
        placement, truth = placed_with_noise(in_memory, 3, 4, 0.2, 4.0, seed)
        off = errors_of(placement, truth, range(12))
        squared.append([(off[i] / c.sigma_px) ** 2 for i, c in enumerate(placement.certainties)])
        assert max(c.stage_share for c in placement.certainties) < 0.1
    assert 0.8 < np.mean(squared) < 1.2


def test_along_an_edge_errors_are_as_large_as_what_is_learned_of_the_stage(in_memory):
    along, across = [], []
    for seed in range(60):
        placement, truth = placed_with_noise(in_memory, 3, 4, 0.2, 4.0, seed, vague=[3])
        off = errors_of(placement, truth, [i for i in range(12) if i != 3])[3]
        certainty = placement.certainties[3]
        along.append((off[1] / certainty.sigma_px[1]) ** 2)
        across.append((off[2] / certainty.sigma_px[2]) ** 2)
        assert certainty.stage_share > 0.95
        assert certainty.worst_px == pytest.approx(certainty.sigma_px[1], rel=0.01)
        assert max(c.worst_px for i, c in enumerate(placement.certainties) if i != 3) < 0.5
    assert 0.6 < np.mean(along) < 1.7
    assert 0.6 < np.mean(across) < 1.7


def lattice(rows, columns):
    """Nominal positions of a grid of tiles 90 px apart, and all pairs of neighbours."""
    nominal = np.array([(0.0, 90.0 * r, 90.0 * c) for r in range(rows) for c in range(columns)])
    index = np.arange(rows * columns).reshape(rows, columns)
    east, south = ((a.ravel(), b.ravel()) for a, b in ((index[:, :-1], index[:, 1:]), (index[:-1], index[1:])))
    return nominal, np.stack([np.concatenate([a, b]) for a, b in zip(east, south, strict=True)], axis=1)


def test_tiles_that_err_by_themselves_are_known_to_their_own_error():
    nominal, pairs = lattice(20, 20)
    positions = nominal + np.random.default_rng(5).normal(0, 3, nominal.shape)
    stage = learned_stage(nominal, pairs, positions, np.arange(400))
    np.testing.assert_allclose(stage.own, 1 / 9, rtol=0.3)
    assert (stage.together < 0.2 * stage.own).all()
    assert np.abs(stage.model - nominal).max() < 0.6


def test_neighbours_that_err_together_are_found_to():
    nominal, pairs = lattice(20, 20)
    random = np.random.default_rng(5)
    slow = ndimage.gaussian_filter(random.normal(0, 1, (20, 20, 3)), (4, 4, 0), mode="wrap").reshape(-1, 3)
    positions = nominal + 6 * slow / slow.std() + random.normal(0, 0.3, nominal.shape)
    stage = learned_stage(nominal, pairs, positions, np.arange(400))
    assert (stage.together > 3 * stage.own).all()


def test_a_step_from_column_to_column_is_extrapolated_if_it_is_plain_and_not_if_it_is_noise():
    nominal, pairs = lattice(5, 8)
    column = np.tile(np.arange(8), 5)
    known = np.flatnonzero(column < 4)
    random = np.random.default_rng(8)
    plain, noise = [], []
    for _ in range(40):
        jitter = random.normal(0, 4, nominal.shape)
        step = np.array((0.0, -6.0, 4.0))
        stage = learned_stage(nominal, pairs, nominal + jitter + column[:, None] * step, known)
        plain.append((stage.model - nominal - column[:, None] * step)[7])
        stage = learned_stage(nominal, pairs, nominal + jitter, known)
        noise.append((stage.model - nominal)[7] / (1e-9 + np.linalg.norm(stage.steps[7], axis=1)))
    assert np.sqrt(np.mean(np.square(plain))) < 6
    # As far off as it says.
    assert 0.5 < np.sqrt(np.mean(np.square(noise))) < 1.5


def test_too_few_tiles_say_nothing_of_the_stage():
    nominal, pairs = lattice(1, 5)
    assert learned_stage(nominal, pairs, nominal, np.arange(5)) is None


@pytest.fixture(scope="module")
def fibrous(make_phantom):
    """3 x 3 tiles, and the project of their places; all that is seen of the corner tile are straight edges along y."""
    phantom = make_phantom(grid=(3, 3), fibres=(0, 0))
    with Engine(workers=2, memory="1GB") as engine:
        return phantom, align(phantom.acquisition, 0, None, ALIGN, engine)


def test_a_tile_that_straight_edges_hold_is_named_with_the_direction(fibrous):
    phantom, project = fibrous
    ((tile, what),) = doubts(project)
    assert (tile.row, tile.column) == (0, 0)
    assert what.startswith("not held by the images along y: placed by the stage there, may be off by up to ~")
    assert doubt_lines(project) == [f"LOC000 (row 0, column 0): {what}"]
    positions = np.array([project.position_px(t.row, t.column) for t in phantom.acquisition.tiles])
    off = positions - phantom.truth_px
    off -= np.median(off, axis=0)
    assert np.abs(off[0, [0, 2]]).max() < 0.5
    assert np.linalg.norm(off[1:], axis=1).max() < 0.3
    assert np.abs(off[0, 1]) < 2 * tile.certainty.sigma_px[1]
    assert tile.certainty.stage_share > 0.6
    assert max(t.certainty.worst_px for t in project.tiles[1:]) < 0.4


def test_an_edge_seen_twice_from_different_sides_holds_a_tile(make_phantom, engine):
    phantom = make_phantom(grid=(3, 3))
    links = measure_links(phantom.acquisition, 0, None, ALIGN, engine)
    along_y, along_x = known(0.1, 100, 0.1), known(0.1, 0.1, 100)
    links = [
        dataclasses.replace(k, information=along_y if k.second == 1 else along_x) if k.first == 0 else k for k in links
    ]
    assert max(c.worst_px for c in place_tiles(phantom.acquisition, links, ALIGN).certainties) < 0.4


def test_certainties_are_kept_in_the_project_unless_the_tile_was_moved(fibrous, tmp_path):
    _, project = fibrous
    write_project(project, tmp_path / "project.xml", step="merging")
    again = read_project(tmp_path / "project.xml")
    for tile, same in zip(project.tiles, again.tiles, strict=True):
        np.testing.assert_allclose(same.certainty.sigma_px, tile.certainty.sigma_px, rtol=1e-3)
        assert same.certainty.worst_px == pytest.approx(tile.certainty.worst_px, rel=1e-3)
        assert same.certainty.stage_share == pytest.approx(tile.certainty.stage_share, abs=1e-4)
    assert doubt_lines(again) == doubt_lines(project)
    text = (tmp_path / "project.xml").read_text()
    moved = text.replace('ROW="0" COL="0" ABS_V="', 'ROW="0" COL="0" ABS_V="7')
    assert moved != text
    (tmp_path / "moved.xml").write_text(moved)
    assert read_project(tmp_path / "moved.xml").tile(0, 0).certainty is None
