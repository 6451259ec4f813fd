"""The documented COLM run and registration, by these functions only: from a bucket to a link that shows the result."""

import json
import urllib.parse
import urllib.request

import numpy as np
import pytest

from brains import SHAPE, VOXEL_UM, brain, displacement_field, true_map
from cloudreg.io import open_volume, remove_volume, write_volume
from cloudreg.io.objects import list_files, read_json
from cloudreg.space import Grid
from cloudreg.tiles import write_colm

TILE, PLANES, OVERLAP = 64, 40, 0.25
PIXEL_UM, STEP_UM = 76.0, 192.0
VOXEL = np.array([STEP_UM, PIXEL_UM, PIXEL_UM])


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """Tiles of a warped brain, 2 x 3, two channels; and the true atlas place (z y x um) of a sample point."""
    folder = tmp_path_factory.mktemp("scan")
    rows, columns = 2, 3
    pitch = TILE * (1 - OVERLAP)
    random = np.random.default_rng(5)
    offsets = random.integers((-1, -3, -3), (2, 4, 4), (rows * columns, 3))
    field = displacement_field(4, 200.0)
    template = brain()
    # The brain lies in the microscope as in the atlas, but for a shift that centres it in the field.
    size = np.array([PLANES * STEP_UM, (TILE + pitch) * PIXEL_UM, (TILE + 2 * pitch) * PIXEL_UM])
    shift = size / 2 - np.array(SHAPE) * VOXEL_UM / 2

    def to_atlas(points_um):
        return true_map(points_um - shift, np.eye(3), np.zeros(3), field)

    from scipy.ndimage import map_coordinates

    shape = PLANES + 8, int(TILE + pitch) + 16, int(TILE + 2 * pitch) + 16
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    grid = (index - (4, 8, 8)) * VOXEL
    atlas_um = to_atlas(grid.reshape(-1, 3))
    seen = map_coordinates(template, (atlas_um / VOXEL_UM).T, order=1, mode="constant").reshape(grid.shape[:3])
    grain = random.normal(1, 0.08, seen.shape)
    y, x = np.meshgrid(*(np.linspace(-1, 1, TILE),) * 2, indexing="ij")
    flat = 1.1 - 0.25 * (y**2 + x**2)

    def plane(row, column, channel, number):
        dz, dy, dx = offsets[row * columns + column]
        z, v, u = number + 4 + dz, round(row * pitch) + 8 + dy, round(column * pitch) + 8 + dx
        part = (seen * 1500 * grain if channel == 0 else seen**2 * 900 * grain)[z, v : v + TILE, u : u + TILE]
        return np.rint(100 + flat * part).clip(1, 65535).astype(np.uint16)

    write_colm(
        folder / "raw", rows=rows, columns=columns, tile_shape=(PLANES, TILE, TILE),
        voxel_size_um=(STEP_UM, PIXEL_UM, PIXEL_UM), overlap=(OVERLAP, OVERLAP), channels=2, objective="10x 0.6NA",
        scanned=np.ones((rows, columns), bool), planes=plane,
    )  # fmt: skip
    return folder / "raw", to_atlas, offsets


def labels_of(template):
    z, y, x = np.indices(template.shape)
    return np.where(template > 0.3, 1 + (z > 22) + 2 * (y > 18) + 4 * (x > 20), 0).astype(np.uint32) * np.uint32(70001)


def test_from_raw_tiles_in_a_bucket_to_a_link(legacy, scan, put, s3, state_server, tmp_path):
    raw, to_atlas, _ = scan
    put(raw, "s3://private/experiment")
    atlas_grid = Grid.from_spacing(SHAPE, (VOXEL_UM,) * 3)
    write_volume("precomputed://s3://private/atlas/average", (1000 * brain()).astype(np.uint16), atlas_grid)
    labels = labels_of(brain())
    write_volume("precomputed://s3://private/atlas/annotation", labels, atlas_grid, kind="labels")

    # All channels, the autofluorescence one by which tiles are aligned second.
    for channel in (1, 0):
        legacy("colm_pipeline").colm_pipeline(
            "s3://private/experiment", "s3://private/results", channel, 0,
            str(tmp_path / "ssd1"), str(tmp_path / "ssd2"), log_s3_path="s3://private/log",
        )  # fmt: skip
    planes = sorted((tmp_path / "ssd2").rglob("*.tif"))
    times = [plane.stat().st_mtime_ns for plane in planes]
    stitched = open_volume("precomputed://s3://private/results/0")
    # The same call goes on where it was stopped, and does nothing of what is done.
    even = stitched.read()
    remove_volume("precomputed://s3://private/results/0")
    for _ in range(2):
        legacy("colm_pipeline").colm_pipeline(
            "s3://private/experiment", "s3://private/results", 0, 0,
            str(tmp_path / "ssd1"), str(tmp_path / "ssd2"), log_s3_path="s3://private/log",
        )  # fmt: skip
    np.testing.assert_array_equal(open_volume("precomputed://s3://private/results/0").read(), even)
    assert [plane.stat().st_mtime_ns for plane in planes] == times and len(planes) > 2 * PLANES
    assert stitched.grid.voxel_size_um == (STEP_UM, PIXEL_UM, PIXEL_UM)
    assert open_volume("precomputed://s3://private/results/1").grid == stitched.grid
    assert {"xml_merging.xml", "shading/channel_00/flat.tif"} <= set(list_files("s3://private/log"))

    legacy("registration").register(
        "s3://private/results/0", "s3://private/atlas/average", "s3://private/atlas/annotation", "PIR",
        "s3://private/results/atlas_to_brain", "s3://private/log/registration", "PIR",
        1.0, [0, 0, 0], [0, 0, 0], True, False, False, 5000.0, 3000, 200,
    )  # fmt: skip
    found = open_volume("precomputed://s3://private/results/atlas_to_brain")
    assert found.grid.shape == stitched.grid.shape and found.kind == "labels"
    index = np.argwhere(np.ones([n // 3 for n in found.grid.shape], bool)) * 3
    values = found.read()[tuple(index.T)]

    def agreement(shift):
        place = to_atlas((index + shift) * VOXEL)
        nearest = np.rint(place / VOXEL_UM).astype(int)
        inside = ((nearest >= 0) & (nearest < SHAPE)).all(axis=1)
        truth = np.where(inside, labels[tuple(np.clip(nearest, 0, np.array(SHAPE) - 1).T)], 0)
        return (values == truth)[truth > 0].mean()

    # The volume begins where its outermost tile does, up to a few pixels off the stage's zero.
    assert max(agreement(np.subtract(shift, (1, 3, 3))) for shift in np.ndindex(3, 6, 6)) > 0.85
    assert "regions.csv" in list_files("s3://private/log/registration")

    layers = [f"s3://private/results/{name}" for name in ("0", "1", "atlas_to_brain")]
    turned = legacy("registration").get_affine_matrix([0, 0, 0], [0, 0, 0], "PIR", "LPS", 1.0, layers[0])
    link = legacy("visualization").create_viz_link(layers, [turned] * 3, url=state_server)
    with urllib.request.urlopen(link.partition("json_url=")[2]) as answer:
        state = json.load(answer)
    assert [layer["type"] for layer in state["layers"]] == ["image", "image", "segmentation"]
    for layer, path in zip(state["layers"], layers, strict=True):
        address = layer["source"]["url"].removeprefix("precomputed://")
        assert urllib.parse.urlparse(address).netloc in s3.endpoint
        assert read_json(path, "info") is not None and address.endswith(path.removeprefix("s3://"))
