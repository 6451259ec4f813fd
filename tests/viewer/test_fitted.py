"""What a report says of a registration, from its tables."""

import base64

from cloudreg.viewer.fitted import _energy, _region_section


def chart_of(parts):
    return base64.b64decode(parts[0].pictures[0].source.split(",")[1]).decode()


def test_gains_are_drawn_level_by_level_and_steps_that_gained_nothing_left_out(tmp_path):
    rows = ["level_um,iteration,step,total,data,prior,gained,sigma_match"]
    rows += [f"{level},{n},velocity,-1,-1,0,{gain},0.1" for level in (200, 100) for n, gain in enumerate((8, 2, 0))]
    (tmp_path / "energies.csv").write_text("\n".join([*rows, "400,0,affine,-1,-1,0,0,0.1"]))
    chart = chart_of(_energy(tmp_path))
    assert "200 µm, velocity" in chart
    assert "100 µm, velocity" in chart
    assert "400 µm" not in chart


def test_a_fit_whose_steps_gained_nothing_has_no_chart(tmp_path):
    (tmp_path / "energies.csv").write_text("level_um,iteration,step,total,gained\n400,0,affine,-1,0.0\n")
    assert _energy(tmp_path) == []


def test_what_a_region_has_no_number_for_is_left_empty(tmp_path):
    (tmp_path / "regions.csv").write_text("id,acronym,mean_intensity\n7,CP,nan\n8,MO,0.123456789\n")
    (table,) = _region_section(tmp_path / "regions.csv").parts
    assert list(table.rows) == [["id", "acronym", "mean intensity"], ["7", "CP", ""], ["8", "MO", "0.12346"]]
