import dataclasses
import pickle
import threading

import numpy as np
import pytest
import tifffile

from cloudreg.errors import InputError
from cloudreg.tiles import colm, damaged_planes, open_acquisition, open_colm, write_colm
from cloudreg.tiles.colm import plane_name
from cloudreg.tiles.damage import forget_damage
from cloudreg.tiles.experiment import read_experiment

NOTE_EXAMPLE = (
    "[Experiment Settings]\r\n"
    'X Resolution = "1024"\r\n'
    'Num in stack (Top Left Corner) = "40"\r\n'
    'Num Enabled Channels = "2"\r\n'
    'Comment = "50 % done: é"\r\n'
    "[North Scan Region]\r\n"
    'Num Horizontal = "3"\r\n'
    "  Num Vertical = 2\r\n"
    'Stack Step (mm) = "0.0029"\r\n'
    "[North Scan Region Stats]\r\n"
    'Actual Horizontal Overlap (%) = "15"\r\n'
    'Actual Vertical Overlap (%) = "10"\r\n'
    "[Objectives]\r\n"
    'North = "10x 0.6NA"\r\n'
)


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


def tile_at(acquisition, row, column):
    return next(tile for tile in acquisition.tiles if (tile.row, tile.column) == (row, column))


def test_what_is_written_is_what_is_opened(make_colm):
    acquisition = make_colm()
    assert (acquisition.rows, acquisition.columns, acquisition.tile_shape) == (2, 3, (6, 24, 32))
    assert acquisition.voxel_size_um == (2.9, 1.17, 1.17)
    assert acquisition.overlap == (0.1, 0.15)
    assert acquisition.channels == (0, 1)
    assert acquisition.dtype == np.uint16
    assert [tile.name for tile in acquisition.tiles] == ["LOC000", "LOC001", "LOC002", "LOC004", "LOC005"]
    assert acquisition.nominal_px(acquisition.tiles[3]) == pytest.approx((0, 21.6, 27.2))


def test_planes_are_read_whole_and_lost_ones_are_zero(make_colm, pixels):
    acquisition = make_colm()
    tile = tile_at(acquisition, 1, 1)
    assert acquisition.planes(tile, 0) == ((0, 2), (4, 6))
    assert acquisition.lost_planes(tile, 0) == (2, 3)
    assert tile.planes == ((0, 2), (4, 6))
    planes = acquisition.read(tile, 0, 1, 5)
    expected = np.stack([pixels(1, 1, 0, 1), np.zeros((24, 32)), np.zeros((24, 32)), pixels(1, 1, 0, 4)])
    np.testing.assert_array_equal(planes, expected)
    np.testing.assert_array_equal(acquisition.read(tile, 1, 2, 3)[0], pixels(1, 1, 1, 2))


@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_strip_is_the_strip_of_the_whole_plane_however_it_is_stored(make_colm, compression, byteorder):
    acquisition = make_colm()
    tile = tile_at(acquisition, 0, 1)
    whole = acquisition.read(tile, 1, 0, 6)
    for plane in range(6):
        path = acquisition.plane_path(tile, 1, plane)
        tifffile.imwrite(path, whole[plane].astype(f"{byteorder}u2"), byteorder=byteorder, compression=compression)
    again = open_acquisition(acquisition.path)
    np.testing.assert_array_equal(again.read(tile, 1, 0, 6), whole)
    for rows, columns in [(slice(20, None), slice(None)), (slice(None), slice(-5, None)), (slice(3, 4), slice(2, 30))]:
        np.testing.assert_array_equal(again.read(tile, 1, 2, 5, rows, columns), whole[2:5, rows, columns])
    assert again.read(tile, 1, 2, 2).shape == (0, 24, 32)
    with pytest.raises(ValueError, match=r"not within 0 to 6"):
        again.read(tile, 1, 2, 7)


def test_it_can_be_pickled_and_read_from_many_threads(make_colm):
    acquisition = pickle.loads(pickle.dumps(make_colm()))
    tile = acquisition.tiles[0]
    expected = acquisition.read(tile, 0, 0, 6)
    wrong = []

    def read():
        for _ in range(20):
            if not np.array_equal(acquisition.read(tile, 0, 0, 6), expected):
                wrong.append(1)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_description_is_read_as_the_microscope_writes_it(tmp_path):
    path = tmp_path / "Experiment.ini"
    path.write_bytes(b"\xef\xbb\xbf" + NOTE_EXAMPLE.encode("latin-1"))
    experiment = read_experiment(path)
    assert (experiment.rows, experiment.columns, experiment.planes) == (2, 3, 40)
    assert experiment.step_um == 2.9
    assert experiment.pixel_size_um == 1.17
    assert experiment.overlap == (0.1, 0.15)


@pytest.mark.parametrize(("objective", "pixel"), [("4X 0.28NA", 1.46), ("10x 0.6NA", 0.585), ("Plan 25x", 0.234)])
def test_the_pixel_size_is_that_of_the_objective_times_the_binning(tmp_path, objective, pixel):
    path = tmp_path / "Experiment.ini"
    path.write_text(NOTE_EXAMPLE.replace("10x 0.6NA", objective))
    assert read_experiment(path).pixel_size_um == pytest.approx(2 * pixel)


def test_an_unknown_objective_needs_a_voxel_size(make_colm):
    acquisition = make_colm()
    ini = acquisition.path / "Experiment.ini"
    kept = "".join(line for line in ini.read_text().splitlines(True) if "Pixel Size" not in line)
    ini.write_text(kept.replace("10x", "16x"))
    with pytest.raises(InputError, match=r"names the objective '16x 0.6NA', whose pixel size is not known") as error:
        open_acquisition(acquisition.path)
    one_line(error)
    assert open_acquisition(acquisition.path, voxel_size_um=(5, 0.4, 0.4)).voxel_size_um == (5, 0.4, 0.4)
    with pytest.raises(InputError, match=r"voxel size is three"):
        open_acquisition(acquisition.path, voxel_size_um=(5, 0, 0.4))


def test_a_usual_acquisition_has_no_section_of_our_own(make_colm):
    side = make_colm(
        "usual",
        tile_shape=(1, 512, 512),
        voxel_size_um=(5, 5.84, 5.84),
        objective="4x",
        planes=lambda row, column, channel, plane: np.zeros((512, 512), np.uint16),
    )
    assert "CloudReg" not in (side.path / "Experiment.ini").read_text()
    assert side.voxel_size_um == (5, 5.84, 5.84)


def test_names_may_vary_as_the_format_allows(make_colm, pixels):
    acquisition = make_colm()
    tile = acquisition.tiles[0]
    for plane in (0, 3):
        path = acquisition.plane_path(tile, 0, plane)
        path.rename(path.with_name(path.stem.lower() + "_corrected.TIFF"))
    (acquisition.planes_folder / "LOC000").rename(acquisition.planes_folder / "loc0")
    (acquisition.planes_folder / "loc0" / "notes.txt").write_text("no plane")
    again = open_acquisition(acquisition.path)
    np.testing.assert_array_equal(again.read(again.tiles[0], 0, 0, 6)[:, 0, 0], [300 * p for p in range(6)])
    assert open_acquisition(acquisition.path / "VW0").path == acquisition.path


def test_more_planes_than_described_are_kept(make_colm, pixels):
    acquisition = make_colm()
    tile = acquisition.tiles[0]
    path = acquisition.plane_path(tile, 0, 5)
    path.with_name(path.name.replace("PLN0005", "PLN0007")).write_bytes(path.read_bytes())
    again = open_acquisition(acquisition.path)
    assert again.tile_shape[0] == 8
    assert again.lost_planes(again.tiles[0], 0) == (6,)
    assert again.lost_planes(again.tiles[0], 1) == (6, 7)


def test_a_tile_without_planes_of_a_channel_is_all_lost(make_colm):
    acquisition = make_colm(planes=lambda r, c, k, p: None if (r, c, k) == (0, 0, 1) else np.ones((24, 32), np.uint16))
    tile = acquisition.tiles[0]
    assert acquisition.planes(tile, 1) == ()
    assert acquisition.lost_planes(tile, 1) == (0, 1, 2, 3, 4, 5)
    assert not acquisition.read(tile, 1, 0, 6).any()
    assert acquisition.read(tile, 0, 0, 6).all()


def test_the_fingerprint_changes_with_the_raw_data_and_only_with_that_of_its_channels(make_colm):
    acquisition = make_colm()
    before = [acquisition.fingerprint([c]) for c in (0, 1)]
    assert before == [open_acquisition(acquisition.path).fingerprint([c]) for c in (0, 1)]
    path = acquisition.plane_path(acquisition.tiles[0], 1, 3)
    path.write_bytes(path.read_bytes())
    after = [open_acquisition(acquisition.path).fingerprint([c]) for c in (0, 1)]
    assert after[0] == before[0]
    assert after[1] != before[1]
    ini = acquisition.path / "Experiment.ini"
    ini.write_bytes(ini.read_bytes().replace(b'"0.0029"', b'"0.0030"'))
    assert open_acquisition(acquisition.path).fingerprint([0]) != before[0]


def test_the_file_pattern_matches_a_channels_files_whole_and_no_other(make_colm):
    import re

    acquisition = make_colm()
    pattern = re.compile(acquisition.file_pattern(1))
    names = [p.name for p in (acquisition.planes_folder / "LOC001").iterdir()]
    assert sorted(n for n in names if pattern.fullmatch(n)) == sorted(n for n in names if "CHN01" in n)


def test_a_missing_description_is_named(tmp_path, make_colm):
    with pytest.raises(InputError, match=r"expected the folder of a raw acquisition at .*nowhere, found nothing"):
        open_acquisition(tmp_path / "nowhere")
    acquisition = make_colm()
    (acquisition.path / "Experiment.ini").unlink()
    with pytest.raises(InputError, match=r"expected .*Experiment\.ini, the description .*: No such file") as error:
        open_acquisition(acquisition.path)
    one_line(error)


@pytest.mark.parametrize("length", range(0, len(NOTE_EXAMPLE) - 3, 7))
def test_a_half_written_description_is_refused_wherever_it_breaks_off(tmp_path, length):
    path = tmp_path / "Experiment.ini"
    path.write_text(NOTE_EXAMPLE[:length])
    with pytest.raises(InputError, match=r"Experiment\.ini") as error:
        read_experiment(path)
    one_line(error)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('Horizontal = "3"', 'Horizontal = "three"', "expected a number for 'Num Horizontal' in .*got 'three'"),
        ('Horizontal = "3"', 'Horizontal = "0"', "expected 'Num Horizontal' .* to be above 0, got 0"),
        ("0.0029", "nan", "expected a finite number for 'Stack Step"),
        ('(%) = "15"', '(%) = "115"', "in 0 to 100, got 115"),
        ("[Objectives]", "[Objects]", r"has no 'North' in \[Objectives\]: it is not a whole"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, old, new, message):
    path = tmp_path / "Experiment.ini"
    path.write_text(NOTE_EXAMPLE.replace(old, new))
    with pytest.raises(InputError, match=message) as error:
        read_experiment(path)
    one_line(error)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("1,1,1\r\n", r"expected 2 line\(s\) of 3 cell\(s\) in .* got 1 line\(s\) of 3"),
        ("1,1\n0,1\n", r"got 2 line\(s\) of 2 cell"),
        ("1,1,1\n0,1\n", r"got 2 line\(s\) of 2 or 3 cell"),
        ("", r"got 0 line\(s\) of no cell"),
        ("1,1,x\n0,1,1\n", "expected 0 or 1 in each cell of .*, got 'x'"),
    ],
)
def test_a_wrong_grid_of_scanned_cells_is_refused(make_colm, cells, message):
    acquisition = make_colm()
    (acquisition.path / "Scanned Cells.txt").write_text(cells)
    with pytest.raises(InputError, match=message) as error:
        open_acquisition(acquisition.path)
    one_line(error)


def test_blanks_and_empty_last_lines_in_the_grid_are_understood(make_colm):
    acquisition = make_colm()
    (acquisition.path / "Scanned Cells.txt").write_text(" 1, 1 ,1\n0 ,1,1\n\n\n")
    assert len(open_acquisition(acquisition.path).tiles) == 5


def test_a_grid_of_which_nothing_was_imaged_is_refused(make_colm):
    acquisition = make_colm()
    (acquisition.path / "Scanned Cells.txt").write_text("0,0,0\n0,0,0\n")
    with pytest.raises(InputError, match=r"expected a 1 for each cell that was imaged in .*, got 0 in all"):
        open_acquisition(acquisition.path)


def test_a_scanned_cell_without_its_folder_is_refused(make_colm):
    acquisition = make_colm()
    (acquisition.path / "Scanned Cells.txt").write_text("1,1,1\n1,1,1\n")
    with pytest.raises(
        InputError, match=r"says that row 1, column 0 was imaged, and .*VW0 has no folder LOC003: copy it"
    ):
        open_acquisition(acquisition.path)


def damage(acquisition, change):
    path = acquisition.plane_path(acquisition.tiles[1], 1, 4)
    change(path)
    return path


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def test_a_truncated_plane_is_found_when_opening(make_colm):
    acquisition = make_colm()
    path = damage(acquisition, truncate)
    with pytest.raises(InputError, match=r"is truncated: its header promises .* bytes, it has .*; copy") as error:
        open_acquisition(acquisition.path, strict=True)
    assert str(path) in one_line(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.write_bytes(b""), "can't be read as a TIFF"),
        (lambda p: p.write_bytes(p.read_bytes()[:5]), "can't be read as a TIFF"),
        (lambda p: p.write_bytes(b"text, and a lot of it" * 99), "can't be read as a TIFF"),
        (
            lambda p: tifffile.imwrite(p, np.zeros((24, 30), np.uint16)),
            "expected 24 x 32 pixels of uint16 in .*, got 24 x 30 of uint16: all planes .* must be alike",
        ),
        (lambda p: tifffile.imwrite(p, np.zeros((24, 32), np.uint8)), "got 24 x 32 of uint8"),
        (lambda p: tifffile.imwrite(p, np.zeros((24, 32), np.float32)), "unsigned integers of 8 or 16 bits"),
        (
            lambda p: tifffile.imwrite(p, np.zeros((2, 24, 32), np.uint16), photometric="minisblack"),
            "expected one greyscale image",
        ),
    ],
    ids=["empty", "stub", "text", "size", "dtype", "float", "pages"],
)
def test_a_plane_of_another_kind_is_found_when_opening(make_colm, change, message):
    acquisition = make_colm()
    path = damage(acquisition, change)
    with pytest.raises(InputError, match=message) as error:
        open_acquisition(acquisition.path, strict=True)
    assert str(path) in one_line(error)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_damage_after_opening_is_found_when_reading(make_colm, compression):
    def compress(path):
        tifffile.imwrite(path, np.random.default_rng(0).integers(0, 9, (24, 32), np.uint16), compression=compression)

    acquisition = make_colm()
    path = damage(acquisition, compress)
    tile = acquisition.tiles[1]
    strict = dataclasses.replace(acquisition, strict=True)
    for change in (truncate, lambda p: tifffile.imwrite(p, np.zeros((32, 24), np.uint16)), lambda p: p.unlink()):
        compress(path)
        change(path)
        with pytest.raises(InputError) as error:
            strict.read(tile, 1, 0, 6)
        assert str(path) in one_line(error)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", [((24, 30), np.uint16), ((24, 32), np.uint8), ((24, 32, 3), np.uint8)], ids=str)
def test_a_plane_of_another_kind_is_lost_and_named_and_a_tile_of_them_is_refused(make_colm, when, kind):
    forget_damage()
    acquisition = make_colm()
    tile = acquisition.tiles[1]

    def spoil(plane):
        tifffile.imwrite(acquisition.plane_path(tile, 1, plane), np.zeros(*kind))

    if when == "before":
        spoil(4)
    opened = open_acquisition(acquisition.path)
    spoil(4)
    assert not opened.read(tile, 1, 4, 5).any()
    assert opened.read(tile, 1, 3, 4).any()
    ((place, _),) = damaged_planes()
    assert place == "LOC001 plane 4 of channel 1"
    for plane in range(6):
        spoil(plane)
    with pytest.raises(InputError, match=r"(all planes of an acquisition must be alike|expected one greyscale image)"):
        open_acquisition(acquisition.path)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("change", [truncate, lambda p: p.write_bytes(b"text, and a lot of it" * 99)])
def test_a_plane_that_cannot_be_read_is_lost_and_named(make_colm, when, change):
    forget_damage()
    acquisition = make_colm()
    path = acquisition.plane_path(acquisition.tiles[1], 1, 4)
    if when == "before":
        change(path)
    opened = open_acquisition(acquisition.path)
    whole = make_colm("sound")
    change(path)
    planes = opened.read(opened.tiles[1], 1, 0, 6)
    expected = whole.read(whole.tiles[1], 1, 0, 6)
    expected[4] = 0
    np.testing.assert_array_equal(planes, expected)
    ((place, reason),) = damaged_planes()
    assert place == "LOC001 plane 4 of channel 1"
    assert str(path) in reason
    assert (opened.lost_planes(opened.tiles[1], 1) == (4,)) == (when == "before")
    forget_damage()


def test_folders_of_cells_that_were_not_imaged_are_left_out_and_named(make_colm, monkeypatch):
    said = []
    acquisition = make_colm()
    folder = acquisition.planes_folder / "LOC003"
    folder.mkdir()
    monkeypatch.setattr(colm, "say", said.append)
    open_acquisition(acquisition.path)
    assert not any("LOC003" in text for text in said)
    (folder / plane_name(3, 0, 0)).write_bytes(b"")
    assert len(open_acquisition(acquisition.path).tiles) == 5
    assert any("says that LOC003 were not imaged, and they hold planes: left out" in text for text in said)


def test_descriptions_within_the_view_are_found(make_colm):
    acquisition = make_colm()
    before = acquisition.fingerprint((0,))
    for name in ("Experiment.ini", "Scanned Cells.txt"):
        (acquisition.path / name).rename(acquisition.planes_folder / name)
    for path in (acquisition.path, acquisition.planes_folder):
        assert open_acquisition(path).fingerprint((0,)) == before


def test_an_unknown_channel_is_refused(make_colm):
    acquisition = make_colm()
    for call in (
        lambda: acquisition.read(acquisition.tiles[0], 7, 0, 1),
        lambda: acquisition.planes(acquisition.tiles[0], 7),
        lambda: acquisition.fingerprint([7]),
    ):
        with pytest.raises(InputError, match=r"has no channel 7: choose one of 0, 1"):
            call()


def test_a_plane_that_exists_twice_is_refused(make_colm):
    acquisition = make_colm()
    path = acquisition.plane_path(acquisition.tiles[0], 0, 0)
    path.with_name(path.stem + "_copy.tiff").write_bytes(path.read_bytes())
    with pytest.raises(InputError, match=r"holds plane 0 of channel 0 twice, as .* and .*: remove one"):
        open_acquisition(acquisition.path)


def test_a_plane_in_the_folder_of_another_tile_is_refused(make_colm):
    acquisition = make_colm()
    path = acquisition.plane_path(acquisition.tiles[0], 0, 0)
    path.rename(acquisition.planes_folder / "LOC001" / path.name)
    with pytest.raises(InputError, match=r"belongs to another tile than its folder"):
        open_acquisition(acquisition.path)


def test_nothing_is_ever_written_over(make_colm, tmp_path):
    acquisition = make_colm()
    with pytest.raises(InputError, match=r"expected a new or empty folder for the acquisition, .* exists"):
        make_colm()
    assert open_acquisition(acquisition.path).fingerprint([0, 1]) == acquisition.fingerprint([0, 1])


def test_an_acquisition_that_could_not_be_described_is_not_written(make_colm, tmp_path):
    with pytest.raises(InputError, match=r"pixels are square, got 1.0 x 2.0"):
        make_colm("a", voxel_size_um=(5, 1, 2))
    with pytest.raises(InputError, match=r"expected 2 x 3 cells"):
        make_colm("b", scanned=np.ones((3, 2), bool))
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_a_writer_that_is_stopped_leaves_no_acquisition(make_colm, tmp_path):
    def stop(row, column, channel, plane):
        if plane == 3:
            raise KeyboardInterrupt
        return np.zeros((24, 32), np.uint16)

    with pytest.raises(KeyboardInterrupt):
        make_colm(planes=stop)
    with pytest.raises(InputError, match=r"Experiment.ini"):
        open_acquisition(tmp_path / "raw")


def test_a_thousand_tiles_get_longer_numbers(tmp_path):
    scanned = np.zeros((1, 1001), bool)
    scanned[0, [7, 1000]] = True
    acquisition = write_colm(
        tmp_path / "wide",
        rows=1,
        columns=1001,
        tile_shape=(1, 8, 8),
        voxel_size_um=(1, 1, 1),
        overlap=(0, 0.1),
        channels=1,
        objective="40x",
        scanned=scanned,
        planes=lambda row, column, channel, plane: np.full((8, 8), column, np.uint16),
    )
    assert [tile.name for tile in acquisition.tiles] == ["LOC007", "LOC1000"]
    assert acquisition.read(acquisition.tiles[1], 0, 0, 1)[0, 0, 0] == 1000


def even_out(acquisition, channel, planes=None):
    """Write evened copies beside planes as they were recorded."""
    for tile in acquisition.tiles:
        for start, stop in acquisition.planes(tile, channel):
            for plane in range(start, stop):
                if planes is None or plane in planes:
                    file = acquisition.plane_path(tile, channel, plane)
                    tifffile.imwrite(file.with_name(f"{file.stem}_corrected.tiff"), tifffile.imread(file) // 2)


def test_evened_planes_stand_for_those_recorded(make_colm, pixels):
    acquisition = make_colm()
    even_out(acquisition, 0)
    again = open_acquisition(acquisition.path)
    tile = again.tiles[0]
    np.testing.assert_array_equal(again.read(tile, 0, 0, 1)[0], pixels(0, 0, 0, 0) // 2)
    np.testing.assert_array_equal(again.read(tile, 1, 0, 1)[0], pixels(0, 0, 1, 0))
    assert again.file_pattern(0) == r".*_CHN00_PLN.*_corrected\.tiff"
    assert again.file_pattern(1) == r".*_CHN01_PLN.*\.tif"
    assert [again.planes(t, 0) for t in again.tiles] == [acquisition.planes(t, 0) for t in acquisition.tiles]
    raw = open_colm(acquisition.path, corrected=False)
    np.testing.assert_array_equal(raw.read(tile, 0, 0, 1)[0], pixels(0, 0, 0, 0))
    assert raw.fingerprint([0]) == acquisition.fingerprint([0]) != again.fingerprint([0])


def test_planes_evened_in_part_are_refused(make_colm):
    acquisition = make_colm()
    even_out(acquisition, 1, planes=[0, 1])
    with pytest.raises(InputError, match=r"evened copies of all planes of channel 1 in .* or of none, got 9 of 29"):
        open_acquisition(acquisition.path)
    assert open_colm(acquisition.path, corrected=False).channels == (0, 1)
