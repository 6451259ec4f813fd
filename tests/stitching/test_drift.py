"""Tiles that drift sideways over their depth: found from exact layers and from pictures, and fused sharp."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudreg.errors import InputError
from cloudreg.execution import Engine, progress
from cloudreg.settings import AlignSettings, FusionSettings, RunSettings, override
from cloudreg.stitching import Link, align, align_in_steps, fuse, measure_links
from cloudreg.stitching.drift import find_drifts, without_drift
from cloudreg.stitching.links import Layer, measure_again, neighbours
from cloudreg.stitching.pairwise import Shift
from cloudreg.stitching.places import shared, tile_places
from cloudreg.stitching.seams import load_layers, measure_seams, save_seams
from cloudreg.tiles import Drift
from cloudreg.viewer.stages import alignment_section

ON = AlignSettings(search_um=(6, 10, 10), drift="layers")
OFF = AlignSettings(search_um=(6, 10, 10))
DEPTH, COUNT = 192, 8
CENTRES = (np.arange(COUNT) + 0.5) * DEPTH / COUNT - 0.5


def layer(plane, lag, sigma=0.05):
    return Layer(plane, Shift(np.asarray(lag, float), 0.9, np.eye(3), 10000, np.eye(3) / sigma**2))


@pytest.fixture(scope="module")
def grid(in_memory):
    """3 x 4 tiles, deep enough for eight layers, that hold nothing."""
    cells = [(r, c) for r in range(3) for c in range(4)]
    return in_memory(dict.fromkeys(cells, np.zeros((DEPTH, 20, 20), np.uint8)), (3, 4), (0.1, 0.1))


def ways(tiles, seed=0):
    """Smooth ways of tiles at the layers (tiles, layers, 2), none in the mean over depth or tiles; some pixels."""
    random = np.random.default_rng(seed)
    at = np.linspace(-1, 1, COUNT)
    way = np.einsum("tki,kp->tpi", random.normal(0, 1.5, (tiles, 2, 2)), [at, at**2])
    way -= way.mean(axis=1, keepdims=True)
    return way - way.mean(axis=0)


def links_of(acquisition, way, moved=None, noise=0.0, seed=0):
    """Links whose layers say how far tiles that go these ways are apart, and by what else they were moved."""
    random = np.random.default_rng(seed)
    nominal = np.array([acquisition.nominal_px(tile) for tile in acquisition.tiles])
    moved = np.zeros_like(nominal) if moved is None else moved
    links = []
    for i, j in neighbours(acquisition.tiles):
        apart = nominal[j] - nominal[i]
        at = np.pad(way[j] - way[i], ((0, 0), (1, 0))) + apart + moved[j] - moved[i]
        at = at + random.normal(0, noise, at.shape)
        layers = tuple(layer(plane, lag) for plane, lag in zip(CENTRES, at, strict=True))
        links.append(Link(i, j, tuple(apart), tuple(apart), layers=layers))
    return links


def found(acquisition, links):
    """Ways of the tiles at the layers, (tiles, layers, 2), without what is left of the mean over the layers."""
    way = np.array([drift.at(CENTRES) for drift in find_drifts(acquisition, links, ON).tiles])
    return way - way.mean(axis=1, keepdims=True)


def test_exact_layers_give_the_drift(grid):
    way = ways(12)
    assert np.ptp(way, axis=1).max() > 4
    assert np.abs(found(grid, links_of(grid, way)) - way).max() < 0.15


def test_a_drift_bends_on_beyond_the_middle_of_the_first_layer_and_the_last(grid):
    bend = np.random.default_rng(2).normal(0, 2.0, (12, 1, 2))
    bend -= bend.mean(axis=0)
    way = bend * (2 * CENTRES[:, None] / (DEPTH - 1) - 1) ** 2
    drifts = find_drifts(grid, links_of(grid, way), ON).tiles
    ends = np.array([drift.at([0, DEPTH - 1]) - drift.at([DEPTH / 2]) for drift in drifts])
    assert np.abs(ends - bend).max() < 0.19


def test_over_the_depth_a_drift_is_none_in_the_mean(grid):
    drifts = find_drifts(grid, links_of(grid, ways(12)), ON)
    planes = np.arange(0, DEPTH - 0.99, 0.01)
    assert max(np.abs(drift.at(planes).mean(axis=0)).max() for drift in drifts.tiles) < 1e-3


def test_wrong_layers_are_outvoted(grid):
    way = ways(12)
    links = links_of(grid, way)
    for k, at in ((0, 1), (4, 6), (9, 3)):
        layers = list(links[k].layers)
        layers[at] = layer(CENTRES[at], np.add(layers[at].shift.lag_px, (0, 8, -5)))
        links[k] = dataclasses.replace(links[k], layers=tuple(layers))
    assert np.abs(found(grid, links) - way).max() < 0.2


def test_empty_layers_do_not_vote(grid):
    way = ways(12)
    links = links_of(grid, way)
    # The upper half of the first column shows nothing, and one link nothing at all.
    upper = [dataclasses.replace(k, layers=k.layers[4:]) if grid.tiles[k.first].column == 0 else k for k in links]
    upper[8] = dataclasses.replace(upper[8], layers=())
    others = [i for i, tile in enumerate(grid.tiles) if tile.column > 0]
    off = (found(grid, upper) - way)[others]
    assert np.abs(off - off.mean(axis=0)).max() < 0.15
    # Where nothing is seen the drift goes on straight: for a bent one that is all that can be asked for.
    straight = np.einsum("p,ti->tpi", np.linspace(-1, 1, COUNT), ways(12)[:, -1])
    straight -= straight.mean(axis=0)
    cut = [dataclasses.replace(k, layers=k.layers[4:]) for k in links_of(grid, straight)]
    assert np.abs(found(grid, cut) - straight).max() < 0.15


def test_what_all_tiles_drift_together_is_not_made_up(grid):
    way = ways(12)
    together = np.einsum("p,i->pi", np.linspace(-5, 5, COUNT), (1, -2))
    np.testing.assert_allclose(found(grid, links_of(grid, way + together)), found(grid, links_of(grid, way)), atol=1e-3)
    # The stage is off in depth too, so that layers of two tiles lie at different planes.
    jitter = np.random.default_rng(1).normal(0, 3, (12, 3))
    assert np.abs(found(grid, links_of(grid, 0 * way, jitter))).max() < 0.01


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 5))
def test_where_tiles_lie_changes_no_drift(grid, seed, far):
    way = ways(12, seed)
    moved = np.random.default_rng(seed).normal(0, far, (12, 3)) * (0, 1, 1)
    np.testing.assert_allclose(found(grid, links_of(grid, way, moved)), found(grid, links_of(grid, way)), atol=0.02)


def test_a_tile_that_shows_nothing_does_not_drift(grid):
    links = [dataclasses.replace(k, layers=()) if 0 in (k.first, k.second) else k for k in links_of(grid, ways(12))]
    assert not np.any(find_drifts(grid, links, ON).tiles[0].y_px)


def test_links_without_their_drift_are_one_shift_each(grid):
    jitter = np.random.default_rng(0).normal(0, 3, (12, 3)) * (0, 1, 1)
    links = links_of(grid, ways(12), jitter)
    nominal = np.array([grid.nominal_px(tile) for tile in grid.tiles]) + jitter
    for link in without_drift(links, find_drifts(grid, links, ON)):
        assert not link.is_empty
        np.testing.assert_allclose(link.shift_px, nominal[link.second] - nominal[link.first], atol=0.15)


def test_residuals_say_what_the_drift_explains_layer_by_layer(grid):
    drifts = find_drifts(grid, links_of(grid, ways(12), noise=0.03), ON)
    assert [residual.plane for residual in drifts.layers] == CENTRES.tolist()
    assert all(residual.links == 17 for residual in drifts.layers)
    assert max(residual.px for residual in drifts.layers) < 0.2
    assert drifts.layers[0].straight_px > 1


def test_a_drift_is_linear_between_its_planes_and_constant_beyond():
    drift = Drift((10.0, 20.0), (0.0, 4.0), (1.0, -1.0))
    np.testing.assert_allclose(drift.at([0, 10, 15, 30]), [(0, 1), (0, 1), (2, 0), (4, -1)])


@pytest.fixture(scope="module")
def swaying(make_phantom):
    """2 x 2 deep tiles that drift by some pixels."""
    return make_phantom(grid=(2, 2), tile_shape=(120, 80, 80), overlap=0.25, sway_px=(1.0, 1.0))


@pytest.fixture(scope="module")
def aligned(swaying):
    """Them aligned, with drift and without."""
    with Engine(workers=2, memory="1GB") as engine:
        return {s.drift: align_in_steps(swaying.acquisition, 0, None, s, engine) for s in (ON, OFF)}


@pytest.fixture(scope="module")
def placed(aligned):
    """Their projects, with drift and without."""
    return {drift: alignment.placed for drift, alignment in aligned.items()}


def distances(phantom, project):
    """How far each plane of each tile is from where it is, without what all tiles have in common."""
    planes = np.arange(phantom.acquisition.tile_shape[0])
    at = np.array([tile.position_px for tile in project.tiles])[:, None] + np.zeros((1, len(planes), 1))
    for place, tile in zip(at, project.tiles, strict=True):
        place[:, 1:] += 0 if tile.drift is None else tile.drift.at(planes)
    truth = phantom.truth_px[:, None] + np.pad(phantom.sway_px, ((0, 0), (0, 0), (1, 0)))
    off = at - truth
    return np.linalg.norm(off - off.mean(axis=0), axis=2)


def test_the_drift_of_pictures_is_found(swaying, placed):
    assert np.ptp(swaying.sway_px, axis=1).max() > 3
    on, off = (distances(swaying, placed[drift]) for drift in ("layers", "none"))
    for first in range(0, 120, 24):
        assert np.median(on[:, first : first + 24]) < 0.15
    assert np.median(off) > 0.5


def test_a_drift_that_is_followed_leaves_the_seam_sharp(swaying, placed, engine, tmp_path):
    tiles, alike, agreement = swaying.acquisition, {}, {}
    for drift, project in placed.items():
        volume = fuse(tiles, 0, project, None, tmp_path / f"{drift}.ome.zarr", FusionSettings(), engine)
        origin = np.rint(volume.grid.origin_um / tiles.voxel_size_um).astype(int)
        fused, (first, second, *_) = volume.read(), tile_places(tiles, project)
        found = []
        for plane in range(2, 118):
            box = shared(first, second, first.first_plane + plane)
            own = tiles.stacks[0, 0][plane][box.shifted([-v for v in first.at(box.start[0]).start]).slices[1:]]
            found.append(np.corrcoef(own.ravel(), fused[box.shifted(-origin).slices].ravel())[0, 1])
        alike[drift] = np.array(found)
        seams = measure_seams(tiles, 0, None, project, engine)
        agreement[drift] = min(seam.correlation_after for seam in seams)
    # Where two tiles that don't lie on each other are blended, the mean looks like neither.
    assert alike["layers"].min() > 0.9 > 0.75 > alike["none"].min()
    assert agreement["layers"] > 0.9 > 0.7 > agreement["none"]


def test_without_a_drift_the_option_costs_no_accuracy(make_phantom, engine):
    still = make_phantom(grid=(2, 2), tile_shape=(72, 80, 80), overlap=0.25)
    still = dataclasses.replace(still, sway_px=np.zeros((4, 72, 2)))
    assert distances(still, align(still.acquisition, 0, None, ON, engine)).max() < 0.1


def test_thin_tiles_are_aligned_as_without_the_option(phantom, engine, capfd, monkeypatch):
    monkeypatch.setattr(progress, "_console", None)
    progress.enable()
    project = align(phantom.acquisition, 0, None, ON, engine)
    assert "24 planes are too few to see how tiles drift" in capfd.readouterr().err
    assert project == align(phantom.acquisition, 0, None, OFF, engine)


def test_layers_that_a_drift_blurred_are_measured_again_without_it(make_phantom, engine):
    phantom = make_phantom(grid=(1, 2), tile_shape=(96, 80, 80), overlap=0.3, sway_px=(2.0, 2.0))
    tiles, planes = phantom.acquisition, np.arange(96)
    drifts = [Drift(tuple(planes.astype(float)), *(tuple(way) for way in sway.T)) for sway in phantom.sway_px]

    def off(links):
        """How far off the layers are, sideways."""
        apart = phantom.truth_px[1] - phantom.truth_px[0]
        ends = [(k.plane, k.plane - k.shift.lag_px[0], k.shift.lag_px) for k in links[0].layers]
        lags = [lag - apart - [0, *(drifts[1].at([b]) - drifts[0].at([a]))[0]] for a, b, lag in ends]
        return np.linalg.norm(np.array(lags)[:, 1:], axis=1)

    blurred = measure_links(tiles, 0, None, ON, engine)
    again = measure_again(tiles, 0, None, ON, engine, blurred, drifts)
    assert len(again[0].layers) == 4
    assert off(again).max() < 0.18 < 0.22 < off(blurred).max()
    still = [dataclasses.replace(drift, y_px=(0.0,) * 96, x_px=(0.0,) * 96) for drift in drifts]
    assert measure_again(tiles, 0, None, ON, engine, blurred, still)[0] is blurred[0]


def test_layers_are_kept_only_where_a_drift_is_looked_for(swaying, engine):
    links = measure_links(swaying.acquisition, 0, None, ON, engine)
    assert [len(link.layers) for link in links] == [5] * 4


def test_the_report_shows_the_drift(aligned, swaying, engine, tmp_path):
    found = aligned["layers"]
    save_seams(swaying.acquisition, 0, None, found.placed, tmp_path, engine, drifts=found.drifts)
    layers = load_layers(tmp_path)
    assert layers == list(found.drifts.layers)
    titles = [part.title for part in alignment_section(found.placed, layers).parts]
    assert titles[-1] == "Drift over the depth"
    assert len(alignment_section(found.placed, layers).parts[-1].pictures) == 3
    assert "Drift over the depth" not in [part.title for part in alignment_section(aligned["none"].placed).parts]
    save_seams(swaying.acquisition, 0, None, found.placed, tmp_path, engine)
    assert load_layers(tmp_path) == []


def test_projections_do_not_show_a_drift():
    with pytest.raises(InputError, match="projections don't show how tiles drift: choose method volume, or drift none"):
        override(RunSettings(), {"align.drift": "layers", "align.method": "projections"})
