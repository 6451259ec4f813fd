"""The levels of a volume, several from each block that is read once.

A block of the finest level is written, merged and written again at the next level while it is in memory, for as many
levels as whole objects of each come out of a block that fits. What is left of the pyramid starts from the last of
these, read back. The numbers don't depend on it: each level is made from the level before, whichever way.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cloudreg.execution import Engine, Ledger
from cloudreg.io.blocks import blocks_within, run_blocks
from cloudreg.io.downsample import downsample
from cloudreg.io.existing import reopen_volume
from cloudreg.io.volume import Volume
from cloudreg.io.writer import VolumeWriter
from cloudreg.space import Box

_TOGETHER_BYTES = 600 * 10**6
"""What a task may hold so that more than one level comes from it."""


class Reader(Protocol):
    """Where the voxels of a level come from; picklable."""

    def __call__(self, box: Box, channel: int) -> NDArray[Any]:
        """Return the voxels of a box of one channel, shape (z, y, x), in the volume's type."""
        ...


def build_pyramid(
    volume: VolumeWriter | str | os.PathLike[str],
    *,
    engine: Engine | None = None,
    ledger: Ledger | None = None,
    fill_missing: bool = False,
) -> Volume:
    """Write levels 1, 2, … from level 0, block by block.

    Parameters
    ----------
    volume
        A writer whose level 0 is written (it is not marked complete); or the path of a volume, which gets the levels
        that it lacks, see `reopen_volume`.
    engine
        Runs the blocks; by default they run one after the other here.
    ledger
        Remembers finished blocks.
    fill_missing
        Take chunks that are missing at a path for zeros; see `requiring_chunks`.

    Returns
    -------
    Volume
        With all its levels.

    Raises
    ------
    InputError
        If the path holds no volume that can get levels, or half of one.
    """
    writer = volume if isinstance(volume, VolumeWriter) else reopen_volume(volume, fill_missing=fill_missing)
    if ledger is not None and writer is not volume and writer.is_new:
        ledger.clear()
    if len(writer.levels) > 1:
        write_levels(_Coarser.than(writer, 0), writer, first=1, engine=engine, ledger=ledger)
    return writer.volume if isinstance(volume, VolumeWriter) else writer.complete()


def write_levels(
    read: Reader,
    writer: VolumeWriter,
    *,
    first: int = 0,
    read_bytes: float = 0.0,
    engine: Engine | None = None,
    ledger: Ledger | None = None,
) -> None:
    """Write a level and all coarser ones.

    Parameters
    ----------
    read
        Gives boxes of level ``first``.
    writer
        What to write to; not marked complete.
    first
        Finest level to write.
    read_bytes
        Memory per voxel that reading takes besides the voxel itself.
    engine, ledger
        See `build_pyramid`.
    """
    memory = None if engine is None else engine.memory_per_block_bytes
    while first < len(writer.levels):
        last = _last_together(writer, first, read_bytes, memory)
        boxes = blocks_within(
            writer.levels[first].shape,
            _unit(writer, first, last),
            _voxel_bytes(writer, first, last, read_bytes),
            memory,
        )
        items = [_Block(first, last, channel, box) for channel in range(writer.channels) for box in boxes]
        name = f"Level {first}" if first == last else f"Levels {first} to {last}"
        sizes = [item.box.size * writer.dtype.itemsize for item in items]
        run_blocks(_Cascade(read, writer), items, label=name, engine=engine, ledger=ledger, sizes=sizes)
        if last + 1 < len(writer.levels):
            read, read_bytes = _Coarser.than(writer, last), 0.0
        first = last + 1


@dataclass(frozen=True)
class _Block:
    first: int
    last: int
    channel: int
    box: Box

    def __str__(self) -> str:
        levels = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"level{levels}_channel{self.channel}_{self.box}"


@dataclass(frozen=True)
class _Cascade:
    """Reads one block, writes it, merges it, writes that, and so on."""

    read: Reader
    writer: VolumeWriter

    def __call__(self, block: _Block) -> None:
        box = block.box
        voxels = np.ascontiguousarray(self.read(box, block.channel))
        pending = [self.writer.begin_write(box, voxels, level=block.first, channel=block.channel)]
        for level in range(block.first + 1, block.last + 1):
            factors = _factors(self.writer, level)
            voxels = downsample(voxels, factors, self.writer.kind)
            box = _merged(box, factors)
            pending.append(self.writer.begin_write(box, voxels, level=level, channel=block.channel))
        for each in pending:
            each.wait()


@dataclass(frozen=True)
class _Coarser:
    """Makes boxes of a level from the level before, as it is stored."""

    writer: VolumeWriter
    level: int
    factors: tuple[int, int, int]

    @staticmethod
    def than(writer: VolumeWriter, level: int) -> _Coarser:
        """Return what makes the level after ``level``."""
        return _Coarser(writer, level, _factors(writer, level + 1))

    def __call__(self, box: Box, channel: int) -> NDArray[Any]:
        z, y, x = (slice(a * f, b * f) for a, b, f in zip(box.start, box.stop, self.factors, strict=True))
        finer = Box((z.start, y.start, x.start), (z.stop, y.stop, x.stop))
        finer = finer.intersection(Box.whole(self.writer.levels[self.level].shape))
        voxels = self.writer.read(finer, level=self.level, channel=channel)
        return downsample(voxels, self.factors, self.writer.kind)


def _merged(box: Box, factors: tuple[int, int, int]) -> Box:
    z, y, x = ((a // f, -(-b // f)) for a, b, f in zip(box.start, box.stop, factors, strict=True))
    return Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))


def _last_together(writer: VolumeWriter, first: int, read_bytes: float, memory: int | None) -> int:
    """Return the coarsest level whose objects come out of blocks of level ``first`` that fit in memory."""
    limit = min(memory or _TOGETHER_BYTES, _TOGETHER_BYTES)
    last = first
    while last + 1 < len(writer.levels):
        unit = [min(u, n) for u, n in zip(_unit(writer, first, last + 1), writer.levels[first].shape, strict=True)]
        if math.prod(unit) * _voxel_bytes(writer, first, last + 1, read_bytes) > limit:
            break
        last += 1
    return last


def _unit(writer: VolumeWriter, first: int, last: int) -> list[int]:
    """Return the smallest box of level ``first`` that makes whole objects of all levels to ``last``."""
    unit, steps = [1, 1, 1], [1, 1, 1]
    for level in range(first, last + 1):
        if level > first:
            steps = [s * f for s, f in zip(steps, _factors(writer, level), strict=True)]
        unit = [math.lcm(u, s * b) for u, s, b in zip(unit, steps, writer.block_shape(level), strict=True)]
    return unit


def _voxel_bytes(writer: VolumeWriter, first: int, last: int, read_bytes: float) -> float:
    """Return the memory of a task per voxel of its block: the voxel, its copy as it is encoded, the code of it.

    The first level of a pass over stored voxels holds those that it merges as well.
    """
    voxels, share = 0.0, 1.0
    for level in range(first, last + 1):
        share /= math.prod(_factors(writer, level)) if level > first else 1
        voxels += 3 * share
    if first > 0:
        voxels += math.prod(_factors(writer, first))
    return voxels * writer.dtype.itemsize + read_bytes


def _factors(writer: VolumeWriter, level: int) -> tuple[int, int, int]:
    """Return how many voxels of the level before make one of this, z y x."""
    finer, coarser = writer.levels[level - 1 : level + 1]
    z, y, x = np.rint(np.divide(coarser.voxel_size_um, finer.voxel_size_um)).astype(int).tolist()
    return z, y, x
