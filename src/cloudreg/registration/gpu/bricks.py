"""The active voxels of a target as small bricks, each of which is one program of a kernel.

A brick's voxels lie together in memory, so a kernel reads its grey values and weights in one go; bricks without active
voxels are left out, and in the others weight 0 marks those that aren't. Eight bytes a voxel, whatever the target's
shape.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from cloudreg.registration.backend import Field, backend_of

BYTES_PER_VOXEL = 8


@dataclass(frozen=True)
class Piece:
    """Some bricks.

    Parameters
    ----------
    corners
        (n, 3) int32: index z, y, x of the first voxel of each.
    values, weights
        (n, voxels of a brick) float32, in the order z, y, x.
    """

    corners: torch.Tensor
    values: torch.Tensor
    weights: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Memory that the piece takes."""
        return sum(int(t.numel()) * t.element_size() for t in (self.corners, self.values, self.weights))

    def to(self, device: torch.device) -> Piece:
        """Return a copy of the piece on a device."""
        return Piece(*(t.to(device, copy=True) for t in (self.corners, self.values, self.weights)))


@dataclass(frozen=True)
class Bricks:
    """The active voxels of a target.

    Parameters
    ----------
    pieces
        On the device, or in the main memory to be sent one by one.
    count
        Number of active voxels.
    brightest, heaviest
        Largest absolute grey value and largest weight among them.
    """

    pieces: tuple[Piece, ...]
    count: int
    brightest: float
    heaviest: float


def tensor_of(array: Field, device: torch.device) -> torch.Tensor:
    """Copy an array to a device, or return what is there already."""
    if isinstance(array, torch.Tensor):
        return array.to(device)
    array = np.ascontiguousarray(array)
    # torch has no read-only tensors and warns of arrays that are.
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device, copy=True)


def pack(
    target: Field,
    weight: Field,
    active: Field,
    shape: tuple[int, int, int],
    *,
    device: torch.device,
    keep: torch.device,
    piece_bytes: int,
) -> Bricks:
    """Cut a target into bricks.

    Parameters
    ----------
    target, weight
        (z, y, x): grey values and data weights, in the main memory or on the device.
    active
        Flat indices of the voxels that take part, ascending; likewise.
    shape
        Of a brick.
    device
        Where to do the work, a layer of bricks at a time.
    keep
        Where the result goes.
    piece_bytes
        Size of a piece, more or less.
    """
    pieces: list[Piece] = []
    gathered: list[Piece] = []
    brightest = heaviest = 0.0
    for layer in _layers(target, weight, active, shape, device):
        brightest = max(brightest, float(layer.values.abs().max()))
        heaviest = max(heaviest, float(layer.weights.max()))
        for part in _parts(layer, piece_bytes):
            if gathered and sum(p.nbytes for p in gathered) + part.nbytes > piece_bytes:
                pieces.append(_joined(gathered))
                gathered = []
            gathered.append(part.to(keep))
    if gathered:
        pieces.append(_joined(gathered))
    return Bricks(tuple(pieces), active.shape[0], brightest, heaviest)


def _layers(
    target: Field,
    weight: Field,
    active: Field,
    shape: tuple[int, int, int],
    device: torch.device,
) -> Iterator[Piece]:
    nz, ny, nx = target.shape
    bz, by, bx = shape
    cy, cx = -(-ny // by), -(-nx // bx)
    ends = np.arange(0, nz + bz, bz) * ny * nx
    backend = backend_of(active)
    bounds = backend.fetch(backend.xp.searchsorted(active, backend.send(ends)))
    for z, (first, last) in zip(range(0, nz, bz), itertools.pairwise(bounds.tolist()), strict=True):
        if first == last:
            continue
        planes = min(bz, nz - z)

        def bricks(slab: torch.Tensor, planes: int = planes) -> torch.Tensor:
            margins = (0, cx * bx - nx, 0, cy * by - ny, 0, bz - planes)
            whole = torch.nn.functional.pad(slab.reshape(planes, ny, nx), margins)
            return whole.reshape(bz, cy, by, cx, bx).permute(1, 3, 0, 2, 4).reshape(cy * cx, bz * by * bx)

        chosen = tensor_of(active[first:last] - z * ny * nx, device)
        every = tensor_of(weight[z : z + planes], device).reshape(-1)
        used = torch.zeros_like(every)
        used[chosen] = every[chosen]
        weights = bricks(used)
        kept = (weights > 0).any(dim=1).nonzero()[:, 0]
        if kept.numel() == 0:
            continue
        corners = torch.stack([torch.full_like(kept, z), kept // cx * by, kept % cx * bx], dim=1)
        values, weights = bricks(tensor_of(target[z : z + planes], device))[kept], weights[kept]
        # What wasn't observed may be anything, NaN for one.
        yield Piece(corners.to(torch.int32), values.where(weights > 0, 0.0), weights)


def _parts(layer: Piece, piece_bytes: int) -> Iterator[Piece]:
    """Cut a layer that is larger than a piece."""
    count = max(1, piece_bytes * layer.corners.shape[0] // layer.nbytes)
    for first in range(0, layer.corners.shape[0], count):
        here = slice(first, first + count)
        yield Piece(layer.corners[here], layer.values[here], layer.weights[here])


def _joined(parts: list[Piece]) -> Piece:
    fields = zip(*((p.corners, p.values, p.weights) for p in parts), strict=True)
    return Piece(*(torch.cat(field) for field in fields))
