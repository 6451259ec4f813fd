"""TeraStitcher projects: a real file, and the worked example of the format note."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cloudreg.errors import InputError
from cloudreg.tiles import (
    AxisDisplacement,
    Displacement,
    Drift,
    Project,
    ProjectTile,
    read_project,
    to_project,
    write_project,
)

# displacement / nominal / peak / width of every pair of the example, V H D.
EXAMPLE = {
    (0, 0, "east"): ((-3, 0, 0.81, 6), (868, 870, 0.85, 5), (1, 0, 0.74, 3)),
    (0, 1, "east"): ((0, 0, 0, 30), (871, 870, 0, 30), (0, 0, 0, 30)),
    (0, 1, "south"): ((923, 921, 0.78, 7), (2, 0, 0.70, 8), (-1, 0, 0.66, 3)),
    (0, 2, "south"): ((920, 921, 0.80, 6), (-1, 0, 0.72, 7), (1, 0, 0.69, 3)),
    (1, 1, "east"): ((1, 0, 0.77, 6), (869, 870, 0.83, 5), (0, 0, 0.71, 3)),
}
IMPORT_XML = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE TeraStitcher SYSTEM "TeraStitcher.DTD">
<TeraStitcher volume_format="TiledXY|2Dseries" input_plugin="tiff2D">
  <stacks_dir value="/data/demo/VW0"/>
  <ref_sys ref1="1" ref2="2" ref3="3"/>
  <voxel_dims V="1.17" H="1.17" D="5"/>
  <origin V="0" H="0" D="0"/>
  <mechanical_displacements V="1078" H="1018"/>
  <dimensions stack_rows="2" stack_columns="3" stack_slices="40"/>
  <STACKS>
{stacks}
  </STACKS>
</TeraStitcher>
"""
STACK = (
    '<Stack N_CHANS="1" N_BYTESxCHAN="2" ROW="{row}" COL="{column}" ABS_V="{v}" ABS_H="{h}" ABS_D="0" STITCHABLE="no" '
    'DIR_NAME="{name}" Z_RANGES="{planes}" IMG_REGEX=".*_CHN00_PLN.*\\.tif">\n'
    "<NORTH_displacements/><EAST_displacements/><SOUTH_displacements/><WEST_displacements/>\n</Stack>"
)
NAMES = ("LOC000", "LOC001", "LOC002", "", "LOC004", "LOC005")
PLANES = ("[0,40)", "[0,40)", "[0,40)", "", "[0,40)", "[0,17);[19,40)")


def import_xml():
    stacks = [
        STACK.format(row=i // 3, column=i % 3, v=921 * (i // 3), h=870 * (i % 3), name=NAMES[i], planes=PLANES[i])
        for i in range(6)
    ]
    return IMPORT_XML.format(stacks="\n".join(stacks))


@pytest.fixture
def imported(tmp_path):
    path = tmp_path / "xml_import.xml"
    path.write_bytes(import_xml().replace("\n", "\r\n").encode())
    return read_project(path)


def displacement(values):
    v, h, d = (
        AxisDisplacement(px, nominal, peak, width, largest, 30, radius)
        for (px, nominal, peak, width), largest, radius in zip(values, (29, 29, 5), (60, 100, 5), strict=True)
    )
    return Displacement(z=d, y=v, x=h)


@pytest.fixture
def measured(imported):
    return imported.linked({place: (displacement(values),) for place, values in EXAMPLE.items()})


def test_the_examples_import_file_is_read(imported):
    assert (imported.rows, imported.columns, imported.slices) == (2, 3, 40)
    assert imported.voxel_size_um == (5, 1.17, 1.17)
    assert imported.pitch_um == (1078, 1018)
    assert imported.stacks_dir == Path("/data/demo/VW0")
    assert imported.axes == (1, 2, 3)
    assert imported.nominal_steps_px == ((0, 0, 870), (0, 921, 0))
    assert imported.tile(1, 2).planes == ((0, 17), (19, 40))
    assert imported.tile(1, 0) == ProjectTile(1, 0, "", (0, 921, 0), (), r".*_CHN00_PLN.*\.tif")


def test_the_examples_import_file_is_written_as_it_was(imported, tmp_path):
    write_project(imported, tmp_path / "again.xml", step="import")
    text = (tmp_path / "again.xml").read_text()
    assert text.startswith(
        '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE TeraStitcher SYSTEM "TeraStitcher.DTD">\n'
    )
    assert squeeze(text) == squeeze(import_xml())


def squeeze(text):
    """Without what XML ignores."""
    return re.sub(r"\s*(/?>)\s*", r"\1", text).replace("\n", "")


def test_the_examples_displacements_are_written_as_the_note_shows(measured, tmp_path):
    write_project(measured, tmp_path / "xml_displcomp.xml", step="displcomp")
    root = ElementTree.parse(tmp_path / "xml_displcomp.xml").getroot()
    stacks = root.findall("STACKS/Stack")
    assert [child.tag for child in stacks[0]] == [
        "NORTH_displacements",
        "EAST_displacements",
        "SOUTH_displacements",
        "WEST_displacements",
    ]
    (east,) = stacks[0].findall("EAST_displacements/Displacement")
    assert east.attrib == {"TYPE": "MIP_NCC"}
    assert {axis.tag: list(axis.attrib.items()) for axis in east} == {
        "V": [
            ("displ", "-3"),
            ("default_displ", "0"),
            ("reliability", "0.805016"),
            ("nccPeak", "0.81"),
            ("nccWidth", "6"),
            ("nccWRangeThr", "29"),
            ("nccInvWidth", "30"),
            ("delay", "60"),
        ],
        "H": [
            ("displ", "868"),
            ("default_displ", "870"),
            ("reliability", "0.841708"),
            ("nccPeak", "0.85"),
            ("nccWidth", "5"),
            ("nccWRangeThr", "29"),
            ("nccInvWidth", "30"),
            ("delay", "100"),
        ],
        "D": [
            ("displ", "1"),
            ("default_displ", "0"),
            ("reliability", "0.823893"),
            ("nccPeak", "0.74"),
            ("nccWidth", "3"),
            ("nccWRangeThr", "5"),
            ("nccInvWidth", "30"),
            ("delay", "5"),
        ],
    }
    (west,) = stacks[1].findall("WEST_displacements/Displacement")
    mirror = {a.tag: (a.get("displ"), a.get("default_displ"), a.get("nccPeak")) for a in west}
    assert mirror == {"V": ("3", "0", "0.81"), "H": ("-868", "-870", "0.85"), "D": ("-1", "0", "0.74")}
    assert not stacks[3].findall(".//Displacement")


@pytest.mark.parametrize("step", ["import", "displcomp", "displproj", "displthres", "merging"])
def test_every_step_is_read_back_as_it_was_written(measured, tmp_path, step):
    write_project(measured.thresholded(), tmp_path / "first.xml", step=step)
    project = read_project(tmp_path / "first.xml")
    write_project(project, tmp_path / "second.xml", step=step)
    assert (tmp_path / "first.xml").read_bytes() == (tmp_path / "second.xml").read_bytes()


def test_projection_gives_the_unmeasured_pairs_their_nominal_displacement(measured):
    projected = measured.projected()
    (south,) = projected.tile(0, 0).south
    (east,) = projected.tile(1, 0).east
    assert [axis.px for axis in south.axes] == [0, 921, 0]
    assert [axis.px for axis in east.axes] == [0, 0, 870]
    for axis in (*south.axes, *east.axes):
        assert (axis.reliability, axis.peak, axis.width_px) == (0, 0, 30)
        assert (axis.largest_width_px, axis.infinite_width_px, axis.search_px) == (29, 30, -1)
    assert projected.tile(0, 1) == measured.tile(0, 1)
    assert projected.projected() == projected
    assert projected.tile(0, 2).east == () == projected.tile(1, 1).south


def test_projection_takes_the_most_reliable_layer_of_each_axis_and_the_first_of_equals(imported):
    layers = (
        displacement(((1, 0, 0.5, 6), (868, 870, 0.9, 5), (3, 0, 0.7, 3))),
        displacement(((2, 0, 0.9, 6), (867, 870, 0.8, 5), (4, 0, 0.7, 3))),
    )
    (best,) = imported.linked({(0, 0, "east"): layers}).projected().tile(0, 0).east
    assert (best.y.px, best.x.px, best.z.px) == (2, 868, 3)


def test_partial_projects_are_merged_with_each_displacement_once(imported, measured):
    def part(columns):
        keep = {(t.row, t.column, side): getattr(t, side) for t in measured.tiles for side in ("east", "south")}
        return imported.linked({place: links for place, links in keep.items() if place[1] in columns})

    parts = [part({0, 1}), part({1, 2})]
    assert all(p.tiles != measured.tiles for p in parts)
    # Both have the middle column.
    assert imported.merged(parts).tiles == measured.tiles
    other = replace(measured.tiles[0].east[0], x=AxisDisplacement(860, 870, 0.5, 9))
    layered = imported.merged([measured, measured.linked({(0, 0, "east"): (other,)})])
    assert layered.tiles[0].east == (*measured.tiles[0].east, other)


def test_thresholding_resets_the_empty_overlap_and_spares_the_rest(measured):
    kept = measured.thresholded(0.3)
    (east,) = kept.tile(0, 1).east
    assert east.x.px == 870
    assert [tile.stitchable for tile in kept.tiles] == [True, True, True, False, True, True]
    for row, column, side in set(EXAMPLE) - {(0, 1, "east")}:
        assert getattr(kept.tile(row, column), side) == getattr(measured.tile(row, column), side)
    assert not any(tile.stitchable for tile in measured.thresholded(0.99).tiles)


def test_from_projection_on_every_pair_has_one_entry_in_the_file(measured, tmp_path):
    write_project(measured, tmp_path / "xml_merging.xml", step="merging")
    for i, stack in enumerate(ElementTree.parse(tmp_path / "xml_merging.xml").getroot().findall("STACKS/Stack")):
        row, column = divmod(i, 3)
        expected = {"NORTH": row > 0, "WEST": column > 0, "SOUTH": row < 1, "EAST": column < 2}
        for side, there in expected.items():
            assert len(stack.findall(f"{side}_displacements/Displacement")) == there


def test_real_positions_survive_and_are_whole_for_terastitcher(measured, tmp_path):
    path = tmp_path / "xml_merging.xml"
    moved = measured.moved({(0, 1): (1.25, -2.75, 868.5), (1, 2): (0, 921, 1739)})
    write_project(moved, path, step="merging")
    stacks = ElementTree.parse(path).getroot().findall("STACKS/Stack")
    assert [stacks[1].get(f"ABS_{axis}") for axis in "VHD"] == ["-3", "869", "1"]
    assert "POSITION_V" not in stacks[5].attrib
    again = read_project(path)
    assert again.position_px(0, 1) == (1.25, -2.75, 868.5)
    assert again.position_px(1, 2) == (0, 921, 1739)


def test_a_tile_that_another_tool_moved_lies_where_that_tool_put_it(measured, tmp_path):
    path = tmp_path / "xml_merging.xml"
    write_project(measured.moved({(0, 1): (1.25, -2.75, 868.5)}), path, step="merging")
    path.write_text(path.read_text().replace('ABS_V="-3"', 'ABS_V="-7"'))
    assert read_project(path).position_px(0, 1) == (1, -7, 869)


def test_how_tiles_drift_survives_and_terastitcher_sees_their_mean(measured, tmp_path):
    path = tmp_path / "xml_merging.xml"
    drift = Drift((0.0, 19.5, 39.0), (-0.25, 0.0, 0.3), (1.5, 0.0, -1.5))
    moved = measured.moved({(0, 1): (1, -3, 869)}).drifting({(0, 1): drift})
    write_project(moved, path, step="merging")
    stack = ElementTree.parse(path).getroot().findall("STACKS/Stack")[1]
    assert [stack.get(f"ABS_{axis}") for axis in "VHD"] == ["-3", "869", "1"]
    again = read_project(path)
    assert [tile.drift for tile in again.tiles] == [None, drift, None, None, None, None]
    # Who knows nothing of it leaves it out.
    path.write_text(re.sub(r' DRIFT_\w+="[^"]*"', "", path.read_text()))
    assert read_project(path) == again.drifting({(0, 1): None})


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ('DRIFT_PLANES="0;9" DRIFT_V="1;2" DRIFT_H="3"', "2 planes, 2 rows and 1 columns"),
        ('DRIFT_PLANES="9;0" DRIFT_V="1;2" DRIFT_H="3;4"', "the planes do not ascend"),
        ('DRIFT_PLANES="0;9" DRIFT_V="1;x" DRIFT_H="3;4"', "could not convert string to float"),
        ('DRIFT_PLANES="0;9" DRIFT_V="1;nan" DRIFT_H="3;4"', "not all are finite"),
        ('DRIFT_PLANES="0;9" DRIFT_V="1;2"', "could not convert string to float"),
    ],
)
def test_a_drift_that_makes_no_sense_is_refused(tmp_path, attributes, reason):
    path = tmp_path / "broken.xml"
    path.write_text(import_xml().replace("<Stack ", f"<Stack {attributes} ", 1))
    with pytest.raises(InputError, match=f"expected DRIFT_PLANES, DRIFT_V and DRIFT_H of equally many .*{reason}") as e:
        read_project(path)
    assert "\n" not in str(e.value)


def test_displacements_of_part_of_a_pixel_survive(imported, tmp_path):
    exact = Displacement(
        *(AxisDisplacement(px, nominal, 0.9, 4) for px, nominal in ((0.25, 0), (-1.5, 0), (868.6, 870)))
    )
    path = tmp_path / "xml_displcomp.xml"
    write_project(imported.linked({(0, 0, "east"): (exact,)}), path, step="displcomp")
    assert [e.get("displ") for e in ElementTree.parse(path).getroot().find(".//Displacement")] == ["-1", "869", "0"]
    assert read_project(path).tile(0, 0).east == (exact,)


def test_positions_may_be_real_numbers(tmp_path):
    path = tmp_path / "third_party.xml"
    path.write_text(import_xml().replace('ABS_H="870"', 'ABS_H="869.75"'))
    assert read_project(path).position_px(0, 1) == (0, 0, 869.75)


def test_optional_items_may_be_missing(tmp_path):
    path = tmp_path / "old.xml"
    text = import_xml().replace('input_plugin="tiff2D"', "").replace('volume_format="TiledXY|2Dseries"', "")
    text = re.sub(r"<(ref_sys|origin|!DOCTYPE)[^>]*>", "", text)
    text = re.sub(r' (Z_RANGES|IMG_REGEX|STITCHABLE|ROW|COL)="[^"]*"', "", text)
    text = re.sub(r"<(NORTH|WEST)_displacements/>", "", text)
    path.write_text(text)
    project = read_project(path)
    assert project.axes is None
    assert project.tile(1, 2).planes is None
    assert (project.tile(1, 2).row, project.tile(1, 2).column) == (1, 2)
    write_project(project, tmp_path / "new.xml", step="import")
    again = (tmp_path / "new.xml").read_text()
    assert 'input_plugin="tiff2D"' in again
    assert "ref_sys" not in again


def test_old_displacement_attributes_have_their_defaults(measured, tmp_path):
    path = tmp_path / "old.xml"
    write_project(measured, path, step="displcomp")
    path.write_text(re.sub(r' (nccWRangeThr|nccInvWidth|delay)="[^"]*"', "", path.read_text()))
    axis = read_project(path).tile(0, 0).east[0].x
    assert (axis.largest_width_px, axis.infinite_width_px, axis.search_px) == (29, 30, -1)


def test_west_and_north_are_rebuilt_from_east_and_south(measured, tmp_path):
    path = tmp_path / "old.xml"
    write_project(measured, path, step="displcomp")
    whole = path.read_text()
    # Older files negate only the component along the grid.
    path.write_text(whole.replace('<V displ="3" default', '<V displ="-3" default'))
    assert path.read_text() != whole
    write_project(read_project(path), tmp_path / "new.xml", step="displcomp")
    assert (tmp_path / "new.xml").read_text() == whole


def test_what_the_format_does_not_know_is_kept(measured, tmp_path):
    path = tmp_path / "extended.xml"
    write_project(measured, path, step="displcomp")
    text = path.read_text()
    text = text.replace("<TeraStitcher ", '<TeraStitcher made_by="me" ').replace("<origin ", '<origin lab="here" ')
    text = text.replace("<STACKS>", '<note text="a &lt; b"><deep/></note><STACKS kind="all"><comment/>')
    text = text.replace("<Stack ", '<Stack QUALITY="good" ', 1).replace("<NORTH_", "<photo/><NORTH_", 1)
    text = text.replace("<H ", '<H sigma="0.5" ', 1).replace("<Displacement ", '<Displacement engine="x" ', 1)
    path.write_text(text)
    write_project(read_project(path), tmp_path / "again.xml", step="displcomp")
    again = (tmp_path / "again.xml").read_text()
    root = ElementTree.fromstring(again)
    assert root.get("made_by") == "me"
    assert root.find("origin").get("lab") == "here"
    assert root.find("note").get("text") == "a < b"
    assert root.find("note/deep") is not None
    assert root.find("STACKS").get("kind") == "all"
    assert root.find("STACKS/comment") is not None
    assert root.find("STACKS/Stack").get("QUALITY") == "good"
    assert root.find("STACKS/Stack/photo") is not None
    assert root.find(".//Displacement").get("engine") == "x"
    assert root.find(".//Displacement/H").get("sigma") == "0.5"
    write_project(read_project(tmp_path / "again.xml"), path, step="displcomp")
    assert path.read_text() == again


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:900], "expected a TeraStitcher project in XML at"),
        (lambda t: t.replace("TeraStitcher ", "Other ").replace("/TeraStitcher", "/Other"), "its root is <Other>"),
        (lambda t: t.replace('stack_columns="3"', 'stack_columns="4"'), "expected 2 x 4 <Stack> elements in .*, got 6"),
        (lambda t: re.sub("<voxel_dims[^>]*>", "", t), "expected <voxel_dims> in <TeraStitcher> of"),
        (lambda t: t.replace('ABS_H="870"', 'ABS_H="x"', 1), "expected a number for ABS_H of <Stack> in .*, got 'x'"),
        (lambda t: t.replace('V="1.17"', 'V="0"'), "expected <voxel_dims> above 0"),
        (lambda t: t.replace("[0,17);[19,40)", "0-17"), "expected Z_RANGES such as .*, got '0-17'"),
        (lambda t: t.replace("[0,17);[19,40)", "[0,22);[17,35)"), r"Z_RANGES that ascend within \[0,40\)"),
        (lambda t: t.replace("[0,17);[19,40)", "[0,17);[19,42)"), r"Z_RANGES that ascend within \[0,40\)"),
        (lambda t: t.replace("TiledXY|2Dseries", "MultiVolume"), "lists the projects of several channels: choose one"),
    ],
)
def test_a_broken_project_is_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "broken.xml"
    path.write_text(change(import_xml()))
    with pytest.raises(InputError, match=message) as error:
        read_project(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_project_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected a TeraStitcher project at .*: No such file"):
        read_project(tmp_path / "none.xml")


def test_an_acquisition_becomes_a_project_with_all_its_cells(make_colm, tmp_path):
    acquisition = make_colm()
    project = to_project(acquisition, 1)
    assert (project.rows, project.columns, project.slices) == (2, 3, 6)
    assert project.stacks_dir == acquisition.path / "VW0"
    assert [tile.name for tile in project.tiles] == ["LOC000", "LOC001", "LOC002", "", "LOC004", "LOC005"]
    assert project.tile(1, 0).planes == ()
    assert project.tile(0, 2).planes == ((1, 6),)
    assert project.pitch_um == pytest.approx((21.6 * 1.17, 27.2 * 1.17))
    for tile in acquisition.tiles:
        assert project.position_px(tile.row, tile.column) == acquisition.nominal_px(tile)
    write_project(project, tmp_path / "xml_import.xml", step="import")
    assert read_project(tmp_path / "xml_import.xml") == project
    with pytest.raises(InputError, match="has no channel 2"):
        to_project(acquisition, 2)


def test_the_nominal_step_is_no_pixel_short_for_want_of_digits():
    voxel = 0.585
    pitches = np.arange(1, 3000)
    cell = ProjectTile(0, 0, "", (0, 0, 0), ())
    base = Project(1, 1, 1, (1, voxel, voxel), (1, 1), Path(), (cell,))
    steps = [replace(base, pitch_um=(n * voxel, n * voxel)).nominal_steps_px for n in pitches]
    assert [step[0][2] for step in steps] == pitches.tolist()


@pytest.mark.real
def test_a_real_displacement_file_is_read_and_written_without_loss(test_data, tmp_path):
    source = test_data / "terastitcher_xml" / "terastitcher_displcomp_tsv_example.xml"
    project = read_project(source)
    assert (project.rows, project.columns, project.slices) == (2, 2, 4000)
    assert project.tile(0, 0).name == "111260/111260_171560"
    assert project.origin_mm == (10, 17.156, 11.126)
    (east,) = project.tile(0, 0).east
    assert (east.y.px, east.x.px, east.z.px) == (-29, 1703, -19)
    for tile in project.tiles:
        for side in ("east", "south"):
            for entry in getattr(tile, side):
                assert all(0 <= axis.reliability <= 1 for axis in entry.axes)
    write_project(project, tmp_path / "again.xml", step="displcomp")
    ours, theirs = (ElementTree.parse(path).getroot() for path in (tmp_path / "again.xml", source))
    for mine, other in zip(ours.iter(), theirs.iter(), strict=True):
        assert mine.tag == other.tag
        assert mine.attrib.keys() - {"IMG_REGEX"} == other.attrib.keys() - {"IMG_REGEX"}
        for name, value in other.attrib.items():
            if name == "reliability":
                assert float(mine.get(name)) == pytest.approx(float(value), abs=2e-6)
            elif mine.tag != "Stack" and name in ("displ", "default_displ"):
                # The mirrored copies of old files have other signs.
                assert abs(float(mine.get(name))) == abs(float(value))
            else:
                assert mine.get(name) == value
