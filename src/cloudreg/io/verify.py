"""Whether what was written is what was to be written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cloudreg.errors import VerificationError
from cloudreg.execution import Engine
from cloudreg.io.blocks import blocks_within, run_blocks
from cloudreg.io.downsample import downsample
from cloudreg.io.pyramid import Reader
from cloudreg.io.volume import Volume
from cloudreg.space import Box


def verify_volume(read: Reader, written: Volume, *, engine: Engine | None = None) -> None:
    """Read a volume back, every voxel of every level, and compare it.

    Parameters
    ----------
    read
        What the finest level was written from; the coarser ones must be what comes of the stored finer ones.
    written
        A complete volume.
    engine
        Compares blocks side by side.

    Raises
    ------
    VerificationError
        If a voxel differs; names the first block.
    """
    memory = None if engine is None else engine.memory_per_block_bytes
    for level, grid in enumerate(written.levels):
        boxes = blocks_within(grid.shape, written.chunk, 10.0 * written.dtype.itemsize, memory)
        items = [_Item(level, channel, box) for channel in range(written.channels) for box in boxes]
        sizes = [item.box.size * written.dtype.itemsize for item in items]
        same = run_blocks(_Compare(read, written), items, label=f"Verifying level {level}", engine=engine, sizes=sizes)
        wrong = [item for item, equal in zip(items, same, strict=True) if not equal]
        if wrong:
            raise VerificationError(
                f"{written.path} differs from what was written in {len(wrong)} of {len(items)} blocks of level "
                f"{level}, first {wrong[0].box} of channel {wrong[0].channel}: remove it and write it again"
            )


@dataclass(frozen=True)
class _Item:
    level: int
    channel: int
    box: Box

    def __str__(self) -> str:
        return f"level{self.level}_channel{self.channel}_{self.box}"


@dataclass(frozen=True)
class _Compare:
    read: Reader
    written: Volume

    def __call__(self, item: _Item) -> bool:
        found = self.written.read(item.box, level=item.level, channel=item.channel)
        if item.level == 0:
            expected = self.read(item.box, item.channel)
        else:
            finer, coarser = self.written.levels[item.level - 1 : item.level + 1]
            z, y, x = np.rint(np.divide(coarser.voxel_size_um, finer.voxel_size_um)).astype(int).tolist()
            start, stop = ((p[0] * z, p[1] * y, p[2] * x) for p in (item.box.start, item.box.stop))
            source = Box(start, stop).intersection(Box.whole(finer.shape))
            voxels = self.written.read(source, level=item.level - 1, channel=item.channel)
            expected = downsample(voxels, (z, y, x), self.written.kind)
        return bool(np.array_equal(found, expected, equal_nan=found.dtype.kind == "f"))
