"""The tiles on disk are the phantom where the truth says, seen through the microscope, and the score finds errors."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from cloudreg.atlas import load_atlas
from cloudreg.datasets import DemoSize, DemoTruth, make_acquisition, score_demo
from cloudreg.datasets.microscope import Microscope
from cloudreg.errors import InputError
from cloudreg.flatfield import Shading
from cloudreg.io import write_volume
from cloudreg.space import Grid
from cloudreg.tiles import open_acquisition
from cloudreg.transforms import DisplacementField, Transform

SIZE = DemoSize(
    side=48,
    planes=48,
    voxel_size_um=(84.0, 45.0),
    jitter_um=(60.0, 90.0, 90.0),
    template_um=100.0,
    labels_um=50.0,
    node_um=54.0,
)


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    return make_acquisition(tmp_path_factory.mktemp("demo") / "acquisition", seed=1, size=SIZE)


@pytest.fixture(scope="module")
def acquisition(truth):
    return open_acquisition(truth.acquisition)


def test_one_corner_is_not_scanned(truth, acquisition):
    assert (acquisition.rows, acquisition.columns, len(acquisition.tiles)) == (3, 4, 11)
    missing = {(r, c) for r in range(3) for c in range(4)} - {(t.row, t.column) for t in acquisition.tiles}
    assert missing <= {(0, 0), (0, 3), (2, 0), (2, 3)}
    assert [[t.row, t.column] for t in acquisition.tiles] == truth.cells.tolist()


def test_one_tile_lost_planes_in_all_channels(truth, acquisition):
    lost = {(t.row, t.column): acquisition.lost_planes(t, c) for c in (0, 1) for t in acquisition.tiles}
    expected = [p for _, _, start, stop in truth.lost for p in range(start, stop)]
    assert {cell: list(planes) for cell, planes in lost.items() if planes} == {(1, 2): expected}
    assert len(truth.lost) >= 2
    tile = next(t for t in acquisition.tiles if (t.row, t.column) == (1, 2))
    stack = acquisition.read(tile, 1, 0, SIZE.planes)
    assert [p for p in range(SIZE.planes) if not stack[p].any()] == expected


def test_stage_is_off_along_all_axes_but_within_its_tolerance(truth, acquisition):
    nominal = np.array([acquisition.nominal_px(t) for t in acquisition.tiles])
    assert np.allclose(nominal, truth.nominal_px)
    off_um = (truth.positions_px - nominal) * acquisition.voxel_size_um
    assert (np.abs(off_um).max(axis=0) <= SIZE.jitter_um).all()
    assert (off_um.std(axis=0) > 0.3 * np.asarray(SIZE.jitter_um)).all()


def standardised_residual(truth, acquisition, tile, channel, shift_px=(0, 0, 0)):
    """(tile - what it should be) / the noise's standard deviation, by way of the exact map, not of the renderer."""
    number = acquisition.tiles.index(tile)
    index = np.random.default_rng(0).integers(0, truth.tile_shape, size=(20_000, 3))
    index = index[~np.isin(index[:, 0], acquisition.lost_planes(tile, channel))]
    microscope = Microscope.random(truth.tile_shape[1:], truth.field.size_um.tolist(), 2, truth.seed)
    place_um = (truth.positions_px[number] + index + shift_px) * truth.field.voxel_size_um
    grey = truth.sample.image.at(truth.sample.map.target_to_atlas(place_um))[:, channel]
    light = np.prod([microscope.illumination(channel, axis, place_um[:, axis]) for axis in range(3)], axis=0)
    light = light * microscope.flats[channel][tuple(index[:, 1:].T)] * microscope.brightness[channel]
    variance = microscope.gain * grey * light + microscope.read_noise**2
    counts = acquisition.read(tile, channel, 0, truth.tile_shape[0])[tuple(index.T)].astype(float)
    return (counts - truth.background - grey * light) / np.sqrt(variance)


@pytest.mark.parametrize("cell", [(1, 1), (1, 2)])
@pytest.mark.parametrize("channel", [0, 1])
def test_tile_is_the_sample_at_its_true_place_up_to_noise(truth, acquisition, cell, channel):
    tile = next(t for t in acquisition.tiles if (t.row, t.column) == cell)
    residual = standardised_residual(truth, acquisition, tile, channel)
    assert abs(residual.mean()) < 0.03
    assert abs(residual.std() - 1) < 0.04
    # Half a pixel would be seen.
    assert standardised_residual(truth, acquisition, tile, channel, (0, 0.5, 0)).std() > 1.15


def test_flat_fields_differ_and_fall_off_to_the_corners(truth):
    assert np.allclose(truth.flats.mean(axis=(1, 2)), 1, atol=1e-5)
    for flat in truth.flats:
        assert 0.6 < flat.min() / flat.max() < 0.7
        assert flat.min() in (flat[0, 0], flat[0, -1], flat[-1, 0], flat[-1, -1])
    assert np.abs(truth.flats[0] - truth.flats[1]).max() > 0.005


def test_light_varies_slowly_over_the_volume():
    microscope = Microscope.random((8, 8), (4000.0, 6000.0, 7500.0), 1, 0)
    parts = [microscope.illumination(0, axis, np.linspace(0, microscope.field_um[axis], 50)) for axis in range(3)]
    light = np.einsum("i,j,k->ijk", *parts)
    assert 0.15 < light.max() / light.mean() - 1 < 0.45
    assert 0.15 < 1 - light.min() / light.mean() < 0.45


def test_sample_lies_inside_the_field(truth):
    points = truth.sample.phantom.grid_at(100.0)
    atlas = points.index_to_um(np.argwhere(truth.sample.phantom.labels(points) > 0))
    place = truth.field.um_to_index(truth.sample.map.atlas_to_target(atlas))
    assert (place > 0).all()
    assert (place < np.asarray(truth.field.shape) - 1).all()


def test_atlas_opens_and_its_labels_are_those_of_the_truth(truth):
    atlas = load_atlas(str(truth.atlas))
    assert atlas.orientation == "asr"
    assert atlas.template.grid == truth.sample.phantom.grid
    assert atlas.labels.grid == truth.sample.labels_grid
    assert np.allclose(atlas.labels.grid.bounds_um(), atlas.template.grid.bounds_um())
    assert np.array_equal(atlas.labels.read(), truth.sample.labels)
    assert atlas.regions[3_000_000_017].name == "Pyramidal tract"


def test_region_means_cover_both_sides(truth):
    regions = truth.regions
    assert len(np.unique(regions.ids)) >= 50
    left, right = set(regions.ids[~regions.right].tolist()), set(regions.ids[regions.right].tolist())
    assert len(left & right) >= 50
    assert 20 < regions.volume_mm3.sum() < 60
    assert ((regions.grey > 0) & (regions.grey < 3)).all()


def test_same_seed_same_bytes(truth, tmp_path):
    again = make_acquisition(tmp_path / "again", seed=1, size=SIZE)
    for file in sorted(p for p in truth.folder.rglob("*") if p.is_file()):
        assert file.read_bytes() == (again.folder / file.relative_to(truth.folder)).read_bytes(), file


def test_what_is_there_is_opened_and_what_is_not_the_same_is_refused(truth):
    before = truth.acquisition.stat().st_mtime_ns
    assert make_acquisition(truth.folder, seed=1, size=SIZE).seed == 1
    with pytest.raises(InputError, match="another seed or size"):
        make_acquisition(truth.folder, seed=2, size=SIZE)
    with pytest.raises(InputError, match="another seed or size"):
        make_acquisition(truth.folder, seed=1, size=replace(SIZE, planes=40))
    assert truth.acquisition.stat().st_mtime_ns == before


def test_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="expected a demo acquisition"):
        make_acquisition(tmp_path, size=SIZE)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.fixture(scope="module")
def perfect(truth, tmp_path_factory):
    """A result without error, but for a shift of everything, which no pipeline can know."""
    folder = tmp_path_factory.mktemp("perfect")
    shift_px = np.array([0.4, -1.2, 0.7])
    affine = truth.field.affine.copy()
    affine[:3, 3] = (truth.positions_px.min(axis=0) + shift_px) * truth.field.voxel_size_um
    grid = Grid(truth.field.shape, affine)
    true_frame = affine.copy()
    true_frame[:3, 3] -= shift_px * truth.field.voxel_size_um
    ids, _ = truth.sample.labels_on(Grid(grid.shape, true_frame))
    labels = write_volume(str(folder / "labels.ome.zarr"), ids, grid, kind="labels")

    nodes = truth.sample.phantom.grid_at(100.0)
    points = nodes.index_to_um(np.stack(np.meshgrid(*map(np.arange, nodes.shape), indexing="ij"), -1).reshape(-1, 3))
    deformation = truth.sample.map.deformation
    forward, inverse = (
        DisplacementField(nodes, np.moveaxis((f(points) - points).reshape(*nodes.shape, 3), -1, 0))
        for f in (deformation.forward, deformation.inverse)
    )
    moved = truth.sample.map.affine.copy()
    moved[:3, 3] += shift_px * truth.field.voxel_size_um

    with (folder / "regions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "acronym", "name", "side", "volume_mm3", "mean_a", "median_a", "mean_b", "median_b"])
        for i, right, volume, grey in zip(
            *(getattr(truth.regions, n) for n in ("ids", "right", "volume_mm3", "grey")), strict=True
        ):
            side = "right" if right else "left"
            writer.writerow([int(i), "", "", side, volume, 900 * grey[0], 0, 70 * grey[1], 0])
    return {
        "shadings": {c: Shading(3 * truth.flats[c], 100.0) for c in (0, 1)},
        "positions_px": truth.positions_px + shift_px,
        "transform": Transform(moved, forward, inverse),
        "labels": labels,
        "regions_csv": folder / "regions.csv",
    }


def test_score_of_a_perfect_result_is_perfect(truth, perfect):
    score = score_demo(truth, **perfect)
    assert max(score.shading_percent.values()) < 1e-4
    assert score.tile_px.max() < 1e-9
    # The field is interpolated linearly on 100 um.
    assert score.registration_um.max() < 3
    assert min(score.dice.values()) == 1
    assert max(v.max() for v in score.intensity_percent.values()) < 1e-6
    rows = score.rows()
    assert all(np.isfinite(value) for _, _, value in rows)
    assert len(score.region_rows()) >= 50


def test_score_finds_errors(truth, perfect):
    positions = perfect["positions_px"].copy()
    positions[3] += (0, 3, 4)
    transform = perfect["transform"]
    affine = transform.affine.copy()
    affine[:3, 3] += (30, 0, 0)
    y = np.linspace(0.9, 1.1, 48, dtype=np.float32)
    wrong = {
        **perfect,
        "positions_px": positions,
        "transform": replace(transform, affine=affine),
        "shadings": {c: Shading(truth.flats[c] * y[:, None], 100.0) for c in (0, 1)},
    }
    score = score_demo(truth, **wrong)
    assert score.tile_px.max() == pytest.approx(5 * 10 / 11)
    assert 20 < np.median(score.registration_um) < 50
    assert score.shading_percent[0] == pytest.approx(100 * y.std(), rel=0.1)
    assert np.mean(list(score.dice.values())) < 0.99


def test_truth_survives_the_disk(truth):
    again = DemoTruth.load(truth.folder)
    points = np.random.default_rng(0).uniform(500, 3000, size=(50, 3))
    assert np.array_equal(again.sample.map.target_to_atlas(points), truth.sample.map.target_to_atlas(points))
    assert again.field == truth.field
