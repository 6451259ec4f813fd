"""TeraStitcher's way: shifts of projections, placement along the best chain, and a project of every step."""

from dataclasses import replace

import numpy as np
import pytest

from cloudreg.errors import InputError
from cloudreg.settings import AlignSettings
from cloudreg.stitching import align_in_steps, place_by_tree, reuse_alignment, write_steps
from cloudreg.stitching.projections import (
    Projections,
    correlate_projections,
    correlation_of_shifts,
    layers,
    measure_displacements,
)
from cloudreg.tiles import AxisDisplacement, Displacement, Project, ProjectTile, read_project, to_project

SETTINGS = AlignSettings(search_um=(10.0, 10.0, 10.0), method="projections", placement="tree")


def blobs(shape, *, seed=0, count=600, sigma=2.0):
    """Gaussian spots of one width at random places; their projections have many separate peaks."""
    random = np.random.default_rng(seed)
    points = random.uniform(0, 1, (count, 3)) * shape
    bright = random.uniform(0.3, 1, count)
    axes = [np.arange(n)[:, None] - points[:, i] for i, n in enumerate(shape)]
    z, y, x = (np.exp(-(a**2) / (2 * sigma**2)) for a in axes)
    return np.einsum("zp,yp,xp,p->zyx", z, y, x, bright, optimize=True)


def direct(a, b, lag):
    """Correlation at one shift, by its definition."""
    rows, columns = (slice(max(0, s), n + min(0, s)) for s, n in zip(lag, a.shape, strict=True))
    back, left = (slice(max(0, -s), n - max(0, s)) for s, n in zip(lag, a.shape, strict=True))
    one, two = a[rows, columns].ravel(), b[back, left].ravel()
    return np.corrcoef(one, two)[0, 1]


def test_the_correlation_is_that_of_what_both_images_show():
    random = np.random.default_rng(0)
    a, b = 1000 + random.normal(size=(2, 14, 11))
    found = correlation_of_shifts(a, b, (6, 3))
    assert found.shape == (13, 7)
    expected = [[direct(a, b, (i, j)) for j in range(-3, 4)] for i in range(-6, 7)]
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_constant_image_correlates_with_nothing():
    constant = np.full((30, 30), 7.0)
    assert not correlation_of_shifts(constant, np.random.default_rng(0).random((30, 30)), (5, 5)).any()


@pytest.mark.parametrize("shift", [(0, 0, 0), (3, -7, 12), (-5, 14, -2)])
def test_a_known_shift_is_found_along_all_axes(shift):
    shape, margin = (48, 60, 64), 16
    whole = blobs([n + 2 * margin for n in shape])
    first, second = (
        whole[tuple(slice(margin + s, margin + s + n) for s, n in zip(move, shape, strict=True))]
        for move in ((0, 0, 0), shift)
    )
    peaks = correlate_projections(Projections.of([first]), Projections.of([second[:20], second[20:]]), (8, 20, 20))
    assert [peak.px for peak in peaks] == list(shift)
    assert all(0.8 < peak.height <= 1 for peak in peaks)
    assert [peak.window_px for peak in peaks] == [8, 20, 20]
    # The autocorrelation of spots is a Gaussian of sqrt(2) times their width, which falls to 80 % at 0.94 times that
    # of the spots; the first whole pixel beyond counts.
    assert all(peak.width_px in (2, 3) for peak in peaks)


def test_nothing_in_common_is_no_peak_or_an_unreliable_one():
    random = np.random.default_rng(1)
    dark = np.full((40, 50, 60), 100.0)
    peaks = correlate_projections(Projections.of([dark]), Projections.of([dark]), (5, 10, 10))
    assert [(peak.px, peak.height, peak.width_px) for peak in peaks] == [(0, 0.0, 11.0)] * 3
    noise = [Projections.of([random.normal(size=(40, 50, 60))]) for _ in range(2)]
    assert all(peak.height < 0.3 for peak in correlate_projections(*noise, (5, 10, 10)))


def test_axes_with_too_little_in_common_are_not_measured():
    thin = blobs((20, 60, 60), count=300)
    z, y, x = correlate_projections(Projections.of([thin]), Projections.of([thin]), (8, 20, 20))
    assert (z.height, z.width_px, z.window_px) == (0.0, 21.0, 0)
    assert (y.px, x.px) == (0, 0)
    assert y.height > 0.9


def test_a_peak_beyond_the_search_is_followed():
    """It is centred again twice; a peak that is farther away is no peak."""
    whole = blobs((40, 60, 140), sigma=6, count=200)
    first = Projections.of([whole[:, :, 30:110]])
    for moved, found in ((13, True), (30, False)):
        second = Projections.of([whole[:, :, 30 + moved : 110 + moved]])
        x = correlate_projections(first, second, (6, 6, 6))[2]
        assert (x.px == moved) == found


def test_layers_are_as_even_as_can_be():
    assert layers(40, 60) == [(0, 40)]
    assert layers(100, 60) == [(0, 50), (50, 100)]
    assert layers(11, 4) == [(0, 4), (4, 8), (8, 11)]


def test_a_projection_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no projections"):
        Projections.of([])


@pytest.fixture(scope="module")
def thick(make_phantom):
    """2 x 3 tiles with room for layers; one lost plane in the third."""
    return make_phantom(
        tile_shape=(60, 128, 128), overlap=0.3, finest_px=1.5, photons=2000, lost={(0, 2): [40]}, seed=3
    )


@pytest.fixture(scope="module")
def measured(thick):
    from cloudreg.execution import Engine

    settings = SETTINGS.model_copy(update={"layer_planes": 30})
    with Engine(workers=2, memory="1GB") as engine:
        return measure_displacements(thick.acquisition, 0, None, settings, engine)


def test_each_whole_layer_of_each_pair_is_measured(measured):
    count = {(tile.row, tile.column): (len(tile.east), len(tile.south)) for tile in measured.tiles}
    # The layer with the lost plane is left out on both sides of its tile.
    assert count == {(0, 0): (2, 2), (0, 1): (1, 2), (0, 2): (0, 1), (1, 0): (2, 0), (1, 1): (2, 0), (1, 2): (0, 0)}
    axis = measured.tile(0, 0).east[0].x
    assert (axis.nominal_px, axis.search_px, axis.largest_width_px, axis.infinite_width_px) == (89, 10, 10, 11)


def test_the_shifts_are_right_to_the_pixel(thick, measured):
    truth = dict(zip([(t.row, t.column) for t in thick.acquisition.tiles], thick.truth_px, strict=True))
    errors = []
    for tile in measured.projected().tiles:
        for displacements, other in ((tile.east, (0, 1)), (tile.south, (1, 0))):
            for displacement in displacements:
                there = truth[tile.row + other[0], tile.column + other[1]]
                expected = there - truth[tile.row, tile.column]
                errors.append([axis.px - e for axis, e in zip(displacement.axes, expected, strict=True)])
                assert all(axis.reliability > 0.5 for axis in displacement.axes)
    assert len(errors) == 7
    assert np.abs(errors).max() <= 1.0


@pytest.mark.parametrize("placement", ["tree", "least_squares"])
def test_the_tiles_are_placed(thick, measured, engine, placement):
    settings = SETTINGS.model_copy(update={"placement": placement})
    placed = align_in_steps(thick.acquisition, 0, None, settings, engine, start=measured).placed
    found = np.array([placed.position_px(tile.row, tile.column) for tile in thick.acquisition.tiles])
    assert thick.errors(found).max() < 1.5


def test_a_project_of_every_step_can_be_gone_on_from(thick, measured, engine, tmp_path):
    whole = align_in_steps(thick.acquisition, 0, None, SETTINGS, engine, start=measured)
    write_steps(whole, tmp_path / "steps", SETTINGS)
    names = ["displcomp", "displproj", "displthres", "import", "merging"]
    assert sorted(file.name for file in (tmp_path / "steps").iterdir()) == [f"xml_{name}.xml" for name in names]
    projects = {name: read_project(tmp_path / "steps" / f"xml_{name}.xml") for name in names}
    assert projects["displcomp"] == whole.measured
    assert not any(tile.east or tile.south for tile in projects["import"].tiles)
    assert all(len(tile.east) <= 1 for tile in projects["displproj"].tiles)
    assert [tile.position_px for tile in projects["merging"].tiles] == [t.position_px for t in whole.placed.tiles]
    for name in ("displcomp", "displproj", "displthres", "merging"):
        again = align_in_steps(thick.acquisition, 0, None, SETTINGS, engine, start=projects[name]).placed
        assert [tile.position_px for tile in again.tiles] == [tile.position_px for tile in whole.placed.tiles], name


def test_3d_links_can_be_placed_by_the_tree(thick, engine):
    settings = AlignSettings(search_um=(10.0, 10.0, 10.0), placement="tree")
    alignment = align_in_steps(thick.acquisition, 0, None, settings, engine)
    found = np.array([alignment.placed.position_px(t.row, t.column) for t in thick.acquisition.tiles])
    assert thick.errors(found).max() < 1.0
    assert any(axis.px != round(axis.px) for axis in alignment.measured.tile(0, 0).east[0].axes)


def test_an_empty_project_is_measured(phantom, engine):
    start = to_project(phantom.acquisition, 0)
    settings = AlignSettings(search_um=(8.0, 8.0, 8.0))
    placed = align_in_steps(phantom.acquisition, 0, None, settings, engine, start=start).placed
    found = np.array([placed.position_px(tile.row, tile.column) for tile in phantom.acquisition.tiles])
    assert phantom.errors(found).max() < 0.5


def test_the_project_of_another_grid_is_refused(phantom, thick, engine):
    other = replace(to_project(phantom.acquisition, 0), rows=1, columns=6)
    with pytest.raises(InputError, match=r"expected a project of 2 x 3 tiles .* got one of 1 x 6"):
        align_in_steps(thick.acquisition, 0, None, SETTINGS, engine, start=other)
    with pytest.raises(InputError, match="align this acquisition"):
        reuse_alignment(other, thick.acquisition, 0)


def axis(px, nominal, peak, width):
    return AxisDisplacement(px, nominal, peak, width, 29, 30, 60)


def displacement(v, h, d):
    return Displacement(z=axis(*d), y=axis(*v), x=axis(*h))


def test_the_example_of_the_format_is_placed_as_it_says():
    """2 x 3 cells, one without a tile, one pair without texture: positions by TeraStitcher's rules."""
    links = {
        (0, 0, "east"): displacement((-3, 0, 0.81, 6), (868, 870, 0.85, 5), (1, 0, 0.74, 3)),
        (0, 1, "east"): displacement((0, 0, 0, 30), (871, 870, 0, 30), (0, 0, 0, 30)),
        (0, 1, "south"): displacement((923, 921, 0.78, 7), (2, 0, 0.70, 8), (-1, 0, 0.66, 3)),
        (0, 2, "south"): displacement((920, 921, 0.80, 6), (-1, 0, 0.72, 7), (1, 0, 0.69, 3)),
        (1, 1, "east"): displacement((1, 0, 0.77, 6), (869, 870, 0.83, 5), (0, 0, 0.71, 3)),
    }
    tiles = tuple(
        ProjectTile(r, c, "" if (r, c) == (1, 0) else f"LOC{3 * r + c:03d}", (0, 921 * r, 870 * c), ((0, 40),))
        for r in range(2)
        for c in range(3)
    )
    project = Project(2, 3, 40, (5, 1.17, 1.17), (1078, 1018), "/data/demo/VW0", tiles)
    kept = project.linked({place: (link,) for place, link in links.items()}).thresholded(0.3)
    assert [tile.stitchable for tile in kept.tiles] == [True, True, True, False, True, True]
    placed = place_by_tree(kept)
    assert {(t.row, t.column): t.position_px for t in placed.tiles} == {
        (0, 0): (0, 0, 0),
        (0, 1): (1, -3, 868),
        (1, 1): (0, 920, 870),
        (1, 2): (0, 921, 1739),
        (0, 2): (-1, 1, 1740),
        (1, 0): (0, 921, 0),
    }


def test_the_source_is_the_nearest_stitchable_tile_and_the_first_cell_lies_at_zero():
    sure, unsure = (5, 0, 0.9, 3), (0, 0, 0.0, 30)
    tiles = tuple(ProjectTile(0, c, f"LOC{c:03d}", (0, 0, 90 * c), ((0, 9),)) for c in range(3))
    project = Project(1, 3, 9, (1, 1, 1), (90, 90), "/nowhere", tiles)
    links = {
        (0, 0, "east"): (displacement(unsure, (90, 90, 0, 30), unsure),),
        (0, 1, "east"): (displacement(sure, (85, 90, 0.9, 3), sure),),
    }
    placed = place_by_tree(project.linked(links).thresholded(0.3))
    assert [tile.position_px for tile in placed.tiles] == [(0, 0, 0), (0, 0, 90), (5, 5, 175)]


def test_one_tile_needs_no_chain():
    project = Project(1, 1, 9, (1, 1, 1), (90, 90), "/nowhere", (ProjectTile(0, 0, "LOC000", (0, 3, 4), ((0, 9),)),))
    assert place_by_tree(project).tiles[0].position_px == (0, 0, 0)


@pytest.mark.real
def test_a_real_project_is_placed(test_data):
    """2 x 2 tiles of 4,000 planes that TeraStitcher measured: each tile lies where the better way round leads."""
    project = read_project(test_data / "terastitcher_xml" / "terastitcher_displcomp_tsv_example.xml").thresholded(0.3)
    placed = place_by_tree(project)
    north, west = project.tile(0, 0).east[0], project.tile(0, 0).south[0]
    south, east = project.tile(1, 0).east[0], project.tile(0, 1).south[0]
    for axis in range(3):
        n, w, s, e = (link.axes[axis] for link in (north, west, south, east))

        def way(*steps):
            """Cost and end of a chain of links, each forwards or backwards."""
            return sum(1 / link.reliability for link, _ in steps), sum(sign * link.px for link, sign in steps)

        for place, ways in {
            (0, 1): (way((n, 1)), way((w, 1), (s, 1), (e, -1))),
            (1, 0): (way((w, 1)), way((n, 1), (e, 1), (s, -1))),
            (1, 1): (way((n, 1), (e, 1)), way((w, 1), (s, 1))),
        }.items():
            assert placed.position_px(*place)[axis] == min(ways)[1]
