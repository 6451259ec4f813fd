import numpy as np
import pytest

from cloudreg.tiles import write_colm

ROWS, COLUMNS, DEPTH, HEIGHT, WIDTH = 2, 3, 6, 24, 32
LOST = {(1, 1, 0, 2), (1, 1, 0, 3), (0, 2, 1, 0)}


def plane_pixels(row, column, channel, plane):
    """Every pixel of the acquisition has another value, up to rows and columns of a plane."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return (20000 * channel + 3000 * (row * COLUMNS + column) + 300 * plane + 10 * (y % 20) + x % 10).astype(np.uint16)


def source(row, column, channel, plane):
    return None if (row, column, channel, plane) in LOST else plane_pixels(row, column, channel, plane)


@pytest.fixture
def make_colm(tmp_path):
    """Writes a small acquisition: cell (1, 0) not scanned, some planes lost; keywords replace what is described."""

    def make(name="raw", **changes):
        options = {
            "rows": ROWS,
            "columns": COLUMNS,
            "tile_shape": (DEPTH, HEIGHT, WIDTH),
            "voxel_size_um": (2.9, 1.17, 1.17),
            "overlap": (0.1, 0.15),
            "channels": 2,
            "objective": "10x 0.6NA",
            "scanned": np.array([[1, 1, 1], [0, 1, 1]], bool),
            "planes": source,
        }
        return write_colm(tmp_path / name, **(options | changes))

    return make


@pytest.fixture
def pixels():
    return plane_pixels
