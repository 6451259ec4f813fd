"""How a level is cut into blocks that fit in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cloudreg.execution import Engine, Ledger
from cloudreg.space import Box, split

_LARGEST_BYTES = 256 * 10**6
"""No block is larger: above this nothing gets faster, and the last block of a worker keeps the others waiting."""


def blocks_within(
    shape: Sequence[int], unit: Sequence[int], voxel_bytes: float, memory_bytes: int | None = None
) -> list[Box]:
    """Cut a level into blocks of whole units.

    Parameters
    ----------
    shape, unit
        The level and the smallest block, z y x. Blocks grow along x first, then y, then z, so that they hold whole
        rows and planes where they can.
    voxel_bytes
        Memory that a task holds per voxel of its block.
    memory_bytes
        What a task may hold; 256 MB at most and by default. One unit is handed out even if it needs more.
    """
    limit = min(memory_bytes or _LARGEST_BYTES, _LARGEST_BYTES) / voxel_bytes
    block = [min(int(u), int(n)) for u, n in zip(unit, shape, strict=True)]
    for axis in (2, 1, 0):
        others = block[0] * block[1] * block[2] // block[axis]
        # Count units, not voxels: a block that ends inside one would share it with its neighbour.
        count = max(1, int(limit // (others * int(unit[axis]))))
        block[axis] = min(count * int(unit[axis]), int(shape[axis]))
        if block[axis] < shape[axis]:
            break
    return split(shape, [max(b, 1) for b in block])


def run_blocks(
    task: Any,
    items: Sequence[Any],
    *,
    label: str,
    engine: Engine | None,
    ledger: Ledger | None = None,
    sizes: Sequence[int] | None = None,
) -> list[Any]:
    """Call ``task`` on each item, on the engine if there is one."""
    if engine is not None:
        return engine.run(task, items, label=label, ledger=ledger, sizes=sizes)
    return [task(item) for item in _waiting(items, ledger)]


def _waiting(items: Iterable[Any], ledger: Ledger | None) -> Iterable[Any]:
    for item in items:
        if ledger is None or str(item) not in ledger:
            yield item
            if ledger is not None:
                ledger.mark(str(item))
