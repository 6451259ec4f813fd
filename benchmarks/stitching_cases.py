"""Acquisitions for `benchmarks/stitching.py`, cut out of a volume at places that are known to a fraction of a pixel.

The specimen is a function that is known everywhere: the cubic spline through the voxels of a real volume, mirrored at
its ends where the grid of tiles is larger. Every tile samples it at positions of its own and has shot noise of its own,
so the truth is exact and no tile is on the lattice of another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import ndimage

from cloudreg.io import open_volume
from cloudreg.tiles import write_colm

VOXEL_UM = (4.0, 2.0, 2.0)
MARGIN_PX = (8.0, 16.0, 16.0)
"""Room for the stage's errors: where the grid's corner lies in the specimen."""

_CAMERA = 100.0
_READ_NOISE = 2.0


class Specimen:
    """A function of position, bright where there is tissue: about 1 there and 0 in air.

    Parameters
    ----------
    voxels
        (z, y, x), brightness on a lattice.
    px_per_voxel
        Pixels of a tile to a voxel of the lattice, z y x.
    """

    def __init__(self, voxels: np.ndarray, px_per_voxel: tuple[float, float, float]) -> None:
        self._coefficients = ndimage.spline_filter(voxels, mode="mirror").astype(np.float32)
        self._zoom = px_per_voxel

    def cut(self, position_px: np.ndarray, shape: tuple[int, ...], sway_px: np.ndarray | None = None) -> np.ndarray:
        """Return the values at a lattice of whole pixels from a position that need not be whole.

        With a sway (planes, 2) the rows and columns of each plane start that much farther on.
        """
        result = np.tensordot(self._weights(0, position_px[0], shape[0]), self._coefficients, (1, 0))
        if sway_px is None:
            rows, columns = (self._weights(axis, position_px[axis], shape[axis]) for axis in (1, 2))
            return rows @ result @ columns.T
        planes = np.empty(shape, np.float32)
        for plane, voxels, moved in zip(planes, result, sway_px, strict=True):
            rows, columns = (
                self._weights(axis, start + s, shape[axis])
                for axis, start, s in zip((1, 2), position_px[1:], moved, strict=True)
            )
            plane[:] = rows @ voxels @ columns.T
        return planes

    def _weights(self, axis: int, start: float, count: int) -> np.ndarray:
        """Return the matrix (count, voxels) that takes the values at so many pixels along an axis."""
        at = (start + np.arange(count)) / self._zoom[axis]
        length = self._coefficients.shape[axis]
        weights = np.zeros((count, length), np.float32)
        for k in range(-1, 3):
            index = np.floor(at).astype(int) + k
            np.add.at(weights, (np.arange(count), _mirrored(index, length)), _cubic(at - index))
        return weights


def _mirrored(index: np.ndarray, length: int) -> np.ndarray:
    index = np.abs(index) % (2 * length - 2)
    return np.minimum(index, 2 * length - 2 - index)


def _cubic(distance: np.ndarray) -> np.ndarray:
    d = np.abs(distance)
    return np.where(d < 1, 2 / 3 - d * d + d**3 / 2, np.clip(2 - d, 0, None) ** 3 / 6)


def read_specimen(path: Path | None, kind: Kind, seed: int) -> Specimen:
    """Return the specimen in a volume: all of it, or a box inside the tissue; without a volume a synthetic texture.

    A new seed starts elsewhere in the box, so that the overlaps see other places; all of it just fills the grid.
    """
    whole = kind.whole
    rng = np.random.default_rng([seed, 1])
    if path is None:
        voxels = _synthetic(rng)
    else:
        voxels = open_volume(path, voxel_size_um=(1, 1, 1)).read().astype(np.float32)
        voxels /= np.percentile(voxels[voxels > voxels.mean()], 90)
    if path is not None and not whole:
        bright = np.argwhere(voxels > 0.35)
        low, high = np.percentile(bright, [18, 82], axis=0).astype(int)
        voxels = voxels[tuple(slice(a, max(b, a + 24)) for a, b in zip(low, high, strict=True))]
    if not whole:
        # Mirrored first, so that any place of the box may be the corner of the grid.
        shift = [int(rng.integers(n)) for n in voxels.shape]
        voxels = np.roll(np.pad(voxels, [(0, n - 2) for n in voxels.shape], mode="reflect"), shift, (0, 1, 2))
    voxels = np.clip(voxels, 0, 1.5)
    if not whole:
        return Specimen(voxels, (1.0, 1.5, 1.5))
    # The planes of the tiles are those in the middle.
    depth, *tile = kind.tile_shape
    middle = max(0, (len(voxels) - depth - 16) // 2)
    zoom = [
        ((g - 1) * (1 - kind.overlap) + 1) * n / m for g, n, m in zip(kind.grid, tile, voxels.shape[1:], strict=True)
    ]
    return Specimen(voxels[middle:], (1.0, zoom[0], zoom[1]))


def _synthetic(rng: np.random.Generator) -> np.ndarray:
    """Return a texture of fine and coarse grain with the contrast of tissue."""
    noise = rng.standard_normal((96, 180, 180)).astype(np.float32)
    layers = [ndimage.gaussian_filter(noise, s, mode="wrap") for s in (0.8, 5.0)]
    mean = sum(layer / layer.std() for layer in layers)
    return np.asarray(0.6 * np.exp(0.3 * mean / mean.std()), np.float32)


@dataclass(frozen=True)
class Case:
    """An acquisition on disk, and where its tiles are.

    Parameters
    ----------
    raw
        Folder of the acquisition.
    cells
        (n, 2), row and column of each tile.
    nominal_px, truth_px
        (n, 3), z y x.
    held
        (n,), whether the images can say where the tile is: not for a blank one.
    sway_px
        (n, planes, 2), how tiles drift sideways, none in the mean over depth and over tiles; None if they don't.
    """

    raw: Path
    cells: np.ndarray
    nominal_px: np.ndarray
    truth_px: np.ndarray
    held: np.ndarray
    sway_px: np.ndarray | None = None

    def errors(self, positions_px: np.ndarray, sway_px: np.ndarray | None = None) -> np.ndarray:
        """Distance of each tile from where it is, without the shift that all have in common; if tiles drift, by plane.

        Parameters
        ----------
        positions_px
            (n, 3).
        sway_px
            (n, planes, 2), or None for tiles that don't drift.
        """
        difference = positions_px - self.truth_px
        if self.sway_px is not None:
            sideways = (0 if sway_px is None else sway_px) - self.sway_px
            difference = difference[:, None] + np.pad(sideways, ((0, 0), (0, 0), (1, 0)))
            return np.linalg.norm(difference - np.median(difference[self.held], axis=0), axis=2)
        return np.linalg.norm(difference - np.median(difference[self.held], axis=0), axis=1)


@dataclass(frozen=True)
class Kind:
    """What a case is like.

    Parameters
    ----------
    grid
        Rows and columns.
    tile_shape
        Planes, height, width.
    overlap
        Fraction.
    jitter_px
        Largest error of the stage, z y x.
    drift_px
        What the stage is off by per row, and per column.
    photons
        Caught in bright tissue.
    missing, blank
        Cells that were not scanned; cells that show nothing.
    empty
        Share of the overlaps that show nothing.
    damage
        Done to the planes of a tile, or None for one that was lost.
    whole
        The volume as it is, with the air around it, instead of a box inside the tissue.
    sway_px
        How far tiles drift sideways over their depth, standard deviations along y and x.
    drifts
        Whether it is aligned with ``--drift layers`` as well.
    """

    grid: tuple[int, int] = (3, 4)
    tile_shape: tuple[int, int, int] = (60, 256, 256)
    overlap: float = 0.15
    jitter_px: tuple[float, float, float] = (2.0, 8.0, 8.0)
    drift_px: tuple[tuple[float, float, float], ...] = ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    photons: float = 250.0
    missing: tuple[tuple[int, int], ...] = ()
    blank: tuple[tuple[int, int], ...] = ()
    empty: float = 0.0
    damage: Callable[[np.random.Generator, int], list[str]] | None = None
    whole: bool = False
    sway_px: tuple[float, float] = (0.0, 0.0)
    drifts: bool = False
    notes: str = field(default="", compare=False)


def _damage(rng: np.random.Generator, planes: int) -> list[str]:
    """Return what becomes of each plane of a tile."""
    fate = ["sound"] * planes
    for what, share in (("lost", 0.1), ("black", 0.05), ("bright", 0.05), ("noise", 0.05), ("repeated", 0.03)):
        start = int(rng.integers(planes))
        for z in range(start, min(planes, start + max(1, round(share * planes)))):
            fate[z] = what
    return fate


KINDS = {
    "textured": Kind(missing=((2, 3),), notes="3 x 4 cells, one not scanned, all tissue"),
    "empty": Kind((4, 5), (48, 192, 192), empty=0.3, notes="4 x 5 tiles, 30 % of the overlaps show nothing"),
    "corner": Kind(
        (9, 6),
        (32, 128, 128),
        0.2,
        (1.5, 4.0, 4.0),
        drift_px=((0.1, 0.6, -0.3), (-0.1, 0.3, 0.6)),
        blank=tuple((r, c) for r in range(3) for c in range(2)),
        notes="9 x 6 tiles, a corner of 3 x 2 blank, a stage that drifts",
    ),
    "damaged": Kind(
        missing=((2, 3),),
        damage=_damage,
        notes="a cell not scanned; planes lost, black, saturated, noise, or the one before again",
    ),
    "dim": Kind((3, 4), (48, 192, 192), photons=25.0, notes="25 photons in bright tissue"),
    "whole": Kind((3, 4), (48, 192, 192), whole=True, notes="the whole volume with the air around it"),
    "drift": Kind(
        (3, 4), (192, 192, 192), sway_px=(1.5, 1.5), drifts=True, notes="tiles drift sideways over 192 planes"
    ),
    "still": Kind((3, 4), (192, 192, 192), drifts=True, notes="as drift, and no tile drifts"),
}


def make_case(folder: Path, kind: Kind, specimen: Specimen, seed: int) -> Case:
    """Write the acquisition of a case to a new folder."""
    rng = np.random.default_rng([seed, 2])
    depth, height, width = kind.tile_shape
    pitch = height * (1 - kind.overlap), width * (1 - kind.overlap)
    cells = [(r, c) for r in range(kind.grid[0]) for c in range(kind.grid[1]) if (r, c) not in kind.missing]
    nominal = np.array([(0.0, r * pitch[0], c * pitch[1]) for r, c in cells])
    drift = np.array(cells, float) @ np.array(kind.drift_px)
    truth = nominal + drift + rng.uniform(-1, 1, nominal.shape) * kind.jitter_px
    holes = _holes(kind, cells, pitch, rng)
    sways = _sways(kind, len(cells), np.random.default_rng([seed, 5])) if kind.drifts else None
    stacks: dict[tuple[int, int], tuple[np.ndarray, list[str]]] = {}

    def stack(row: int, column: int) -> tuple[np.ndarray, list[str]]:
        cell = (row, column)
        if cell not in stacks:
            stacks.clear()
            own = np.random.default_rng([seed, 3, row, column])
            fates = ["sound"] * depth if kind.damage is None else kind.damage(own, depth)
            position = truth[cells.index(cell)]
            sway = None if sways is None else sways[cells.index(cell)]
            grey = specimen.cut(position + MARGIN_PX, kind.tile_shape, sway).clip(0) * (cell not in kind.blank)
            grey *= _light(position, kind.tile_shape, holes)
            pixels = own.poisson(kind.photons * grey) + _CAMERA + _READ_NOISE * own.standard_normal(grey.shape)
            stacks[cell] = pixels.clip(1, 65535).astype(np.uint16), fates
        return stacks[cell]

    def plane(row: int, column: int, channel: int, number: int) -> np.ndarray | None:
        pixels, fates = stack(row, column)
        match fates[number]:
            case "lost":
                return None
            case "black":
                return np.zeros_like(pixels[number])
            case "bright":
                return np.full_like(pixels[number], 65535)
            case "noise":
                return (
                    np.random.default_rng([seed, 4, row, column, number])
                    .permuted(pixels[number].ravel())
                    .reshape(pixels[number].shape)
                )
            case "repeated":
                return pixels[max(0, number - 1)]
            case _:
                return pixels[number]

    scanned = np.ones(kind.grid, bool)
    for cell in kind.missing:
        scanned[cell] = False
    write_colm(
        folder,
        rows=kind.grid[0],
        columns=kind.grid[1],
        tile_shape=kind.tile_shape,
        voxel_size_um=VOXEL_UM,
        overlap=(kind.overlap, kind.overlap),
        channels=1,
        objective="10x 0.6NA",
        scanned=scanned,
        planes=plane,
    )
    held = _held(kind, cells, nominal, truth, specimen, holes)
    return Case(folder, np.array(cells), nominal, truth, held, sways)


def _sways(kind: Kind, tiles: int, rng: np.random.Generator) -> np.ndarray:
    """Return how tiles drift sideways: slowly there and back, and a little faster (tiles, planes, 2)."""
    at = np.linspace(-1, 1, kind.tile_shape[0])
    ways = np.stack([at, 1.5 * at**2, np.sin(np.pi * at)])
    sways = np.einsum("tki,kp->tpi", rng.normal(0, 1, (tiles, 3, 2)) * [[1], [0.5], [0.25]], ways)
    sways -= sways.mean(axis=1, keepdims=True)
    sways -= sways.mean(axis=0)
    return sways / sways.std(axis=(0, 1)) * kind.sway_px


def _held(
    kind: Kind,
    cells: list[tuple[int, int]],
    nominal: np.ndarray,
    truth: np.ndarray,
    specimen: Specimen,
    holes: list[Hole],
) -> np.ndarray:
    """Return which tiles hang together by overlaps that show something: a twentieth of the overlap, at least."""
    links = []
    for i, a in enumerate(cells):
        for j, b in enumerate(cells):
            if (b[0] - a[0], b[1] - a[1]) not in ((0, 1), (1, 0)) or a in kind.blank or b in kind.blank:
                continue
            low, high = np.maximum(truth[i], truth[j]), np.minimum(truth[i], truth[j]) + kind.tile_shape
            shape = tuple(int(n) for n in high - low)
            seen = specimen.cut(low + MARGIN_PX, shape) * _light(low, shape, holes)
            if (seen > 0.15).mean() > 0.05:
                links.append((a, b))
    group: set[tuple[int, int]] = set()
    for cell in cells:
        found = {cell}
        for _ in cells:
            found |= {c for link in links if found & set(link) for c in link}
        group = max(group, found, key=len)
    return np.array([cell in group for cell in cells])


Hole = tuple[tuple[float, float], tuple[float, float]]


def _holes(
    kind: Kind, cells: list[tuple[int, int]], pitch: tuple[float, float], rng: np.random.Generator
) -> list[Hole]:
    """Return the rows and columns of the specimen that show nothing: overlaps without which the grid hangs together."""
    links = [(a, b) for a in cells for b in ((a[0], a[1] + 1), (a[0] + 1, a[1])) if b in cells]
    chosen: list[tuple[tuple[int, int], tuple[int, int]]] = []
    for k in rng.permutation(len(links)):
        left = [link for link in links if link not in chosen and link != links[k]]
        if len(chosen) < round(kind.empty * len(links)) and _hang_together(cells, left):
            chosen.append(links[k])
    room = [j + 2 for j in kind.jitter_px[1:]]
    return [
        (
            (b[0] * pitch[0] - room[0], a[0] * pitch[0] + kind.tile_shape[1] + room[0]),
            (b[1] * pitch[1] - room[1], a[1] * pitch[1] + kind.tile_shape[2] + room[1]),
        )
        for a, b in chosen
    ]


def _hang_together(cells: list[tuple[int, int]], links: list[tuple[tuple[int, int], tuple[int, int]]]) -> bool:
    group = {cells[0]}
    for _ in cells:
        group |= {cell for link in links if group & set(link) for cell in link}
    return len(group) == len(cells)


def _light(position: np.ndarray, shape: tuple[int, ...], holes: list[Hole]) -> np.ndarray:
    """Return 1, and 0 in the holes, with soft edges, on the rows and columns of a tile."""
    rows, columns = (p + np.arange(n) for p, n in zip(position[1:], shape[1:], strict=True))
    light = np.ones(shape[1:])
    for (y0, y1), (x0, x1) in holes:
        light *= 1 - np.outer(_within(rows, y0, y1), _within(columns, x0, x1))
    return light


def _within(at: np.ndarray, low: float, high: float) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip((at - low) / 1.5, -50, 50))) / (1 + np.exp(np.clip((at - high) / 1.5, -50, 50)))
