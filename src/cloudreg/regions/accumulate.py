"""Counts, sums and histograms of voxel values per region and side.

Integer values are added as integers, so the result does not depend on the order of blocks. The histogram is sparse:
a page of 256 bins is made when the first value falls into it, since a region's values fill few of the 65,536 bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

SIDES = ("left", "right")
_PAGE = 256
Array = NDArray[Any]


@njit(cache=True, nogil=True)
def _region_codes(labels: Array, beyond: Array, ids: Array, rows: Array, codes: Array) -> None:
    """Turn ids (sorted in ``ids``) into ``2 * row + beyond``, and background into -1; all flat."""
    last = np.uint64(0)
    row = -1
    for i in range(labels.size):
        label = np.uint64(labels[i])
        if label != last:
            last = label
            row = rows[np.searchsorted(ids, label)] if label != 0 else -1
        codes[i] = 2 * row + beyond[i] if row >= 0 else -1


@njit(cache=True, nogil=True)
def _count(codes: Array, counts: Array) -> None:
    for i in range(codes.size):
        if codes[i] >= 0:
            counts[codes[i]] += 1


@njit(cache=True, nogil=True)
def _assign_pages(codes: Array, keys: Array, observed: Array, page_of: Array, used: int) -> int:
    """Give a page number to every (code, upper byte) that occurs; return how many there are now."""
    for i in range(codes.size):
        if codes[i] >= 0 and observed[i] and page_of[codes[i], keys[i] >> 8] < 0:
            page_of[codes[i], keys[i] >> 8] = used
            used += 1
    return used


@njit(cache=True, nogil=True)
def _add_values(
    codes: Array, values: Array, keys: Array, observed: Array, page_of: Array, pages: Array, counts: Array, sums: Array
) -> None:
    for i in range(codes.size):
        if codes[i] >= 0 and observed[i]:
            counts[codes[i]] += 1
            sums[codes[i]] += values[i]
            pages[page_of[codes[i], keys[i] >> 8], keys[i] & 255] += 1


def value_keys(values: Array) -> NDArray[np.uint16]:
    """Return 16-bit keys that sort as the values do.

    Exact for 8 and 16-bit integers. Other types keep sign, exponent and 7 bits of the fraction, which is a bin of
    less than 0.8 % of the value.
    """
    if values.dtype == np.uint16:
        return values
    if values.dtype == np.uint8:
        return values.astype(np.uint16)
    if values.dtype in (np.int8, np.int16):
        return (values.astype(np.int32) + 2**15).astype(np.uint16)
    # The sum has no zero with a sign, which would be another key.
    bits = (np.ascontiguousarray(values, dtype=np.float32) + np.float32(0)).view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(2**31))
    return (ordered >> 16).astype(np.uint16)


def key_values(keys: NDArray[np.uint16], dtype: np.dtype[Any]) -> NDArray[np.float64]:
    """Return the value of each key: exact, or the middle of its bin."""
    if dtype in (np.uint8, np.uint16):
        return keys.astype(np.float64)
    if dtype in (np.int8, np.int16):
        return keys.astype(np.float64) - 2**15
    ordered = (keys.astype(np.uint32) << 16) | np.uint32(2**15)
    bits = np.where(ordered >> 31, ordered & np.uint32(2**31 - 1), ~ordered)
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


@dataclass
class ChannelSums:
    """What is known of one channel, per code (region and side).

    Parameters
    ----------
    dtype
        Of the channel's voxels.
    """

    dtype: np.dtype[Any]
    observed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    sums: NDArray[Any] = field(init=False)
    page_of: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, _PAGE), dtype=np.int32))
    pages: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, _PAGE), dtype=np.int64))

    def __post_init__(self) -> None:
        self.sums = np.zeros(0, dtype=np.float64 if self.dtype.kind == "f" else np.int64)

    def grow(self, codes: int) -> None:
        """Make room for that many codes."""
        new = codes - len(self.observed)
        if new > 0:
            self.observed = np.concatenate([self.observed, np.zeros(new, dtype=np.int64)])
            self.sums = np.concatenate([self.sums, np.zeros(new, dtype=self.sums.dtype)])
            self.page_of = np.concatenate([self.page_of, np.full((new, _PAGE), -1, dtype=np.int32)])

    def add(self, codes: NDArray[np.int32], values: Array) -> None:
        """Add a block's values; exact zeros and NaN were not observed."""
        values = np.ascontiguousarray(values).ravel()
        observed = values != 0
        if self.dtype.kind == "f":
            observed &= np.isfinite(values)
        keys = value_keys(values)
        used = _assign_pages(codes, keys, observed, self.page_of, len(self.pages))
        self._grow_pages(used)
        _add_values(codes, values, keys, observed, self.page_of, self.pages, self.observed, self.sums)

    def merge(self, other: ChannelSums, codes: NDArray[np.int64]) -> None:
        """Add another's sums; ``codes`` says what its codes are here."""
        self.observed[codes] += other.observed
        self.sums[codes] += other.sums
        theirs, upper = np.nonzero(other.page_of >= 0)
        mine = codes[theirs]
        missing = self.page_of[mine, upper] < 0
        used = len(self.pages) + int(missing.sum())
        self.page_of[mine[missing], upper[missing]] = np.arange(len(self.pages), used)
        self._grow_pages(used)
        self.pages[self.page_of[mine, upper]] += other.pages[other.page_of[theirs, upper]]

    def median(self, code: int) -> float:
        """Return the median of a code's observed values (mean of the middle two), NaN where there are none."""
        n = int(self.observed[code])
        if n == 0:
            return float("nan")
        upper = np.flatnonzero(self.page_of[code] >= 0)
        cumulative = np.cumsum(self.pages[self.page_of[code, upper]].ravel())
        places = np.searchsorted(cumulative, [(n - 1) // 2, n // 2], side="right")
        keys = (upper[places // _PAGE] * _PAGE + places % _PAGE).astype(np.uint16)
        return float(key_values(keys, self.dtype).mean())

    def _grow_pages(self, used: int) -> None:
        new = np.zeros((used - len(self.pages), _PAGE), dtype=np.int64)
        if len(new):
            self.pages = np.concatenate([self.pages, new])


class RegionSums:
    """Counts and values per region and side, of a part of a volume.

    A region has a row, in the order in which the ids turned up; code ``2 * row + side`` has its figures.

    Parameters
    ----------
    dtypes
        Of the channels' voxels.
    """

    def __init__(self, dtypes: Sequence[np.dtype[Any]]) -> None:
        self.row_of: dict[int, int] = {}
        self.voxels = np.zeros(0, dtype=np.int64)
        self.channels = [ChannelSums(dtype) for dtype in dtypes]

    def add(self, labels: Array, right: NDArray[np.uint8], channels: Sequence[Array]) -> None:
        """Add a block.

        Parameters
        ----------
        labels
            Unsigned ids (z, y, x); 0 is nothing.
        right
            1 where a voxel belongs to the right side.
        channels
            Values of each channel, same shape.
        """
        flat = labels.ravel()
        # Ids change seldom along a row, so only the changes need sorting.
        changes = np.concatenate([[True], flat[1:] != flat[:-1]])
        ids = np.unique(flat[changes]).astype(np.uint64)
        rows = np.array([self._row(int(i)) if i else -1 for i in ids], dtype=np.int32)
        codes = np.empty(flat.size, dtype=np.int32)
        _region_codes(flat, right.ravel(), ids, rows, codes)
        _count(codes, self.voxels)
        for sums, values in zip(self.channels, channels, strict=True):
            sums.add(codes, values)

    def merge(self, other: RegionSums) -> None:
        """Add another part's sums."""
        rows = np.array([self._row(i) for i in other.row_of], dtype=np.int64)
        codes = (2 * rows[:, None] + np.arange(2)).ravel()
        self.voxels[codes] += other.voxels
        for mine, theirs in zip(self.channels, other.channels, strict=True):
            mine.merge(theirs, codes)

    def _row(self, region_id: int) -> int:
        row = self.row_of.setdefault(region_id, len(self.row_of))
        if 2 * len(self.row_of) > len(self.voxels):
            self.voxels = np.concatenate([self.voxels, np.zeros(2, dtype=np.int64)])
            for channel in self.channels:
                channel.grow(len(self.voxels))
        return row
