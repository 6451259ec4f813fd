"""A folder of TIFF planes that lies in a bucket: read where it is, as one that lies here."""

import boto3
import numpy as np
import pytest
import tifffile

from cloudreg.errors import InputError
from cloudreg.io import convert, open_volume
from cloudreg.space import Box
from object_store import FaultyProxy

PLANES = np.random.default_rng(0).integers(0, 4000, (23, 40, 50)).astype(np.uint16)


@pytest.fixture
def upload(s3):
    """Put files into the bucket that only the writer reads."""
    client = boto3.client("s3", endpoint_url=s3.endpoint, region_name="us-east-1")
    return lambda file, key: client.upload_file(str(file), "private", key)


@pytest.fixture(params=["as they are", "compressed"])
def series(tmp_path, upload, request):
    """The planes, by numbers without leading zeros, and what else lies about."""
    folder = f"series/{abs(hash(request.node.nodeid))}"
    options = {"compression": "zlib", "rowsperstrip": 7} if request.param == "compressed" else {}
    for z, plane in enumerate(PLANES):
        tifffile.imwrite(tmp_path / "plane.tif", plane, **options)
        upload(tmp_path / "plane.tif", f"{folder}/p{z}.tif")
    (tmp_path / "notes.txt").write_text("of the microscope")
    upload(tmp_path / "notes.txt", f"{folder}/notes.txt")
    tifffile.imwrite(tmp_path / "small.tif", PLANES[0, :3])
    upload(tmp_path / "small.tif", f"{folder}/preview/p0.tif")
    return f"s3://private/{folder}"


def test_planes_come_in_the_order_of_their_numbers(series):
    volume = open_volume(series, voxel_size_um=(3, 2, 1))
    assert volume.format == "tiff-series" and volume.grid.shape == PLANES.shape
    np.testing.assert_array_equal(volume.read(), PLANES)
    box = Box((2, 5, 7), (19, 31, 50))
    np.testing.assert_array_equal(volume.read(box), PLANES[box.slices])


def test_the_voxel_size_is_asked_for_once(series):
    with pytest.raises(InputError, match=r"expected a voxel size in s3://.*/p0\.tif, .*: give --voxel-size Z Y X"):
        open_volume(series)


def test_requests_may_fail(series, s3, monkeypatch, tmp_path, engine):
    proxy = FaultyProxy(s3.endpoint, 0.05)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
    written = convert(series, tmp_path / "v.ome.zarr", engine=engine, voxel_size_um=(3, 2, 1), verify=True)
    proxy.stop()
    assert proxy.faults > 0
    np.testing.assert_array_equal(written.read(), PLANES)


def test_a_damaged_plane_is_named_before_any_work(series, upload, tmp_path):
    tifffile.imwrite(tmp_path / "plane.tif", PLANES[11])
    whole = (tmp_path / "plane.tif").read_bytes()
    (tmp_path / "plane.tif").write_bytes(whole[:-1000])
    upload(tmp_path / "plane.tif", f"{series.removeprefix('s3://private/')}/p11.tif")
    with pytest.raises(InputError, match=r"expected a whole TIFF file, got s3://.*/p11\.tif, which is damaged"):
        open_volume(series, voxel_size_um=(1, 1, 1))


def test_a_folder_without_planes_is_said(s3, upload, tmp_path):
    with pytest.raises(InputError, match="expected a volume or a folder of TIFF planes at s3://private/empty"):
        open_volume("s3://private/empty")
    with pytest.raises(InputError, match="got none of their metadata: check the address"):
        open_volume("s3://private")
