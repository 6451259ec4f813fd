"""The coarser levels of a volume, each made from the one before."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from cloudreg.execution import Engine, Ledger
from cloudreg.io.blocks import blocks_within, run_blocks
from cloudreg.io.downsample import downsample
from cloudreg.io.existing import reopen_volume
from cloudreg.io.volume import Volume
from cloudreg.io.writer import VolumeWriter
from cloudreg.space import Box, Grid


def build_pyramid(
    volume: VolumeWriter | str | os.PathLike[str], *, engine: Engine | None = None, ledger: Ledger | None = None
) -> Volume:
    """Write levels 1, 2, … from level 0, block by block.

    Parameters
    ----------
    volume
        A writer whose level 0 is written (it is not marked complete); or the path of a volume that CloudReg wrote,
        which gets the levels that it lacks.
    engine
        Runs the blocks; by default they run one after the other here.
    ledger
        Remembers finished blocks.

    Returns
    -------
    Volume
        With all its levels.

    Raises
    ------
    InputError
        If the path holds no volume that CloudReg wrote.

    Notes
    -----
    A block's task holds the (at most 8) finer voxels, the voxel made of them and a copy of it as it is written.
    """
    writer = volume if isinstance(volume, VolumeWriter) else reopen_volume(volume)
    for level in range(1, len(writer.levels)):
        factors = _factors(writer.levels[level - 1], writer.levels[level])
        voxel_bytes = float(np.prod(factors) + 2) * writer.dtype.itemsize
        boxes = blocks_within(
            writer.levels[level].shape,
            writer.block_shape(level),
            voxel_bytes,
            None if engine is None else engine.memory_per_block_bytes,
        )
        items = [_Block(level, channel, box) for channel in range(writer.channels) for box in boxes]
        run_blocks(_Merge(writer, factors), items, label=f"Level {level}", engine=engine, ledger=ledger)
    return writer.volume if isinstance(volume, VolumeWriter) else writer.complete()


@dataclass(frozen=True)
class _Block:
    level: int
    channel: int
    box: Box

    def __str__(self) -> str:
        return f"level{self.level}_channel{self.channel}_{self.box}"


@dataclass(frozen=True)
class _Merge:
    """Makes one block of a level from the level before."""

    writer: VolumeWriter
    factors: tuple[int, int, int]

    def __call__(self, block: _Block) -> None:
        finer = self.writer.levels[block.level - 1].shape
        start = [a * f for a, f in zip(block.box.start, self.factors, strict=True)]
        stop = [min(b * f, n) for b, f, n in zip(block.box.stop, self.factors, finer, strict=True)]
        source = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
        voxels = self.writer.read(source, level=block.level - 1, channel=block.channel)
        merged = downsample(voxels, self.factors, self.writer.kind)
        self.writer.write(block.box, merged, level=block.level, channel=block.channel)


def _factors(finer: Grid, coarser: Grid) -> tuple[int, int, int]:
    z, y, x = np.rint(np.divide(coarser.voxel_size_um, finer.voxel_size_um)).astype(int).tolist()
    return z, y, x
