"""Pictures show the voxels they should, in the right place and proportion."""

import base64
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from cloudreg.io import open_volume, write_volume
from cloudreg.space import Grid
from cloudreg.viewer.pictures import (
    SmallVolume,
    coloured,
    encode,
    enlarged,
    grey,
    label_plane,
    middle_planes,
    outlines,
    place,
    shrink,
    with_scale_bar,
)


def decoded(address):
    return np.asarray(Image.open(BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGBA"))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_plane_of_labels_has_the_ids_of_its_place_on_another_grid(tmp_path, axis):
    labels = np.random.default_rng(0).integers(0, 2**31, (12, 10, 8)).astype(np.uint32)
    volume = write_volume(
        tmp_path / "l.nrrd", labels, Grid.from_spacing(labels.shape, (30.0, 20.0, 10.0)), kind="labels"
    )
    twice = Grid.from_spacing((24, 20, 16), (15.0, 10.0, 5.0), (-7.5, -5.0, -2.5))
    expected = np.take(labels.repeat(2, 0).repeat(2, 1).repeat(2, 2), 5, axis=axis)
    opened = open_volume(volume.path)
    moved = Grid(twice.shape, opened.grid.affine @ np.linalg.inv(np.diag([30.0, 20, 10, 1])) @ twice.affine)
    np.testing.assert_array_equal(label_plane(opened, moved, axis, 5), expected)


def test_a_plane_lies_where_it_is_along_its_own_axis_though_the_file_is_turned():
    straight = Grid.from_spacing((9, 9, 9), (10.0, 20.0, 30.0), (5.0, -40.0, 0.0))
    assert [place(straight, axis, 2) for axis in range(3)] == ["z = 25 µm", "y = 0 µm", "x = 60 µm"]
    affine = np.array([[0, 0, -30.0, 50], [10, 0, 0, 5], [0, 20, 0, -40], [0, 0, 0, 1]])
    turned = Grid((9, 9, 9), affine)
    assert [place(turned, axis, 2) for axis in range(3)] == ["z = 25 µm", "y = 0 µm", "x = 10 µm"]


def test_outlines_lie_between_regions_only():
    labels = np.zeros((10, 12), np.uint32)
    labels[:, 6:] = 3
    alpha = decoded(outlines(labels))[..., 3]
    assert (alpha[:, 5] > 0).all()
    assert (np.delete(alpha, 5, axis=1) == 0).all()


def test_enlarged_planes_have_square_pixels():
    plane = np.arange(20.0 * 10).reshape(20, 10)
    assert enlarged(plane, (10.0, 40.0), smooth=True).shape == (320, 640)
    assert set(np.unique(enlarged(plane, (10.0, 40.0), smooth=False))) == set(np.unique(plane))


def test_smooth_enlarging_keeps_a_ramp_a_ramp():
    ramp = np.repeat(np.arange(50.0)[None], 50, axis=0)
    middle = enlarged(ramp, (1.0, 1.0), smooth=True)[0, 20:-20]
    np.testing.assert_allclose(np.diff(middle), 50 / 640, rtol=1e-3)


def test_the_scale_bar_has_the_length_it_says():
    picture, length = with_scale_bar(np.zeros((300, 600, 3), np.uint8), 10.0)
    assert length == "1 mm"
    assert (picture[:, :, 0] > 0).any(axis=0).sum() == 100


def test_grey_spans_the_window():
    values = np.array([[0, 100, 200, 300]])
    assert grey(values, (100.0, 200.0))[0, :, 0].tolist() == [0, 0, 255, 255]


def test_a_constant_or_empty_volume_still_makes_a_picture():
    grid = Grid.from_spacing((4, 4, 4), (1.0, 1.0, 1.0))
    for value in (0.0, 5.0):
        volume = SmallVolume(np.full((4, 4, 4), value, np.float32), grid)
        assert len(middle_planes(volume, volume.window(), "flat")) == 3
    assert coloured(np.ones((2, 2)), "viridis", 1, 1).shape == (2, 2, 3)


def test_a_picture_knows_its_proportion():
    picture = encode(np.zeros((100, 250, 3), np.uint8), "wide")
    assert picture.aspect == 2.5
    assert decoded(picture.source).shape == (100, 250, 4)


def test_a_large_volume_is_read_at_the_resolution_of_a_screen(tmp_path):
    array = np.zeros((4, 8, 2000), np.uint16)
    array[:, :, 1000:] = 100
    volume = write_volume(tmp_path / "v.nrrd", array, Grid.from_spacing(array.shape, (5.0, 5.0, 5.0)))
    small = shrink(volume)
    assert max(small.array.shape) <= 1000
    middle = small.grid.um_to_index(volume.grid.index_to_um((2, 4, 999.5)))[2]
    assert small.array[0, 0, int(middle) - 2] == 0
    assert small.array[0, 0, int(middle) + 2] == 100
