"""The region table of a phantom whose numbers are known."""

import csv

import numpy as np
import pytest

from cloudreg.atlas import Atlas, Region, Regions
from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.io import open_volume, write_volume
from cloudreg.regions import count_cells, region_table, write_regions_csv
from cloudreg.regions import table as table_module
from cloudreg.space import Grid
from cloudreg.transforms import DisplacementField, Transform, resample

SHAPE = (20, 26, 30)
ATLAS_GRID = Grid.from_spacing(SHAPE, (50.0, 40.0, 40.0))
TARGET_GRID = Grid.from_spacing((33, 41, 45), (30.0, 25.0, 26.0), (5.0, 3.0, 8.0))
BIG_ID = 3_000_000_019
REGIONS = Regions([Region(12, "front", "front, outer"), Region(BIG_ID, "back", "back"), Region(99, "none", "absent")])
AFFINE = np.array([[1.0, 0.05, 0.0, 10.0], [-0.05, 1.0, 0.03, 5.0], [0.0, -0.03, 1.0, -10.0], [0, 0, 0, 1.0]])
FIELD = Grid.from_spacing((6, 6, 6), (220.0, 220.0, 260.0), (-50.0, -50.0, -50.0))
RNG = np.random.default_rng(0)
TRANSFORM = Transform(AFFINE, *[DisplacementField(FIELD, RNG.normal(0, 12, (3, *FIELD.shape))) for _ in range(2)])
IDENTITY = Transform.from_affine(np.eye(4), FIELD)


def label_array():
    z, y, _ = np.indices(SHAPE)
    labels = np.zeros(SHAPE, np.uint32)
    labels[z < 9] = 12
    labels[z >= 9] = BIG_ID
    labels[y > 22] = 5
    labels[:2] = 0
    return labels


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    folder = tmp_path_factory.mktemp("atlas")
    template = write_volume(
        str(folder / "t.ome.zarr"), np.arange(np.prod(SHAPE)).reshape(SHAPE).astype("u2"), ATLAS_GRID
    )
    labels = write_volume(str(folder / "l.ome.zarr"), label_array(), ATLAS_GRID, kind="labels")
    return Atlas("example", template, labels, "asr", REGIONS)


@pytest.fixture(scope="module")
def channels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("channels")
    rng = np.random.default_rng(1)
    first = rng.integers(0, 60000, TARGET_GRID.shape).astype(np.uint16)
    first[:, :, :4] = 0
    second = rng.normal(50, 20, TARGET_GRID.shape).astype(np.float32)
    return {
        "561": write_volume(str(folder / "a.ome.zarr"), first, TARGET_GRID),
        "soft": write_volume(str(folder / "b.ome.zarr"), second, TARGET_GRID),
    }


def expected_regions(atlas):
    """Region and side of every target voxel, point by point."""
    points = TARGET_GRID.index_to_um(np.moveaxis(np.indices(TARGET_GRID.shape), 0, -1).reshape(-1, 3))
    mapped, _ = TRANSFORM.target_to_atlas(points)
    labels = atlas.labels_at(mapped).reshape(TARGET_GRID.shape)
    return labels, atlas.side(mapped).reshape(TARGET_GRID.shape)


def test_every_number_is_that_of_the_voxels_mapped_one_by_one(atlas, channels, engine):
    table = region_table(TRANSFORM, atlas, channels, engine=engine)
    labels, sides = expected_regions(atlas)
    assert [(r.region.acronym, r.side) for r in table.rows] == [
        (name, side) for name in ("front", "back", "5") for side in ("left", "right")
    ]
    arrays = {name: volume.read() for name, volume in channels.items()}
    for row in table.rows:
        here = (labels == row.region.id) & (sides == row.side)
        assert here.sum() > 100
        assert row.volume_mm3 == pytest.approx(here.sum() * 30 * 25 * 26 * 1e-9)
        seen = arrays["561"][here & (arrays["561"] > 0)]
        got = row.channels["561"]
        assert (got.observed, got.sum, got.median) == (seen.size, int(seen.sum(dtype=np.int64)), np.median(seen))
        assert got.mean == pytest.approx(seen.mean(dtype=np.float64))
        assert row.channels["soft"].mean == pytest.approx(arrays["soft"][here].mean(dtype=np.float64))
        assert row.channels["soft"].median == pytest.approx(np.median(arrays["soft"][here]), rel=0.004)
        assert row.cells is None


def test_the_volumes_of_an_undeformed_brain_are_the_atlas_own(atlas, engine):
    table = region_table(IDENTITY, atlas, {}, engine=engine, target_grid=ATLAS_GRID)
    labels = label_array()
    for row in table.rows:
        half = slice(0, 15) if row.side == "right" else slice(15, 30)
        voxels = (labels[:, :, half] == row.region.id).sum()
        assert row.volume_mm3 == pytest.approx(voxels * 50 * 40 * 40 * 1e-9)


def test_workers_and_memory_do_not_change_a_digit(atlas, channels, monkeypatch, tmp_path):
    monkeypatch.setattr(table_module, "_BLOCK", (8, 16, 16))
    with Engine(workers=1, memory="1GB") as one:
        write_regions_csv(region_table(TRANSFORM, atlas, channels, engine=one), tmp_path / "a.csv")
    with Engine(workers=2, memory="64MB") as two:
        write_regions_csv(region_table(TRANSFORM, atlas, channels, engine=two), tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_block_size_does_not_change_integer_figures(atlas, channels, engine, monkeypatch):
    integer = {"561": channels["561"]}
    whole = region_table(TRANSFORM, atlas, integer, engine=engine)
    monkeypatch.setattr(table_module, "_BLOCK", (5, 7, 11))
    assert region_table(TRANSFORM, atlas, integer, engine=engine) == whole


def test_a_coarser_level_gives_nearly_the_same_means(atlas, channels, engine):
    fine = region_table(IDENTITY, atlas, {"561": channels["561"]}, engine=engine)
    coarse = region_table(IDENTITY, atlas, {"561": channels["561"]}, engine=engine, voxel_um=60)
    if len(channels["561"].levels) > 1:
        assert coarse != fine
    for a, b in zip(fine.rows, coarse.rows, strict=True):
        assert b.volume_mm3 == pytest.approx(a.volume_mm3, rel=0.15)


def test_cells_are_counted_in_the_region_that_they_were_put_into(atlas, channels, engine, tmp_path):
    labels, sides = expected_regions(atlas)
    rng = np.random.default_rng(3)
    index = rng.integers(0, TARGET_GRID.shape, (400, 3))
    points = TARGET_GRID.index_to_um(index)
    (tmp_path / "um.csv").write_text("z_um,y_um,x_um\n" + "\n".join(",".join(map(repr, p)) for p in points.tolist()))
    (tmp_path / "voxel.csv").write_text(
        "z,y,x\n" + "\n".join(",".join(map(str, p)) for p in index.tolist()) + "\n1e9,0,0"
    )
    by_um = region_table(TRANSFORM, atlas, channels, engine=engine, cells=tmp_path / "um.csv")
    by_voxel = region_table(TRANSFORM, atlas, channels, engine=engine, cells=tmp_path / "voxel.csv")
    for row, other in zip(by_um.rows, by_voxel.rows, strict=True):
        z, y, x = index.T
        expected = ((labels[z, y, x] == row.region.id) & (sides[z, y, x] == row.side)).sum()
        assert row.cells == other.cells == expected
    assert sum(count_cells(TRANSFORM, atlas, tmp_path / "um.csv", None).values()) == sum(r.cells for r in by_um.rows)


def test_the_file_has_the_promised_columns_and_reads_back(atlas, channels, engine, tmp_path):
    table = region_table(TRANSFORM, atlas, channels, engine=engine)
    write_regions_csv(table, tmp_path / "out" / "regions.csv")
    with (tmp_path / "out" / "regions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    figures = [f"{what}_{name}" for name in ("561", "soft") for what in ("mean", "median", "sum")]
    assert list(rows[0]) == ["id", "acronym", "name", "side", "volume_mm3", *figures]
    assert rows[0]["name"] == "front, outer" and rows[2]["id"] == str(BIG_ID)
    for row, line in zip(table.rows, rows, strict=True):
        assert float(line["volume_mm3"]) == row.volume_mm3 and int(line["sum_561"]) == row.channels["561"].sum
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["regions.csv"]


def test_doubts_stand_beside_the_regions_that_they_are_about(atlas, channels, engine, tmp_path):
    table = region_table(TRANSFORM, atlas, channels, engine=engine)
    first = table.rows[0]
    doubts = {(first.region.id, first.side): "only 3% of it was seen"}
    write_regions_csv(table, tmp_path / "regions.csv", doubts=doubts)
    with (tmp_path / "regions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["doubt"] for row in rows] == ["only 3% of it was seen", *[""] * (len(rows) - 1)]


def test_labels_that_were_pulled_agree_with_the_table(atlas, channels, engine):
    table = region_table(TRANSFORM, atlas, {"561": channels["561"]}, engine=engine)
    pulled = resample(TRANSFORM, label_array(), ATLAS_GRID, TARGET_GRID, to="target", labels=True)
    for region in (12, BIG_ID, 5):
        volume = sum(r.volume_mm3 for r in table.rows if r.region.id == region)
        assert volume == pytest.approx((pulled == region).sum() * 30 * 25 * 26 * 1e-9)


def test_what_does_not_fit_is_refused(atlas, channels, engine, tmp_path):
    bare = Atlas("bare", atlas.template, None, "asr", REGIONS)
    with pytest.raises(InputError, match="has no labels"):
        region_table(TRANSFORM, bare, channels, engine=engine)
    with pytest.raises(InputError, match="needs a channel"):
        region_table(TRANSFORM, atlas, {}, engine=engine)
    write_volume(str(tmp_path / "o.ome.zarr"), np.ones((5, 6, 7), np.uint16), Grid.from_spacing((5, 6, 7), (9, 9, 9)))
    other = open_volume(str(tmp_path / "o.ome.zarr"))
    with pytest.raises(InputError, match="on one grid"):
        region_table(TRANSFORM, atlas, {**channels, "other": other}, engine=engine)
