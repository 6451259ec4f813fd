"""Point files through the map."""

import csv

import numpy as np
import pytest

from cloudreg.errors import InputError
from cloudreg.space import Grid
from cloudreg.transforms import DisplacementField, Transform, apply_points_file, read_all_points, read_points

AFFINE = np.array([[1.1, 0.05, 0, 10.1], [0, 0.9, 0.03, -20.3], [0.02, 0, 1.0, 30.7], [0, 0, 0, 1.0]])
GRID = Grid.from_spacing((8, 9, 10), (100, 100, 100))
RNG = np.random.default_rng(0)
TRANSFORM = Transform(AFFINE, *[DisplacementField(GRID, RNG.normal(0, 20, (3, *GRID.shape))) for _ in range(2)])
TARGET = Grid.from_spacing((50, 60, 70), (10.0, 12.5, 8.0), (3.0, 0.0, -7.0))


def write(path, header, rows):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def points_of(rows):
    return np.array([[float(row[c]) for c in ("z_um", "y_um", "x_um")] for row in rows])


@pytest.mark.parametrize("to", ["target", "atlas"])
def test_points_land_where_the_transform_puts_them_to_the_last_bit(tmp_path, to):
    points = np.random.default_rng(1).uniform(100, 500, (300, 3))
    source = write(tmp_path / "in.csv", "z_um,y_um,x_um", [",".join(map(repr, p)) for p in points.tolist()])
    assert apply_points_file(TRANSFORM, source, tmp_path / "out.csv", to) == (0, 300)
    move = TRANSFORM.atlas_to_target if to == "target" else TRANSFORM.target_to_atlas
    np.testing.assert_array_equal(points_of(read(tmp_path / "out.csv")), move(points)[0])


def test_further_columns_come_along_as_they_were_in_their_order(tmp_path):
    source = write(
        tmp_path / "in.csv",
        "name,x_um,score,z_um,y_um",
        ['"a, ""b""",300.0,007,100.0,200.0', "é,310,,110,210"],
    )
    apply_points_file(TRANSFORM, source, tmp_path / "out.csv", "atlas")
    rows = read(tmp_path / "out.csv")
    assert list(rows[0]) == ["name", "x_um", "score", "z_um", "y_um", "inside"]
    assert [(r["name"], r["score"], r["inside"]) for r in rows] == [('a, "b"', "007", "1"), ("é", "", "1")]
    expected = TRANSFORM.target_to_atlas([[100, 200, 300], [110, 210, 310]])[0]
    np.testing.assert_array_equal(points_of(rows), expected)


def test_voxels_are_read_on_the_grid_they_were_marked_in(tmp_path):
    source = write(tmp_path / "in.csv", "z,y,x,kind", ["10,20,30,a", "11.5,20,30,b"])
    apply_points_file(TRANSFORM, source, tmp_path / "out.csv", "atlas", target_grid=TARGET, atlas_grid=GRID)
    expected = TRANSFORM.target_to_atlas(TARGET.index_to_um([[10, 20, 30], [11.5, 20, 30]]))[0]
    np.testing.assert_array_equal(points_of(read(tmp_path / "out.csv")), expected)


def test_points_outside_the_field_are_nan_and_flagged(tmp_path):
    source = write(
        tmp_path / "in.csv", "z_um,y_um,x_um,n", ["1e6,0,0,1", "300,300,300,2", "nan,1,1,3", "1,-1e400,1e308,4"]
    )
    assert apply_points_file(TRANSFORM, source, tmp_path / "out.csv", "target") == (3, 4)
    rows = read(tmp_path / "out.csv")
    assert [r["inside"] for r in rows] == ["0", "1", "0", "0"]
    assert [r["z_um"] == "nan" for r in rows] == [True, False, True, True]


def test_a_file_that_went_there_and_comes_back_has_one_inside_column(tmp_path):
    source = write(tmp_path / "in.csv", "z_um,y_um,x_um", ["300,300,300"])
    apply_points_file(TRANSFORM, source, tmp_path / "there.csv", "target")
    apply_points_file(TRANSFORM, tmp_path / "there.csv", tmp_path / "back.csv", "atlas")
    assert (tmp_path / "back.csv").read_text().splitlines()[0] == "z_um,y_um,x_um,inside"


def test_chunks_do_not_change_the_points(tmp_path):
    lines = [f"{i},{i + 1},{i + 2}" for i in range(23)] + ["", " "]
    source = write(tmp_path / "in.csv", "\ufeffz_um, y_um ,x_um", lines)
    whole = read_all_points(source)
    assert whole.shape == (23, 3)
    for rows in (1, 5, 23, 24):
        np.testing.assert_array_equal(
            np.concatenate([c.points_um for c in read_points(source, chunk_rows=rows)]), whole
        )


def test_no_points_are_no_error(tmp_path):
    source = write(tmp_path / "in.csv", "z_um,y_um,x_um", [])
    assert apply_points_file(TRANSFORM, source, tmp_path / "out.csv", "atlas") == (0, 0)
    assert (tmp_path / "out.csv").read_text() == "z_um,y_um,x_um,inside\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n1,2,3\n", "expected a header with z_um,y_um,x_um"),
        ("", "expected a header"),
        ("z_um,y_um,x_um\n1,2\n", "line 2"),
        ("z_um,y_um,x_um\n1,2,3\n1,2,three\n", "line 3.*'1,2,three'"),
        ("z,y,x\n1,2,3\n", "unknown volume"),
    ],
)
def test_bad_files_are_one_line_and_leave_no_output(tmp_path, text, message):
    (tmp_path / "in.csv").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        apply_points_file(TRANSFORM, tmp_path / "in.csv", tmp_path / "out.csv", "atlas")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.csv").exists()


def test_a_missing_file_and_an_output_over_the_input_are_refused(tmp_path):
    with pytest.raises(InputError, match="found none"):
        apply_points_file(TRANSFORM, tmp_path / "none.csv", tmp_path / "out.csv", "atlas")
    source = write(tmp_path / "in.csv", "z_um,y_um,x_um", ["1,2,3"])
    with pytest.raises(InputError, match="overwrite"):
        apply_points_file(TRANSFORM, source, source, "atlas")
    assert source.read_text() == "z_um,y_um,x_um\n1,2,3\n"
