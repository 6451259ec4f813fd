"""What a voxel of the target may be: matching tissue, an artifact, or background."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Estimated = Literal["noise", "greys", "variances", "priors"]
"""What EM may estimate: the standard deviation of matching tissue; the mean greys, the standard deviations of the two
other classes; and how frequent the three are."""

_MIN_NOISE = 0.02
"""Floor of the matching class's standard deviation: no real contrast is known better."""

_MIN_ARTIFACT, _MAX_BACKGROUND = 0.6, 0.3
"""Artifacts stay brighter than this and background darker, so that the classes never change their roles."""

_MIN_SIGMAS, _MAX_SIGMA = (0.2, 0.05), 1.0
"""Standard deviations of artifacts and of background stay within these: a class that shrinks onto a few voxels
explains nothing, and one that grows over all greys explains everything."""

_MIN_PRIOR = 0.005
"""No class dies out: what is rare at one level may be seen at the next."""

_FEWEST = 1.0
"""A class of fewer voxels than this tells nothing about itself."""


@dataclass(frozen=True)
class Mixture:
    """The three ways to explain a voxel.

    Parameters
    ----------
    sigma_match, sigma_artifact, sigma_background
        Standard deviations, in units of the normalised target.
    artifact, background
        Mean grey values of the two classes that are not matching tissue.
    priors
        Of matching tissue, artifact and background.
    """

    sigma_match: float
    sigma_artifact: float
    sigma_background: float
    artifact: float
    background: float
    priors: tuple[float, float, float]

    def packed(self) -> NDArray[np.float64]:
        """Return (amplitude, 1 / (2 variance)) of each class and the two means, as the loops want them."""
        values = []
        sigmas = (self.sigma_match, self.sigma_artifact, self.sigma_background)
        for prior, sigma in zip(self.priors, sigmas, strict=True):
            values += [prior / (sigma * math.sqrt(2 * math.pi)), 0.5 / sigma**2]
        return np.array([*values, self.artifact, self.background])

    def refitted(self, statistics: NDArray[np.float64], matching: float, estimated: Set[Estimated]) -> Mixture:
        """Return the mixture that fits the sums of `cloudreg.registration.kernels.evaluate`; empty classes stay.

        Parameters
        ----------
        statistics
            (8,), see there.
        matching
            Sum of weight x match over all voxels, background included.
        estimated
            What is estimated; the rest stays as it is.
        """
        match, squares, artifact, artifact_grey, background, background_grey, artifact_square, background_square = (
            float(s) for s in statistics
        )
        new = self
        if "noise" in estimated and match > 0:
            new = replace(new, sigma_match=max(_MIN_NOISE, math.sqrt(squares / match)))
        if "greys" in estimated and artifact > _FEWEST:
            new = replace(new, artifact=max(artifact_grey / artifact, _MIN_ARTIFACT))
        if "greys" in estimated and background > _FEWEST:
            new = replace(new, background=min(background_grey / background, _MAX_BACKGROUND))
        if "variances" in estimated and artifact > _FEWEST:
            sigma = _spread(artifact, artifact_grey, artifact_square, new.artifact, _MIN_SIGMAS[0])
            new = replace(new, sigma_artifact=sigma)
        if "variances" in estimated and background > _FEWEST:
            sigma = _spread(background, background_grey, background_square, new.background, _MIN_SIGMAS[1])
            new = replace(new, sigma_background=sigma)
        total = matching + artifact + background
        if "priors" in estimated and total > _FEWEST:
            rare = [max(_MIN_PRIOR, count / total) for count in (artifact, background)]
            new = replace(new, priors=_summing_to_1(max(_MIN_PRIOR, matching / total), rare[0], rare[1]))
        return new


def _spread(count: float, sums: float, squares: float, mean: float, least: float) -> float:
    """Return the standard deviation about a mean that need not be the class's own."""
    variance = squares / count - 2 * mean * sums / count + mean**2
    return min(max(math.sqrt(max(variance, 0.0)), least), _MAX_SIGMA)


def _summing_to_1(match: float, artifact: float, background: float) -> tuple[float, float, float]:
    total = match + artifact + background
    return match / total, artifact / total, background / total
