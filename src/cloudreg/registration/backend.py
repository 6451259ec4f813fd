"""Where the solver computes: the same solver on arrays of NumPy in the main memory, or of torch on a GPU.

The solver is plain array operations, which both libraries share (the array API), and a few filters and hot loops,
which each backend brings: SciPy's and numba's on the CPU, Triton's on a GPU. A backend is found by the array at hand
(`backend_of`), as a namespace is in the array API, so that whoever sends the first field to a device has chosen where
everything after it happens. The images are sent to the device once, and fields on the velocity grid and the contrast
live there; sums and the affine come back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias

import array_api_compat.numpy
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cloudreg.registration import kernels, nodes, sampling
from cloudreg.registration.threads import along, slabs, together

Field: TypeAlias = Any
"""A (z, y, x, ...) float32 array on some device, that knows + - * / and indexing."""

Surroundings: TypeAlias = Literal["reflect", "constant"]
"""What lies beyond an array's faces: the array mirrored, or zeros."""

_Image: TypeAlias = NDArray[np.float32]
_Sums: TypeAlias = NDArray[np.float64]


class Backend(Protocol):
    """One device, its arrays and the hot loops over them.

    What is passed as NumPy array to a loop or to `constant` must not be changed afterwards: a copy of it may be kept.
    """

    @property
    def xp(self) -> Any:
        """The arrays' namespace, as the array API has it."""

    def send(self, array: NDArray[Any]) -> Field:
        """Copy an array to the device."""

    def constant(self, array: _Image) -> Field:
        """Return an array on the device that is sent once, and kept for as long as ``array`` is."""

    def fetch(self, field: Field) -> NDArray[Any]:
        """Copy a field to the main memory."""

    def home(self, nbytes: int) -> Backend:
        """Return where images of this size are prepared: here, or in the main memory if there is no room for them."""

    def smoothed(self, field: Field, sigmas: Sequence[float], surroundings: Surroundings, truncate: float) -> Field:
        """Apply Gaussians along z, y, x: standard deviations in voxels, cut off at ``truncate`` of them."""

    def spline_coefficients(self, image: Field, outside: float) -> Field:
        """See `cloudreg.registration.sampling.spline_coefficients`."""

    def resampled(self, image: Field, step: NDArray[np.float64], shape: tuple[int, int, int]) -> Field:
        """Interpolate an image, 0 beyond its voxels, at ``step`` (4 x 4) times the indices of an array of ``shape``."""

    def near(self, mask: Field, reach: Sequence[int]) -> Field:
        """Return where a box that reaches so many voxels to both sides holds any voxel of the mask."""

    def rfftn(self, field: Field) -> Field:
        """Return the Fourier transform over the first three axes, of which the last is halved."""

    def irfftn(self, spectrum: Field, shape: tuple[int, int, int]) -> Field:
        """Return the real field of a spectrum."""

    def evaluate(
        self, target: _Image, weight: _Image, active: NDArray[np.int64], *model: Any
    ) -> tuple[float, _Sums, Field]:
        """See `cloudreg.registration.kernels.evaluate`; the moments stay on the device.

        Images may be on the device too or in the main memory; of ``model``, the displacement is on the device.
        """

    def linearize(
        self, target: _Image, weight: _Image, active: NDArray[np.int64], *model: Any, affine: bool = True
    ) -> tuple[float, Field, Field, _Sums, _Sums]:
        """See `cloudreg.registration.kernels.linearize`; the gradient and the Hessian stay on the device."""

    def curved(self, hessian: Sequence[Field], velocity: Field, weight: float, momentum: Field) -> Field:
        """Return H velocity + weight momentum, H given at each node by the fields zz, zy, zx, yy, yx, xx."""

    def gather(self, u: Field, field: Field, spacing: _Image) -> Field:
        """Return field(x + u)."""

    def scatter(self, u: Field, force: Field, spacing: _Image) -> Field:
        """Apply the transpose of `gather`."""

    def push(self, u: Field, field: Field, change: Field, field_change: Field, spacing: _Image) -> Field:
        """Return the change of u(x) + field(x + u(x)) for a change of u and one of the field."""

    def pull(self, u: Field, field: Field, force: Field, spacing: _Image) -> tuple[Field, Field]:
        """Apply the transpose of `push`: return the forces on u and on the field."""

    def smallest_determinant(self, u: Field, spacing: _Image) -> float:
        """Return the smallest determinant of the map x + u(x) at the corners of any cell."""


class NumpyBackend:
    """The main memory and the CPU."""

    xp = array_api_compat.numpy

    def send(self, array: NDArray[Any]) -> Field:
        """Return the array: it's there."""
        return array

    constant = send

    def fetch(self, field: Field) -> NDArray[Any]:
        """Return the array: it's here."""
        return np.asarray(field)

    def home(self, nbytes: int) -> Backend:
        """See `Backend`."""
        return self

    def smoothed(self, field: Field, sigmas: Sequence[float], surroundings: Surroundings, truncate: float) -> Field:
        """See `Backend`."""
        from scipy.ndimage import gaussian_filter1d

        for axis, sigma in enumerate(sigmas):
            field = along(axis, gaussian_filter1d, field, sigma, mode=surroundings, truncate=truncate)
        return field

    spline_coefficients = staticmethod(sampling.spline_coefficients)

    def resampled(self, image: Field, step: NDArray[np.float64], shape: tuple[int, int, int]) -> Field:
        """See `Backend`."""
        from scipy.ndimage import affine_transform

        result = np.empty(shape, dtype=image.dtype)

        def fill(part: slice) -> None:
            start = step[:3, 3] + step[:3, 0] * part.start
            affine_transform(image, step[:3, :3], start, output=result[part], order=1, mode="constant")

        together(fill, slabs(shape[0]))
        return result

    def near(self, mask: Field, reach: Sequence[int]) -> Field:
        """See `Backend`."""
        from scipy.ndimage import uniform_filter1d

        size = [2 * n + 1 for n in reach]
        share = mask.astype(np.float32)
        for axis, n in enumerate(size):
            share = along(axis, uniform_filter1d, share, n, mode="constant")
        return share > 0.5 / np.prod(size)

    def rfftn(self, field: Field) -> Field:
        """See `Backend`. One thread: fields are small, and on two cores the second makes it slower."""
        return scipy.fft.rfftn(field, axes=(0, 1, 2))

    def irfftn(self, spectrum: Field, shape: tuple[int, int, int]) -> Field:
        """See `Backend`."""
        return np.ascontiguousarray(scipy.fft.irfftn(spectrum, s=shape, axes=(0, 1, 2)), dtype=np.float32)

    def curved(self, hessian: Sequence[Field], velocity: Field, weight: float, momentum: Field) -> Field:
        """See `Backend`."""
        z, y, x = velocity[..., 0], velocity[..., 1], velocity[..., 2]
        zz, zy, zx, yy, yx, xx = hessian
        rows = [zz * z + zy * y + zx * x, zy * z + yy * y + yx * x, zx * z + yx * y + xx * x]
        return np.stack(rows, axis=-1) + weight * momentum

    evaluate = staticmethod(kernels.evaluate)
    linearize = staticmethod(kernels.linearize)
    gather = staticmethod(nodes.gather)
    push = staticmethod(nodes.push)

    def pull(self, u: Field, field: Field, force: Field, spacing: _Image) -> tuple[Field, Field]:
        """See `Backend`."""
        force = np.ascontiguousarray(force)
        loops = partial(nodes.pull_own, u, field, force, spacing), partial(nodes.scatter, u, force, spacing)
        own, moved = together(lambda loop: loop(), loops)
        return own, moved

    def scatter(self, u: Field, force: Field, spacing: _Image) -> Field:
        """See `Backend`."""
        return nodes.scatter(u, np.ascontiguousarray(force), spacing)

    def smallest_determinant(self, u: Field, spacing: _Image) -> float:
        """See `Backend`."""
        return float(nodes.smallest_determinant(u, spacing).min())


MAIN_MEMORY: Backend = NumpyBackend()
"""The backend of NumPy's arrays."""


def backend_of(array: Field) -> Backend:
    """Return the backend of the device that an array is on."""
    if isinstance(array, np.ndarray):
        return MAIN_MEMORY
    from cloudreg.registration.gpu.backend import torch_backend_of

    return torch_backend_of(array)


def backend_for(device: Literal["cpu", "cuda"], report: Callable[[str], None] = lambda text: None) -> Backend:
    """Return the backend of a device by name.

    Parameters
    ----------
    device
        As in `cloudreg.settings.RegistrationSettings`.
    report
        Gets a line when the device's memory is too small to hold all at once.

    Raises
    ------
    MissingExtraError
        If torch or Triton is not installed.
    InputError
        If there is no such device.
    """
    if device == "cpu":
        # On a machine's first run this loop is compiled, which starts another process that compiles the rest: the
        # sooner, the better.
        nothing = np.zeros((2, 2, 2, 3), dtype=np.float32)
        MAIN_MEMORY.gather(nothing, nothing, np.ones(3, dtype=np.float32))
        return MAIN_MEMORY
    from cloudreg.registration.gpu import cuda_backend

    return cuda_backend(report)
