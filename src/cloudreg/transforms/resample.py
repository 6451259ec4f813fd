"""Pulling a source array through a transform onto a box of another grid.

A destination voxel with index i takes the source at index

    to="target":  s = S^-1 ( q + u(q) ),        q = B D i,   u = phi^-1 - id   (source in atlas space)
    to="atlas":   s = S^-1 A ( p + u(p) ),      p = D i,     u = phi - id      (source in target space)

with D and S the affines of the destination and source grids. Both are one `VoxelMap`,
``s = base i + gain u(to_field i)``, so one kernel serves both directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.space import Box, Grid
from cloudreg.transforms.displacement import DisplacementField
from cloudreg.transforms.kernels import sample_linear, sample_nearest
from cloudreg.transforms.transform import Side, Transform

# Rounding of the bounding box's corners against that of the voxels, plus the second neighbour of linear sampling.
_MARGIN = 2
_SMALLEST_PART = 2**12
_NO_SIDES = np.empty((0, 0, 0), dtype=np.uint8)


@dataclass(frozen=True, eq=False)
class VoxelMap:
    """Where each destination voxel lies in the source, in voxel indices.

    Parameters
    ----------
    base
        (3, 4), destination index to source index without deformation.
    gain
        (3, 3), micrometres of displacement to source indices.
    to_field
        (3, 4), destination index to the field's index.
    field
        The displacement.
    """

    base: NDArray[np.float64]
    gain: NDArray[np.float64]
    to_field: NDArray[np.float64]
    field: DisplacementField

    @staticmethod
    def between(transform: Transform, source: Grid, destination: Grid, to: Side) -> VoxelMap:
        """Return the map for a source grid and a destination grid; ``to`` is the destination's space."""
        to_source = np.linalg.inv(source.affine)
        if to == "target":
            field, before = transform.to_atlas, transform.inverse_affine @ destination.affine
        else:
            field, before = transform.to_target, destination.affine
            to_source = to_source @ transform.affine
        return VoxelMap(
            base=np.ascontiguousarray((to_source @ before)[:3]),
            gain=np.ascontiguousarray(to_source[:3, :3]),
            to_field=np.ascontiguousarray((np.linalg.inv(field.grid.affine) @ before)[:3]),
            field=field,
        )

    def samples_per_voxel(self) -> NDArray[np.int64]:
        """Return the points per destination voxel (z, y, x) that lie about one source voxel apart, at most 1.5."""
        steps = np.abs(self.base[:, :3]).max(axis=0)
        return np.asarray(np.maximum(1, np.rint(steps)), dtype=np.int64)

    def source_box(self, box: Box, source_shape: Sequence[int]) -> Box:
        """Return a box of the source that holds all that a destination box needs; empty where that is nothing.

        An interpolated displacement is a mean of those at the nodes around it, so the extremes over the nodes near
        the box bound it, for any field.
        """
        low, high = _range(self.base, box)
        first, last = _range(self.to_field, box)
        n = np.asarray(self.field.grid.shape)
        first = np.clip(np.floor(first), 0, n - 1).astype(int)
        last = np.clip(np.ceil(last), 0, n - 1).astype(int)
        nodes = self.field.vectors[(slice(None), *map(slice, first, last + 1))].reshape(3, -1)
        shifts = self.gain @ nodes.astype(np.float64)
        low += shifts.min(axis=1)
        high += shifts.max(axis=1)
        limit = 2.0**40
        start = np.clip(np.floor(low) - _MARGIN, -limit, limit).astype(int).tolist()
        stop = np.clip(np.ceil(high) + _MARGIN + 1, -limit, limit).astype(int).tolist()
        reach = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
        return reach.intersection(Box.whole(source_shape))

    def parts(
        self, box: Box, source_shape: Sequence[int], *, source_voxel_bytes: int, voxel_bytes: int, memory_bytes: int
    ) -> Iterator[tuple[Box, Box]]:
        """Cut a destination box until each part, with what it needs of the source, fits into memory.

        Yields
        ------
        part, reach
            A box of the destination, and the `source_box` that it needs; parts that need nothing are left out.
        """
        reach = self.source_box(box, source_shape)
        if reach.size == 0:
            return
        needed = reach.size * source_voxel_bytes + box.size * voxel_bytes
        if needed <= memory_bytes or box.size <= _SMALLEST_PART:
            yield box, reach
            return
        for half in _halves(box):
            yield from self.parts(
                half,
                source_shape,
                source_voxel_bytes=source_voxel_bytes,
                voxel_bytes=voxel_bytes,
                memory_bytes=memory_bytes,
            )

    def linear(self, source: NDArray[Any], start: Sequence[int], box: Box) -> NDArray[Any]:
        """Return trilinear values of a box of the destination.

        Parameters
        ----------
        source, start
            Part of the source that holds `source_box`, and the index of its first voxel.
        box
            Box of the destination.

        Returns
        -------
        ndarray, shape ``box.shape``
            float32; float64 where the source has more than 24 bits. 0 outside the source. Where the destination is
            coarser than the source, the mean of `samples_per_voxel` points.
        """
        wide = (source.dtype.kind != "f" and source.dtype.itemsize > 2) or source.dtype == np.float64
        out = np.empty(box.shape, dtype=np.float64 if wide else np.float32)
        sample_linear(
            _native(source),
            np.asarray(start, dtype=np.int64),
            np.asarray(box.start, dtype=np.int64),
            self.base,
            self.gain,
            self.to_field,
            self.field.vectors,
            self.samples_per_voxel(),
            out,
        )
        return out

    def nearest(
        self, source: NDArray[Any], start: Sequence[int], box: Box, *, plane: NDArray[np.float64] | None = None
    ) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Return the nearest source values of a box of the destination, and which voxels are beyond a plane.

        Parameters
        ----------
        source, start, box
            As in `linear`.
        plane
            (4,), in source indices: beyond is ``plane[:3] @ s + plane[3] > 0``.

        Returns
        -------
        values, beyond
            Of the source's type, 0 outside the source; and uint8 0 or 1, empty without a plane.
        """
        out = np.empty(box.shape, dtype=source.dtype.newbyteorder("="))
        beyond = _NO_SIDES if plane is None else np.empty(box.shape, dtype=np.uint8)
        sample_nearest(
            _native(source),
            np.asarray(start, dtype=np.int64),
            np.asarray(box.start, dtype=np.int64),
            self.base,
            self.gain,
            self.to_field,
            self.field.vectors,
            np.zeros(4) if plane is None else np.asarray(plane, dtype=np.float64),
            out,
            beyond,
        )
        return out, beyond


def resample(
    transform: Transform,
    array: NDArray[Any],
    source: Grid,
    destination: Grid,
    *,
    to: Side,
    labels: bool = False,
    box: Box | None = None,
) -> NDArray[Any]:
    """Pull an array through a transform.

    Parameters
    ----------
    transform
        Between atlas and target.
    array, source
        The whole source (z, y, x), in the space that ``to`` does not name, and its grid.
    destination
        Where the result lies, in the space that ``to`` names.
    to
        ``"target"`` brings atlas images to the target, ``"atlas"`` target images to the atlas.
    labels
        Take the nearest voxel instead of interpolating.
    box
        Part of the destination; all of it by default.

    Returns
    -------
    ndarray
        Shape of the box or destination; the array's type for labels, else float32 (float64 for wide types).
    """
    box = Box.whole(destination.shape) if box is None else box
    voxel_map = VoxelMap.between(transform, source, destination, to)
    if labels:
        return voxel_map.nearest(array, (0, 0, 0), box)[0]
    return voxel_map.linear(array, (0, 0, 0), box)


def _range(affine: NDArray[np.float64], box: Box) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest value of an affine (3, 4) over the voxels of a box, their own extent included."""
    ends = np.array([(a - 0.5, b - 0.5) for a, b in zip(box.start, box.stop, strict=True)])
    corners = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)
    values = corners @ affine[:, :3].T + affine[:, 3]
    return values.min(axis=0), values.max(axis=0)


def _halves(box: Box) -> tuple[Box, Box]:
    """Cut a box across its longest axis."""
    axis = int(np.argmax(box.shape))
    middle = (box.start[axis] + box.stop[axis]) // 2
    first_stop, second_start = list(box.stop), list(box.start)
    first_stop[axis] = second_start[axis] = middle
    return (
        Box(box.start, (first_stop[0], first_stop[1], first_stop[2])),
        Box((second_start[0], second_start[1], second_start[2]), box.stop),
    )


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array in the machine's byte order, as compiled loops need it."""
    array = np.ascontiguousarray(array)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
