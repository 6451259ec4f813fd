"""Make a COLM acquisition of the phantom, with the atlas that it is to be registered to and the truth about it.

1. Deform the phantom by a known map, turned as brains lie in the microscope.
2. Put the stage where it would go, plus an error along all three axes.
3. Evaluate the sample at the pixels of each tile, and expose the camera.
4. Leave one cell of the grid unscanned, and lose some planes of one tile.
"""

from __future__ import annotations

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cloudreg.atlas import Region, Regions, save_atlas
from cloudreg.datasets.anatomy import HALF_WIDTH_MM, HEIGHT_MM, LENGTH_MM
from cloudreg.datasets.diffeomorphism import Deformation, TrueMap, random_affine
from cloudreg.datasets.microscope import Microscope
from cloudreg.datasets.phantom import CHANNELS, ORIENTATION, Phantom
from cloudreg.datasets.sample import Sample, thinned
from cloudreg.datasets.structures import ONTOLOGY
from cloudreg.datasets.truth import DemoTruth, covered
from cloudreg.errors import InputError
from cloudreg.execution.progress import track
from cloudreg.space import Grid, axes_between
from cloudreg.tiles import write_colm

SAMPLE_ORIENTATION = "ila"
"""The sample lies on its top: z from below, y from the left, x from the front."""

# Room that the sample needs in any draw, z y x, in millimetres of an adult mouse brain.
_ROOM_MM = np.array([8.2, 11.6, 14.8])
_LARGEST_DISPLACEMENT_MM = 0.75
_SLAB = 16


@dataclass(frozen=True)
class DemoSize:
    """How large the acquisition is. The brain is scaled to fill the field.

    Parameters
    ----------
    rows, columns
        Grid of tiles.
    side, planes
        Pixels of a tile.
    voxel_size_um
        z and y = x.
    overlap
        Of neighbouring tiles, as a fraction of the side.
    jitter_um
        Largest error of the stage, z y x.
    template_um, labels_um
        Voxel sizes of the atlas.
    node_um
        Detail of the sample; see `Phantom`.
    """

    rows: int = 3
    columns: int = 4
    side: int = 152
    planes: int = 200
    voxel_size_um: tuple[float, float] = (20.0, 14.0)
    overlap: float = 0.15
    jitter_um: tuple[float, float, float] = (14.0, 28.0, 28.0)
    template_um: float = 50.0
    labels_um: float = 25.0
    node_um: float = 18.0

    @staticmethod
    def fitted(rows: int, columns: int, side: int, planes: int) -> DemoSize:
        """Return an acquisition of the demo's brain with other tiles: voxels are as large as the field asks for."""
        field = DemoSize(rows, columns, side, planes).field
        z, y, x = _ROOM_MM * DEMO.um_per_mm / field.shape
        # Nodes much finer than the voxels would only cost memory.
        return DemoSize(rows, columns, side, planes, (float(z), float(max(y, x))), node_um=float(max(14.0, max(y, x))))

    @property
    def tile_shape(self) -> tuple[int, int, int]:
        """Planes, height, width."""
        return self.planes, self.side, self.side

    @property
    def pitch_px(self) -> float:
        """Nominal distance of neighbouring tiles."""
        return self.side * (1 - self.overlap)

    @property
    def field(self) -> Grid:
        """Grid of the voxels that the stage means to scan."""
        height, width = (int((n - 1) * self.pitch_px) + self.side for n in (self.rows, self.columns))
        z, xy = self.voxel_size_um
        return Grid.from_spacing((self.planes, height, width), (z, xy, xy))

    @property
    def um_per_mm(self) -> float:
        """Scale of the brain, from adult to phantom, so that it just fits."""
        return float(np.floor((self.field.size_um / _ROOM_MM).min()))


DEMO = DemoSize()
"""The size of ``cloudreg demo``: a brain 6.4 mm long, 11 tiles, 200 MB in two channels."""


def make_acquisition(out_folder: str | Path, *, seed: int = 0, size: DemoSize = DEMO) -> DemoTruth:
    """Write a demo acquisition, or open it if it is there.

    Parameters
    ----------
    out_folder
        New. It will hold ``raw`` (the COLM acquisition), ``atlas`` (for ``--atlas``) and the truth.
    seed
        Of texture, deformation, stage, optics and noise.
    size
        Of the acquisition.

    Returns
    -------
    DemoTruth

    Raises
    ------
    InputError
        If the folder holds something else, or another demo acquisition.
    """
    out = Path(out_folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        truth = DemoTruth.load(out)
        if (truth.seed, truth.field) != (seed, size.field):
            raise InputError(
                f"{out} holds a demo acquisition of another seed or size than seed {seed}, {size.field.shape} voxels: "
                "choose another folder"
            )
        return truth
    unfinished = out.with_name(f".{out.name}.unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    _write(unfinished, size, seed)
    unfinished.replace(out)
    return DemoTruth.load(out)


@dataclass(frozen=True, eq=False)
class _Stage:
    """Where the tiles are: tables of all cells of the grid, (row, column, ...)."""

    nominal_px: NDArray[np.float64]
    positions_px: NDArray[np.float64]
    scanned: NDArray[np.bool_]
    lost: tuple[tuple[int, int, int, int], ...]


def _write(folder: Path, size: DemoSize, seed: int) -> None:
    sample = _draw_sample(size, seed)
    thin = thinned(size.field, (2, 3, 3))
    ids, right = sample.labels_on(thin)
    stage = _draw_stage(size, seed, thin, ids > 0)
    microscope = Microscope.random((size.side, size.side), size.field.size_um.tolist(), CHANNELS, seed)
    positions = stage.positions_px[stage.scanned]
    seen = covered(_indices(thin.shape) * np.array([2.0, 3.0, 3.0]), positions, size.tile_shape).reshape(thin.shape)
    DemoTruth(
        folder=folder,
        seed=seed,
        sample=sample,
        orientation=SAMPLE_ORIENTATION,
        field=size.field,
        tile_shape=size.tile_shape,
        cells=np.argwhere(stage.scanned),
        nominal_px=stage.nominal_px[stage.scanned],
        positions_px=positions,
        lost=stage.lost,
        flats=microscope.flats,
        background=microscope.background,
        regions=sample.measure_regions(thin, ids, right, seen),
    ).save()
    save_atlas(
        folder / "atlas",
        name="phantom",
        template=sample.phantom.template(),
        labels=sample.labels,
        grid=sample.phantom.grid,
        labels_grid=sample.labels_grid,
        orientation=ORIENTATION,
        regions=Regions(Region(*row) for row in ONTOLOGY),
    )
    _write_tiles(folder / "raw", size, seed, sample, stage, microscope)


def _draw_sample(size: DemoSize, seed: int) -> Sample:
    phantom = Phantom(size.um_per_mm, size.template_um, size.node_um, seed)
    half_size_um = np.array([LENGTH_MM / 2, HEIGHT_MM / 2, HALF_WIDTH_MM]) * size.um_per_mm
    largest_um = _LARGEST_DISPLACEMENT_MM * size.um_per_mm
    deformation = Deformation.random(phantom.centre_um, half_size_um, largest_um, seed)
    low, high = size.field.bounds_um()
    affine = random_affine(axes_between(ORIENTATION, SAMPLE_ORIENTATION), phantom.centre_um, (low + high) / 2, seed)
    return Sample(phantom, TrueMap(affine, deformation), size.labels_um)


def _draw_stage(size: DemoSize, seed: int, grid: Grid, tissue: NDArray[np.bool_]) -> _Stage:
    """Draw the stage's errors; the corner with the least tissue stays unscanned, and the middle tile loses planes."""
    generator = np.random.default_rng([seed, 4])
    rows, columns = np.mgrid[: size.rows, : size.columns]
    nominal = np.stack([0.0 * rows, rows * size.pitch_px, columns * size.pitch_px], axis=-1)
    largest_px = np.asarray(size.jitter_um) / np.asarray(size.field.voxel_size_um)
    positions = nominal + generator.uniform(-1, 1, nominal.shape) * largest_px

    points = grid.index_to_um(np.argwhere(tissue)) / np.asarray(size.field.voxel_size_um)
    corners = [(row, column) for row in (0, size.rows - 1) for column in (0, size.columns - 1)]
    filling = [covered(points, nominal[corner][None], size.tile_shape).sum() for corner in corners]
    scanned = np.ones((size.rows, size.columns), dtype=bool)
    if scanned.size > 4:
        scanned[corners[int(np.argmin(filling))]] = False

    n = size.planes
    ranges = [(n // 5, n // 5 + 2 + n // 60), (n // 2, n // 2 + 1), (3 * n // 4, 3 * n // 4 + 1 + n // 40)]
    lost = tuple((size.rows // 2, size.columns // 2, start, stop) for start, stop in ranges)
    return _Stage(nominal, positions, scanned, lost)


def _write_tiles(
    folder: Path, size: DemoSize, seed: int, sample: Sample, stage: _Stage, microscope: Microscope
) -> None:
    """Expose tile by tile; the next one is made while one is written."""
    voxel_um = size.field.voxel_size_um
    lost = {(row, column, plane) for row, column, start, stop in stage.lost for plane in range(start, stop)}

    def expose(row: int, column: int, start: int) -> NDArray[np.uint16]:
        """Return planes of a tile, (channel, planes, height, width)."""
        shape = (min(_SLAB, size.planes - start), size.side, size.side)
        corner = (stage.positions_px[row, column] + (start, 0, 0)) * voxel_um
        grey = sample.grey(Grid.from_spacing(shape, voxel_um, corner.tolist()))
        noise = [seed, 5, row, column, start]
        return np.stack([microscope.expose(g, c, corner, voxel_um, [*noise, c]) for c, g in enumerate(grey)])

    cells = [(int(row), int(column)) for row, column in np.argwhere(stage.scanned)]
    starts = range(0, size.planes, _SLAB)
    with ThreadPoolExecutor(2) as pool, track("demo acquisition", len(cells), "tiles") as advance:
        waiting: dict[tuple[int, int], list[Future[NDArray[np.uint16]]]] = {}
        tile: dict[tuple[int, int], NDArray[np.uint16]] = {}

        def begin(cell: tuple[int, int]) -> None:
            waiting[cell] = [pool.submit(expose, *cell, start) for start in starts]

        def plane(row: int, column: int, channel: int, number: int) -> NDArray[np.uint16] | None:
            cell = (row, column)
            if cell not in tile:
                tile.clear()
                tile[cell] = np.concatenate([slab.result() for slab in waiting.pop(cell)], axis=1)
                after = cells.index(cell) + 1
                if after < len(cells):
                    begin(cells[after])
                advance(1)
            return None if (row, column, number) in lost else tile[cell][channel, number]

        begin(cells[0])
        write_colm(
            folder,
            rows=size.rows,
            columns=size.columns,
            tile_shape=size.tile_shape,
            voxel_size_um=voxel_um,
            overlap=(size.overlap, size.overlap),
            channels=CHANNELS,
            objective="10x 0.6NA",
            scanned=stage.scanned,
            planes=plane,
        )


def _indices(shape: tuple[int, int, int]) -> NDArray[np.int64]:
    """Return the index of every voxel, (n, 3)."""
    return np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1).reshape(-1, 3)
