"""Volumes on disk through the map."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from cloudreg.errors import InputError
from cloudreg.execution import Engine, Ledger
from cloudreg.io import open_volume, write_volume
from cloudreg.space import Box, Grid
from cloudreg.transforms import DisplacementField, Transform, VoxelMap, resample
from cloudreg.transforms import images as images_module
from cloudreg.transforms.images import BlockPull, apply_image

AFFINE = np.array([[1.04, 0.1, 0.0, 20.0], [-0.08, 0.96, 0.05, -15.0], [0.0, -0.06, 1.03, 30.0], [0, 0, 0, 1.0]])
FIELD = Grid.from_spacing((7, 6, 8), (160.0, 180.0, 170.0), (-30.0, -20.0, -60.0))
RNG = np.random.default_rng(0)
TRANSFORM = Transform(AFFINE, *[DisplacementField(FIELD, RNG.normal(0, 12, (3, *FIELD.shape))) for _ in range(2)])
SOURCE = Grid.from_spacing((41, 53, 37), (20.0, 15.0, 25.0), (10.0, 5.0, -8.0))
DESTINATION = Grid.from_spacing((67, 71, 83), (12.0, 13.0, 11.0), (-30.0, 4.0, 12.0))
BIG_ID = 3_000_000_019


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    array = np.random.default_rng(1).integers(0, 2**16, SOURCE.shape).astype(np.uint16)
    path = tmp_path_factory.mktemp("image") / "image.ome.zarr"
    return array, write_volume(str(path), array, SOURCE)


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    blocks = np.indices(SOURCE.shape) // 7
    array = (BIG_ID + blocks[0] + 10 * blocks[1] + 100 * blocks[2]).astype(np.uint32)
    path = tmp_path_factory.mktemp("labels") / "labels.ome.zarr"
    return array, write_volume(str(path), array, SOURCE, kind="labels")


def digest(path):
    files = sorted(p for p in Path(path).rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_an_image_on_disk_is_the_image_in_memory_rounded(image, engine, tmp_path):
    array, volume = image
    got = apply_image(
        TRANSFORM, volume, DESTINATION, str(tmp_path / "o.ome.zarr"), to="target", labels=False, engine=engine
    )
    expected = np.rint(resample(TRANSFORM, array, SOURCE, DESTINATION, to="target")).astype(np.uint16)
    np.testing.assert_array_equal(got.read(), expected)
    assert got.dtype == np.uint16 and got.grid == DESTINATION and (expected > 0).mean() > 0.3


@pytest.mark.parametrize("name", ["o.ome.zarr", "o.nii.gz", "o.tif"])
def test_big_ids_survive_in_every_format(labels, engine, tmp_path, name):
    array, volume = labels
    got = apply_image(TRANSFORM, volume, DESTINATION, str(tmp_path / name), to="atlas", labels=True, engine=engine)
    expected = resample(TRANSFORM, array, SOURCE, DESTINATION, to="atlas", labels=True)
    values = got.read()
    assert values.dtype == np.uint32
    np.testing.assert_array_equal(values, expected)
    assert set(np.unique(values)) <= set(np.unique(array)) | {0} and values.max() > 2**31


def test_the_bytes_do_not_depend_on_workers_memory_or_blocks(image, tmp_path, monkeypatch):
    _, volume = image
    with Engine(workers=1, memory="1GB") as one:
        apply_image(TRANSFORM, volume, DESTINATION, str(tmp_path / "a.ome.zarr"), to="atlas", labels=False, engine=one)
    monkeypatch.setattr(images_module, "_BLOCK_SIDE", 1)
    with Engine(workers=2, memory="64MB") as two:
        apply_image(TRANSFORM, volume, DESTINATION, str(tmp_path / "b.ome.zarr"), to="atlas", labels=False, engine=two)
    assert digest(tmp_path / "a.ome.zarr") == digest(tmp_path / "b.ome.zarr")


def test_a_block_that_is_too_big_for_memory_is_computed_in_parts(image):
    _, volume = image
    voxel_map = VoxelMap.between(TRANSFORM, SOURCE, DESTINATION, "target")
    box = Box((0, 3, 5), (64, 70, 80))
    roomy, tight = (BlockPull(voxel_map, volume, 0, 0, False, volume.dtype, memory_bytes=n) for n in (10**9, 2 * 10**5))
    parts = list(
        voxel_map.parts(box, SOURCE.shape, source_voxel_bytes=4, voxel_bytes=16, memory_bytes=tight.memory_bytes)
    )
    assert len(parts) > 8
    assert all(reach.size * 4 + part.size * 16 <= 2 * 10**5 or part.size <= 2**12 for part, reach in parts)
    np.testing.assert_array_equal(roomy(box), tight(box))


def test_a_killed_run_goes_on_and_gives_the_same_bytes(image, engine, tmp_path, monkeypatch):
    _, volume = image
    monkeypatch.setattr(images_module, "_BLOCK_SIDE", 1)
    out = str(tmp_path / "o.ome.zarr")
    calls = []
    whole_pull = BlockPull.__call__

    def failing_pull(self, box):
        calls.append(box)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole_pull(self, box)

    big = Grid.from_spacing((150, 71, 83), (6.0, 13.0, 11.0), (-30.0, 4.0, 12.0))
    with Engine(workers=1, memory="1GB") as one:
        monkeypatch.setattr(BlockPull, "__call__", failing_pull)
        with pytest.raises(KeyboardInterrupt):
            apply_image(
                TRANSFORM, volume, big, out, to="target", labels=False, engine=one, ledger=Ledger(tmp_path / "l")
            )
        monkeypatch.setattr(BlockPull, "__call__", lambda self, box: calls.append(box) or whole_pull(self, box))
        apply_image(TRANSFORM, volume, big, out, to="target", labels=False, engine=one, ledger=Ledger(tmp_path / "l"))
        assert len(calls) == len(set(calls)) + 1
        apply_image(TRANSFORM, volume, big, str(tmp_path / "p.ome.zarr"), to="target", labels=False, engine=one)
    assert digest(out) == digest(tmp_path / "p.ome.zarr")


def test_a_coarse_destination_reads_a_coarse_level_and_does_not_alias(engine, tmp_path):
    stripes = np.zeros((64, 64, 64), np.uint16)
    stripes[:, :, ::2] = 200
    fine = Grid.from_spacing(stripes.shape, (10, 10, 10))
    path = tmp_path / "stripes.ome.zarr"
    write_volume(str(path), stripes, fine)
    write_volume(str(tmp_path / "stripes.tif"), stripes, fine)
    identity = Transform.from_affine(np.eye(4), fine)
    coarse = fine.downsampled((8, 8, 8))
    for volume in (open_volume(str(path)), open_volume(str(tmp_path / "stripes.tif"), voxel_size_um=(10, 10, 10))):
        got = apply_image(
            identity,
            volume,
            coarse,
            str(tmp_path / f"{volume.format}.nii.gz"),
            to="target",
            labels=False,
            engine=engine,
        )
        np.testing.assert_array_equal(got.read()[1:-1, 1:-1, 1:-1], 100)


def test_whole_number_labels_stored_as_floats_become_integers(engine, tmp_path):
    array = np.random.default_rng(3).integers(0, 70000, SOURCE.shape).astype(np.float32)
    volume = write_volume(str(tmp_path / "l.nii.gz"), array, SOURCE, kind="labels", orientation="ipl")
    identity = Transform.from_affine(np.eye(4), SOURCE)
    got = apply_image(identity, volume, SOURCE, str(tmp_path / "o.ome.zarr"), to="atlas", labels=True, engine=engine)
    np.testing.assert_array_equal(got.read(), array.astype(np.uint32))


def test_an_output_that_must_be_held_and_does_not_fit_is_refused(image, tmp_path):
    huge = Grid.from_spacing((1000, 1000, 100), (1, 1, 10))
    with Engine(workers=1, memory="64MB") as small, pytest.raises(InputError, match=r"\.ome\.zarr"):
        apply_image(TRANSFORM, image[1], huge, str(tmp_path / "o.tif"), to="target", labels=False, engine=small)
    assert not (tmp_path / "o.tif").exists()


def test_an_output_that_does_not_fit_on_the_disk_is_refused(image, engine, tmp_path):
    huge = Grid.from_spacing((10**7, 10**5, 10**5), (1, 1, 1))
    with pytest.raises(InputError, match="free"):
        apply_image(TRANSFORM, image[1], huge, str(tmp_path / "o.ome.zarr"), to="target", labels=False, engine=engine)
    assert not (tmp_path / "o.ome.zarr").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["o.ome.zarr", "o.nrrd"])
def test_voxels_that_are_no_numbers_count_as_outside(engine, tmp_path, value, name):
    array = np.random.default_rng(1).random(SOURCE.shape).astype(np.float32)
    array[20, 26, 18] = 0
    expected = resample(TRANSFORM, array, SOURCE, DESTINATION, to="target")
    array[20, 26, 18] = value
    volume = write_volume(tmp_path / "v.nrrd", array, SOURCE)
    got = apply_image(TRANSFORM, volume, DESTINATION, str(tmp_path / name), to="target", labels=False, engine=engine)
    np.testing.assert_array_equal(got.read(), expected)
