import numpy as np
import pytest
from scipy import ndimage

from cloudreg.tiles import write_colm


def vignette(height, width, corner=0.6, shift=(-0.1, 0.15)):
    """Light that falls off to ``corner`` in the corners, brightest beside the middle."""
    y = np.linspace(-1, 1, height)[:, None] - shift[0]
    x = np.linspace(-1, 1, width)[None] - shift[1]
    flat = 1 - (1 - corner) * (y**2 + x**2) / 2
    return flat / flat.mean()


def brain(rng, shape):
    """A textured ellipsoid that fills most of the volume: smooth changes of 30 % and fine ones of 15 %."""
    coarse = ndimage.gaussian_filter(rng.normal(size=[n // 8 + 1 for n in shape]), (1, 5, 5))
    smooth = ndimage.zoom(coarse / coarse.std(), 8, order=1)[: shape[0], : shape[1], : shape[2]]
    fine = ndimage.gaussian_filter(rng.normal(size=shape), 1)
    y, x = (np.linspace(-1, 1, n) for n in shape[1:])
    inside = (y[:, None] ** 2 + x[None] ** 2) < 0.92
    return 800 * np.exp(0.3 * smooth + 0.15 * fine / fine.std()) * inside


@pytest.fixture
def make_tiles(tmp_path):
    """Writes an acquisition cut from one volume, with a flat field, a background of 100 and shot noise.

    Returns it with the true flat field.
    """

    def make(
        rows=3,
        columns=4,
        depth=16,
        side=(96, 80),
        overlap=0.15,
        flat=None,
        volume=None,
        lost=(),
        unscanned=(),
        gains=None,
    ):
        rng = np.random.default_rng(5)
        height, width = side
        flat = vignette(height, width) if flat is None else flat
        pitch = [round(n * (1 - overlap)) for n in side]
        shape = (depth, pitch[0] * (rows - 1) + height + 4, pitch[1] * (columns - 1) + width + 4)
        volume = brain(rng, shape) if volume is None else volume(shape)
        stage = rng.integers(0, 5, (rows, columns, 2))

        def plane(row, column, channel, index):
            if (row, column, index) in lost:
                return None
            y, x = (a * p + s for a, p, s in zip((row, column), pitch, stage[row, column], strict=True))
            light = volume[index, y : y + height, x : x + width] * flat * (1 if gains is None else gains[row, column])
            seen = rng.poisson(light) + rng.normal(100, 2, light.shape)
            return np.clip(np.rint(seen), 0, 65535).astype(np.uint16)

        scanned = np.ones((rows, columns), bool)
        for place in unscanned:
            scanned[place] = False
        acquisition = write_colm(
            tmp_path / "raw",
            rows=rows,
            columns=columns,
            tile_shape=(depth, height, width),
            voxel_size_um=(5, 3, 3),
            overlap=(overlap, overlap),
            channels=1,
            objective="4x",
            scanned=scanned,
            planes=plane,
        )
        return acquisition, flat

    return make
