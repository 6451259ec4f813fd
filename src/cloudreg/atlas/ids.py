"""The type that region ids travel in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def id_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the unsigned type that holds ids stored in ``dtype``: 32 bits, or 64 where the source has 64."""
    return np.dtype(np.uint64 if dtype.itemsize == 8 else np.uint32)


def as_ids(labels: NDArray[Any]) -> NDArray[Any]:
    """Return labels in their `id_type`; whole numbers stored as floats become integers."""
    return labels.astype(id_type(labels.dtype), copy=False)


def distinct(labels: NDArray[Any]) -> NDArray[Any]:
    """Return the ids that occur in an array of labels, ascending.

    Neighbours mostly have the same, so that what is left to sort, where ids change, is a small part of the array.
    """
    flat = labels.reshape(-1)
    return np.unique(np.concatenate([flat[:1], flat[1:][flat[1:] != flat[:-1]]]))
