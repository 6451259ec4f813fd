"""Volumes on a real S3 server: written, read, gone on with, and every way to be refused."""

import functools
import http.server
import json
import os
import pickle
import subprocess
import threading
import time

import numpy as np
import pytest

from cloudreg.errors import InputError, StoreUnreachableError
from cloudreg.execution import Engine, Ledger
from cloudreg.io import convert, create_volume, open_volume, write_volume
from cloudreg.io.objects import list_files, write_new_json
from cloudreg.io.tiff_writing import TiffBoxes
from cloudreg.space import Box, Grid
from object_store import KEY, READER_KEY, READER_SECRET, SECRET, FaultyProxy, S3Server

ARRAY = np.random.default_rng(0).integers(1, 999, (70, 80, 90)).astype(np.uint16)
GRID = Grid.from_spacing(ARRAY.shape, (2, 2, 2), (16, 32, -8))
FORMS = ["s3://{}/v.ome.zarr", "precomputed://s3://{}/v"]


@pytest.fixture
def place(request):
    """A folder of its own for each test, in the bucket that only the writer reads."""
    return f"private/{abs(hash(request.node.nodeid))}"


@pytest.mark.parametrize("form", FORMS)
def test_a_volume_in_a_bucket_is_read_as_it_was_written(s3, place, form):
    written = write_volume(form.format(place), ARRAY, GRID, orientation="asr")
    volume = open_volume(form.format(place))
    assert volume.path == written.path == form.format(place)
    assert volume.grid == GRID and volume.orientation == "asr" and len(volume.levels) == 2
    np.testing.assert_array_equal(volume.read(), ARRAY)
    box = Box((1, 2, 3), (5, 6, 7))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(volume)).read(box), ARRAY[box.slices])
    with pytest.raises(InputError, match="got a finished volume"):
        create_volume(form.format(place), GRID, "uint16", orientation="asr")


@pytest.mark.parametrize("form", FORMS)
def test_a_volume_in_a_bucket_is_replaced_only_when_asked(s3, place, form):
    write_volume(form.format(place), ARRAY, GRID)
    write_volume(form.format(place), ARRAY[:3], GRID.cropped(Box((0, 0, 0), (3, 80, 90))), overwrite=True)
    np.testing.assert_array_equal(open_volume(form.format(place)).read(), ARRAY[:3])
    keep = [name for name in list_files(f"s3://{place}") if "/1/" in name or "4000" in name]
    assert all(name.count("/c/") == 0 or name.endswith("/0") for name in keep)


@pytest.mark.parametrize("form", FORMS)
def test_an_unfinished_volume_in_a_bucket_is_continued(s3, place, form):
    half = Box((0, 0, 0), (64, 80, 90))
    create_volume(form.format(place), GRID, "uint16").write(half, ARRAY[half.slices])
    with pytest.raises(InputError, match="expected a finished volume"):
        open_volume(form.format(place))
    writer = create_volume(form.format(place), GRID, "uint16")
    rest = Box((64, 0, 0), (70, 80, 90))
    writer.write(rest, ARRAY[rest.slices])
    np.testing.assert_array_equal(writer.complete().read(), ARRAY)


def test_two_kinds_of_volume_do_not_share_a_folder(s3, place):
    write_volume(f"s3://{place}/v.zarr", ARRAY, GRID)
    with pytest.raises(InputError, match=r"got another volume's zarr\.json: choose a new place"):
        create_volume(f"precomputed://s3://{place}/v.zarr", GRID, "uint16")


def test_of_two_programs_that_begin_a_volume_one_does(s3, place):
    won = []
    start = threading.Barrier(8)

    def begin(number):
        start.wait()
        won.append(write_new_json(f"s3://{place}", "info", {"by": number}))

    threads = [threading.Thread(target=begin, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(won) == 1


def test_a_public_bucket_needs_no_credentials(s3, monkeypatch):
    write_volume("s3://public/v.ome.zarr", ARRAY, GRID, overwrite=True)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    np.testing.assert_array_equal(open_volume("s3://public/v.ome.zarr").read(), ARRAY)
    np.testing.assert_array_equal(open_volume(f"{s3.endpoint}/public/v.ome.zarr").read(), ARRAY)
    with pytest.raises(InputError, match=r"could not write s3://public/w\.ome\.zarr .* without credentials"):
        create_volume("s3://public/w.ome.zarr", GRID, "uint8")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "expired")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    assert open_volume("s3://public/v.ome.zarr").grid == GRID


class TestCredentials:
    """The standard chain, then CloudVolume's files."""

    @pytest.fixture(autouse=True)
    def nobody(self, s3, monkeypatch, tmp_path):
        write_volume("s3://private/v.ome.zarr", ARRAY, GRID, overwrite=True)
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        self.home = tmp_path / "home"
        self.s3 = s3

    def test_none(self):
        with pytest.raises(InputError, match=r"s3://private/v\.ome\.zarr \(server http.*access is denied"):
            open_volume("s3://private/v.ome.zarr")

    @pytest.mark.parametrize("profile", ["default", "lab"])
    def test_a_profile_with_its_server(self, monkeypatch, profile):
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
        (self.home / ".aws").mkdir(parents=True)
        title = "default" if profile == "default" else f"profile {profile}"
        (self.home / ".aws" / "config").write_text(
            f"[{title}]\nendpoint_url = {self.s3.endpoint}\nregion = eu-central-1\n"
        )
        keys = f"[{profile}]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
        (self.home / ".aws" / "credentials").write_text(keys)
        if profile != "default":
            monkeypatch.setenv("AWS_PROFILE", profile)
        np.testing.assert_array_equal(open_volume("s3://private/v.ome.zarr").read(), ARRAY)

    def test_a_profile_that_is_not_there(self, monkeypatch):
        monkeypatch.setenv("AWS_PROFILE", "labb")
        with pytest.raises(InputError, match=r"expected a profile labb in .*config or .*credentials, got none"):
            open_volume("s3://private/v.ome.zarr")

    @pytest.mark.parametrize("name", ["aws-secret.json", "private-aws-secret.json"])
    @pytest.mark.parametrize("folder", [".cloudvolume", ".cloudfiles"])
    def test_secrets_of_cloud_volume(self, folder, name):
        (self.home / folder / "secrets").mkdir(parents=True)
        secrets = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        (self.home / folder / "secrets" / name).write_text(json.dumps(secrets))
        volume = open_volume("s3://private/v.ome.zarr")
        assert SECRET.encode() not in pickle.dumps(volume)
        np.testing.assert_array_equal(volume.read(), ARRAY)

    def test_the_role_of_a_container(self, monkeypatch):
        keys = {"AccessKeyId": KEY, "SecretAccessKey": SECRET, "Token": "", "Expiration": "2099-01-01T00:00:00Z"}
        handler = _answering(200, json.dumps(keys), Content_Type="application/json")
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{server.server_port}/role")
            np.testing.assert_array_equal(open_volume("s3://private/v.ome.zarr").read(), ARRAY)
            server.shutdown()

    def test_secrets_that_are_none(self):
        (self.home / ".cloudvolume" / "secrets").mkdir(parents=True)
        (self.home / ".cloudvolume" / "secrets" / "aws-secret.json").write_text('{"key": 3}')
        with pytest.raises(InputError, match=r"expected AWS_ACCESS_KEY_ID .*aws-secret\.json"):
            open_volume("s3://private/v.ome.zarr")

    @pytest.mark.parametrize(("key", "secret"), [(KEY, "wrong"), ("nobody", SECRET)])
    def test_wrong_ones(self, monkeypatch, key, secret):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
        with pytest.raises(InputError, match="the credentials of AWS_ACCESS_KEY_ID are refused"):
            open_volume("s3://private/v.ome.zarr")

    def test_no_right_to_write(self, monkeypatch):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", READER_KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READER_SECRET)
        assert open_volume("s3://private/v.ome.zarr").grid == GRID
        with pytest.raises(InputError, match=r"could not write .* with the credentials of AWS_ACCESS_KEY_ID: access"):
            create_volume("s3://private/w.ome.zarr", GRID, "uint16")


@pytest.mark.parametrize("name", ["v.tif", "v.nii.gz", "v.nrrd"])
def test_single_files_are_fetched(s3, tmp_path, name):
    import boto3

    write_volume(tmp_path / name, ARRAY, GRID)
    client = boto3.client("s3", endpoint_url=s3.endpoint, region_name="us-east-1")
    client.upload_file(str(tmp_path / name), "public", f"files/{name}")
    for address in (f"s3://public/files/{name}", f"{s3.endpoint}/public/files/{name}"):
        volume = open_volume(address)
        assert volume.path == address and volume.grid == open_volume(tmp_path / name).grid
        np.testing.assert_array_equal(volume.read(), ARRAY)
    with pytest.raises(InputError, match=f"expected a file at s3://public/none/{name}, got nothing"):
        open_volume(f"s3://public/none/{name}")


def test_a_bucket_that_does_not_exist_is_named(s3):
    for action in (
        lambda: open_volume("s3://nowhere/v"),
        lambda: open_volume("precomputed://s3://nowhere/v"),
        lambda: create_volume("s3://nowhere/v.zarr", GRID, "uint8"),
    ):
        with pytest.raises(InputError, match="expected a bucket named nowhere"):
            action()


def test_a_server_that_does_not_answer_is_named(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    with pytest.raises(StoreUnreachableError, match=r"s3://private/v \(server http://127\.0\.0\.1:1\): no answer"):
        open_volume("s3://private/v")


@pytest.mark.parametrize("form", FORMS)
def test_one_request_in_twenty_may_fail(s3, place, form, monkeypatch, engine):
    proxy = FaultyProxy(s3.endpoint, 0.05)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
    writer = create_volume(form.format(place), GRID, "uint16", chunk=(16, 16, 16), levels=1)
    writer.write(Box.whole(ARRAY.shape), ARRAY)
    np.testing.assert_array_equal(writer.complete().read(), ARRAY)
    proxy.stop()
    assert proxy.requests > 300 and proxy.faults > 10


def test_a_job_outlives_its_server(tmp_path, s3, monkeypatch):
    server = S3Server(tmp_path / "server")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.endpoint)
    large = np.random.default_rng(1).integers(0, 999, (256, 128, 128)).astype(np.uint16)
    grid = Grid.from_spacing(large.shape, (1, 1, 1))
    writer = create_volume("s3://private/v.ome.zarr", grid, "uint16", chunk=(16, 64, 64), levels=1)
    killed = threading.Event()

    def write(box):
        if box.start[0] == 64 and not killed.is_set():
            killed.set()
            server.kill()
            threading.Timer(2.0, server.start).start()
        writer.write(box, large[box.slices])

    try:
        with Engine(workers=1, memory="1GB") as engine:
            engine.run(write, [Box((z, 0, 0), (z + 16, 128, 128)) for z in range(0, 256, 16)], label="write")
        np.testing.assert_array_equal(writer.complete().read(), large)
    finally:
        time.sleep(0.1)
        server.kill()


@pytest.mark.parametrize("form", FORMS)
def test_from_tiff_to_a_bucket_and_back_is_bit_exact(s3, place, form, tmp_path, engine):
    write_volume(tmp_path / "v.tif", ARRAY, GRID)
    convert(tmp_path / "v.tif", form.format(place), engine=engine)
    convert(form.format(place), tmp_path / "back", engine=engine)
    np.testing.assert_array_equal(open_volume(tmp_path / "back").read(), ARRAY)


def _answering(status, text, **headers):
    """Return a handler that gives every request the same answer."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(text)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(text.encode() if self.command != "HEAD" else b"")

        do_HEAD = do_PUT = do_GET

        def log_message(self, *args):
            pass

    return Handler


# As Amazon answers to who signs for the wrong region, and to who asks the wrong one for a bucket.
SIGNED_WRONG = (
    "<Error><Code>AuthorizationHeaderMalformed</Code><Message>The authorization header is malformed; region 'us-east-1'"
    " is wrong; expecting 'eu-central-1'</Message><Region>eu-central-1</Region></Error>"
)
ELSEWHERE = (
    "<Error><Code>PermanentRedirect</Code><Message>The bucket you are attempting to access must be addressed using the "
    "specified endpoint.</Message><Endpoint>private.s3.eu-central-1.amazonaws.com</Endpoint></Error>"
)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (_answering(400, SIGNED_WRONG), "expecting 'eu-central-1'"),
        (_answering(301, ELSEWHERE, x_amz_bucket_region="eu-central-1"), "addressed using the specified endpoint"),
    ],
)
def test_a_bucket_in_another_region_is_said(s3, monkeypatch, refused, answer, said):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
        line = refused("info", "s3://private/v")
        assert "the bucket is in another region" in line and said in line and line.endswith("set AWS_REGION")
        server.shutdown()


class _Secretive(http.server.SimpleHTTPRequestHandler):
    """Answers as Amazon does to who may read files and not list them: what isn't there is forbidden."""

    def send_error(self, code, *arguments):
        super().send_error(403 if code == 404 else code, *arguments)

    def end_headers(self):
        self.send_header("ETag", '"1"')
        super().end_headers()

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("address", ["s3://open", "{}/open"])
def test_a_bucket_that_may_be_read_and_not_listed(s3, monkeypatch, tmp_path, address):
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    for form in ("{}/v.ome.zarr", "precomputed://{}/v"):
        write_volume(form.format(tmp_path / "served" / "open"), ARRAY, GRID)
    handler = functools.partial(_Secretive, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", here)
        for name in ("v.ome.zarr", "v"):
            np.testing.assert_array_equal(open_volume(f"{address.format(here)}/{name}").read(), ARRAY)
        with pytest.raises(InputError, match="access is denied"):
            open_volume(f"{address.format(here)}/nothing")
        server.shutdown()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=False).returncode != 0:
        pytest.skip("no right to mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz", "v.nrrd"])
def test_a_disk_that_fills_up_is_said_of_a_file(small_disk, name, monkeypatch):
    (small_disk / "other").write_bytes(b"x" * 1_900_000)
    monkeypatch.setattr("cloudreg.io.writing.require_free_space", lambda *_: None)
    with pytest.raises(InputError, match=rf"could not write .*{name}: the disk is full: make room"):
        write_volume(small_disk / name, ARRAY, GRID)
    assert [p.name for p in small_disk.iterdir()] == ["other"]


@pytest.mark.parametrize("name", ["v.tif", "v"])
def test_a_disk_that_fills_up_under_planes_is_said(small_disk, name, engine, tmp_path):
    source = write_volume(tmp_path / "v.ome.zarr", ARRAY, GRID)
    ledger = Ledger(tmp_path / "ledger")
    write = TiffBoxes.write

    def fill_then_write(*arguments):
        if not (small_disk / "other").exists():
            room = os.statvfs(small_disk)
            (small_disk / "other").write_bytes(b"x" * (room.f_bavail * room.f_bsize - 50_000))
        write(*arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(InputError, match="the disk is full: make room"):
        patch.setattr(TiffBoxes, "write", fill_then_write)
        convert(source, small_disk / name, engine=engine, ledger=ledger)
    (small_disk / "other").unlink()
    np.testing.assert_array_equal(convert(source, small_disk / name, engine=engine, ledger=ledger).read(), ARRAY)


@pytest.mark.parametrize("form", ["{}/v.ome.zarr", "precomputed://{}/v"])
def test_a_disk_that_fills_up_is_said(small_disk, form):
    writer = create_volume(form.format(small_disk), GRID, "uint16", levels=1)
    (small_disk / "other").write_bytes(b"x" * 1_900_000)
    with pytest.raises(InputError, match=r"could not write box .* the disk is full: make room"):
        writer.write(Box.whole(ARRAY.shape), ARRAY)
    (small_disk / "other").unlink()
    writer = create_volume(form.format(small_disk), GRID, "uint16", levels=1)
    writer.write(Box.whole(ARRAY.shape), ARRAY)
    np.testing.assert_array_equal(writer.complete().read(), ARRAY)
