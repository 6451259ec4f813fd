"""A smooth field from two witnesses: the N4 field of the mean tile, and the overlaps.

The logarithm of the field is a sum of products of Legendre polynomials over the tile, without the constant. Each
witness has a mean and a precision; they are combined as Gaussians, together with what flat fields usually look like.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.polynomial.legendre import legvander
from numpy.typing import NDArray

from cloudreg.flatfield.mean_tile import MeanTile
from cloudreg.flatfield.overlaps import Overlaps

# How large coefficients are, by degree: light falls off nearly as a paraboloid.
_USUAL = np.array([np.inf, 0.3, 0.3, 0.03, 0.03, 0.01, 0.01])
_DEGREE = len(_USUAL) - 1
_ORDERS = [(i, j) for i in range(_DEGREE + 1) for j in range(_DEGREE + 1) if 0 < i + j <= _DEGREE]
# Tiles of one brain are no independent draws: cortex lies at the border, ventricles in the middle. Their scatter
# understates how wrong their mean is, on tiles cut from whole brains five to ten times.
_DOUBT = 7.0
_OUTLIER = 2.0
_PASSES = 15


@dataclass(frozen=True)
class Witness:
    """What is known of the coefficients: mean and variance of each."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]


def basis(y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the functions (functions, rows, columns) at places given by row and column from -1 to 1."""
    along_y, along_x = legvander(y, _DEGREE), legvander(x, _DEGREE)
    return np.stack([np.outer(along_y[:, i], along_x[:, j]) for i, j in _ORDERS])


def evaluate(coefficients: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the field's logarithm on a grid, without making every function on it."""
    table = np.zeros((_DEGREE + 1, _DEGREE + 1))
    for value, order in zip(coefficients, _ORDERS, strict=True):
        table[order] = value
    return np.asarray(legvander(y, _DEGREE) @ table @ legvander(x, _DEGREE).T)


def witness_of_mean(field: NDArray[np.float64], mean: MeanTile, functions: NDArray[np.float64]) -> Witness:
    """Project the logarithm of a field onto the functions; the scatter of the tiles tells how sure it is.

    The variance is that of a weighted least-squares fit with the tiles as clusters (Liang and Zeger 1986,
    doi:10.1093/biomet/73.1.13).
    """
    with_constant = np.concatenate([np.ones((1, *field.shape)), functions]).reshape(len(functions) + 1, -1)
    weighted = with_constant * mean.weight.ravel()
    # The ridge keeps what no plane shows from being extrapolated.
    normal = weighted @ with_constant.T + 1e-6 * mean.weight.sum() * np.eye(len(with_constant))
    coefficients = np.linalg.solve(normal, weighted @ field.ravel())
    influence = np.linalg.solve(normal, with_constant @ mean.residual.reshape(len(mean.residual), -1).T)
    tiles = int(np.count_nonzero(np.abs(mean.residual).sum(axis=(1, 2))))
    variance = (influence**2).sum(axis=1) * tiles / max(tiles - 1, 1)
    return Witness(coefficients[1:], variance[1:])


def combine(mean: Witness, overlaps: Overlaps) -> NDArray[np.float64]:
    """Return the coefficients that both witnesses and the usual shape make most likely.

    Equations of the overlaps that disagree with the rest lose their weight. Where there are none, the mean tile's
    coefficients are returned as they are.
    """
    if not overlaps.ratio.size:
        return mean.mean
    doubt = _DOUBT**2 * mean.variance + 1e-8
    usual = np.array([_USUAL[i + j] ** 2 for i, j in _ORDERS])
    precision, pull = np.diag(1 / doubt + 1 / usual), mean.mean / doubt
    coefficients = np.linalg.solve(precision, pull)
    design, ratio = overlaps.design, overlaps.ratio
    for _ in range(_PASSES):
        rest = ratio - design @ coefficients
        scale = 1.4826 * float(np.median(np.abs(rest))) + 1e-6
        weight = 1 / (1 + (rest / (_OUTLIER * scale)) ** 2)
        # Equations of a pair err together: their number counts for less by the ratio of these two sums.
        pulls = np.bincount(overlaps.pair, weight * rest)
        together = max(1.0, float((pulls**2).sum() / max(((weight * rest) ** 2).sum(), 1e-12)))
        variance = together * (float((weight * rest**2).sum() / weight.sum()) + 1e-12)
        weighted = design.T * (weight / variance)
        coefficients = np.linalg.solve(weighted @ design + precision, weighted @ ratio + pull)
    return np.asarray(coefficients)
