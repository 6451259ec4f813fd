"""Taking a slow illumination off a volume, block by block at full resolution."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cloudreg.errors import InputError
from cloudreg.execution import Engine, Ledger
from cloudreg.illumination.estimate import require_numbers
from cloudreg.illumination.field import BiasField
from cloudreg.io import Volume, VolumeWriter, build_pyramid, create_volume
from cloudreg.io.blocks import blocks_within
from cloudreg.settings import IlluminationSettings
from cloudreg.space import Box

Array = NDArray[Any]


def correct_volume(
    volume: Volume,
    bias: BiasField,
    path: str | os.PathLike[str],
    settings: IlluminationSettings,
    engine: Engine,
    ledger: Ledger | None = None,
) -> Volume:
    """Divide a volume by an illumination field.

    Parameters
    ----------
    volume
        A volume of brightness; every channel is divided by the same field.
    bias
        Over the volume, see `estimate_bias`.
    path
        New chunked volume, or one of the same description that was not finished.
    settings
        With method "none" the volume is copied.
    engine, ledger
        Run the blocks, and remember which are done. A block is read, corrected and written: three times its bytes.

    Returns
    -------
    Volume
        Same type and grid, with a pyramid. Integers are rounded and clipped; 0, not observed, stays 0. The bytes
        don't depend on workers, memory or having been stopped.

    Raises
    ------
    InputError
        If the volume holds labels, or NaN or infinite values, or has other axes than the field, the path holds
        something else, or the disk is too small.
    """
    if volume.kind == "labels":
        raise InputError(f"expected a volume of brightness at {volume.path}, got labels: they have no illumination")
    if settings.method == "none":
        bias = BiasField(bias.grid, np.zeros_like(bias.log_field))
    task = CorrectBlock.prepare(
        volume,
        bias,
        create_volume(
            path,
            volume.grid,
            volume.dtype,
            channels=volume.channels,
            orientation=volume.orientation,
            chunk=volume.chunk if volume.format == "ome-zarr" else None,
            channel_names=volume.channel_names,
            ledger=ledger,
        ),
    )
    boxes = blocks_within(
        volume.grid.shape,
        task.writer.block_shape(),
        3 * volume.channels * volume.dtype.itemsize,
        engine.memory_per_block_bytes,
    )
    engine.run(task, boxes, label="correct illumination", ledger=ledger)
    build_pyramid(task.writer, engine=engine, ledger=ledger)
    return task.writer.complete()


@dataclass(frozen=True)
class CorrectBlock:
    """Corrects one block of a volume and writes it."""

    volume: Volume
    gain: NDArray[np.float32]
    nodes: tuple[NDArray[np.intp], ...]
    weights: tuple[NDArray[np.float32], ...]
    writer: VolumeWriter

    @staticmethod
    def prepare(volume: Volume, bias: BiasField, writer: VolumeWriter) -> CorrectBlock:
        """Look up where all voxels of the volume lie in the field."""
        along = [bias.nodes_along(axis, volume.grid) for axis in range(3)]
        return CorrectBlock(volume, bias.gain, tuple(n for n, _ in along), tuple(w for _, w in along), writer)

    def __call__(self, box: Box) -> None:
        """Correct the voxels of a box."""
        voxels = self.volume.read(box, channel=None)
        require_numbers(voxels, self.volume.path)
        corrected = np.empty_like(voxels)
        nodes = [n[s] for n, s in zip(self.nodes, box.slices, strict=True)]
        weights = [w[s] for w, s in zip(self.weights, box.slices, strict=True)]
        for channel in range(len(voxels)):
            correct_block(voxels[channel], self.gain, nodes, weights, corrected[channel])
        self.writer.write(box, corrected, channel=None)


def correct_block(voxels: Array, gain: Array, nodes: list[Array], weights: list[Array], out: Array) -> None:
    """Multiply voxels with a gain that is linear between nodes.

    Parameters
    ----------
    voxels, out
        (z, y, x), same type. Integers are rounded and clipped.
    gain
        (z, y, x) at the nodes.
    nodes, weights
        For each axis: the lower node of each voxel, and the weight of the upper one.
    """
    # An axis of one node has it twice, so that there is always an upper one.
    gain = np.pad(gain, [(0, n == 1) for n in gain.shape], mode="edge")
    whole = out.dtype.kind in "iu"
    low, high = -np.inf, np.inf
    if whole:
        limits = np.iinfo(out.dtype)
        low, high = float(limits.min), float(limits.max)
        # The largest 64-bit integers are no floats: the next float above would wrap.
        high = high if int(high) <= limits.max else float(np.nextafter(high, 0))
    _multiply(voxels, gain.astype(np.float64), *nodes, *weights, whole, low, high, out)


@njit(cache=True, nogil=True)
def _multiply(
    voxels: Array,
    gain: Array,
    iz: Array,
    iy: Array,
    ix: Array,
    wz: Array,
    wy: Array,
    wx: Array,
    whole: bool,
    low: float,
    high: float,
    out: Array,
) -> None:
    row = np.empty(gain.shape[2])
    for z in range(voxels.shape[0]):
        a, u = iz[z], wz[z]
        for y in range(voxels.shape[1]):
            b, v = iy[y], wy[y]
            for k in range(row.shape[0]):
                near = gain[a, b, k] * (1 - v) + gain[a, b + 1, k] * v
                far = gain[a + 1, b, k] * (1 - v) + gain[a + 1, b + 1, k] * v
                row[k] = near * (1 - u) + far * u
            for x in range(voxels.shape[2]):
                c, w = ix[x], wx[x]
                value = voxels[z, y, x] * (row[c] * (1 - w) + row[c + 1] * w)
                if whole:
                    value = min(max(np.rint(value), low), high)
                    # 0 is kept for what nothing observed.
                    if value == 0 and voxels[z, y, x] > 0:
                        value = 1.0
                out[z, y, x] = value
