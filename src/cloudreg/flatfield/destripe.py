"""Stripes of a light sheet, taken out of a plane by wavelets and Fourier transforms.

What absorbs light on its way through the tissue casts a shadow along the sheet: stripes all along one axis. A wavelet
transform puts what is long along that axis and fine across it into one kind of detail at each scale; there, a stripe is
what does not change along the axis, the lowest frequencies of a Fourier transform along it. These are damped.

References
----------
B. Münch, P. Trtik, F. Marone, M. Stampanoni, "Stripe and ring artifact removal with combined wavelet - Fourier
filtering", Optics Express 17 (2009), doi:10.1364/OE.17.008567.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from cloudreg.errors import InputError, MissingExtraError

_WAVELET = "db6"


@dataclass(frozen=True)
class Destriping:
    """How stripes are taken out.

    Parameters
    ----------
    along
        Axis that the stripes run along: ``rows`` are horizontal stripes, ``columns`` vertical ones.
    shortest_px
        Stripes at least about this long are damped; shorter things are kept.
    widest_px
        Stripes up to about this width are damped.
    """

    along: Literal["rows", "columns"]
    shortest_px: float = 256.0
    widest_px: float = 64.0

    def __post_init__(self) -> None:
        """Refuse lengths that mean nothing."""
        if not (self.shortest_px > 0 and self.widest_px >= 2):
            raise InputError(
                f"expected stripes at least some pixels long and 2 wide, got {self.shortest_px} and {self.widest_px}"
            )

    def apply(self, plane: NDArray[Any]) -> NDArray[np.float32]:
        """Return a plane (rows, columns) without its stripes, float32, 0 or more; its mean stays.

        Raises
        ------
        MissingExtraError
            If PyWavelets is not installed.
        """
        try:
            import pywt
        except ImportError as error:
            raise MissingExtraError("pywavelets", "destripe") from error
        image = plane.astype(np.float32)
        if self.along == "columns":
            image = image.T
        # Stripes are multiplied onto the tissue, so the logarithm makes them alike in bright and dark places.
        low = max(float(np.percentile(image, 1)), 1.0)
        log = np.log(image + low)
        levels = min(max(1, round(float(np.log2(self.widest_px)))), pywt.dwt_max_level(min(log.shape), _WAVELET))
        approximation, *details = pywt.wavedec2(log, _WAVELET, mode="symmetric", level=levels)
        damped = [
            (self._damped(horizontal, log.shape[1]), vertical, diagonal) for horizontal, vertical, diagonal in details
        ]
        even = pywt.waverec2([approximation, *damped], _WAVELET, mode="symmetric")[: log.shape[0], : log.shape[1]]
        even += (log - even).mean()
        result = np.maximum(np.exp(even) - low, 0).astype(np.float32)
        return np.asarray(result.T if self.along == "columns" else result)

    def _damped(self, detail: NDArray[np.float32], length: int) -> NDArray[np.float32]:
        """Take off what hardly changes along the rows of details across them."""
        spectrum = fft.rfft(detail, axis=1)
        # Waves over the whole row that a stripe of the shortest length still has.
        waves = np.arange(spectrum.shape[1])
        spectrum *= -np.expm1(-(waves**2) / (2 * (length / self.shortest_px) ** 2))
        return np.asarray(fft.irfft(spectrum, detail.shape[1], axis=1), dtype=np.float32)
