"""How the demo's microscope spoils an image: vignetting, uneven light, an offset, photon and read noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CORNER = 0.65
"""Light in the darkest corner of a tile, relative to the brightest place."""

_WAVINESS = 0.11
"""Amplitude of the light's slow variation along each axis of the volume."""


@dataclass(frozen=True, eq=False)
class Microscope:
    """The optics and the camera.

    Parameters
    ----------
    flats
        Light over a tile, float32 (channel, height, width), mean 1 each.
    phases
        (channel, 3) of the light's slow variation over the volume.
    field_um
        Size of the whole field, z y x.
    background
        Counts of the camera without light.
    brightness
        Counts of grey 1, per channel.
    gain
        Counts per photo-electron.
    read_noise
        Standard deviation in counts.
    """

    flats: NDArray[np.float32]
    phases: NDArray[np.float64]
    field_um: tuple[float, float, float]
    background: float = 110.0
    brightness: tuple[float, ...] = (1800.0, 1200.0)
    gain: float = 4.0
    read_noise: float = 3.0

    @staticmethod
    def random(tile_shape: Sequence[int], field_um: Sequence[float], channels: int, seed: int) -> Microscope:
        """Draw a microscope.

        Parameters
        ----------
        tile_shape
            Height and width of a tile in pixels.
        field_um
            Size of the whole field, z y x.
        channels
            How many.
        seed
            Of the draw.
        """
        generator = np.random.default_rng([seed, 3])
        flats = np.stack([_vignetting(tile_shape, generator) for _ in range(channels)])
        # Laser and detection are shared by the channels, so their light is alike but not equal.
        phases = generator.uniform(0, 2 * np.pi, size=3) + generator.normal(scale=0.25, size=(channels, 3))
        z, y, x = (float(v) for v in field_um)
        return Microscope(flats, phases, (z, y, x))

    def illumination(self, channel: int, axis: int, position_um: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the factor of the light at positions along one axis; the light is the product over the axes."""
        turns = position_um / (1.35 * self.field_um[axis])
        wave = np.sin(2 * np.pi * turns + self.phases[channel, axis])
        return np.asarray(1 + _WAVINESS * wave, dtype=np.float32)

    def expose(
        self,
        grey: NDArray[np.float32],
        channel: int,
        corner_um: Sequence[float],
        voxel_um: Sequence[float],
        seed: list[int],
    ) -> NDArray[np.uint16]:
        """Return the counts of a stack of planes.

        Parameters
        ----------
        grey
            The sample, (planes, height, width), 0 without light.
        channel
            Which flat field, light and brightness.
        corner_um, voxel_um
            Where the first pixel lies in the field, and the pixel size; z y x.
        seed
            Of the noise.
        """
        generator = np.random.default_rng(seed)
        z, y, x = (
            self.illumination(channel, axis, corner_um[axis] + voxel_um[axis] * np.arange(n))
            for axis, n in enumerate(grey.shape)
        )
        light = self.flats[channel] * np.outer(y, x) * np.float32(self.brightness[channel] / self.gain)
        electrons = generator.poisson(grey * light * z[:, None, None]).astype(np.float32)
        counts = electrons * np.float32(self.gain) + np.float32(self.background)
        counts += np.float32(self.read_noise) * generator.standard_normal(grey.shape, dtype=np.float32)
        return np.asarray(np.clip(np.rint(counts), 1, 65535), dtype=np.uint16)


def _vignetting(shape: Sequence[int], generator: np.random.Generator) -> NDArray[np.float32]:
    """Return light that falls off smoothly from a place near the middle of a tile, mean 1."""
    height, width = shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    centre = generator.uniform(-0.2, 0.2, size=2)
    stretch = generator.uniform(0.9, 1.1)
    r2 = ((y - centre[0]) * stretch) ** 2 + ((x - centre[1]) / stretch) ** 2
    falloff = 1 / (1 + (np.sqrt(1 / _CORNER) - 1) * r2 / r2.max()) ** 2
    return np.asarray(falloff / falloff.mean(), dtype=np.float32)
