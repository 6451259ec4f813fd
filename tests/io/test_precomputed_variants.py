"""Precomputed as other programs write and read it: encodings, gzip, shards; CloudVolume's own word."""

import gzip
import json

import numpy as np
import pytest
import tensorstore

from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.io import build_pyramid, convert, create_volume, open_volume, write_volume
from cloudreg.space import Box, Grid
from object_store import KEY, SECRET

ARRAY = np.random.default_rng(0).integers(1, 999, (70, 80, 90)).astype(np.uint16)
GRID = Grid.from_spacing(ARRAY.shape, (2, 2, 2), (16, 32, -8))


def zip_chunks(folder):
    for file in [f for f in folder.rglob("*") if f.is_file() and "-" in f.name]:
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()


@pytest.mark.parametrize("kind", ["image", "labels"])
def test_gzipped_files_are_read(tmp_path, kind):
    array = ARRAY.astype(np.uint32)
    write_volume(f"precomputed://{tmp_path}/v", array, GRID, kind=kind)
    zip_chunks(tmp_path / "v")
    volume = open_volume(tmp_path / "v")
    np.testing.assert_array_equal(volume.read(), array)
    box = Box((3, 60, 5), (69, 70, 66))
    np.testing.assert_array_equal(volume.read(box), array[box.slices])
    assert volume.read(level=1).any()
    damaged = next((tmp_path / "v").rglob("*.gz"))
    damaged.write_bytes(damaged.read_bytes()[:20])
    with pytest.raises(InputError, match=r"expected a whole gzip file, got .*\.gz"):
        [volume.read(level=level) for level in range(len(volume.levels))]


def test_gzipped_objects_are_read(s3, tmp_path):
    import boto3

    write_volume(f"precomputed://{tmp_path}/v", ARRAY, GRID)
    client = boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
    )
    for file in (f for f in (tmp_path / "v").rglob("*") if f.is_file()):
        name = f"zipped/{file.relative_to(tmp_path / 'v')}"
        client.put_object(Bucket="public", Key=name, Body=gzip.compress(file.read_bytes()), ContentEncoding="gzip")
    np.testing.assert_array_equal(open_volume("s3://public/zipped").read(), ARRAY)
    np.testing.assert_array_equal(open_volume(f"precomputed://{s3.endpoint}/public/zipped").read(), ARRAY)


def others(folder, *, encoding="raw", dtype="uint16", array=ARRAY):
    scale = {
        "key": "1",
        "size": list(array.shape[::-1]),
        "resolution": [1000, 1000, 1000],
        "voxel_offset": [0, 10, 20],
        "chunk_sizes": [[32, 32, 32]],
        "encoding": encoding,
    }
    info = {"type": "image", "data_type": dtype, "num_channels": 1, "scales": [scale]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "info").write_text(json.dumps(info))
    if encoding in ("raw", "png", "jpeg"):
        spec = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{folder}/"}
        tensorstore.open(spec).result().write(array.astype(dtype).transpose()[..., None]).result()
    return folder


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("form", ["precomputed://{}/v", "{}/v.ome.zarr"])
def test_a_damaged_chunk_is_named(tmp_path, form, sharded):
    grid = Grid.from_spacing(ARRAY.shape, (2, 2, 2))
    writer = create_volume(form.format(tmp_path), grid, "uint16", levels=1, sharded=sharded, chunk=(32, 32, 32))
    writer.write(Box.whole(ARRAY.shape), ARRAY)
    volume = writer.complete()
    largest = max((f for f in tmp_path.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"could not read box .*/v.*, where a chunk is damaged .*: copy the volume"):
        volume.read()


@pytest.mark.parametrize(("encoding", "dtype"), [("jpeg", "uint8"), ("png", "uint8"), ("png", "uint16")])
def test_pictures_as_chunks_are_read(tmp_path, encoding, dtype):
    ramp = np.add.outer(np.add.outer(np.arange(40), np.arange(50)), np.arange(60))
    read = open_volume(others(tmp_path, encoding=encoding, dtype=dtype, array=ramp)).read()
    assert np.abs(read.astype(int) - ramp).max() <= (8 if encoding == "jpeg" else 0)


def test_an_encoding_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"encoded as raw, jpeg.*, got compresso"):
        open_volume(others(tmp_path, encoding="compresso"))


def test_half_a_volume_is_refused_unless_zeros_will_do(tmp_path, engine):
    others(tmp_path / "v")
    for file in list((tmp_path / "v" / "1").iterdir())[:5]:
        file.unlink()
    with pytest.raises(InputError, match=r"expected 27 chunks in level 0 of .*v, 5 are missing \(1/.*, …\): finish"):
        convert(tmp_path / "v", tmp_path / "w.nrrd", engine=engine)
    filled = convert(tmp_path / "v", tmp_path / "w.nrrd", engine=engine, fill_missing=True)
    assert 0 < (filled.read() == 0).sum() <= 5 * 32**3


def test_a_folder_of_two_volumes_asks_which(tmp_path):
    write_volume(tmp_path / "v.zarr", ARRAY, GRID)
    others(tmp_path / "v.zarr")
    with pytest.raises(
        InputError, match=r"expected one volume at .* got the metadata of two .info, zarr\.json.: say which"
    ):
        open_volume(tmp_path / "v.zarr")
    assert open_volume(f"precomputed://{tmp_path}/v.zarr").format == "precomputed"
    assert open_volume(f"zarr://{tmp_path}/v.zarr").format == "ome-zarr"
    for other in ("n5", "zarr2"):
        with pytest.raises(InputError, match=rf"expected a volume with .* at {other}://.*, got none: check the path"):
            open_volume(f"{other}://{tmp_path}/v.zarr")


@pytest.mark.parametrize("kind", ["image", "labels"])
@pytest.mark.parametrize("form", ["precomputed://{}/v", "{}/v.ome.zarr"])
@pytest.mark.parametrize("shape", [(70, 80, 90), (300, 70, 40), (1, 500, 600), (129, 257, 65)])
def test_shards_hold_what_they_should(tmp_path, shape, form, kind):
    array = np.random.default_rng(1).integers(1, 5, shape).astype(np.uint32)
    grid = Grid.from_spacing(shape, (1, 1, 1))
    writer = create_volume(form.format(tmp_path), grid, array.dtype, kind=kind, sharded=True, chunk=(16, 16, 16))
    with Engine(workers=2, memory="1GB") as engine:
        from cloudreg.io.blocks import blocks_within

        boxes = blocks_within(shape, writer.block_shape(), 100, 1)
        engine.run(lambda box: writer.write(box, array[box.slices]), boxes, label="write")
        build_pyramid(writer, engine=engine)
    volume = writer.complete()
    np.testing.assert_array_equal(volume.read(), array)
    assert volume.chunk == (16, 16, 16)
    files = [f for f in tmp_path.rglob("*") if f.is_file() and (f.suffix == ".shard" or "/0/c/" in str(f))]
    assert 0 < len(files) <= sum(writer.layout.objects_of(level) for level in range(len(writer.levels)))


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(("kind", "dtype"), [("image", "uint16"), ("labels", "uint32"), ("labels", "uint64")])
def test_cloud_volume_reads_ours(tmp_path, kind, dtype, sharded):
    cloudvolume = pytest.importorskip("cloudvolume", reason="pip install cloud-volume")
    array = ARRAY.astype(dtype)
    writer = create_volume(f"precomputed://{tmp_path}/v", GRID, dtype, kind=kind, sharded=sharded, chunk=(32, 32, 32))
    writer.write(Box.whole(array.shape), array)
    build_pyramid(writer)
    volume = writer.complete()
    for level in range(len(volume.levels)):
        theirs = cloudvolume.CloudVolume(f"file://{tmp_path}/v", mip=level, progress=False, fill_missing=True)
        np.testing.assert_array_equal(np.asarray(theirs[:, :, :])[..., 0].transpose(), volume.read(level=level))
    assert theirs.info["scales"][0]["voxel_offset"] == [-4, 16, 8]
