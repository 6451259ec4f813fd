"""The smoothness prior of the velocity: a Gaussian process with the kernel of (1 - a^2 Laplacian)^(2p)."""

from __future__ import annotations

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cloudreg.registration.backend import Field, backend_of


class Smoothness:
    """The kernel K and its square root, by FFT on a periodic grid.

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
        self._root = np.sqrt(kernel).astype(np.float32)[..., None]

    def root(self, field: Field) -> Field:
        """Return K^(1/2) applied to each component of a (z, y, x, 3) field, or of each of T of them."""
        backend = backend_of(field)
        if field.ndim == 5:
            return backend.xp.stack([self.root(one) for one in field])
        spectrum = backend.rfftn(field)
        spectrum *= backend.constant(self._root)
        return backend.irfftn(spectrum, self.shape)

    def refined(self, momentum: Field, coarse: Smoothness) -> Field:
        """Return the momentum on this grid of the velocity that ``momentum`` has on a coarser one.

        Parameters
        ----------
        momentum
            (z, y, x, 3), or T of them, on ``coarse``'s grid, which begins where this one does and covers the same
            period.
        coarse
            Its prior.

        Returns
        -------
        ndarray, shape (z, y, x, 3), or T of them
            The velocity is the band-limited interpolant: zeros are added to its spectrum.
        """
        backend = backend_of(momentum)
        if momentum.ndim == 5:
            return backend.xp.stack([self.refined(one, coarse) for one in momentum])
        # Once in a fit, so in the main memory wherever the momentum is.
        spectrum = scipy.fft.rfftn(backend.fetch(momentum), axes=(0, 1, 2)) * coarse._root
        padded = np.zeros((*self.shape[:2], self.shape[2] // 2 + 1, 3), dtype=spectrum.dtype)
        # Frequencies below the coarse grid's Nyquist, positive and (but for the halved last axis) negative.
        kept = [np.arange(-((n - 1) // 2), (n - 1) // 2 + 1) for n in coarse.shape]
        kept[2] = kept[2][kept[2] >= 0]
        padded[np.ix_(*kept)] = spectrum[np.ix_(*kept)] * np.float32(np.prod(self.shape) / np.prod(coarse.shape))
        padded /= self._root
        fine = scipy.fft.irfftn(padded, s=self.shape, axes=(0, 1, 2))
        return backend.send(np.ascontiguousarray(fine, dtype=np.float32))
