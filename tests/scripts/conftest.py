"""The 2021 modules, imported with their warning expected; acquisitions, and servers to talk to."""

import http.server
import importlib
import json
import math
import threading
import urllib.parse
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from scipy import ndimage

from cloudreg.tiles import write_colm

settings.register_profile("cloudreg", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("cloudreg")


@pytest.fixture(scope="session")
def legacy():
    """Imports a module of ``cloudreg.scripts``, whose warning is tested elsewhere."""

    def load(name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return importlib.import_module(f"cloudreg.scripts.{name}")

    return load


@pytest.fixture
def s3(s3, monkeypatch):
    """The S3 server, in a region that boto3 wants to know."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return s3


@dataclass(frozen=True)
class Colm:
    """An acquisition of a specimen that is known everywhere, usually of 2 x 3 tiles and two channels.

    Tiles lie off their nominal positions by whole pixels, so that what is stitched is what was there.
    """

    path: Path
    texture: np.ndarray
    positions: np.ndarray
    depth: int = 24
    side: int = 96
    voxel: tuple[float, float, float] = (5.0, 2.0, 2.0)
    tiles: tuple[int, int] = (2, 3)

    @property
    def nominal_shape(self):
        """Of the volume at the nominal positions, from the outermost tiles."""
        rows, columns = (self.side + math.floor((n - 1) * 0.8 * self.side + 0.5) for n in self.tiles)
        return self.depth, rows, columns

    def specimen(self, shape):
        """The specimen on a stitched volume, which starts at the outermost tile."""
        start = np.floor(self.positions.min(axis=0)).astype(int) + MARGIN
        return self.texture[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]


MARGIN = 12


def write_specimen(folder, *, shading=None, background=0, tiles=(2, 3), channels=2):
    """Write the acquisition; as a camera sees it if there is a shading (height, width)."""
    random = np.random.default_rng(11)
    (rows, columns), depth, side = tiles, 24, 96
    pitch = 0.8 * side
    height, width = (int(side + (n - 1) * pitch) + 40 for n in tiles)
    noise = random.standard_normal((depth + 2 * MARGIN, height, width))
    smooth = sum(ndimage.gaussian_filter(noise, s) / ndimage.gaussian_filter(noise, s).std() for s in (1.2, 5))
    _, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in noise.shape), indexing="ij")
    # Corners without tissue show what the camera reads without light.
    tissue = 1 / (1 + np.exp(20 * (y**2 + x**2 - 0.95)))
    texture = np.rint(20 + 2000 * tissue * np.exp(0.35 * smooth / smooth.std())).astype(np.uint16)
    cells = [(r, c) for r in range(rows) for c in range(columns)]
    positions = np.array([(0, math.floor(r * pitch + 0.5), math.floor(c * pitch + 0.5)) for r, c in cells])
    positions = positions + random.integers((-2, -4, -4), (3, 5, 5), (len(cells), 3))

    def plane(row, column, channel, number):
        z, y, x = positions[row * columns + column] + MARGIN
        pixels = texture[z + number, y : y + side, x : x + side]
        if channel == 1:
            pixels = pixels // 2
        if shading is not None:
            pixels = np.rint(background + shading * (pixels - 20.0))
        return pixels.astype(np.uint16)

    write_colm(
        folder,
        rows=rows,
        columns=columns,
        tile_shape=(depth, side, side),
        voxel_size_um=(5.0, 2.0, 2.0),
        overlap=(0.2, 0.2),
        channels=channels,
        objective="10x 0.6NA",
        scanned=np.ones((rows, columns), bool),
        planes=plane,
    )
    return Colm(folder, texture, positions.astype(float), tiles=tiles)


@pytest.fixture(scope="session")
def colm(tmp_path_factory):
    """An acquisition on disk, without shading."""
    return write_specimen(tmp_path_factory.mktemp("colm") / "raw")


@pytest.fixture(scope="session")
def specimen():
    """The function that writes an acquisition."""
    return write_specimen


def upload(folder, place, only="**/*"):
    """Copy a folder into a bucket of the server in use."""
    import boto3

    bucket, _, key = place.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    for file in sorted(folder.glob(only)):
        if file.is_file():
            client.put_object(Bucket=bucket, Key=f"{key}/{file.relative_to(folder)}", Body=file.read_bytes())
    return place


@pytest.fixture
def put(s3):
    """The function that copies a folder into a bucket, and returns where it lies."""
    return upload


@pytest.fixture
def state_server():
    """Keeps what is posted, and gives it back at the address that it answers with."""
    states = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            states[f"s{len(states)}"] = json.loads(body)
            uri = f"http://127.0.0.1:{self.server.server_port}/v1?NGStateID=s{len(states) - 1}"
            self.answer({"uri": uri})

        def do_GET(self):
            self.answer(states[urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)["NGStateID"][0]])

        def answer(self, value):
            text = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
