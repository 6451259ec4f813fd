"""What is true of a demo acquisition: everything that a pipeline has to find."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cloudreg.datasets.diffeomorphism import TrueMap
from cloudreg.datasets.phantom import Phantom
from cloudreg.datasets.sample import RegionMeans, Sample
from cloudreg.errors import InputError
from cloudreg.space import Grid

_JSON, _ARRAYS = "truth.json", "truth.npz"
_REGION_ARRAYS = ("ids", "right", "volume_mm3", "grey")


@dataclass(frozen=True, eq=False)
class DemoTruth:
    """A demo acquisition and the truth about it.

    Places in the sample are in the stage's frame: the centre of the first pixel of the tile in row 0 and column 0,
    where the stage meant to put it, is (0, 0, 0).

    Parameters
    ----------
    folder
        Holds all of it.
    seed
        Of everything random.
    sample
        The deformed phantom.
    orientation
        Letters of the sample's axes z, y, x.
    field
        Grid of the voxels that the stage meant to scan.
    tile_shape
        Planes, height, width.
    cells
        (n, 2): row and column of the scanned tiles, row by row.
    nominal_px, positions_px
        (n, 3) z y x in voxels: where the stage meant to put the first pixel of each tile, and where it did.
    lost
        Row, column, first and last + 1 of the planes that are lost, in all channels.
    flats
        Vignetting, float32 (channel, height, width), mean 1 each.
    background
        Counts without light.
    regions
        Of the sample, as far as it was scanned.
    """

    folder: Path
    seed: int
    sample: Sample
    orientation: str
    field: Grid
    tile_shape: tuple[int, int, int]
    cells: NDArray[np.int64]
    nominal_px: NDArray[np.float64]
    positions_px: NDArray[np.float64]
    lost: tuple[tuple[int, int, int, int], ...]
    flats: NDArray[np.float32]
    background: float
    regions: RegionMeans

    @property
    def acquisition(self) -> Path:
        """Folder of the raw tiles."""
        return self.folder / "raw"

    @property
    def atlas(self) -> Path:
        """Folder of the atlas."""
        return self.folder / "atlas"

    def covered(self, points_um: ArrayLike) -> NDArray[np.bool_]:
        """Return which points (n, 3) of the sample lie in a tile, lost planes or not."""
        points = np.asarray(points_um, dtype=np.float64) / np.asarray(self.field.voxel_size_um)
        return covered(points, self.positions_px, self.tile_shape)

    def save(self) -> None:
        """Write the truth into its folder."""
        np.savez_compressed(
            self.folder / _ARRAYS,
            cells=self.cells,
            nominal_px=self.nominal_px,
            positions_px=self.positions_px,
            flats=self.flats,
            **{name: getattr(self.regions, name) for name in _REGION_ARRAYS},
        )
        values = {
            "seed": self.seed,
            "phantom": asdict(self.sample.phantom),
            "map": self.sample.map.to_dict(),
            "labels_um": self.sample.labels_um,
            "orientation": self.orientation,
            "field": self.field.to_dict(),
            "tile_shape": self.tile_shape,
            "lost": self.lost,
            "background": self.background,
        }
        (self.folder / _JSON).write_text(json.dumps(values, indent=2) + "\n")

    @staticmethod
    def load(folder: str | Path) -> DemoTruth:
        """Read what `make_acquisition` wrote.

        Raises
        ------
        InputError
            If the folder does not hold a demo acquisition.
        """
        folder = Path(folder)
        try:
            values = json.loads((folder / _JSON).read_text())
            with np.load(folder / _ARRAYS) as file:
                arrays = dict(file)
        except (OSError, ValueError) as error:
            raise InputError(f"expected a demo acquisition with its truth in {folder}: {error}") from error
        planes, height, width = values["tile_shape"]
        sample = Sample(Phantom(**values["phantom"]), TrueMap.from_dict(values["map"]), values["labels_um"])
        return DemoTruth(
            folder=folder,
            seed=values["seed"],
            sample=sample,
            orientation=values["orientation"],
            field=Grid.from_dict(values["field"]),
            tile_shape=(planes, height, width),
            cells=arrays["cells"],
            nominal_px=arrays["nominal_px"],
            positions_px=arrays["positions_px"],
            lost=tuple((row, column, start, stop) for row, column, start, stop in values["lost"]),
            flats=arrays["flats"],
            background=values["background"],
            regions=RegionMeans(*(arrays[name] for name in _REGION_ARRAYS)),
        )


def covered(
    points_px: NDArray[np.float64], positions_px: NDArray[np.float64], tile_shape: Sequence[int]
) -> NDArray[np.bool_]:
    """Return which points (n, 3), in voxels, lie in a tile at one of the positions (m, 3)."""
    inside = np.zeros(len(points_px), dtype=bool)
    for position in positions_px:
        index = points_px - position
        inside |= ((index >= -0.5) & (index < np.asarray(tile_shape) - 0.5)).all(axis=1)
    return inside
