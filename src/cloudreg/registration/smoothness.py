"""The smoothness prior of the velocity: a Gaussian process with the kernel of (1 - a^2 Laplacian)^(2p)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cloudreg.registration.backend import Field, backend_of


@dataclass(frozen=True)
class Motion:
    """A velocity and the momentum that the kernel turns into it.

    Both are kept, for each is a sum where the other would take a convolution: only what is new has to be smoothed.

    Parameters
    ----------
    momentum, velocity
        (z, y, x, 3), or T of them; the velocity in um.
    """

    momentum: Field
    velocity: Field

    def plus(self, factor: float, other: Motion) -> Motion:
        """Return ``self + factor * other``."""
        return Motion(self.momentum + factor * other.momentum, self.velocity + factor * other.velocity)

    def times(self, factor: float) -> Motion:
        """Return ``factor * self``."""
        return Motion(factor * self.momentum, factor * self.velocity)

    def with_velocity(self, other: Motion) -> float:
        """Return the product of this momentum and the other's velocity, which is that of the prior."""
        return dot(self.momentum, other.velocity)

    def fetched(self) -> Motion:
        """Return the same in the main memory."""
        backend = backend_of(self.momentum)
        return Motion(backend.fetch(self.momentum), backend.fetch(self.velocity))


class Smoothness:
    """The kernel K, by FFT on a periodic grid.

    Parameters
    ----------
    shape, spacing
        Of the velocity grid: nodes (z, y, x) and um. The grid must reach 2 a beyond the brain, so that what wraps
        round at its faces is nothing.
    length
        a, um.
    power
        p; 2 in LDDMM practice.

    Notes
    -----
    The symbol of the operator is that of second differences, so it is never below 1 and has no ringing. K is scaled
    to K(0) = 1: a velocity drawn from the prior with weight 1 has unit variance (1 um^2) at each node whatever the
    grid, which makes the regularisation's weight independent of the grid's spacing.
    """

    def __init__(
        self, shape: tuple[int, int, int], spacing: NDArray[np.float32], length: float, power: int = 2
    ) -> None:
        self.shape = shape
        self.spacing = spacing
        self.length = length
        symbol = np.ones((1, 1, 1))
        for axis, (n, h) in enumerate(zip(shape, spacing.astype(float), strict=True)):
            f = np.fft.rfftfreq(n) if axis == 2 else np.fft.fftfreq(n)
            line = 2 * length**2 / h**2 * (1 - np.cos(2 * np.pi * f))
            symbol = symbol + line.reshape([-1 if k == axis else 1 for k in range(3)])
        kernel = symbol ** (-2 * power)
        # Mean over all frequencies of the full spectrum: those that the real transform leaves out count twice.
        twice = np.full(kernel.shape[2], 2.0)
        twice[0] = 1
        if shape[2] % 2 == 0:
            twice[-1] = 1
        kernel /= (kernel * twice).sum() / np.prod(shape)
        self._kernel = kernel.astype(np.float32)[..., None]

    def motion(self, momentum: Field) -> Motion:
        """Return a momentum (z, y, x, 3), or T of them, with its velocity: K applied to each component."""
        return Motion(momentum, self._smoothed(momentum))

    def _smoothed(self, field: Field) -> Field:
        backend = backend_of(field)
        if field.ndim == 5:
            return backend.xp.stack([self._smoothed(one) for one in field])
        spectrum = backend.rfftn(field)
        spectrum *= backend.constant(self._kernel)
        return backend.irfftn(spectrum, self.shape)

    def refined(self, motion: Motion, coarse: Smoothness) -> Motion:
        """Return on this grid the motion that ``motion`` is on a coarser one.

        Parameters
        ----------
        motion
            On ``coarse``'s grid, which begins where this one does and covers the same period.
        coarse
            Its prior.

        Returns
        -------
        Motion
            Its velocity is the band-limited interpolant: zeros are added to its spectrum.
        """
        return self.motion(self._refined(motion.momentum, coarse))

    def _refined(self, momentum: Field, coarse: Smoothness) -> Field:
        backend = backend_of(momentum)
        if momentum.ndim == 5:
            return backend.xp.stack([self._refined(one, coarse) for one in momentum])
        # Once in a fit, so in the main memory wherever the momentum is.
        spectrum = scipy.fft.rfftn(backend.fetch(momentum), axes=(0, 1, 2)) * coarse._kernel
        padded = np.zeros((*self.shape[:2], self.shape[2] // 2 + 1, 3), dtype=spectrum.dtype)
        # Frequencies below the coarse grid's Nyquist, positive and (but for the halved last axis) negative.
        kept = [np.arange(-((n - 1) // 2), (n - 1) // 2 + 1) for n in coarse.shape]
        kept[2] = kept[2][kept[2] >= 0]
        padded[np.ix_(*kept)] = spectrum[np.ix_(*kept)] * np.float32(np.prod(self.shape) / np.prod(coarse.shape))
        padded /= self._kernel
        fine = scipy.fft.irfftn(padded, s=self.shape, axes=(0, 1, 2))
        return backend.send(np.ascontiguousarray(fine, dtype=np.float32))


def dot(a: Field, b: Field) -> float:
    """Return the sum of products of two fields, summed in double precision."""
    xp = backend_of(a).xp
    return float(xp.sum(a * b, dtype=xp.float64))
