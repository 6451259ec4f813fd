"""Seams: measured before and after, drawn, and the tiles that look wrong are named."""

import re

import numpy as np
import pytest

from cloudreg.errors import InputError
from cloudreg.flatfield import Shading
from cloudreg.settings import AlignSettings
from cloudreg.stitching import align
from cloudreg.stitching.seams import load_seams, measure_seams, mosaic, save_seams
from cloudreg.tiles import write_colm
from cloudreg.viewer.page import write_page
from cloudreg.viewer.stages import seam_section, suspicious_tiles

SIDE, STEP, DEPTH = 96, 72, 20
TRUTH = {(r, c): (0, STEP * r + 3 * c, STEP * c - 4 * r) for r in range(2) for c in range(3)}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """2 x 3 vignetted tiles away from where the stage meant them; one is too bright, one lost planes, one is blank."""
    from scipy.ndimage import gaussian_filter

    random = np.random.default_rng(2)
    noise = gaussian_filter(random.standard_normal((DEPTH, 220, 280)), (1, 2, 2))
    scene = 900 * np.exp(0.6 * noise / noise.std())
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    flat = 1 - 0.2 * (y**2 + x**2)

    def planes(row, column, channel, plane):
        if (row, column) == (0, 1) and 5 <= plane < 8:
            return None
        if (row, column) == (1, 2):
            return np.full((SIDE, SIDE), 100, np.uint16)
        _, top, left = np.add(TRUTH[row, column], (0, 8, 12))
        light = scene[plane, top : top + SIDE, left : left + SIDE] * flat * (1.4 if (row, column) == (0, 0) else 1)
        return (100 + light).astype(np.uint16)

    acquisition = write_colm(
        tmp_path_factory.mktemp("seams") / "raw",
        rows=2,
        columns=3,
        tile_shape=(DEPTH, SIDE, SIDE),
        voxel_size_um=(2.0, 1.0, 1.0),
        overlap=(1 - STEP / SIDE, 1 - STEP / SIDE),
        channels=1,
        objective="10x",
        scanned=np.ones((2, 3), bool),
        planes=planes,
    )
    return acquisition, Shading((flat / flat.mean()).astype(np.float32), 100.0)


@pytest.fixture(scope="module")
def project(raw):
    from cloudreg.execution import Engine

    with Engine(workers=2, memory="1GB") as engine:
        return align(raw[0], 0, raw[1], AlignSettings(search_um=(6.0, 10.0, 10.0)), engine)


def test_a_seam_gets_better_by_placing_and_evening(raw, project, engine):
    seams = {(s.first, s.second): s for s in measure_seams(raw[0], 0, raw[1], project, engine)}
    assert len(seams) == 7
    good = seams["LOC001", "LOC002"]
    assert good.correlation_before < 0.7
    assert good.correlation_after > 0.95
    assert good.ratio_after == pytest.approx(1, abs=0.05)
    assert seams["LOC000", "LOC001"].ratio_after == pytest.approx(1 / 1.4, rel=0.05)
    assert np.isnan(seams["LOC002", "LOC005"].correlation_after)


def test_what_was_written_is_read_back(raw, project, engine, tmp_path):
    save_seams(raw[0], 0, raw[1], project, tmp_path / "seams", engine)
    seams, before, after = load_seams(tmp_path / "seams")
    expected = measure_seams(raw[0], 0, raw[1], project, engine)
    assert [(s.first, s.second) for s in seams] == [(s.first, s.second) for s in expected]
    np.testing.assert_array_equal([s.ratio_after for s in seams], [s.ratio_after for s in expected])
    assert before.shape == (SIDE + STEP, SIDE + 2 * STEP)
    assert after.max() > 500
    with pytest.raises(InputError, match=r"expected seams in .*seams.csv"):
        load_seams(tmp_path)


def test_a_large_mosaic_is_made_small(in_memory_tiles):
    acquisition, places = in_memory_tiles
    picture = mosaic(acquisition, 0, None, places)
    assert max(picture.shape) <= 640
    assert picture[:100, :100].mean() == pytest.approx(100, abs=1)


@pytest.fixture
def in_memory_tiles(tmp_path):
    from cloudreg.stitching.places import tile_places
    from cloudreg.tiles import to_project

    acquisition = write_colm(
        tmp_path / "large",
        rows=1,
        columns=2,
        tile_shape=(1, 700, 700),
        voxel_size_um=(2.0, 1.0, 1.0),
        overlap=(0.1, 0.1),
        channels=1,
        objective="10x",
        scanned=np.ones((1, 2), bool),
        planes=lambda row, column, channel, plane: np.full((700, 700), 100 * (column + 1), np.uint16),
    )
    return acquisition, tile_places(acquisition, to_project(acquisition, 0))


def test_tiles_that_look_wrong_are_named_with_the_reason(raw, project, engine):
    seams = measure_seams(raw[0], 0, raw[1], project, engine)
    suspects = suspicious_tiles(project, seams)
    assert set(suspects) == {"LOC000", "LOC001", "LOC005"}
    assert re.search(r"(3[5-9]|4[0-5]) % brighter than the other tiles", "; ".join(suspects["LOC000"]))
    assert suspects["LOC001"] == ["3 of 20 planes lost"]
    (why,) = suspects["LOC005"]
    assert re.fullmatch(
        r"no usable overlap: placed by the stage, may be off by up to ~\d+, \d+ and \d+ px along z, y and x", why
    )
    z, y, x = project.position_px(1, 1)
    moved = project.moved({(1, 1): (z, y + 6, x)})
    worse = suspicious_tiles(moved, measure_seams(raw[0], 0, raw[1], moved, engine))
    assert "px from where LOC" in "; ".join(worse["LOC004"])
    assert "correlation fell" not in "; ".join(worse["LOC000"])


def test_the_section_shows_maps_and_pictures(raw, project, engine, tmp_path):
    save_seams(raw[0], 0, raw[1], project, tmp_path / "seams", engine)
    section = seam_section(project, tmp_path / "seams")
    assert [part.kind for part in section.parts] == ["table", "charts", "charts", "pictures"]
    assert "3 of 6 tiles deserve a look" in section.lead
    assert len(section.parts[3].pictures) == 2
    write_page(tmp_path / "page.html", "seams", "", [], [section])
    text = (tmp_path / "page.html").read_text()
    assert "LOC005" in text
    assert text.count("data:image") == 4
