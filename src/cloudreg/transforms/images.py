"""Volumes of any size through a transform, block by block."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.atlas.ids import as_ids, id_type
from cloudreg.errors import InputError
from cloudreg.execution import Engine, Ledger
from cloudreg.io import Kind, Volume, VolumeWriter, build_pyramid, create_volume, remove_volume, to_dtype, write_volume
from cloudreg.io.writing import require_new, writable_format
from cloudreg.space import Box, Grid, split
from cloudreg.transforms.resample import VoxelMap
from cloudreg.transforms.transform import Side, Transform

_BLOCK_SIDE = 128


def apply_image(
    transform: Transform,
    source: Volume,
    destination: Grid,
    out_path: str,
    *,
    to: Side,
    labels: bool,
    engine: Engine,
    ledger: Ledger | None = None,
    channel: int = 0,
    orientation: str | None = None,
) -> Volume:
    """Bring a volume onto a grid in the other space.

    Parameters
    ----------
    transform
        Between atlas and target.
    source
        In the space that ``to`` does not name. Each block reads only the part of it that it needs.
    destination
        Grid of the result, in the space that ``to`` names; any voxel size.
    out_path
        Chunked formats (``.ome.zarr``, ``precomputed://``) are streamed, with a pyramid; others are held in memory.
    to
        ``"target"`` or ``"atlas"``.
    labels
        Take ids from the nearest voxel of the finest level, as uint32 or uint64, never averaged. Images are
        interpolated linearly in the source's type, rounded and clipped; where the destination is coarser they are
        read from the pyramid level that fits and averaged over each destination voxel, so that they don't alias.
        Voxels of an image that are NaN or infinite count as 0, like what lies outside of it: other programs mask so.
    engine, ledger
        Run the blocks, and remember those done.
    channel
        Of the source.
    orientation
        Letters of the destination's physical axes, for the file.

    Returns
    -------
    Volume
        The finished output. 0 where the source does not reach. Its bytes don't depend on blocks or workers.

    Raises
    ------
    InputError
        If the source has no such channel, labels are no ids (see `as_ids`), the output exists and is another one, the
        disk is too small for it, or it must be held in memory and is larger than the budget.

    Notes
    -----
    Without a ledger, nothing is left of an output that could not be finished.
    """
    source.require_channel(channel)
    level = 0 if labels else source.level_near(min(destination.voxel_size_um))
    dtype = id_type(source.dtype) if labels else source.dtype
    pull = BlockPull(
        voxel_map=VoxelMap.between(transform, source.levels[level], destination, to),
        source=source,
        level=level,
        channel=channel,
        labels=labels,
        dtype=dtype,
        memory_bytes=engine.memory_per_block_bytes,
    )
    kind: Kind = "labels" if labels else "image"
    if writable_format(out_path) != "chunked":
        require_new(Path(out_path), overwrite=False)
        return write_volume(
            out_path, _whole(pull, destination, engine, out_path), destination, kind=kind, orientation=orientation
        )
    writer = create_volume(out_path, destination, dtype, kind=kind, orientation=orientation)
    block = [max(1, _BLOCK_SIDE // b) * b for b in writer.block_shape()]
    boxes = split(destination.shape, block)
    try:
        engine.run(_PullAndWrite(pull, writer), boxes, label=f"resample to {to}", ledger=ledger)
        build_pyramid(writer, engine=engine, ledger=ledger)
        return writer.complete()
    except BaseException:
        if ledger is None:
            remove_volume(out_path)
        raise


@dataclass(frozen=True)
class BlockPull:
    """Computes one block of the destination; picklable.

    Notes
    -----
    Memory: the block's part of the source, once more in native type for labels, and the block itself in float and
    in its own type. A block that would need more than ``memory_bytes`` is halved until it does not.
    """

    voxel_map: VoxelMap
    source: Volume
    level: int
    channel: int
    labels: bool
    dtype: np.dtype[Any]
    memory_bytes: int

    def __call__(self, box: Box) -> NDArray[Any]:
        """Return the block's voxels."""
        out = np.zeros(box.shape, dtype=self.dtype)
        parts = self.voxel_map.parts(
            box,
            self.source.levels[self.level].shape,
            source_voxel_bytes=self.source.dtype.itemsize + self.dtype.itemsize,
            voxel_bytes=16,
            memory_bytes=self.memory_bytes,
        )
        for part, reach in parts:
            array = self.source.read(reach, level=self.level, channel=self.channel)
            if self.labels:
                values, _ = self.voxel_map.nearest(as_ids(array, self.source.path), reach.start, part)
            else:
                values = to_dtype(self.voxel_map.linear(_finite(array), reach.start, part), self.dtype)
            out[part.shifted([-o for o in box.start]).slices] = values
        return out


def _finite(array: NDArray[Any]) -> NDArray[Any]:
    """Return an image with 0, as there is around it, where it holds no number: one would spread to its neighbours."""
    return np.where(np.isfinite(array), array, array.dtype.type(0)) if array.dtype.kind == "f" else array


@dataclass(frozen=True)
class _PullAndWrite:
    pull: BlockPull
    writer: VolumeWriter

    def __call__(self, box: Box) -> None:
        self.writer.write(box, self.pull(box))


def _whole(pull: BlockPull, destination: Grid, engine: Engine, out_path: str) -> NDArray[Any]:
    # The blocks' results and the array that they are put into.
    needed = 2 * int(np.prod(destination.shape)) * pull.dtype.itemsize
    if needed > engine.memory_bytes:
        raise InputError(
            f"{out_path} must be held in memory to be written, {needed / 1e9:.3g} GB, and the budget is "
            f"{engine.memory_bytes / 1e9:.3g} GB: write .ome.zarr, choose a coarser grid, or raise --memory"
        )
    boxes = split(destination.shape, (_BLOCK_SIDE,) * 3)
    array = np.empty(destination.shape, dtype=pull.dtype)
    for box, block in zip(boxes, engine.run(pull, boxes, label="resample"), strict=True):
        if block is not None:
            array[box.slices] = block
    return array
