"""Every format from every place: as other programs wrote it, on a disk, a web server, an S3 server, Google's store."""

import functools
import gzip
import http.server
import json
import threading

import boto3
import nibabel
import nrrd
import numpy as np
import pytest
import tensorstore
import tifffile
import zarr

from cloudreg.errors import InputError
from cloudreg.io import convert, describe, open_volume
from cloudreg.space import Box
from cloudreg.viewer.serve import FolderServer
from object_store import KEY, SECRET

ARRAY = np.random.default_rng(0).integers(0, 999, (20, 30, 40)).astype(np.uint16)
SMOOTH = np.add.outer(np.add.outer(np.arange(20), np.arange(30)), np.arange(40)).astype(np.uint8)
IDS = (1000 * ARRAY.astype(np.uint64)) // 250
SIZE = (3.0, 2.0, 1.0)
BOX = Box((3, 5, 7), (19, 20, 33))


def ome(levels):
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    steps = [[{"type": "scale", "scale": [n * 2**level for n in SIZE]}] for level in range(levels)]
    datasets = [{"path": str(level), "coordinateTransformations": step} for level, step in enumerate(steps)]
    return [{"version": "0.4", "axes": axes, "datasets": datasets}]


def write_ome_zarr(folder, version, **options):
    group = zarr.open_group(folder, mode="w", zarr_format=2 if version == "0.4" else 3)
    for level in range(2):
        step = 2**level
        group.create_array(str(level), data=ARRAY[::step, ::step, ::step], chunks=(10, 10, 10), **options)
    group.attrs.update({"multiscales": ome(2)} if version == "0.4" else {"ome": {"multiscales": ome(2)}})


def write_precomputed(folder, array=ARRAY, encoding="raw", *, sharded=False, zipped=False):
    scale = {
        "key": "fine",
        "size": list(array.shape[::-1]),
        "resolution": [1000.0 * n for n in SIZE[::-1]],
        "voxel_offset": [0, 0, 0],
        "chunk_sizes": [[16, 16, 16]],
        "encoding": encoding,
    }
    if encoding == "compressed_segmentation":
        scale["compressed_segmentation_block_size"] = [8, 8, 8]
    if sharded:
        hashed = {"hash": "murmurhash3_x86_128", "preshift_bits": 1, "minishard_bits": 1, "shard_bits": 2}
        coded = {"minishard_index_encoding": "gzip", "data_encoding": "gzip"}
        scale["sharding"] = {"@type": "neuroglancer_uint64_sharded_v1", **hashed, **coded}
    kind = "segmentation" if encoding == "compressed_segmentation" else "image"
    info = {"type": kind, "data_type": array.dtype.name, "num_channels": 1, "scales": [scale]}
    folder.mkdir()
    (folder / "info").write_text(json.dumps(info))
    spec = {"driver": "neuroglancer_precomputed", "kvstore": f"file://{folder}/"}
    tensorstore.open(spec).result().write(array.transpose()[..., None]).result()
    if zipped:
        for file in (folder / "fine").iterdir():
            file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
            file.unlink()


def write_n5(folder):
    for level in range(2):
        array = ARRAY[:: 2**level, :: 2**level, :: 2**level]
        metadata = {"dimensions": list(array.shape[::-1]), "blockSize": [16, 16, 16], "dataType": "uint16"}
        spec = {"driver": "n5", "kvstore": f"file://{folder}/s{level}/"}
        metadata["compression"] = {"type": "gzip"}
        tensorstore.open({**spec, "metadata": metadata}, create=True).result().write(array.transpose()).result()
    attributes = {"pixelResolution": {"unit": "um", "dimensions": list(SIZE[::-1])}}
    (folder / "attributes.json").write_text(json.dumps(attributes))


def write_ome_tiff(file):
    metadata = {"axes": "ZYX"} | {f"PhysicalSize{a}": n for a, n in zip("ZYX", SIZE, strict=True)}
    tifffile.imwrite(file, ARRAY, ome=True, metadata=metadata)


def write_nifti(file):
    image = nibabel.Nifti1Image(ARRAY, np.diag([*SIZE, 1000.0]) / 1000)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, file)


def write_nrrd(file):
    nrrd.write(str(file), ARRAY, {"spacings": list(SIZE), "units": ["um"] * 3})


def write_planes(folder):
    folder.mkdir()
    for z, plane in enumerate(ARRAY):
        tifffile.imwrite(folder / f"p{z}.tif", plane)


# How to write each, what is in it, and whether it has no voxel size of its own.
SAMPLES = {
    "ome_0.4.zarr": (functools.partial(write_ome_zarr, version="0.4"), ARRAY, False),
    "ome_0.5.zarr": (functools.partial(write_ome_zarr, version="0.5"), ARRAY, False),
    "ome_sharded.zarr": (functools.partial(write_ome_zarr, version="0.5", shards=(20, 20, 20)), ARRAY, False),
    "array_2.zarr": (lambda p: zarr.create_array(p, data=ARRAY, chunks=(10, 16, 16), zarr_format=2), ARRAY, True),
    "array_3.zarr": (lambda p: zarr.create_array(p, data=ARRAY, chunks=(10, 16, 16), zarr_format=3), ARRAY, True),
    "pyramid.n5": (write_n5, ARRAY, False),
    "raw": (write_precomputed, ARRAY, False),
    "raw_sharded": (functools.partial(write_precomputed, sharded=True), ARRAY, False),
    "zipped": (functools.partial(write_precomputed, zipped=True), ARRAY, False),
    "jpeg": (functools.partial(write_precomputed, array=SMOOTH, encoding="jpeg"), SMOOTH, False),
    "jpeg_sharded": (functools.partial(write_precomputed, array=SMOOTH, encoding="jpeg", sharded=True), SMOOTH, False),
    "ids": (functools.partial(write_precomputed, array=IDS, encoding="compressed_segmentation"), IDS, False),
    "ids_sharded": (
        functools.partial(write_precomputed, array=IDS, encoding="compressed_segmentation", sharded=True),
        IDS,
        False,
    ),
    "stack.tif": (lambda p: tifffile.imwrite(p, ARRAY), ARRAY, True),
    "stack.ome.tif": (write_ome_tiff, ARRAY, False),
    "v.nii": (write_nifti, ARRAY, False),
    "v.nii.gz": (write_nifti, ARRAY, False),
    "v.nrrd": (write_nrrd, ARRAY, False),
    "planes": (write_planes, ARRAY, True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All of them, on the disk."""
    here = tmp_path_factory.mktemp("samples")
    for name, (write, _, _) in SAMPLES.items():
        write(here / name)
    return here


@pytest.fixture(scope="module")
def web(folder):
    """A web server's address of the folder."""
    with FolderServer() as server:
        yield server.share(folder)


@pytest.fixture(scope="module")
def lab(google_server, folder):
    """The address of a copy in a bucket of Google's."""
    for file in (f for f in folder.rglob("*") if f.is_file() and f.parent.parent.name != "zipped"):
        google_server.put(f"samples/{file.relative_to(folder)}", file.read_bytes())
    return "gs://lab/samples"


@pytest.fixture(scope="module")
def bucket(s3_server, folder):
    """The address of a copy in a bucket; a file ``*.gz`` of chunks becomes an object that says that it is one."""
    keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=s3_server.endpoint, **keys)
    for file in (f for f in folder.rglob("*") if f.is_file()):
        key, more = f"samples/{file.relative_to(folder)}", {}
        if key.startswith("samples/zipped/") and key.endswith(".gz"):
            key, more = key.removesuffix(".gz"), {"ContentEncoding": "gzip"}
        client.put_object(Bucket="private", Key=key, Body=file.read_bytes(), **more)
    return "s3://private/samples"


class Plain(http.server.SimpleHTTPRequestHandler):
    """Python's own server, which knows no ranges of bytes."""

    def log_message(self, *args):
        pass


@pytest.fixture(params=["path", "file", "web", "bucket", "google"])
def place(request, folder):
    """An address of the samples."""
    match request.param:
        case "path":
            return str(folder)
        case "file":
            return f"file://{folder}"
        case "web":
            return request.getfixturevalue("web")
        case "google":
            request.getfixturevalue("google")
            return request.getfixturevalue("lab")
    request.getfixturevalue("s3")
    return request.getfixturevalue("bucket")


@pytest.mark.parametrize("name", SAMPLES)
def test_a_volume_is_read_the_same_wherever_it_lies(place, name, folder):
    _, expected, sizeless = SAMPLES[name]
    size = SIZE if sizeless else None
    if name == "planes" and place.startswith("http"):
        with pytest.raises(InputError, match="got none of their metadata"):
            open_volume(f"{place}/{name}", voxel_size_um=size)
        return
    if name == "zipped" and place.startswith("gs"):
        pytest.skip("this server has no compressed objects")
    if sizeless:
        assert describe(f"{place}/{name}")["voxel size"].startswith("not known")
        with pytest.raises(InputError, match="give --voxel-size Z Y X"):
            open_volume(f"{place}/{name}")
    volume = open_volume(f"{place}/{name}", voxel_size_um=size)
    assert volume.grid.shape == expected.shape and volume.dtype == expected.dtype
    np.testing.assert_allclose(sorted(volume.grid.voxel_size_um), sorted(SIZE), rtol=1e-6)
    tolerance = 6 if name.startswith("jpeg") else 0
    np.testing.assert_allclose(volume.read().astype(int), expected.astype(int), atol=tolerance)
    np.testing.assert_allclose(volume.read(BOX).astype(int), expected[BOX.slices].astype(int), atol=tolerance)
    if len(volume.levels) > 1:
        np.testing.assert_array_equal(volume.read(level=1), expected[::2, ::2, ::2])


@pytest.mark.parametrize("name", ["raw", "raw_sharded", "ids", "zipped"])
def test_half_a_copy_is_refused_wherever_it_lies(place, name, folder, tmp_path, engine, request):
    if place.startswith("gs"):
        pytest.skip("as in any bucket")
    gone = sorted(f for f in (folder / name / "fine").iterdir() if f.is_file())[0]
    content = gone.read_bytes()
    if place.startswith("s3"):
        client = boto3.client("s3", endpoint_url=request.getfixturevalue("s3").endpoint, region_name="us-east-1")
        key = f"samples/{name}/fine/{gone.name.removesuffix('.gz')}"
        client.delete_object(Bucket="private", Key=key)
    else:
        gone.unlink()
    try:
        with pytest.raises(InputError, match=r"(1 are|is) missing.*: finish the copy, or give --fill-missing"):
            convert(f"{place}/{name}", tmp_path / "v.ome.zarr", engine=engine)
        corner = Box((0, 0, 0), (9, 9, 9))
        if "sharded" not in name:
            with pytest.raises(InputError, match=r"0-16_0-16_0-16.* is missing.*: finish the copy"):
                convert(f"{place}/{name}", tmp_path / "corner.nrrd", engine=engine, region=corner)
            whole = Box((16, 16, 16), (20, 30, 40))
            found = convert(f"{place}/{name}", tmp_path / "whole.nrrd", engine=engine, region=whole)
            np.testing.assert_array_equal(found.read(), SAMPLES[name][1][whole.slices])
        filled = convert(f"{place}/{name}", tmp_path / "v.nrrd", engine=engine, fill_missing=True).read()
        assert ((filled == 0) | (filled == SAMPLES[name][1])).all() and not filled[corner.slices].all()
    finally:
        gone.write_bytes(content)
        if place.startswith("s3"):
            more = {"ContentEncoding": "gzip"} if name == "zipped" else {}
            client.put_object(Bucket="private", Key=key, Body=content, **more)


@pytest.mark.parametrize("name", ["raw_sharded", "ome_sharded.zarr"])
def test_a_web_server_that_gives_no_parts_of_files_is_named(folder, tmp_path, name):
    for sample in ("raw_sharded", "ome_sharded.zarr", "raw"):
        (tmp_path / sample).symlink_to(folder / sample)
    tifffile.imwrite(tmp_path / "large.tif", np.tile(ARRAY, (9, 1, 1)))
    handler = functools.partial(Plain, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(InputError, match="gives files as a whole only, and parts are needed: copy it here"):
            open_volume(f"{address}/{name}", voxel_size_um=SIZE).read()
        np.testing.assert_array_equal(open_volume(f"{address}/raw").read(), ARRAY)
        # A TIFF is fetched as a whole then.
        large = open_volume(f"{address}/large.tif", voxel_size_um=SIZE)
        assert large.path == f"{address}/large.tif"
        np.testing.assert_array_equal(large.read(), np.tile(ARRAY, (9, 1, 1)))
        server.shutdown()
