"""The phantom is a brain: symmetric, named, layered, and smooth."""

import numpy as np
import pytest

from cloudreg.atlas import Region, Regions
from cloudreg.datasets import Phantom
from cloudreg.datasets.splines import SplineField
from cloudreg.datasets.structures import ONTOLOGY, STRUCTURE_IDS, Structure
from cloudreg.space import Grid


@pytest.fixture(scope="module")
def phantom():
    return Phantom(um_per_mm=480.0, template_um=100.0, node_um=50.0)


@pytest.fixture(scope="module")
def labels(phantom):
    return phantom.labels(phantom.grid_at(50.0))


def test_every_structure_occurs_on_both_sides_and_is_symmetric(labels):
    middle = labels.shape[2] // 2
    assert set(np.unique(labels[:, :, :middle])) == set(np.unique(labels[:, :, -middle:])) == set(STRUCTURE_IDS)
    assert np.array_equal(labels, labels[:, :, ::-1])


def test_symmetry_does_not_come_from_mirroring_an_array(phantom):
    lopsided = phantom.grid_at(100.0)
    cut = Grid.from_spacing((*lopsided.shape[:2], lopsided.shape[2] - 3), lopsided.voxel_size_um, lopsided.origin_um)
    assert np.array_equal(phantom.labels(cut), phantom.labels(lopsided)[:, :, :-3])


def test_brain_is_one_piece_inside_its_grid(labels):
    from scipy.ndimage import label

    pieces, count = label(labels > 0, structure=np.ones((3, 3, 3)))
    sizes = np.bincount(pieces.ravel())[1:]
    assert sizes.max() > 0.97 * sizes.sum(), f"{count} pieces"
    for axis in range(3):
        assert not np.moveaxis(labels, axis, 0)[[0, -1]].any()


def test_ontology_names_every_structure_once_and_its_ids_need_32_bits():
    regions = Regions(Region(*row) for row in ONTOLOGY)
    leaves = [regions[int(i)] for i in STRUCTURE_IDS[1:]]
    assert len({r.acronym for r in leaves}) == len({r.name for r in leaves}) == len(Structure) - 1 >= 20
    assert all(regions.ancestors(r.id)[-1] == 997 for r in leaves)
    assert STRUCTURE_IDS.max() > 2**31
    assert ((STRUCTURE_IDS > 2**15) & (STRUCTURE_IDS < 2**31)).any()


def test_points_and_grids_agree(phantom, labels):
    grid = phantom.grid_at(50.0)
    index = np.random.default_rng(0).integers(0, grid.shape, size=(5000, 3))
    assert np.array_equal(phantom.ids_at(grid.index_to_um(index)), labels[tuple(index.T)])


def test_cortex_has_layers_from_the_surface_inward(phantom):
    # Straight down through visual cortex, into the hippocampus.
    below = np.arange(0.0, 3.6, 0.02) * phantom.um_per_mm
    top = phantom.centre_um + np.array([8.5 - 6.65, -3.9, -2.2]) * phantom.um_per_mm
    path = phantom.ids_at(top + below[:, None] * np.array([0, 1, 0]))
    order = path[np.r_[True, path[1:] != path[:-1]]]
    names = [{row[0]: row[1] for row in ONTOLOGY}.get(int(i), "") for i in order]
    assert names[:4] == ["", "VISu", "VISd", "cc"]
    assert "CA1" in names[4:9]


def test_template_is_symmetric_and_the_channels_are_not(phantom):
    template = phantom.template()
    assert np.array_equal(template, template[:, :, ::-1])
    coefficients, _ = phantom.channel_coefficients()
    assert not np.allclose(coefficients, coefficients[:, :, ::-1])


def test_contrasts_are_not_functions_of_one_another(phantom):
    from scipy.stats import spearmanr

    coefficients, nodes = phantom.channel_coefficients()
    index = np.argwhere(coefficients[..., 0] > 0.15)
    template = phantom.template()
    at = np.rint(phantom.grid.um_to_index(nodes.index_to_um(index))).astype(int)
    grey = template[tuple(at.T)]
    for channel in range(2):
        assert abs(spearmanr(grey, coefficients[(*index.T, channel)]).statistic) < 0.7


def test_texture_is_fixed_by_the_seed(phantom):
    def first(seed):
        return Phantom(um_per_mm=480.0, template_um=100.0, node_um=100.0, seed=seed).channel_coefficients()[0]

    assert np.array_equal(first(3), first(3))
    assert not np.array_equal(first(3), first(4))


def test_image_can_be_asked_for_between_nodes(phantom):
    image = SplineField(*phantom.channel_coefficients())
    start = phantom.centre_um + np.array([200.0, -300.0, 400.0])
    line = start + np.linspace(0, 50, 401)[:, None] * np.array([0.6, 0.0, 0.8])
    values = image.at(line)[:, 0]
    # Second derivative is continuous: third differences stay tiny on steps of an eighth of a micrometre.
    assert values.std() > 0
    assert np.abs(np.diff(values, n=2)).max() < 1e-4


def test_spline_passes_between_the_values_it_is_given():
    grid = Grid.from_spacing((24, 25, 26), (10.0, 12.0, 9.0), (5.0, -4.0, 3.0))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), axis=-1)

    def smooth(points):
        z, y, x = np.moveaxis(points / 100, -1, 0)
        return np.stack([np.sin(z) + y * x, np.cos(x + y)], axis=-1)

    field = SplineField.through(smooth(grid.index_to_um(index)), grid)
    points = grid.index_to_um(np.random.default_rng(0).uniform(8, 14, size=(200, 3)))
    assert np.abs(field.at(points) - smooth(points)).max() < 1e-4
