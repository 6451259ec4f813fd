"""``cloudreg view``: the right layers in the right places, served to whom has the link, and truly drawn."""

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import pytest

from browser import screenshot
from cloudreg.errors import InputError
from cloudreg.io import open_volume, write_volume
from cloudreg.space import Grid
from cloudreg.viewer.neuroglancer import Layer, neuroglancer_state, viewer_link
from cloudreg.viewer.serve import FolderServer
from cloudreg.viewer.show import layers_of, volumes_of

ARRAY = np.random.default_rng(0).integers(0, 1000, (40, 50, 60)).astype(np.uint16)
GRID = Grid.from_spacing(ARRAY.shape, (10, 8, 8), (500, 16, 0))


def get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        return answer.status, dict(answer.headers), answer.read()


def refusal(url, **headers):
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(url, **headers)
    return caught.value.code


@pytest.fixture
def server():
    with FolderServer() as running:
        yield running


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my folder" / "bytes"
    path.parent.mkdir()
    path.write_bytes(bytes(range(200)))
    return path


def test_ranges_of_bytes_are_served(server, file):
    url = server.share(file.parent) + "/bytes"
    assert get(url)[2] == bytes(range(200))
    status, headers, body = get(url, Range="bytes=10-19")
    assert (status, headers["Content-Range"], body) == (206, "bytes 10-19/200", bytes(range(10, 20)))
    assert get(url, Range="bytes=190-")[2] == get(url, Range="bytes=-10")[2] == bytes(range(190, 200))
    assert get(url, Range="bytes=190-1000")[2] == bytes(range(190, 200))
    assert refusal(url, Range="bytes=200-") == 416


def test_pages_of_other_places_may_read(server, file):
    url = server.share(file.parent) + "/bytes"
    assert get(url)[1]["Access-Control-Allow-Origin"] == "*"
    with urllib.request.urlopen(urllib.request.Request(url, method="OPTIONS")) as answer:
        assert answer.status == 204 and answer.headers["Access-Control-Allow-Headers"] == "*"
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as answer:
        assert answer.headers["Content-Length"] == "200" and answer.read() == b""


def test_nothing_is_served_but_what_is_shared(server, file, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (file.parent / "link").symlink_to(tmp_path / "secret")
    url = server.share(file.parent)
    assert refusal(url + "/missing") == refusal(url + "/link") == refusal(url) == 404
    assert refusal(url + "/%2e%2e/secret") == refusal(url + "/..%2fsecret") == 404
    token = urllib.parse.urlsplit(url).path.split("/")[1]
    assert refusal(f"{server.address}/{token}/secret") == refusal(f"{server.address}/my%20folder/bytes") == 404
    assert refusal(server.address + "/") == 404 and len(token) > 20


def test_chunks_that_cloudvolume_gzipped_are_unpacked_by_the_browser(server, file):
    file.with_name("chunk.gz").write_bytes(b"packed")
    status, headers, body = get(server.share(file.parent) + "/chunk")
    assert (status, headers["Content-Encoding"], body) == (200, "gzip", b"packed")


@pytest.mark.parametrize("path", ["v.ome.zarr", "precomputed://v"])
def test_a_served_volume_is_read_by_others(server, tmp_path, path):
    form = path.replace("v", str(tmp_path / "v")) if "://" not in path else f"precomputed://{tmp_path}/v"
    write_volume(form, ARRAY, GRID)
    (layer,) = layers_of([form], server.share)
    again = open_volume(layer.address)
    np.testing.assert_array_equal(again.read(), ARRAY)
    assert again.grid == GRID and layer.name == "v"


def test_the_state_places_precomputed_volumes_by_their_voxels_centres(tmp_path):
    write_volume(f"precomputed://{tmp_path}/v", ARRAY, GRID, levels=1)
    turned = np.eye(4)
    turned[:3, :3] = [[0, 0, 5], [0, 4, 0], [-10, 0, 0]]
    turned[:3, 3] = (30, 20, 10)
    write_volume(f"precomputed://{tmp_path}/turned", ARRAY, Grid(ARRAY.shape, turned), levels=1)
    for name in ("v", "turned"):
        volume = open_volume(f"precomputed://{tmp_path}/{name}")
        state = neuroglancer_state([Layer(name, volume, "http://x")])
        transform = state["layers"][0]["source"]["transform"]
        matrix = np.array(transform["matrix"])
        scale = np.array([transform["outputDimensions"][axis][0] for axis in "xyz"]) * 1e6
        offset = json.loads((tmp_path / name / "info").read_text())["scales"][0]["voxel_offset"]
        # As Neuroglancer does it: voxels from the offset on, their outer corners first; then lengths; then the matrix.
        index = np.array([3, 7, 11])
        lengths = (index[::-1] + 0.5 + offset) * np.array(volume.grid.voxel_size_um[::-1])
        place = matrix[:, :3] @ lengths + matrix[:, 3] * scale
        np.testing.assert_allclose(place[::-1], volume.grid.index_to_um(index), atol=1e-6)


def test_the_state_shows_every_channel_and_labels_last(tmp_path):
    write_volume(tmp_path / "labels.ome.zarr", (ARRAY > 500).astype(np.uint32), GRID, kind="labels")
    write_volume(tmp_path / "two.ome.zarr", np.stack([ARRAY, ARRAY + 1000]), GRID, channel_names=["auto", "signal"])
    write_volume(tmp_path / "sub.ome.zarr", ARRAY, GRID)
    paths = [str(tmp_path / f"{name}.ome.zarr") for name in ("labels", "two", "sub", "sub")]
    state = neuroglancer_state(layers_of(paths, lambda path: f"http://here/{path.name}"))
    layers = state["layers"]
    assert [layer["name"] for layer in layers] == ["two auto", "two signal", "sub", "sub 2", "labels"]
    assert [layer["type"] for layer in layers] == ["image"] * 4 + ["segmentation"]
    assert [layer.get("localPosition") for layer in layers] == [[0], [1], None, None, None]
    assert layers[0]["source"] == "zarr://http://here/two.ome.zarr"
    low, high = json.loads(layers[1]["shader"].split("range=")[1].split(")")[0])
    assert 1000 <= low < 1500 < high <= 2000
    assert len({layer["shader"].split("default=")[1][:9] for layer in layers[:4]}) == 4
    assert state["dimensions"] == {"x": [8e-6, "m"], "y": [8e-6, "m"], "z": [1e-5, "m"]}
    centre = GRID.index_to_um((np.array(ARRAY.shape) - 1) / 2) / GRID.voxel_size_um
    np.testing.assert_allclose(state["position"], centre[::-1])
    link = viewer_link(state, "https://viewer.example/")
    assert link.startswith("https://viewer.example/#!")
    assert json.loads(urllib.parse.unquote(link.partition("#!")[2])) == state


def test_buckets_are_read_where_browsers_find_them(tmp_path, monkeypatch):
    from cloudreg.viewer.show import _for_browsers

    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _for_browsers("s3://bucket/brain") == "s3://bucket/brain"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.lab.example")
    assert _for_browsers("s3://bucket/brain") == "https://s3.lab.example/bucket/brain"


def test_what_neuroglancer_can_not_read_says_what_to_do(tmp_path):
    import tifffile

    tifffile.imwrite(tmp_path / "v.tif", ARRAY, photometric="minisblack", imagej=True, metadata={"unit": "um"})
    volume = open_volume(tmp_path / "v.tif", voxel_size_um=(1, 1, 1))
    with pytest.raises(InputError, match=r"got tiff at .*v\.tif: make one first, by cloudreg convert"):
        neuroglancer_state([Layer("v", volume, "http://x")])


def test_a_run_shows_its_channels_and_the_atlas(tmp_path):
    run = tmp_path / "run"
    for name in (
        "stitched/channel_00",
        "corrected/channel_00",
        "corrected/channel_01",
        "registration/labels_in_target",
    ):
        kind = "labels" if "labels" in name else "image"
        write_volume(run / f"{name}.ome.zarr", ARRAY, GRID, kind=kind)
    write_volume(run / "registration" / "target_in_atlas.ome.zarr", ARRAY, GRID)
    (run / "corrected" / "channel_02.ome.zarr").mkdir()  # just being written
    (run / "manifest.json").write_text(json.dumps({"kind": "run"}))
    write_volume(run / "registration" / "template_in_target.ome.zarr", ARRAY, GRID)
    names = ["channel_00", "channel_01", "labels_in_target", "template_in_target"]
    assert sorted(volumes_of(str(run))) == names
    layers = layers_of([str(run)], lambda path: f"http://here/{path.name}")
    # The atlas's template waits for a click: over the brain, it would hide it.
    assert sorted(layer["name"] for layer in neuroglancer_state(layers)["layers"] if layer["visible"]) == names[:3]


@pytest.mark.slow
def test_a_browser_draws_labels_where_the_image_is(tmp_path):
    """A bright block and its label, in two formats at one place: where one is seen, so is the other, to the pixel."""
    pytest.importorskip("neuroglancer")
    block = np.zeros((12, 14, 16), np.uint16)
    block[2:8, 3:9, 4:12] = 1000
    grid = Grid.from_spacing(block.shape, (10, 8, 8), (500, 16, 0))
    write_volume(tmp_path / "image.ome.zarr", block, grid)
    write_volume(f"precomputed://{tmp_path}/labels", (block > 0).astype(np.uint32), grid, kind="labels")
    command = [sys.executable, "-m", "cloudreg", "view", str(tmp_path / "image.ome.zarr"), f"{tmp_path}/labels"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            link = running.stdout.readline().strip()
            picture = screenshot(link, tmp_path / "browser", until=lambda picture: coloured(picture) > 10_000)
        finally:
            running.send_signal(signal.SIGINT)
    assert running.returncode == 0
    assert coloured(picture) > 10_000
    upper_left = picture[60 : picture.shape[0] // 2 - 60, 20 : picture.shape[1] // 2 - 60].astype(int)
    spread = upper_left.max(axis=2) - upper_left.min(axis=2)
    white = (upper_left.min(axis=2) > 200) & (spread < 10)
    label_alone = (spread > 20) & (upper_left.max(axis=2) < 150)
    assert white.sum() < 50 and label_alone.sum() < 400, (white.sum(), label_alone.sum())  # but for the cross


def coloured(picture):
    """How many pixels are bright and tinted: image and label."""
    values = picture.astype(int)
    return int(((values.max(axis=2) > 200) & (values.max(axis=2) - values.min(axis=2) > 20)).sum())
