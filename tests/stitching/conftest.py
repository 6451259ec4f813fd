"""A small acquisition in memory, cut with known sub-pixel offsets out of a texture that is known everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from scipy import fft

from cloudreg.tiles import Acquisition, Tile
from cloudreg.tiles.acquisition import to_intervals


@dataclass(frozen=True, eq=False)
class MemoryAcquisition(Acquisition):
    """Tiles that are arrays; remembers how often each plane was read."""

    stacks: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    reads: dict[tuple[str, int], float] = field(default_factory=dict)

    def _fill(self, tile, channel, start, stop, rows, columns, out):
        stack = self.stacks[tile.row, tile.column]
        out[:] = stack[start:stop, rows, columns]
        for plane in range(start, stop):
            share = out[0].size / stack[0].size
            self.reads[tile.name, plane] = self.reads.get((tile.name, plane), 0) + share

    def fingerprint(self, channels: Iterable[int]) -> str:
        return "memory"

    def file_pattern(self, channel: int) -> str:
        return ".*"


def hold(
    stacks: dict[tuple[int, int], np.ndarray],
    shape: tuple[int, int],
    overlap: tuple[float, float],
    *,
    voxel_size_um: Sequence[float] = (2.0, 1.0, 1.0),
    lost: dict[tuple[int, int], Iterable[int]] | None = None,
) -> MemoryAcquisition:
    """Make an acquisition of the stacks, by (row, column), on a grid of rows and columns."""
    first = next(iter(stacks.values()))
    lost = lost or {}
    tiles = [
        Tile(
            f"LOC{row * shape[1] + column:03d}",
            row,
            column,
            {0: to_intervals(set(range(len(first))) - set(lost.get((row, column), ())))},
        )
        for row, column in sorted(stacks)
    ]
    z, y, x = voxel_size_um
    return MemoryAcquisition(
        path=Path("memory"),
        rows=shape[0],
        columns=shape[1],
        tile_shape=first.shape,
        voxel_size_um=(z, y, x),
        overlap=overlap,
        channels=(0,),
        dtype=first.dtype,
        tiles=tuple(tiles),
        objective="",
        planes_folder=Path("memory"),
        stacks=stacks,
    )


class Texture:
    """A random band-limited periodic texture of mean 0 and deviation 1, exact between its voxels too."""

    def __init__(self, shape: Sequence[int], *, seed: int, finest_px: float = 1.2, coarsest_px: float = 6.0) -> None:
        self.shape = [fft.next_fast_len(n, real=True) for n in shape]
        noise = np.random.default_rng(seed).standard_normal(self.shape).astype(np.float32)
        self.frequencies = np.meshgrid(
            np.fft.fftfreq(self.shape[0]), np.fft.fftfreq(self.shape[1]), np.fft.rfftfreq(self.shape[2]), indexing="ij"
        )
        squared = sum(f**2 for f in self.frequencies)
        spectrum = fft.rfftn(noise)
        layers = [
            fft.irfftn(spectrum * np.exp(-2 * (np.pi * s) ** 2 * squared), self.shape) for s in (finest_px, coarsest_px)
        ]
        mean = sum(layer / layer.std() for layer in layers)
        self.spectrum = fft.rfftn(mean / mean.std())

    def cut(self, position_px: Sequence[float], shape: Sequence[int], sway_px: np.ndarray | None = None) -> np.ndarray:
        """Return the values at a lattice of whole steps from a position that need not be whole.

        With a sway (planes, 2) the rows and columns of each plane start that much farther on.
        """
        if sway_px is not None:
            start, *corner = position_px
            moved = fft.ifft(self.spectrum * np.exp(2j * np.pi * self.frequencies[0] * start), axis=0)[: shape[0]]
            down, right = self.frequencies[1][0], self.frequencies[2][0]
            phase = [np.exp(2j * np.pi * (down * y + right * x)) for y, x in np.add(corner, sway_px)]
            return fft.irfft2(moved * phase, self.shape[1:])[:, : shape[1], : shape[2]]
        whole = np.floor(position_px).astype(int)
        phase = sum(f * (p - w) for f, p, w in zip(self.frequencies, position_px, whole, strict=True))
        moved = fft.irfftn(self.spectrum * np.exp(2j * np.pi * phase), self.shape)
        index = [(np.arange(n) + w) % m for n, w, m in zip(shape, whole, self.shape, strict=True)]
        return moved[np.ix_(*index)]


@dataclass(frozen=True)
class Phantom:
    acquisition: MemoryAcquisition
    truth_px: np.ndarray
    sway_px: np.ndarray | None = None

    def errors(self, positions_px: np.ndarray) -> np.ndarray:
        """Distance of each tile from where it is, without the shift common to all."""
        difference = positions_px - self.truth_px
        return np.linalg.norm(difference - np.median(difference, axis=0), axis=1)


def _sways(tiles: int, planes: int, sway_px: Sequence[float], random: np.random.Generator) -> np.ndarray:
    """Smooth random ways of tiles (tiles, planes, 2), none in the mean over depth or over tiles, of such deviations."""
    at = np.linspace(-1, 1, planes)
    shapes = np.stack([at, 1.5 * at**2, np.sin(np.pi * at)])
    sways = np.einsum("tki,kp->tpi", random.normal(0, 1, (tiles, 3, 2)) * [[1], [0.5], [0.1]], shapes)
    sways -= sways.mean(axis=1, keepdims=True)
    sways -= sways.mean(axis=0)
    return sways / sways.std(axis=(0, 1)) * sway_px


def _some_links(links, count, random):
    """Choose links at random without which the grid still hangs together."""
    chosen = []
    for index in random.permutation(len(links)):
        left = [link for link in links if link not in chosen and link != links[index]]
        group = {links[0][0]}
        for _ in links:
            group |= {cell for link in left if group & set(link) for cell in link}
        if len(chosen) < count and group == {cell for link in links for cell in link}:
            chosen.append(links[index])
    return chosen


def _shared_area(first, second, pitch, tile_shape):
    """Rows and columns of the specimen where two neighbours overlap."""
    low = [12 + b * p for b, p in zip(second, pitch, strict=True)]
    high = [12 + a * p + n for a, p, n in zip(first, pitch, tile_shape[1:], strict=True)]
    return [(a - 4, b + 4) for a, b in zip(low, high, strict=True)]


def _inside(at, low, high):
    """1 between two places and 0 elsewhere, with soft edges."""
    return 1 / (1 + np.exp(-(at - low) / 1.5)) / (1 + np.exp((at - high) / 1.5))


def cut_phantom(
    *,
    grid: tuple[int, int] = (2, 3),
    tile_shape: tuple[int, int, int] = (24, 96, 96),
    overlap: float = 0.2,
    jitter_px: Sequence[float] = (1.5, 4.0, 4.0),
    drift_px: Sequence[float] = (0.0, 0.0, 0.0),
    sway_px: Sequence[float] | None = None,
    photons: float = 300.0,
    missing: Sequence[tuple[int, int]] = (),
    lost: dict[tuple[int, int], Iterable[int]] | None = None,
    blank: Sequence[tuple[int, int]] = (),
    empty_overlaps: float = 0.0,
    fibres: tuple[int, int] | None = None,
    finest_px: float = 1.2,
    seed: int = 0,
) -> Phantom:
    """Cut tiles out of a texture; shot noise on a background of 100.

    ``blank`` tiles show no tissue; ``empty_overlaps`` is the share of overlaps where there is none in the specimen. All
    that is seen of the cell ``fibres`` are straight edges along y. With ``sway_px`` tiles drift sideways over depth.
    """
    random = np.random.default_rng(seed)
    pitch = tile_shape[1] * (1 - overlap), tile_shape[2] * (1 - overlap)
    size = [tile_shape[0] + 8, *(int(g * p) + 60 for g, p in zip(grid, tile_shape[1:], strict=True))]
    texture = Texture(size, seed=seed, finest_px=finest_px)
    cells = [(r, c) for r in range(grid[0]) for c in range(grid[1]) if (r, c) not in missing]
    truth = np.array(
        [
            (4, 12 + r * pitch[0], 12 + c * pitch[1])
            + random.uniform(-1, 1, 3) * jitter_px
            + np.multiply(drift_px, (c, c, c))
            for r, c in cells
        ]
    )
    links = [
        (cell, other) for cell in cells for other in ((cell[0], cell[1] + 1), (cell[0] + 1, cell[1])) if other in cells
    ]
    dark = _some_links(links, round(empty_overlaps * len(links)), random)
    holes = [_shared_area(*link, pitch, tile_shape) for link in dark]
    straight = Texture((size[0], 8, size[2]), seed=seed + 1, finest_px=finest_px)
    edges = [] if fibres is None else [_shared_area(fibres, fibres, pitch, tile_shape)]
    stacks = {}
    sways = [None] * len(cells) if sway_px is None else _sways(len(cells), tile_shape[0], sway_px, random)
    for position, cell, sway in zip(truth, cells, sways, strict=True):
        tissue = photons * np.exp(0.3 * texture.cut(position, tile_shape, sway)) * (cell not in blank)
        rows, columns = (p + np.arange(n) for p, n in zip(position[1:], tile_shape[1:], strict=True))
        for (y0, y1), (x0, x1) in holes:
            tissue *= 1 - _inside(rows, y0, y1)[:, None] * _inside(columns, x0, x1)
        for (y0, y1), (x0, x1) in edges:
            here = _inside(rows, y0, y1)[:, None] * _inside(columns, x0, x1)
            along_y = straight.cut((position[0], 0, position[2]), (tile_shape[0], 1, tile_shape[2]))
            tissue = tissue * (1 - here) + photons * np.exp(0.3 * along_y) * here
        stacks[cell] = random.poisson(100 + tissue).clip(0, 65535).astype(np.uint16)
    return Phantom(hold(stacks, grid, (overlap, overlap), lost=lost), truth, None if sway_px is None else sways)


@pytest.fixture(scope="session")
def make_phantom():
    """The function that cuts a phantom."""
    return cut_phantom


@pytest.fixture(scope="session")
def in_memory():
    """The function that makes an acquisition of arrays."""
    return hold


@pytest.fixture(scope="session")
def phantom():
    """2 x 3 tiles with everything in order."""
    return cut_phantom()
