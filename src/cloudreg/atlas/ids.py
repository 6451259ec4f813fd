"""The type that region ids travel in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloudreg.errors import InputError


def id_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the unsigned type that holds ids stored in ``dtype``: 32 bits, or 64 where the source has 64."""
    return np.dtype(np.uint64 if dtype.itemsize == 8 else np.uint32)


def as_ids(labels: NDArray[Any], path: str = "the volume of labels") -> NDArray[Any]:
    """Return labels in their `id_type`; whole numbers stored as floats become integers.

    Parameters
    ----------
    labels
        Any shape.
    path
        Where they come from, for the message.

    Raises
    ------
    InputError
        If one is no whole number from 0 up: a brightness, a negative number, NaN, or too large for an id.
    """
    ids = id_type(labels.dtype)
    if labels.dtype.kind != "u":
        wrong = labels < 0
        if labels.dtype.kind == "f":
            # NaN is in no order, so it is asked for what is right.
            wrong = ~((labels >= 0) & (labels < 2.0 ** (8 * ids.itemsize)) & (labels == np.rint(labels)))
        if wrong.any():
            raise InputError(
                f"labels are whole numbers from 0 up, {path} ({labels.dtype}) holds {labels[wrong][0]:g}: "
                "give the label file"
            )
    return labels.astype(ids, copy=False)


def distinct(labels: NDArray[Any]) -> NDArray[Any]:
    """Return the ids that occur in an array of labels, ascending.

    Neighbours mostly have the same, so that what is left to sort, where ids change, is a small part of the array.
    """
    flat = labels.reshape(-1)
    return np.unique(np.concatenate([flat[:1], flat[1:][flat[1:] != flat[:-1]]]))
