"""Every kind of raw acquisition, from its files through the command line to a stitched volume."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from scipy import ndimage

from cloudreg.errors import InputError
from cloudreg.io import open_volume, write_volume
from cloudreg.io.remote import RemotePath
from cloudreg.space import Grid
from cloudreg.tiles import open_acquisition, read_project, to_project, write_colm, write_project
from cloudreg.tiles.damage import forget_damage
from cloudreg.tiles.read_ahead import ReadAhead

SHAPE = (28, 96, 96)
PITCH = 76
VOXEL = (2.0, 1.0, 1.0)
CELLS = [(r, c) for r in range(2) for c in range(3)]


def truth_px(row, column):
    """Where a tile is, off the nominal place by whole pixels."""
    random_ = np.random.default_rng([7, row, column])
    return np.add((2, 8 + row * PITCH, 8 + column * PITCH), random_.integers(-2, 3, 3) * (1, 2, 2))


@pytest.fixture(scope="module")
def stacks():
    noise = np.random.default_rng(5).standard_normal((36, 200, 280)).astype(np.float32)
    scene = sum(layer / layer.std() for layer in (ndimage.gaussian_filter(noise, s) for s in (1.2, 5)))
    scene = 300 * np.exp(0.3 * scene)
    made = {}
    for row, column in CELLS:
        inside = tuple(slice(a, a + n) for a, n in zip(truth_px(row, column), SHAPE, strict=True))
        light = np.random.default_rng([9, row, column]).poisson(scene[inside]) + 100
        made[row, column] = light.astype(np.uint16)
    return made


def nominal_um(row, column):
    return [0.0, 1000.0 + row * PITCH * VOXEL[1], 500.0 + column * PITCH * VOXEL[2]]


def name_of(row, column):
    return f"tile_{row}{column}"


def ome_tiffs_that_know_their_place(folder, stacks):
    for cell, stack in stacks.items():
        z, y, x = nominal_um(*cell)
        planes = {
            "PositionX": [x / 1000] * SHAPE[0],
            "PositionXUnit": ["mm"] * SHAPE[0],
            "PositionY": [y] * SHAPE[0],
            "PositionYUnit": ["µm"] * SHAPE[0],
            "PositionZ": [z + 2.0 * k for k in range(SHAPE[0])],
            "PositionZUnit": ["µm"] * SHAPE[0],
        }
        sizes = {"PhysicalSizeX": 1.0, "PhysicalSizeY": 1.0, "PhysicalSizeZ": 2.0}
        metadata = {"axes": "ZYX", "Plane": planes, **sizes}
        tifffile.imwrite(folder / f"{name_of(*cell)}.ome.tif", stack, metadata=metadata)
    return folder


def tiffs_with_a_csv_in_um(folder, stacks):
    lines = ["file,z_um,y_um,x_um"]
    for cell, stack in stacks.items():
        tifffile.imwrite(folder / f"{name_of(*cell)}.tif", stack, compression="zlib", photometric="minisblack")
        lines.append(",".join(map(str, [f"{name_of(*cell)}.tif", *nominal_um(*cell)])))
    (folder / "tiles.csv").write_text("\n".join(lines) + "\n")
    return folder


def tiffs_with_a_yaml_in_pixels(folder, stacks):
    tiles = []
    for row, column in stacks:
        tifffile.imwrite(folder / f"{name_of(row, column)}.tif", stacks[row, column], photometric="minisblack")
        tiles.append({"file": f"{name_of(row, column)}.tif", "position_px": [0, row * PITCH, column * PITCH]})
    (folder / "positions.yaml").write_text(yaml.safe_dump({"voxel_size_um": list(VOXEL), "tiles": tiles}))
    return folder


def ome_zarrs_that_know_their_place(folder, stacks):
    for cell, stack in stacks.items():
        grid = Grid.from_spacing(SHAPE, VOXEL, nominal_um(*cell))
        write_volume(folder / f"{name_of(*cell)}.ome.zarr", stack, grid)
    return folder


def colm(folder, stacks):
    return write_colm(
        folder / "raw",
        rows=2,
        columns=3,
        tile_shape=SHAPE,
        voxel_size_um=VOXEL,
        overlap=(1 - PITCH / SHAPE[1], 1 - PITCH / SHAPE[2]),
        channels=1,
        objective="10x 0.6NA",
        scanned=np.ones((2, 3), bool),
        planes=lambda row, column, channel, plane: stacks[row, column][plane],
    ).path


def project_of_planes(folder, stacks):
    raw = colm(folder, stacks)
    write_project(to_project(open_acquisition(raw), 0), folder / "xml_import.xml", step="import")
    (raw / "Experiment.ini").unlink()
    (raw / "Scanned Cells.txt").unlink()
    return folder / "xml_import.xml"


def project_of_blocks(folder, stacks):
    xml = project_of_planes(folder, stacks)
    text = xml.read_text().replace("TiledXY|2Dseries", "TiledXY|3Dseries").replace("tiff2D", "tiff3D")
    text = text.replace("<Stack ", '<Stack N_BLOCKS="2" BLOCK_SIZES="10,18" BLOCKS_ABS_D="0,10" ')
    xml.write_text(text)
    for tile in read_project(xml).tiles:
        here = folder / "raw" / "VW0" / tile.name
        for file in here.iterdir():
            file.unlink()
        stack = stacks[tile.row, tile.column]
        for number, part in enumerate((stack[:10], stack[10:])):
            tifffile.imwrite(here / f"x_CHN00_PLN{number}.tif", part, photometric="minisblack")
    return xml


MAKERS = [
    ome_tiffs_that_know_their_place,
    tiffs_with_a_csv_in_um,
    tiffs_with_a_yaml_in_pixels,
    ome_zarrs_that_know_their_place,
    project_of_planes,
    project_of_blocks,
]


def stitched(cloudreg, raw, folder, *words):
    """Align and fuse; return the largest error of a tile and the volume."""
    size = ["--voxel-size", *VOXEL] if str(raw).endswith("csv_in_um") else []
    settings = folder / "settings.yaml"
    settings.write_text("align:\n  search_um: [8, 10, 10]\n")
    code, _, err = cloudreg("align", raw, folder / "placed.xml", *size, "--settings", settings, "--memory", "1GB")
    assert code == 0, err
    code, _, err = cloudreg("fuse", folder / "placed.xml", folder / "out.ome.zarr", "--memory", "1GB", *words)
    assert code == 0, err
    project = read_project(folder / "placed.xml")
    found = np.array([project.position_px(*cell) for cell in CELLS])
    off = found - np.array([truth_px(*cell) for cell in CELLS])
    return np.abs(off - np.median(off, axis=0)).max(), open_volume(folder / "out.ome.zarr")


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_tiles_of_every_kind_are_stitched(make, stacks, cloudreg, tmp_path):
    home = tmp_path / make.__name__
    home.mkdir()
    acquisition = make(home, stacks)
    kept = {file: file.read_bytes() for file in home.rglob("*") if file.is_file()}
    error, volume = stitched(cloudreg, acquisition, tmp_path)
    assert error < 0.2
    assert {file: file.read_bytes() for file in home.rglob("*") if file.is_file()} == kept
    assert volume.grid.voxel_size_um == pytest.approx(VOXEL)
    # The middle of the first tile, which no other covers.
    project = read_project(tmp_path / "placed.xml")
    origin = np.round(np.divide(volume.grid.origin_um, VOXEL)).astype(int)
    z, y, x = np.floor(np.add(project.position_px(0, 0), 0.5)).astype(int) - origin
    part = volume.read()[z : z + SHAPE[0], y + 20 : y + 60, x + 20 : x + 60]
    np.testing.assert_array_equal(part, stacks[0, 0][:, 20:60, 20:60])


def test_a_table_of_any_name_is_asked_for_where_the_project_does_not_lead_to_it(stacks, cloudreg, refused, tmp_path):
    tiffs_with_a_csv_in_um(tmp_path, stacks)
    table = (tmp_path / "tiles.csv").rename(tmp_path / "mine.csv")
    project, out = tmp_path / "p.xml", tmp_path / "out.ome.zarr"
    assert cloudreg("align", table, project, "--voxel-size", *VOXEL)[0] == 0
    assert f"or say with --raw which folder or table was aligned to {project}" in refused("fuse", project, out)
    assert not out.exists()
    assert cloudreg("fuse", project, out, "--raw", table)[0] == 0


@pytest.mark.parametrize("make", [tiffs_with_a_yaml_in_pixels, ome_zarrs_that_know_their_place, colm])
def test_tiles_in_a_bucket_are_read_where_they_lie(make, stacks, s3, cloudreg, tmp_path):
    import boto3

    home = tmp_path / "here"
    home.mkdir()
    made = make(home, stacks)
    client = boto3.client("s3", endpoint_url=s3.endpoint, region_name="us-east-1")
    for file in made.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), "private", f"{make.__name__}/{file.relative_to(made)}")
    shutil.rmtree(home)
    error, _ = stitched(cloudreg, f"s3://private/{make.__name__}", tmp_path)
    assert error < 0.2


def test_a_remote_file_is_read_in_parts(s3):
    import boto3

    content = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
    boto3.client("s3", endpoint_url=s3.endpoint, region_name="us-east-1").put_object(
        Bucket="private", Key="some/file.bin", Body=content
    )
    with RemotePath("s3://private/some/file.bin").open() as file:
        for start, count in ((0, 10), (5, 20), (100_000, 150_000), (299_990, 100), (7, 299_993), (300_000, 4)):
            file.seek(start)
            assert file.read(count) == content[start : start + count]
    with RemotePath("s3://private/some/nothing.bin").open() as file, pytest.raises(FileNotFoundError):
        file.read(1)


def test_chunks_of_many_planes_are_decoded_once(stacks, tmp_path):
    acquisition = open_acquisition(ome_zarrs_that_know_their_place(tmp_path, stacks))
    assert acquisition.planes_together > 1
    reads = []
    read = acquisition.read
    object.__setattr__(acquisition, "read", lambda *a: reads.append(a[2:4]) or read(*a))
    tile, part = acquisition.tiles[4], (slice(3, 50), slice(10, 96))
    ahead = ReadAhead(acquisition, 0)
    for plane in range(5, 28):
        np.testing.assert_array_equal(ahead.plane(tile, plane, *part), stacks[1, 1][(plane, *part)])
    assert len(reads) <= 28 // acquisition.planes_together + 1


@pytest.fixture
def table(stacks, tmp_path):
    """A folder of TIFFs with a table, small enough to be changed again and again."""
    home = tmp_path / "table"
    home.mkdir()
    return tiffs_with_a_yaml_in_pixels(home, {cell: stack[:4] for cell, stack in stacks.items()})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "a row for each tile"),
        ("file,y\na.tif,0\n", "row 1 of .*tiles.csv"),
        ("file,z,y,x\nnowhere.tif,0,0,0\n", "nowhere.tif"),
        ("file,z,y,x\ntile_00.tif,0,0,zero\n", "expected numbers in row 1"),
        ("file,z,y,x\ntile_00.tif,0,0,nan\n", "finite positions"),
        ("file,z,y,x\ntile_00.tif,0,0,0\ntile_01.tif,0,0,0\n", "tile_00 and tile_01.tif at the same position"),
        ("file,z,y,x\ntile_00.tif,0,0,0\ntile_01.tif,0,3,2\n", "tile_01 and tile_00 are at the same place"),
        ("file,z,y,x\ntile_00.tif,0,0,0\ntile_00.tif,0,0,70\n", "names the tile tile_00 twice"),
    ],
)
def test_a_wrong_table_is_refused_in_one_line(table, refused, rows, message, tmp_path):
    (table / "positions.yaml").unlink()
    (table / "tiles.csv").write_text(rows)
    line = refused("align", table, tmp_path / "out.xml", "--voxel-size", *VOXEL)
    with pytest.raises(InputError, match=message):
        raise InputError(line)
    assert not (tmp_path / "out.xml").exists()


@pytest.mark.parametrize(
    "change",
    [lambda s: s[:, :-1], lambda s: s.astype(np.uint8), lambda s: s.astype(np.float32)],
    ids=["shape", "uint8", "float32"],
)
def test_tiles_that_differ_are_refused(table, refused, change, tmp_path):
    file = table / "tile_11.tif"
    tifffile.imwrite(file, change(tifffile.imread(file)), photometric="minisblack")
    assert "tile_11" in refused("align", table, tmp_path / "out.xml")


def test_a_shorter_tile_has_lost_its_last_planes(table):
    file = table / "tile_11.tif"
    tifffile.imwrite(file, tifffile.imread(file)[:3], photometric="minisblack")
    acquisition = open_acquisition(table)
    tile = next(t for t in acquisition.tiles if t.name == "tile_11")
    assert acquisition.lost_planes(tile, 0) == (3,)
    assert not acquisition.read(tile, 0, 3, 4).any()


def test_channels_of_one_place_are_one_tile(table):
    content = yaml.safe_load((table / "positions.yaml").read_text())
    for tile in list(content["tiles"]):
        other = f"red_{tile['file']}"
        shutil.copy(table / tile["file"], table / other)
        content["tiles"].append({**tile, "file": other, "channel": 1})
        tile["channel"] = 0
    (table / "positions.yaml").write_text(yaml.safe_dump(content))
    acquisition = open_acquisition(table)
    assert (len(acquisition.tiles), acquisition.channels) == (6, (0, 1))
    np.testing.assert_array_equal(*(acquisition.read(acquisition.tiles[2], c, 0, 4) for c in (0, 1)))


def test_a_row_of_the_grid_that_was_not_scanned_leaves_a_gap(table):
    content = yaml.safe_load((table / "positions.yaml").read_text())
    content["tiles"] = [t for t in content["tiles"] if not t["file"].startswith("tile_01")]
    (table / "positions.yaml").write_text(yaml.safe_dump(content))
    acquisition = open_acquisition(table)
    assert [(t.row, t.column) for t in acquisition.tiles] == [(0, 0), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert acquisition.overlap == pytest.approx((1 - PITCH / 96, 1 - PITCH / 96))


def test_a_damaged_plane_is_named_at_the_end_and_strict_stops(stacks, cloudreg, refused, tmp_path):
    forget_damage()
    raw = colm(tmp_path, stacks)
    bad = next((raw / "VW0" / "LOC001").glob("*PLN0013.tif"))
    bad.write_bytes(b"II*\0" + bytes(range(256)) * 20)
    error, volume = stitched(cloudreg, raw, tmp_path)
    assert error < 0.2
    whole = volume.read()
    code, _, err = cloudreg("fuse", tmp_path / "placed.xml", tmp_path / "again.ome.zarr", "--memory", "1GB")
    assert code == 0
    assert "1 plane(s) could not be read and were taken for lost: LOC001 plane 13 of channel 0" in " ".join(err.split())
    assert str(bad) in refused("fuse", tmp_path / "placed.xml", tmp_path / "strict.ome.zarr", "--strict")
    assert not (tmp_path / "strict.ome.zarr").exists()
    bad.unlink()
    forget_damage()
    assert cloudreg("fuse", tmp_path / "placed.xml", tmp_path / "lost.ome.zarr", "--memory", "1GB")[0] == 0
    np.testing.assert_array_equal(open_volume(tmp_path / "lost.ome.zarr").read(), whole)


def test_no_link_at_all_is_said_and_placed_by_the_stage(cloudreg, tmp_path):
    dark = {cell: np.random.default_rng([1, *cell]).poisson(100, SHAPE).astype(np.uint16) for cell in CELLS}
    code, out, err = cloudreg("align", colm(tmp_path, dark), tmp_path / "placed.xml", "--memory", "1GB")
    assert code == 0
    assert "WARNING no overlap could be used: all tiles are placed by the stage" in " ".join((out + err).split())
    project = read_project(tmp_path / "placed.xml")
    assert project.position_px(1, 2) == pytest.approx((0, PITCH, 2 * PITCH), abs=1e-6)


def test_a_tile_that_shows_nothing_is_named_and_how_far_it_may_be_off(cloudreg, tmp_path, stacks):
    dark = stacks | {(0, 2): np.random.default_rng(1).poisson(100, SHAPE).astype(np.uint16)}
    code, out, err = cloudreg("align", colm(tmp_path, dark), tmp_path / "placed.xml", "--memory", "1GB")
    assert code == 0
    said = " ".join((out + err).split())
    assert "WARNING LOC002 (row 0, column 2): no usable overlap: placed by the stage, may be off by up to ~" in said
    assert said.count("WARNING") == 1


def test_a_negative_search_is_refused(refused, tmp_path, stacks):
    (tmp_path / "settings.yaml").write_text("align:\n  search_um: [8, -10, 10]\n")
    words = ("align", colm(tmp_path, stacks), tmp_path / "placed.xml", "--settings", tmp_path / "settings.yaml")
    assert "setting align.search_um.1" in refused(*words)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("16.5", r"the horizontal overlap is stated as 16\.5%; the tiles overlap by (19|20|21|22)\.\d%"),
        ("0.5", r"(few horizontal overlaps .* the stated overlap of|the horizontal overlap is stated as) 0\.5%"),
    ],
)
def test_a_wrong_overlap_in_the_description_is_said(stacks, cloudreg, tmp_path, stated, message):
    raw = colm(tmp_path, stacks)
    ini = raw / "Experiment.ini"
    lines = [
        f'Actual Horizontal Overlap (%) = "{stated}"' if line.startswith("Actual Horizontal") else line
        for line in ini.read_text().splitlines()
    ]
    ini.write_text("\n".join(lines))
    settings = tmp_path / "settings.yaml"
    settings.write_text("align:\n  search_um: [8, 10, 10]\n")
    code, out, err = cloudreg("align", raw, tmp_path / "p.xml", "--settings", settings, "--memory", "1GB")
    assert code == 0
    assert re.search(message, " ".join((out + err).split()))


def files_of(volume):
    return {str(f.relative_to(volume)): f.read_bytes() for f in sorted(volume.rglob("*")) if f.is_file()}


def test_fused_bytes_do_not_depend_on_being_killed_workers_or_memory(stacks, cloudreg, tmp_path):
    raw = colm(tmp_path, stacks)
    assert cloudreg("align", raw, tmp_path / "placed.xml", "--memory", "1GB")[0] == 0
    settings = tmp_path / "settings.yaml"
    settings.write_text("fusion:\n  chunk: [8, 16, 16]\n")
    words = ["fuse", tmp_path / "placed.xml", tmp_path / "out.ome.zarr", "--settings", settings]
    assert cloudreg(*words[:2], tmp_path / "whole.ome.zarr", *words[3:], "--workers", 3)[0] == 0
    source = Path(__file__).resolve().parents[2] / "src"
    environment = {**os.environ, "PYTHONPATH": str(source)}
    command = [sys.executable, "-m", "cloudreg", *map(str, words), "--workers", "1", "--memory", "70MB"]
    kills = 0
    for wait in (0.0, 0.05, 0.3):
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not any((tmp_path / "out.ome.zarr").rglob("c/*")):
                time.sleep(0.005)
            time.sleep(wait * random.Random(kills).random())
            process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills
    code, _, err = cloudreg(*words, "--workers", 2, "--memory", "200MB")
    assert code == 0, err
    assert files_of(tmp_path / "out.ome.zarr") == files_of(tmp_path / "whole.ome.zarr")
    assert not list(tmp_path.glob(".*.ledger"))
    assert json.loads((tmp_path / "out.ome.zarr/zarr.json").read_text())
