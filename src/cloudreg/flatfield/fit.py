"""A smooth field from what the overlaps and the mean tile say of it.

The logarithm of the field is a sum of products of Legendre polynomials over the tile, without the constant. Such
coefficients of a smooth function fall off geometrically with their degree. How large they are and how fast they fall
is not known beforehand: all answers are tried, and each counts by how likely it makes what was seen (its evidence).
So it is with how far the mean tile is to be believed. Overlaps lie at the border of the camera; of its middle they say
only what a smooth field makes of that, and there the mean tile knows more wherever tiles are many.

References
----------
D. J. C. MacKay, "Bayesian interpolation", Neural Computation 4 (1992), doi:10.1162/neco.1992.4.3.415.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.polynomial.legendre import legvander
from numpy.typing import NDArray

from cloudreg.flatfield.mean_tile import MeanTile
from cloudreg.flatfield.overlaps import Overlaps

_DEGREE = 6
_ORDERS = [(i, j) for i in range(_DEGREE + 1) for j in range(_DEGREE + 1) if 0 < i + j <= _DEGREE]
_DEGREES = np.array([i + j for i, j in _ORDERS])
# Sizes of the coefficients of degree 1 (from 0.5 % to a field that is dark at one border), and by how much each degree
# is smaller than the one before.
_SIZES = np.geomspace(0.005, 0.7, 12)
_FALLS = (0.1, 0.2, 0.3, 0.45, 0.65, 0.9)
# Functions up to this degree follow the shape of a brain, which its tiles share.
_SHARED_DEGREE = 2
# How many answers are tried to how far the finer functions of the mean tile are to be believed.
_BELIEFS = 6
_OUTLIER = 2.0
_PASSES = 15


@dataclass(frozen=True)
class Witness:
    """What a mean tile says of the coefficients.

    Parameters
    ----------
    mean, variance
        (functions,), with the variance that they would have if tiles were independent draws.
    excess
        By how much more the variance may be, as they are not.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    excess: float

    def precisions(self) -> list[NDArray[np.float64]]:
        """Return how surely the coefficients may be known, from the most to the least."""
        shared = _DEGREES <= _SHARED_DEGREE
        return [
            1 / (self.variance * np.where(shared, self.excess, factor) + 1e-9)
            for factor in np.geomspace(1, self.excess, _BELIEFS)
        ]


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


def witness_of_mean(mean: MeanTile, functions: NDArray[np.float64]) -> Witness:
    """Fit the functions to a mean tile; the scatter of the tiles tells how sure they are.

    The variance of a weighted least-squares fit with the tiles as clusters (Liang and Zeger 1986,
    doi:10.1093/biomet/73.1.13) falls with the number of tiles, as if they were independent draws. Functions of one
    degree have one variance, for a few tiles tell it for none of them alone. Tiles of one brain are no such draws:
    cortex lies at the border and ventricles in the middle, whatever their number. At worst, the mean is to be believed
    no more than one tile is, and its errors, which all functions share, no more than one function's.
    """
    with_constant = np.concatenate([np.ones((1, *mean.log.shape)), functions]).reshape(len(functions) + 1, -1)
    weighted = with_constant * mean.weight.ravel()
    # The ridge keeps what no plane shows from being extrapolated.
    normal = weighted @ with_constant.T + 1e-6 * mean.weight.sum() * np.eye(len(with_constant))
    coefficients = np.linalg.solve(normal, weighted @ mean.log.ravel())
    influence = np.linalg.solve(normal, with_constant @ mean.residual.reshape(len(mean.residual), -1).T)
    tiles = int(np.count_nonzero(np.abs(mean.residual).sum(axis=(1, 2))))
    variance = (influence**2).sum(axis=1) * tiles / max(tiles - 1, 1)
    of_degree = np.bincount(_DEGREES, variance[1:]) / np.maximum(np.bincount(_DEGREES), 1)
    return Witness(coefficients[1:], of_degree[_DEGREES], float(max(tiles, 1) * len(functions)))


def combine(mean: Witness, overlaps: Overlaps) -> NDArray[np.float64]:
    """Return the coefficients that the overlaps, the mean tile and a smooth field's usual fall-off make most likely.

    The mean tile's slow functions are believed least, for they are the brain's as well; how far its finer ones are is
    found by evidence. Equations of the overlaps that disagree with the rest lose their weight. Tiles differ in
    exposure, as lasers drift and dyes bleach: all ratios of a pair may be off by one factor, whose scatter is learned
    from the pairs (a random effect [1]_). Where there are no equations, the mean tile's coefficients are returned as
    they are.

    References
    ----------
    .. [1] N. M. Laird, J. H. Ware, "Random-effects models for longitudinal data", Biometrics 38 (1982),
       doi:10.2307/2529876.
    """
    if not overlaps.ratio.size:
        return mean.mean
    usual = np.array([(size * fall ** (_DEGREES - 1.0)) ** -2 for size, fall in itertools.product(_SIZES, _FALLS)])
    coefficients = np.zeros(len(_ORDERS))
    design, ratio = overlaps.design, overlaps.ratio
    starts = np.flatnonzero(np.diff(overlaps.pair, prepend=-1))
    counts = np.diff(starts, append=len(ratio))
    exposures = np.zeros(len(starts))
    for _ in range(_PASSES):
        off = ratio - _applied(design, coefficients)
        rest = off - np.repeat(exposures, counts)
        scale = 1.4826 * float(np.median(np.abs(rest))) + 1e-6
        weight = 1 / (1 + (rest / (_OUTLIER * scale)) ** 2)
        together = _together(weight * rest, overlaps.part)
        variance = float((weight * rest**2).sum() / weight.sum()) + 1e-12
        # The factor of each pair, and how much they scatter beyond what the equations' own errors make of them.
        total = np.add.reduceat(weight, starts)
        factors, own = np.add.reduceat(weight * off, starts) / total, together * variance / total
        scatter = max(float((factors**2 - own).mean()), 0.0)
        exposures = factors * scatter / (scatter + own)
        # What is left of the factors errs together as well.
        left = weight * (off - np.repeat(exposures, counts))
        weight /= max(together, _together(left, overlaps.pair)) * variance
        normal, right = _normal_equations(design, weight, ratio)
        # With the factors unknown, what a pair says of the mean of its ratios counts for less.
        share = scatter / (1 + scatter * np.add.reduceat(weight, starts))
        of_pairs = np.add.reduceat(weight[:, None] * design, starts)
        normal -= np.einsum("pi,p,pj->ij", of_pairs, share, of_pairs)
        right -= np.einsum("pi,p->i", of_pairs, share * np.add.reduceat(weight * ratio, starts))
        coefficients = evidence_average(normal, right, usual, mean)
    return coefficients


def _together(errors: NDArray[np.float64], group: NDArray[np.intp]) -> float:
    """Return by how much the sums of errors over groups are larger than if each erred by itself, at least 1."""
    sums = np.bincount(group, errors)
    return max(1.0, float((sums**2).sum() / max((errors**2).sum(), 1e-12)))


# Products of tall matrices in threads of a linear-algebra library wait for each other on a busy machine, thousands of
# times here; and their sums depend on the number of threads.
@njit(cache=True, nogil=True)
def _applied(design: NDArray[np.float64], coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the product of a matrix and a vector."""
    result = np.empty(design.shape[0])
    for k in range(design.shape[0]):
        total = 0.0
        for i in range(design.shape[1]):
            total += design[k, i] * coefficients[i]
        result[k] = total
    return result


@njit(cache=True, nogil=True)
def _normal_equations(
    design: NDArray[np.float64], weight: NDArray[np.float64], ratio: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the matrix and the right side of weighted least squares."""
    count = design.shape[1]
    normal, right = np.zeros((count, count)), np.zeros(count)
    for k in range(design.shape[0]):
        row = design[k]
        for i in range(count):
            share = weight[k] * row[i]
            right[i] += share * ratio[k]
            for j in range(count):
                normal[i, j] += share * row[j]
    return normal, right


def evidence_average(
    normal: NDArray[np.float64],
    right: NDArray[np.float64],
    usual: NDArray[np.float64],
    mean: Witness | None = None,
) -> NDArray[np.float64]:
    """Solve normal equations for each usual precision of the coefficients; average the solutions by evidence.

    Parameters
    ----------
    normal, right
        (functions, functions) and (functions,).
    usual
        (choices, functions), precisions around 0 that the coefficients of something smooth may have.
    mean
        Another witness, or None; each way to believe it is tried as well.
    """
    known = [(normal, right, 0.0)]
    if mean is not None:
        known = [
            (normal + np.diag(sure), right + sure * mean.mean, float((np.log(sure) - sure * mean.mean**2).sum()))
            for sure in mean.precisions()
        ]
    solutions, evidence = [], []
    for matrix, side, expected in known:
        posterior = matrix + usual[:, :, None] * np.eye(len(side))
        solution = np.linalg.solve(posterior, np.broadcast_to(side, usual.shape)[..., None])[..., 0]
        solutions.append(solution)
        evidence.append(expected + np.log(usual).sum(axis=1) - np.linalg.slogdet(posterior)[1] + solution @ side)
    together = np.concatenate(evidence)
    share = np.exp(0.5 * (together - together.max()))
    return np.asarray(share @ np.concatenate(solutions) / share.sum())
