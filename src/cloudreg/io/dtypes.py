"""Voxel types: which are held, what they mean, and how numbers become integers."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cloudreg.errors import InputError

Kind = Literal["image", "labels"]

_HELD = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64")


def held_dtype(stored: DTypeLike, where: str) -> np.dtype[Any]:
    """Return the type, in this machine's byte order, in which stored voxels are handed out.

    Booleans become uint8 and half floats float32; every other type is kept.

    Raises
    ------
    InputError
        If the voxels are no real numbers, or there is no such type.
    """
    try:
        name = np.dtype(stored).name
    except TypeError as error:
        raise InputError(f"expected a type out of {', '.join(_HELD)} for {where}, got {stored}") from error
    name = {"bool": "uint8", "float16": "float32"}.get(name, name)
    if name not in _HELD:
        raise InputError(f"expected voxels of type {', '.join(_HELD)}; {where} holds {name}: convert it first")
    return np.dtype(name)


def likely_kind(dtype: np.dtype[Any]) -> Kind:
    """Return what a file that doesn't say holds: 32 and 64-bit integers are ids, all else is brightness.

    Cameras give at most 16 bits and averages of ids mean nothing, so the guess errs on the harmless side.
    """
    return "labels" if dtype.kind in "iu" and dtype.itemsize >= 4 else "image"


def to_dtype(array: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Return the numbers in another type; for integers rounded to nearest (halves to even) and clipped.

    Parameters
    ----------
    array
        Any shape. Not-a-number becomes 0 in an integer type.
    dtype
        The type wanted. The array itself is returned where it has it already.
    """
    dtype = np.dtype(dtype)
    if array.dtype == dtype:
        return array
    if dtype.kind not in "iu" or array.dtype.kind == "b":
        return array.astype(dtype)
    limits = np.iinfo(dtype)
    if array.dtype.kind in "iu":
        own = np.iinfo(array.dtype)
        clipped = np.clip(array, max(limits.min, own.min), min(limits.max, own.max))
        return np.asarray(clipped, dtype=dtype)
    rounded = np.maximum(np.rint(array), float(limits.min))
    # The largest integer need not be a float: numbers clipped to it as floats could wrap.
    too_large = rounded >= float(limits.max)
    rounded[too_large | np.isnan(rounded)] = 0
    result: NDArray[Any] = rounded.astype(dtype)
    result[too_large] = limits.max
    return result
