"""Filters of whole images on a GPU: what the levels are made of.

Each is one kernel along one axis after the other, an output element a thread. The elements that a tap reads lie at the
same distance for all threads, so reads are coalesced along every axis, and the caches hold what neighbours share.
"""

# Kernels are compiled, not run; their arguments are pointers and sizes.
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

_REFLECT, _MIRROR, _ZERO = 0, 1, 2
"""What lies beyond an array's end: itself, mirrored at the end of its last element; itself, mirrored at the middle of
its last element; nothing."""

_POLE = float(np.sqrt(3) - 2)
"""Of the cubic spline's inverse filter."""

_SPLINE_REACH = 16
"""Beyond it, that filter's weights are under 1e-9."""


@triton.jit(do_not_specialize=["size", "count", "stride", "reach"])
def _correlate(source, taps, out, size, count, stride, reach, BEYOND: tl.constexpr, BLOCK: tl.constexpr):
    """out[i] = sum over k of taps[k] source[i + k - reach] along one axis of ``count`` elements, ``stride`` apart."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = place < size
    index = (place // stride % count).to(tl.int32)
    start = source + (place - index.to(tl.int64) * stride)
    total = tl.zeros((BLOCK,), source.dtype.element_ty)
    for k in range(2 * reach + 1):
        other = index + k - reach
        seen = live
        if BEYOND == 0:
            period = 2 * count
            other = (other % period + period) % period
            other = tl.where(other >= count, period - 1 - other, other)
        elif BEYOND == 1:
            period = 2 * count - 2
            other = (other % period + period) % period
            other = tl.where(other >= count, period - other, other)
        else:
            seen = live & (other >= 0) & (other < count)
        total += tl.load(taps + k) * tl.load(start + other.to(tl.int64) * stride, mask=seen, other=0.0)
    tl.store(out + place, total, mask=live)


@triton.jit(do_not_specialize=["size", "oy", "ox", "nz", "ny", "nx"])
def _resample(image, step, out, size, oy, ox, nz, ny, nx, BLOCK: tl.constexpr):
    """Trilinear values of an image at ``step`` (3 x 4) times the output's indices, 0 outside."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = place < size
    x = (place % ox).to(tl.float64)
    y = (place // ox % oy).to(tl.float64)
    z = (place // ox // oy).to(tl.float64)
    pz = tl.load(step) * z + tl.load(step + 1) * y + tl.load(step + 2) * x + tl.load(step + 3)
    py = tl.load(step + 4) * z + tl.load(step + 5) * y + tl.load(step + 6) * x + tl.load(step + 7)
    px = tl.load(step + 8) * z + tl.load(step + 9) * y + tl.load(step + 10) * x + tl.load(step + 11)
    inside = live & (pz >= 0) & (py >= 0) & (px >= 0) & (pz <= nz - 1) & (py <= ny - 1) & (px <= nx - 1)
    iz = tl.where(inside, tl.minimum(pz.to(tl.int32), nz - 2), 0)
    iy = tl.where(inside, tl.minimum(py.to(tl.int32), ny - 2), 0)
    ix = tl.where(inside, tl.minimum(px.to(tl.int32), nx - 2), 0)
    fz, fy, fx = (pz - iz).to(tl.float32), (py - iy).to(tl.float32), (px - ix).to(tl.float32)
    base = image + (iz.to(tl.int64) * ny + iy) * nx + ix
    value = fz * 0
    for corner in tl.static_range(8):
        oz = corner // 4
        dy = (corner // 2) % 2
        dx = corner % 2
        s = (fz if oz == 1 else 1 - fz) * (fy if dy == 1 else 1 - fy) * (fx if dx == 1 else 1 - fx)
        value += s * tl.load(base + (oz * ny.to(tl.int64) + dy) * nx + dx, mask=inside, other=0.0)
    tl.store(out + place, tl.where(inside, value, 0.0), mask=live)


def smoothed(field: torch.Tensor, sigmas: Sequence[float], surroundings: str, truncate: float, block: int) -> Any:
    """See `cloudreg.registration.backend.Backend`."""
    beyond = {"reflect": _REFLECT, "constant": _ZERO}[surroundings]
    for axis, sigma in enumerate(sigmas):
        reach = int(truncate * sigma + 0.5)
        taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        field = _correlated(field, taps / taps.sum(), axis, beyond, block)
    return field


def spline_coefficients(image: torch.Tensor, outside: float, margin: int, block: int) -> Any:
    """See `cloudreg.registration.sampling.spline_coefficients`.

    The inverse of the spline's sampling is a two-sided exponential (Unser et al. 1993), cut off where float32 ends:
    every element at once instead of one after the other along the axis.
    """
    coefficients = torch.nn.functional.pad(image, (margin,) * 6, value=outside)
    distance = np.abs(np.arange(-_SPLINE_REACH, _SPLINE_REACH + 1))
    taps = -6 * _POLE / (1 - _POLE**2) * _POLE**distance
    for axis in range(3):
        coefficients = _correlated(coefficients, taps, axis, _MIRROR, block)
    return coefficients


def near(mask: torch.Tensor, reach: Sequence[int], block: int) -> Any:
    """See `cloudreg.registration.backend.Backend`."""
    held = mask.to(torch.float32)
    for axis, n in enumerate(reach):
        held = _correlated(held, np.ones(2 * n + 1), axis, _ZERO, block)
    return held > 0.5


def resampled(image: torch.Tensor, step: NDArray[np.float64], shape: tuple[int, int, int], block: int) -> Any:
    """See `cloudreg.registration.backend.Backend`."""
    out = torch.empty(shape, dtype=torch.float32, device=image.device)
    rows = torch.from_numpy(np.ascontiguousarray(step[:3])).to(image.device)
    grid = (triton.cdiv(out.numel(), block),)
    _resample[grid](image.contiguous(), rows, out, out.numel(), *shape[1:], *image.shape, BLOCK=block)
    return out


def _correlated(field: torch.Tensor, taps: NDArray[np.float64], axis: int, beyond: int, block: int) -> torch.Tensor:
    field = field.contiguous()
    out = torch.empty_like(field)
    weights = torch.from_numpy(taps).to(device=field.device, dtype=field.dtype)
    size, count, stride = field.numel(), field.shape[axis], field.stride(axis)
    grid = (triton.cdiv(size, block),)
    _correlate[grid](field, weights, out, size, count, stride, len(taps) // 2, BEYOND=beyond, BLOCK=block)
    return out
