"""Volumes on a server that answers as Google's store does."""

import os
from pathlib import Path

import numpy as np
import pytest

from cloudreg.errors import InputError
from cloudreg.io import create_volume, open_volume, write_volume
from cloudreg.io.objects import write_new_json
from cloudreg.space import Box, Grid

ARRAY = np.random.default_rng(0).integers(1, 999, (70, 80, 90)).astype(np.uint16)
GRID = Grid.from_spacing(ARRAY.shape, (2, 2, 2), (16, 32, -8))
FORMS = ["gs://lab/{}/v.ome.zarr", "precomputed://gs://lab/{}/v"]


@pytest.mark.parametrize("form", FORMS)
def test_there_and_back_is_bit_exact(google, cloudreg, tmp_path, form):
    write_volume(tmp_path / "v.tif", ARRAY, GRID)
    place = form.format("there")
    assert cloudreg("convert", tmp_path / "v.tif", place, "--verify")[0] == 0
    assert cloudreg("download", place, tmp_path / "back.tif", "--verify")[0] == 0
    np.testing.assert_array_equal(open_volume(tmp_path / "back.tif").read(), ARRAY)


@pytest.mark.parametrize("form", FORMS)
def test_an_unfinished_volume_is_continued_and_a_finished_one_left_alone(google, form):
    place = form.format("continued")
    half, rest = Box((0, 0, 0), (64, 80, 90)), Box((64, 0, 0), (70, 80, 90))
    create_volume(place, GRID, "uint16").write(half, ARRAY[half.slices])
    with pytest.raises(InputError, match="expected a finished volume"):
        open_volume(place)
    writer = create_volume(place, GRID, "uint16")
    writer.write(rest, ARRAY[rest.slices])
    np.testing.assert_array_equal(writer.complete().read(), ARRAY)
    with pytest.raises(InputError, match="got a finished volume"):
        create_volume(place, GRID, "uint16")


def test_of_two_programs_that_begin_a_volume_one_does(google):
    assert write_new_json("gs://lab/begun", "info", {"by": 1})
    assert not write_new_json("gs://lab/begun", "info", {"by": 2})


def test_a_bucket_that_does_not_exist_is_named(google, refused, tmp_path):
    write_volume(tmp_path / "v.tif", ARRAY, GRID)
    for words in (("info", "gs://nowhere/v"), ("convert", tmp_path / "v.tif", "gs://nowhere/v.ome.zarr")):
        assert "nowhere" in refused(*words)


def test_the_secrets_of_cloud_volume_are_shown_to_googles_chain(google, monkeypatch):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "")
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS")
    write_volume("gs://lab/secret.ome.zarr", ARRAY, GRID)
    assert "GOOGLE_APPLICATION_CREDENTIALS" not in os.environ
    secrets = Path.home() / ".cloudvolume" / "secrets"
    secrets.mkdir(parents=True)
    for name in ("google-secret.json", "lab-google-secret.json"):
        (secrets / name).write_text("{}")
    open_volume("gs://lab/secret.ome.zarr")
    assert os.environ["GOOGLE_APPLICATION_CREDENTIALS"] == str(secrets / "lab-google-secret.json")
