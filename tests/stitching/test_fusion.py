"""Fusion: what each voxel is, where it lies, and that the bytes depend on nothing else."""

import hashlib
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from cloudreg.errors import InputError
from cloudreg.execution import Engine, Ledger
from cloudreg.flatfield import Shading
from cloudreg.io import create_volume
from cloudreg.settings import AlignSettings, FusionSettings
from cloudreg.space import Box
from cloudreg.stitching import align, fuse, fusion
from cloudreg.stitching.content import content_part, content_weights
from cloudreg.stitching.exposure import Exposure, balance_exposure, solve_exposures
from cloudreg.stitching.fusion import FuseBlock, block_bytes, block_shape, edge_weights
from cloudreg.stitching.places import tile_places
from cloudreg.tiles import Drift, read_project, to_project, write_colm, write_project

SETTINGS = FusionSettings(chunk=(8, 16, 16))


@pytest.fixture
def acquisition(in_memory):
    """2 x 3 tiles of noise, one cell unscanned, lost planes in one tile."""
    random = np.random.default_rng(0)
    cells = [(r, c) for r in range(2) for c in range(3) if (r, c) != (1, 2)]
    stacks = {cell: random.integers(1, 60000, (20, 40, 48), dtype=np.uint16) for cell in cells}
    return in_memory(stacks, (2, 3), (0.2, 0.25), lost={(0, 1): [7, 8]})


def placed(acquisition, positions=None):
    return to_project(acquisition, 0).moved(positions or {})


JITTERED = {(0, 0): (0.4, -3.2, 2.0), (0, 1): (-1.6, 1.0, 37.5), (1, 1): (2.0, 30.7, 33.3)}


def swaying(project):
    """The same project with tiles that drift sideways, by several pixels and not all alike."""
    drifts = {
        (0, 0): Drift((0.0, 19.0), (-3.4, 3.4), (5.0, -5.0)),
        (0, 1): Drift((0.0, 9.0, 19.0), (0.0, -4.2, 0.0), (3.0, 0.0, -3.0)),
        (1, 1): Drift((0.0, 19.0), (2.0, -2.0), (0.0, 0.0)),
    }
    return project.drifting(drifts)


def digest(folder):
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
    return hashlib.sha256(b"".join(str(p.relative_to(folder)).encode() + p.read_bytes() for p in files)).hexdigest()


def test_what_one_tile_saw_is_kept_to_the_last_bit(acquisition, engine, tmp_path):
    volume = fuse(acquisition, 0, placed(acquisition), None, tmp_path / "v.ome.zarr", SETTINGS, engine)
    assert volume.grid.shape == (20, 40 + 32, 48 + 2 * 36)
    assert volume.dtype == np.uint16
    fused = volume.read()
    # Rows 0..31 and columns 0..35 belong to the first tile alone.
    np.testing.assert_array_equal(fused[:, :32, :36], acquisition.stacks[0, 0][:, :32, :36])
    np.testing.assert_array_equal(fused[:, 40:, :36], acquisition.stacks[1, 0][:, 8:, :36])
    assert not fused[:, 40:, 84:].any()


def test_the_mean_of_equal_tiles_is_what_they_are(in_memory, engine, tmp_path):
    stacks = {(r, c): np.full((6, 40, 40), 54321, np.uint16) for r in range(2) for c in range(2)}
    tiles = in_memory(stacks, (2, 2), (0.3, 0.3))
    for blending in ("cosine", "linear"):
        settings = FusionSettings(blending=blending)
        volume = fuse(tiles, 0, placed(tiles), None, tmp_path / f"{blending}.ome.zarr", settings, engine)
        assert (volume.read() == 54321).all()


def test_blending_goes_over_smoothly_from_tile_to_tile(in_memory, engine, tmp_path):
    stacks = {(0, c): np.full((2, 20, 100), 1000 * (c + 1), np.uint16) for c in range(2)}
    tiles = in_memory(stacks, (1, 2), (0.1, 0.2))
    volume = fuse(tiles, 0, placed(tiles), None, tmp_path / "v.ome.zarr", SETTINGS, engine)
    profile = volume.read()[0, 10].astype(float)
    share = (profile[80:100] - 1000) / 1000
    np.testing.assert_allclose(share, np.sin(np.pi / 2 * (np.arange(20) + 0.5) / 20) ** 2, atol=1e-3)
    assert (profile[:80] == 1000).all()
    assert (profile[100:] == 2000).all()


@pytest.mark.parametrize("blending", ["cosine", "linear"])
def test_weights_of_two_tiles_add_up_to_one_and_never_vanish(blending):
    weights = edge_weights(100, 30, blending)
    np.testing.assert_allclose(weights[-30:] + weights[:30], 1, atol=1e-6)
    assert weights.min() > 0
    assert weights.max() == 1


def test_lost_planes_are_filled_by_the_neighbour_or_stay_zero(acquisition, engine, tmp_path):
    fused = fuse(acquisition, 0, placed(acquisition), None, tmp_path / "v.ome.zarr", SETTINGS, engine).read()
    np.testing.assert_array_equal(fused[7:9, :32, 36:48], acquisition.stacks[0, 0][7:9, :32, 36:])
    assert not fused[7:9, :32, 48:72].any()
    assert fused[6, :32, 48:72].all()
    assert not {("LOC001", 7), ("LOC001", 8)} & set(acquisition.reads)


def test_micrometres_are_those_of_the_stage(acquisition, engine, tmp_path):
    project = placed(acquisition, JITTERED)
    volume = fuse(acquisition, 0, project, None, tmp_path / "v.ome.zarr", SETTINGS, engine)
    np.testing.assert_allclose(volume.grid.origin_um, np.multiply((-2, -3, 0), acquisition.voxel_size_um))
    assert volume.grid.shape[0] == 2 + 2 + 20
    # Tile (1, 0) lies at (0, 32, 0); this voxel of it was seen by no other tile.
    index = volume.grid.um_to_index(np.multiply((5, 32 + 30, 3), acquisition.voxel_size_um))
    assert volume.read()[tuple(np.rint(index).astype(int))] == acquisition.stacks[1, 0][5, 30, 3]


def test_the_intersection_of_depths_is_what_all_tiles_reach(acquisition, engine, tmp_path):
    settings = FusionSettings(depth="intersection", chunk=(8, 16, 16))
    union = fuse(acquisition, 0, placed(acquisition, JITTERED), None, tmp_path / "u.ome.zarr", SETTINGS, engine)
    cut = fuse(acquisition, 0, placed(acquisition, JITTERED), None, tmp_path / "i.ome.zarr", settings, engine)
    assert cut.grid.shape[0] == 20 - 4
    assert cut.grid.origin_um[0] == 2 * acquisition.voxel_size_um[0]
    np.testing.assert_array_equal(cut.read(), union.read()[4:20])


def test_shading_is_taken_off_on_the_way(acquisition, engine, tmp_path):
    random = np.random.default_rng(1)
    flat = random.uniform(0.5, 1.5, (40, 48)).astype(np.float32)
    shading = Shading(flat, 300.0)
    fused = fuse(acquisition, 0, placed(acquisition), shading, tmp_path / "v.ome.zarr", SETTINGS, engine).read()
    raw = acquisition.stacks[0, 0]
    # Darker than the background is black, but black that was seen: 0 is kept for what was not.
    assert (raw[:, :32, :36] < 300).any()
    expected = np.rint(shading.apply(raw)).clip(1, 65535) * (raw > 0)
    np.testing.assert_array_equal(fused[:, :32, :36], expected[:, :32, :36])
    assert fused.max() == 65535


def test_each_plane_of_a_tile_that_drifts_lies_where_it_was_found(acquisition, engine, tmp_path):
    project = swaying(placed(acquisition, JITTERED))
    volume = fuse(acquisition, 0, project, None, tmp_path / "v.ome.zarr", SETTINGS, engine)
    place = tile_places(acquisition, project)[0]
    fused, origin = volume.read(), np.rint(volume.grid.origin_um / acquisition.voxel_size_um).astype(int)
    assert len({place.at(z).start for z in range(20)}) == 20
    for plane in range(20):
        drift = project.tile(0, 0).drift.at([plane])[0]
        corner = np.floor(np.add(JITTERED[0, 0][1:], drift) + 0.5)
        box = place.at(place.first_plane + plane)
        assert box.start[1:] == tuple(corner.astype(int))
        # No other tile sees its first 20 rows and columns.
        z, y, x = np.subtract(box.start, origin)
        np.testing.assert_array_equal(fused[z, y : y + 20, x : x + 20], acquisition.stacks[0, 0][plane, :20, :20])


def test_the_volume_holds_all_that_drifting_tiles_saw(acquisition, engine, tmp_path):
    straight, project = placed(acquisition), swaying(placed(acquisition))
    before, after = (fusion.canvas_grid(tile_places(acquisition, p), (1, 1, 1)) for p in (straight, project))
    # Tile (0, 0) goes up to 5 columns to the left of its place, (0, 1) up to 4 rows above its, and (1, 1) 2 below its.
    np.testing.assert_array_equal(after.origin_um, (0, -4, -5))
    assert before.shape == (20, 72, 120)
    assert after.shape == (20, 72 + 4 + 2, 120 + 5)
    jittered = tile_places(acquisition, swaying(placed(acquisition, JITTERED)))
    assert fusion.canvas_grid(jittered, (1, 1, 1), "intersection").shape[0] == 16


def test_planes_stored_together_are_read_once_however_a_tile_drifts(acquisition, tmp_path, monkeypatch):
    monkeypatch.setattr(type(acquisition), "planes_together", 5)
    monkeypatch.setattr(fusion, "block_shape", lambda *_, **__: (24, 80, 64))
    project = swaying(placed(acquisition))
    with Engine(workers=1, memory="1GB") as alone:
        fuse(acquisition, 0, project, None, tmp_path / "v.ome.zarr", SETTINGS, alone)
    # A tile that lies in two blocks is read in two parts, which share the columns that it drifts by.
    assert max(acquisition.reads.values()) < 1.3


@pytest.mark.parametrize("drift", [lambda p: p, swaying], ids=["straight", "drifting"])
@pytest.mark.parametrize("options", [{}, {"blending": "content", "balance_exposure": True}])
@pytest.mark.parametrize("block", [(8, 16, 16), (8, 32, 112), (24, 80, 16)])
def test_the_bytes_do_not_depend_on_blocks_and_workers(
    acquisition, engine, tmp_path, monkeypatch, block, options, drift
):
    project = drift(placed(acquisition, JITTERED))
    settings = SETTINGS.model_copy(update=options)
    with Engine(workers=1, memory="1GB") as alone:
        fuse(acquisition, 0, project, None, tmp_path / "a.ome.zarr", settings, alone)
    monkeypatch.setattr(fusion, "block_shape", lambda *_, **__: block)
    fuse(acquisition, 0, project, None, tmp_path / "b.ome.zarr", settings, engine)
    assert digest(tmp_path / "a.ome.zarr") == digest(tmp_path / "b.ome.zarr")


@pytest.mark.parametrize("drift", [lambda p: p, swaying], ids=["straight", "drifting"])
def test_a_killed_fusion_goes_on_and_gives_the_same_bytes(acquisition, tmp_path, monkeypatch, drift):
    project = drift(placed(acquisition, JITTERED))
    monkeypatch.setattr(fusion, "block_shape", lambda *_, **__: (8, 32, 64))
    whole, path = FuseBlock.__call__, tmp_path / "b.ome.zarr"
    calls = []

    def until_killed(self, box):
        calls.append(str(box))
        if len(calls) == 6:
            raise KeyboardInterrupt
        whole(self, box)

    with Engine(workers=1, memory="1GB") as alone:
        fuse(acquisition, 0, project, None, tmp_path / "a.ome.zarr", SETTINGS, alone)
        monkeypatch.setattr(FuseBlock, "__call__", until_killed)
        with pytest.raises(KeyboardInterrupt):
            fuse(acquisition, 0, project, None, path, SETTINGS, alone, Ledger(tmp_path / "ledger.txt"))
        assert len(Ledger(tmp_path / "ledger.txt")) == 5
        done, calls[:] = calls[:5], ["killed"] * 10
        fuse(acquisition, 0, project, None, path, SETTINGS, alone, Ledger(tmp_path / "ledger.txt"))
    assert not set(done) & set(calls)
    assert digest(tmp_path / "a.ome.zarr") == digest(path)


def test_each_plane_is_read_about_once(acquisition, engine, tmp_path):
    fuse(acquisition, 0, placed(acquisition), None, tmp_path / "v.ome.zarr", FusionSettings(), engine)
    assert max(acquisition.reads.values()) == pytest.approx(1)


def test_blocks_are_multiples_of_chunks_that_fit_in_memory(in_memory):
    tiles = in_memory({(0, 0): np.zeros((1, 2048, 2048), np.uint16)}, (1, 1), (0.1, 0.1))
    shape = (700, 11000, 16000)
    for memory in (64e6, 500e6, 2e9, 50e9):
        block = block_shape(shape, (64, 128, 128), tiles, int(memory))
        assert block_bytes(block, tiles) <= memory
        assert all(b % c == 0 or b == n for b, c, n in zip(block, (64, 128, 128), shape, strict=True))
    assert block == (64, 11000, 16000)
    assert block_shape(shape, (64, 128, 128), tiles, 1000) == (64, 128, 128)


def test_a_small_volume_is_cut_into_rows_until_every_worker_has_some(in_memory):
    tiles = in_memory({(0, 0): np.zeros((1, 1024, 1024), np.uint16)}, (1, 1), (0.1, 0.1))
    shape = (60, 1900, 1900)
    rows = {n: block_shape(shape, (64, 128, 128), tiles, int(50e9), n)[1:] for n in (1, 2, 4, 8)}
    assert rows == {1: (1900, 1900), 2: (1024, 1900), 4: (512, 1900), 8: (256, 1900)}


def test_a_project_of_other_tiles_is_refused(acquisition, in_memory, engine, tmp_path):
    other = in_memory({(0, 0): np.zeros((2, 8, 8), np.uint16)}, (1, 1), (0.1, 0.1))
    with pytest.raises(InputError, match="expected a project of 2 x 3 tiles for memory, got one of 1 x 1"):
        fuse(acquisition, 0, placed(other), None, tmp_path / "v.ome.zarr", SETTINGS, engine)
    assert not (tmp_path / "v.ome.zarr").exists()


def test_tiles_without_a_common_plane_have_no_intersection(acquisition, engine, tmp_path):
    apart = placed(acquisition, {(0, 0): (30, 0, 0)})
    with pytest.raises(InputError, match="no plane in common: fuse them with depth union"):
        fuse(acquisition, 0, apart, None, tmp_path / "v.ome.zarr", FusionSettings(depth="intersection"), engine)


def test_tiles_on_disk_are_aligned_and_fused_into_the_specimen(make_phantom, engine, tmp_path):
    """From a COLM folder through a project file to a volume, by tasks that may travel to other machines."""
    phantom = make_phantom(grid=(2, 2), missing=[(1, 1)], lost={(0, 1): [4]})
    scanned = np.array([[True, True], [True, False]])

    def planes(row, column, channel, plane):
        return None if (row, column, plane) == (0, 1, 4) else phantom.acquisition.stacks[row, column][plane]

    raw = write_colm(
        tmp_path / "raw",
        rows=2,
        columns=2,
        tile_shape=(24, 96, 96),
        voxel_size_um=(2.0, 1.0, 1.0),
        overlap=(0.2, 0.2),
        channels=1,
        objective="10x",
        scanned=scanned,
        planes=planes,
    )
    write_project(align(raw, 0, None, AlignSettings(search_um=(6, 10, 10)), engine), tmp_path / "p.xml", step="merging")
    project = read_project(tmp_path / "p.xml")
    volume = fuse(raw, 0, project, None, tmp_path / "v.ome.zarr", SETTINGS, engine, orientation="asr")
    assert volume.orientation == "asr"

    places = tile_places(raw, project)
    writer = create_volume(tmp_path / "w.ome.zarr", volume.grid, volume.dtype, chunk=SETTINGS.chunk, orientation="asr")
    origin = tuple(np.rint(volume.grid.origin_um / raw.voxel_size_um).astype(int).tolist())
    task = FuseBlock(raw, 0, None, tuple(places), origin, "cosine", writer)
    pickle.loads(pickle.dumps(task))(Box.whole(volume.grid.shape))
    np.testing.assert_array_equal(writer.read(), volume.read())

    # The overlap of two tiles shows what both saw: were they misplaced by a pixel, it would be blurred or doubled.
    one, other = (place.box for place in places[:2])
    fused = volume.read(one.intersection(other).shifted([-o for o in origin]))
    first = phantom.acquisition.stacks[0, 0][one.intersection(other).shifted([-s for s in one.start]).slices]
    assert np.corrcoef(fused[:4].ravel(), first[:4].ravel())[0, 1] > 0.93


def test_a_block_takes_the_memory_that_was_foreseen(in_memory, tmp_path):
    pixels = np.random.default_rng(0).integers(1, 999, (64, 600, 500), dtype=np.uint16)
    tiles = in_memory({(0, 0): pixels, (0, 1): pixels}, (1, 2), (0.1, 0.1))
    places = tile_places(tiles, placed(tiles))
    grid = fusion.canvas_grid(places, tiles.voxel_size_um)
    writer = create_volume(tmp_path / "v.ome.zarr", grid, np.uint16)
    task, box = FuseBlock(tiles, 0, None, tuple(places), (0, 0, 0), "cosine", writer), Box((0, 0, 0), (64, 512, 896))
    task(box)
    tracemalloc.start()
    task(box)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The writer's copy is not Python's, and is not seen here.
    assert 0.4 * block_bytes(box.shape, tiles) < peak < block_bytes(box.shape, tiles)


def test_the_weights_of_content_do_not_depend_on_where_a_plane_is_cut():
    pixels = np.random.default_rng(3).poisson(500, (700, 650)).astype(np.uint16)
    whole = content_weights(pixels, (slice(0, 700), slice(0, 650)), (slice(0, 700), slice(0, 650)))
    for part in ((slice(0, 10), slice(333, 350)), (slice(301, 420), slice(640, 650)), (slice(690, 700), slice(7, 200))):
        read = tuple(content_part(p, n) for p, n in zip(part, pixels.shape, strict=True))
        assert read[0].stop - read[0].start < 700
        assert (content_weights(pixels[read], read, part) == whole[part]).all()


def test_the_sharper_tile_wins_where_content_counts(in_memory, engine, tmp_path):
    random = np.random.default_rng(6)
    scene = ndimage.gaussian_filter(random.normal(size=(4, 128, 220)), (0, 1, 1))
    scene = (3000 + 4000 * scene / scene.std()).clip(100, 60000)
    sharp, blurred = scene[:, :, :128], ndimage.gaussian_filter(scene[:, :, 92:], (0, 3, 3))
    tiles = in_memory({(0, 0): sharp.astype(np.uint16), (0, 1): blurred.astype(np.uint16)}, (1, 2), (0.1, 36 / 128))
    errors = {}
    for blending in ("cosine", "content"):
        settings = FusionSettings(blending=blending, chunk=(8, 16, 16))
        volume = fuse(tiles, 0, placed(tiles), None, tmp_path / f"{blending}.ome.zarr", settings, engine)
        errors[blending] = np.abs(volume.read()[:, :, 100:120] - scene[:, :, 100:120]).mean()
    assert errors["content"] < 0.6 * errors["cosine"]


def test_exposures_are_balanced(in_memory, engine, tmp_path):
    random = np.random.default_rng(7)
    scene = np.exp(ndimage.gaussian_filter(random.normal(size=(12, 300, 400)), (1, 4, 4)) * 8).clip(0.2, 20) * 500
    gains = {(0, 0): 0.8, (0, 1): 1.2, (0, 2): 1.0, (1, 0): 1.1, (1, 1): 0.9, (1, 2): 1.0}
    stacks = {
        (r, c): random.poisson(scene[:, 100 * r : 100 * r + 128, 100 * c : 100 * c + 128] * gain).astype(np.uint16)
        for (r, c), gain in gains.items()
    }
    tiles = in_memory(stacks, (2, 3), (28 / 128, 28 / 128))
    found = balance_exposure(tiles, 0, None, tile_places(tiles, placed(tiles)), engine)
    products = np.array([e.gain * gains[t.row, t.column] for e, t in zip(found, tiles.tiles, strict=True)])
    np.testing.assert_allclose(products / products.mean(), 1, atol=0.02)
    assert np.mean([e.gain for e in found]) == pytest.approx(1)
    assert max(abs(e.offset) for e in found) < 30
    seams = {}
    for balance in (False, True):
        settings = FusionSettings(balance_exposure=balance, chunk=(8, 16, 16))
        fused = fuse(tiles, 0, placed(tiles), None, tmp_path / f"{balance}.ome.zarr", settings, engine).read()
        ratio = fused[:, :, :320] / scene[:, :228, :320]
        seams[balance] = np.log(np.median(ratio, axis=0)).std()
    assert seams[True] < 0.2 * seams[False]


def test_tiles_that_show_nothing_in_common_keep_their_exposure():
    assert solve_exposures(3, []) == (Exposure(), Exposure(), Exposure())
    one, two, alone = solve_exposures(3, [(0, 1, np.full((100, 2), (200.0, 100.0)))])
    assert one.gain * 200 + one.offset == pytest.approx(two.gain * 100 + two.offset, rel=0.1)
    assert alone.gain == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("name", ["planes", "v.tif"])
def test_a_fused_tiff_holds_the_same_voxels(acquisition, engine, tmp_path, monkeypatch, name):
    project = placed(acquisition, JITTERED)
    zarr = fuse(acquisition, 0, project, None, tmp_path / "a.ome.zarr", SETTINGS, engine)
    tiff = fuse(acquisition, 0, project, None, tmp_path / name, SETTINGS, engine)
    np.testing.assert_array_equal(tiff.read(), zarr.read())
    np.testing.assert_allclose(tiff.grid.voxel_size_um, zarr.grid.voxel_size_um)
    monkeypatch.setattr(fusion, "block_shape", lambda *_, **__: (3, 30, 1000))
    (tmp_path / "again").mkdir()
    fuse(acquisition, 0, project, None, tmp_path / "again" / name, SETTINGS, engine)
    if name == "planes":
        assert len(list((tmp_path / name).iterdir())) == zarr.grid.shape[0]
        assert digest(tmp_path / name) == digest(tmp_path / "again" / name)
    else:
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    with pytest.raises(InputError, match="choose a new place"):
        fuse(acquisition, 0, project, None, tmp_path / name, SETTINGS, engine)


def test_other_formats_are_refused_before_anything_is_written(acquisition, engine, tmp_path):
    with pytest.raises(InputError, match="convert it then"):
        fuse(acquisition, 0, placed(acquisition), None, tmp_path / "v.nii.gz", SETTINGS, engine)
    assert not list(tmp_path.iterdir())
