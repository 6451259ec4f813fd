"""A digital mouse brain: images in several contrasts and labels, anywhere in space.

The brain lies in atlas space with orientation `ORIENTATION`: z runs backward, y downward, x from right to left, in
micrometres, and the centre of the template's voxel (0, 0, 0) is (0, 0, 0). Shape and size are those of an adult mouse,
times a scale. Anatomy is symmetric; the texture of the channels is not.

An image is a cubic B-spline whose coefficients are the greys (tissue, and for the channels texture) at the nodes of a
fine lattice. It is thus a smooth function of place that can be evaluated at any point, and each grey is spread over
about two nodes, as an optical system would.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import ArrayLike, NDArray

from cloudreg.datasets.anatomy import HALF_WIDTH_MM, HEIGHT_MM, LENGTH_MM, classify, classify_grid
from cloudreg.datasets.structures import GAINS, GREYS, STRUCTURE_IDS, Tissue
from cloudreg.datasets.texture import hashed, smooth_noise, vessel
from cloudreg.space import Grid

ORIENTATION = "asr"
TEMPLATE = 0
"""Contrast of the atlas template; contrasts 1 and up are the channels of a sample."""

CHANNELS = GREYS.shape[1] - 1


@dataclass(frozen=True)
class Phantom:
    """The brain at one scale.

    Parameters
    ----------
    um_per_mm
        Micrometres of the phantom per millimetre of an adult mouse brain, which is 13.3 x 7.8 x 11.2 mm.
    template_um
        Voxel size of the template.
    node_um
        Distance of the nodes of the images; the finest texture is about twice that.
    seed
        Of the texture.
    """

    um_per_mm: float = 480.0
    template_um: float = 50.0
    node_um: float = 18.0
    seed: int = 0

    @property
    def grid(self) -> Grid:
        """Grid of the template: the brain with about a millimetre of an adult mouse around it."""
        size = (LENGTH_MM + 1.6, HEIGHT_MM + 1.6, 2 * HALF_WIDTH_MM + 1.6)
        shape = [round(mm * self.um_per_mm / self.template_um) for mm in size]
        return Grid.from_spacing(shape, [self.template_um] * 3)

    @property
    def centre_um(self) -> NDArray[np.float64]:
        """Middle of the brain (z, y, x); its x is the midplane."""
        return np.asarray(np.mean(self.grid.bounds_um(), axis=0))

    def grid_at(self, voxel_um: float) -> Grid:
        """Return a grid with the template's outer corner and another voxel size."""
        return self.grid.resampled([voxel_um] * 3)

    def labels(self, grid: Grid) -> NDArray[np.uint32]:
        """Return the region ids, 0 outside, at the voxels of an axis-aligned grid in atlas space."""
        return np.asarray(STRUCTURE_IDS[self._anatomy(grid)[0]])

    def ids_at(self, points_um: ArrayLike) -> NDArray[np.uint32]:
        """Return the region ids at points (n, 3) in atlas space."""
        points = np.ascontiguousarray(points_um, dtype=np.float64).reshape(-1, 3)
        return np.asarray(STRUCTURE_IDS[_classify_points((points - self._zero_um()) / self.um_per_mm)])

    def template(self) -> NDArray[np.uint16]:
        """Return the template, (z, y, x) on `grid`: no texture, and each voxel the mean over its volume."""
        factor = 2
        structures, tissues = self._anatomy(self.grid_at(self.template_um / factor))
        grey = GREYS[tissues, TEMPLATE] * GAINS[structures, TEMPLATE]
        z, y, x = self.grid.shape
        blocks = grey.reshape(z, factor, y, factor, x, factor)
        return np.asarray(np.rint(1000 * blocks.mean(axis=(1, 3, 5), dtype=np.float32)), dtype=np.uint16)

    def channel_coefficients(self) -> tuple[NDArray[np.float32], Grid]:
        """Return the B-spline coefficients of all channels, (z, y, x, channel), and the grid of their nodes."""
        grid = self._nodes()
        structures, tissues = self._anatomy(grid)
        coefficients = np.zeros((*grid.shape, CHANNELS), dtype=np.float32)

        def fill(start: int) -> None:
            part = slice(start, start + 16)
            _textured(coefficients[part], structures[part], tissues[part], GREYS, GAINS, start, self.seed)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(fill, range(0, grid.shape[0], 16)))
        return coefficients, grid

    def _zero_um(self) -> NDArray[np.float64]:
        """Where the anatomy's (0, 0, 0) lies: the front, the top and the midplane."""
        half = np.array([LENGTH_MM / 2, HEIGHT_MM / 2, 0.0])
        return self.centre_um - half * self.um_per_mm

    def _nodes(self) -> Grid:
        """Grid of the images' nodes: the brain with a margin of two nodes, even about the midplane."""
        size = np.array([LENGTH_MM, HEIGHT_MM, 2 * HALF_WIDTH_MM]) * self.um_per_mm
        shape = np.ceil(size / self.node_um).astype(int) + 4
        first = self.centre_um - (shape - 1) / 2 * self.node_um
        return Grid.from_spacing(shape.tolist(), [self.node_um] * 3, first.tolist())

    def _anatomy(self, grid: Grid) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Structure and tissue at every voxel; the planes are shared by two threads."""
        start = (grid.origin_um - self._zero_um()) / self.um_per_mm
        step = np.asarray(grid.voxel_size_um) / self.um_per_mm
        structures = np.zeros(grid.shape, dtype=np.uint8)
        tissues = np.zeros(grid.shape, dtype=np.uint8)
        width = grid.shape[2]
        # Where the midplane is the grid's middle, one half is the mirror image of the other.
        symmetric = abs(start[2] + (width - 1) / 2 * step[2]) < 1e-9
        skip = width // 2 if symmetric else 0

        def fill(first: int) -> None:
            part = slice(first, first + 8)
            corner = start + step * (first, 0, skip)
            classify_grid(structures[part, :, skip:], tissues[part, :, skip:], corner, step)
            if symmetric:
                for array in (structures, tissues):
                    array[part, :, :skip] = array[part, :, width - skip :][..., ::-1]

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(fill, range(0, grid.shape[0], 8)))
        return structures, tissues


@njit(cache=True, nogil=True)
def _classify_points(points):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    structures = np.zeros(points.shape[0], dtype=np.uint8)
    for i in range(points.shape[0]):
        structures[i], _ = classify(points[i, 0], points[i, 1], points[i, 2])
    return structures


_WHITE, _FLUID = Tissue.WHITE.value, Tissue.FLUID.value
_DENSE, _GRANULAR, _STRIATUM = Tissue.DENSE_CELLS.value, Tissue.GRANULAR.value, Tissue.STRIATUM.value


@njit(cache=True, nogil=True)
def _textured(out, structures, tissues, greys, gains, first, seed):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    """Fill coefficients: grey of the tissue times unevenness, cells, fibre bundles and vessels; lengths in nodes."""
    for i in range(out.shape[0]):
        z = i + first
        for j in range(out.shape[1]):
            for k in range(out.shape[2]):
                tissue = tissues[i, j, k]
                if tissue == 0:
                    continue
                structure = structures[i, j, k]
                slow = 0.10 * smooth_noise(z, j, k, 23.0, seed) + 0.10 * smooth_noise(z, j, k, 7.0, seed + 1)
                middle = smooth_noise(z, j, k, 3.1, seed + 2)
                tube = 0.0 if tissue == _FLUID else vessel(z, j, k, 17.0, 0.16, seed + 3)
                bundle = max(0.0, smooth_noise(z, j, k, 4.3, seed + 5) - 0.1) if tissue == _STRIATUM else 0.0
                spot = hashed(z, j, k, seed + 6)
                crowded = tissue in (_DENSE, _GRANULAR)
                density = 0.5 if crowded else (0.05 if tissue == _WHITE else 0.16)
                nucleus = (0.35 if crowded else 0.8) * spot / density if spot < density else 0.0
                neuron = hashed(z, j, k, seed + 7)
                body = 1.6 if (neuron < 0.03 and tissue != _WHITE and tissue != _FLUID) else 0.0
                even = 1 + slow
                base = greys[tissue, 1] * gains[structure, 1]
                out[i, j, k, 0] = base * (even + 0.15 * middle + nucleus - 0.7 * bundle) * (1 - 0.6 * tube)
                base = greys[tissue, 2] * gains[structure, 2]
                out[i, j, k, 1] = base * (even + 0.25 * middle + body + 0.7 * bundle) * (1 - 0.3 * tube) + 0.5 * tube
                for channel in range(2):
                    out[i, j, k, channel] = max(out[i, j, k, channel], 0.0)
